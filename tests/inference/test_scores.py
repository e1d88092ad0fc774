"""Scores and samples of predict, compared with transformers' network in torch."""

from pathlib import Path
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.inference import predictor as predictor_module
from cotmi_jax.inference.lines import Line
from cotmi_jax.inference.predictor import Predictor
from cotmi_jax.models.decoding import Decoding, Generated
from cotmi_jax.models.hf import save_hf
from cotmi_jax.models.student import StudentDef
from cotmi_jax.parallel.mesh import make_mesh

quick_compilation = runs.quick_compilation

VOCABULARY = Vocabulary(VOCABULARY_PATH)
CONFIG = helpers.small_config(vocab_size=512, d_model=32)
STUDENT = StudentDef.of(CONFIG)
TEXTS = ["Two pens and 3 pens.", "How many are left?"]


def make_predictor(decoding: Decoding, **settings: Any) -> Predictor:
    settings = {"task": "raw", "scores": True} | settings
    return Predictor(
        STUDENT, helpers.numpy_params(STUDENT), VOCABULARY, "dss", make_mesh(), decoding=decoding, **settings
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_scores_are_those_of_transformers(method: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    save_hf(jax.device_get(helpers.numpy_params(STUDENT)), CONFIG, tmp_path / "hf", vocabulary_file=None)
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    settings = {"length_penalty": 0.6, "num_beams": 2} if method == "beam" else {"temperature": 0.5, "top_k": 9}
    predictor, seen = make_predictor(Decoding(method, max_tokens=5, **settings)), []
    decode = VOCABULARY.decode
    monkeypatch.setattr(VOCABULARY, "decode", lambda ids: (seen.append(np.asarray(ids)), decode(ids))[1])
    (answers,) = predictor.answers([Line(n, text) for n, text in enumerate(TEXTS)], 8)
    for (line, samples), ids in zip(answers, seen, strict=True):
        score, (encoded,) = samples[0]["output_score"], VOCABULARY.encode([line.text])
        labels = torch.tensor(ids[: score["tokens"]])[None].long()
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*encoded, 1]]), labels=labels).logits
        expected = torch.log_softmax(logits, -1).gather(-1, labels[..., None]).double()
        assert score["tokens"] == len(ids) or ids[score["tokens"] - 1] == 1
        assert score["sum"] == pytest.approx(float(expected.sum()), abs=1e-4)
        assert score["mean"] == pytest.approx(float(expected.mean()), abs=1e-4)


@pytest.mark.slow
def test_several_samples_differ_and_the_first_is_that_of_one_sample() -> None:
    sampling = Decoding("sample", max_tokens=5)
    lines = [Line(n, text) for n, text in enumerate(TEXTS)]
    (one,), (several,) = (list(make_predictor(sampling, num_samples=number).answers(lines, 8)) for number in (1, 4))
    for (_, (alone,)), (_, samples) in zip(one, several, strict=True):
        assert samples[0] == alone and len({sample["output"] for sample in samples}) > 2


@pytest.mark.parametrize(("method", "total"), [("greedy", -6.0), ("beam", -6.0 * 7**0.5)])
def test_the_end_of_an_output_counts_as_a_token(method: Any, total: float, monkeypatch: pytest.MonkeyPatch) -> None:
    ids_T = jnp.asarray([5, 6, 7, 8, 9, 10, 1, 0, 0], jnp.int32)  # padded after eos

    def generate(student: Any, inputs_BxS: jax.Array, *_: Any, **__: Any) -> Generated:
        return Generated(jnp.tile(ids_T, (len(inputs_BxS), 1)), jnp.full(len(inputs_BxS), -6.0))

    monkeypatch.setattr(predictor_module, "generate", generate)
    predictor = make_predictor(Decoding(method, max_tokens=9, length_penalty=0.5))
    ((_, (answer,)),) = next(predictor.answers([Line(1, TEXTS[0])], 8))
    assert answer["output_score"] == pytest.approx({"sum": total, "mean": total / 7, "tokens": 7})


def test_several_samples_need_sampling() -> None:
    with pytest.raises(UserError, match="--num_samples=2: --method=greedy gives one answer; use --method=sample"):
        make_predictor(Decoding("greedy"), num_samples=2)


def test_scores_are_named_after_the_output_they_belong_to() -> None:
    greedy = Decoding("greedy", max_tokens=2)
    ((_, (answer,)),) = next(make_predictor(greedy, task="both").answers([Line(1, TEXTS[0])], 8))
    assert list(answer) == ["label", "rationale", "label_score", "rationale_score", "confidence"]
    assert answer["label_score"].keys() == {"sum", "mean", "tokens"}
    assert answer["confidence"] == pytest.approx(np.exp(answer["label_score"]["sum"]))
