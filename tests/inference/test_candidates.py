"""Candidate labels: their log-probabilities are those of transformers, and depend on nothing but input and label."""

import functools
import io
from pathlib import Path
from typing import Any

import helpers
import jax
import numpy as np
import pytest
import runs
from jax.sharding import Mesh

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.tokens import Ragged
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.inference.candidates import LabelOutput, LabelScorer, LabelScores, Target, TargetScorer, ranked
from cotmi_jax.inference.lines import Answer, Line, read_lines
from cotmi_jax.inference.predictor import Predictor
from cotmi_jax.models.decoding import Decoding
from cotmi_jax.models.hf import save_hf
from cotmi_jax.models.student import StudentDef
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import param_shardings

quick_compilation = runs.quick_compilation

VOCABULARY = Vocabulary(VOCABULARY_PATH)
CONFIG = helpers.small_config(vocab_size=512, d_model=32, num_encoder_layers=1, num_decoder_layers=1)
STUDENT = StudentDef.of(CONFIG)
INPUTS = ("Two pens and 3 pens.", "How many are left?", "4 boxes", "Tom has 12 pens and gives away 5 of them.")
# Of any number and length; the third input has none.
CHOICES: tuple[tuple[str, ...], ...] = (
    ("5", "( 2 + 3 )", "none of them"),
    ("7",),
    (),
    tuple(f"{n} pens" for n in range(6)),
)
ASKED = tuple(zip(INPUTS, CHOICES, strict=True))


@functools.cache
def params() -> dict[str, Any]:
    return jax.tree.map(np.asarray, helpers.numpy_params(STUDENT))


def small_mesh() -> Mesh:
    return make_mesh(data=1, devices=jax.devices()[:1])


def encoded(texts: tuple[str, ...]) -> list[list[int]]:
    return [[*ids, EOS_ID] for ids in VOCABULARY.encode(texts)]


def targets_of(choices: tuple[tuple[str, ...], ...]) -> list[Target]:
    return [Target(row, ids) for row, each in enumerate(choices) for ids in (encoded(each) if each else [])]


def inputs_on(mesh: Mesh, params: Any, texts: tuple[str, ...], length: int) -> tuple[jax.Array, jax.Array]:
    """Padded inputs and their encoder states."""
    ids = Ragged.of(encoded(texts)).padded(np.arange(len(texts)), length)
    inputs = put_batch({"inputs": ids}, mesh)["inputs"]
    return inputs, jax.jit(lambda params, inputs: STUDENT.bind(params).encode(inputs))(params, inputs)


def score(mesh: Mesh, targets: list[Target], texts: tuple[str, ...] = INPUTS, length: int = 24) -> np.ndarray:
    with jax.set_mesh(mesh):
        placed = jax.device_put(params(), param_shardings(STUDENT.shapes, STUDENT.axes, mesh))
        return TargetScorer(STUDENT, mesh)(placed, *inputs_on(mesh, placed, texts, length), targets)


@functools.cache
def scores() -> np.ndarray:
    """Of all candidates together, on one device."""
    return score(small_mesh(), targets_of(CHOICES))


@pytest.mark.slow
def test_log_probabilities_are_those_of_transformers(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    save_hf(params(), CONFIG, tmp_path / "hf", vocabulary_file=None)
    model = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "hf").eval()
    expected, inputs = [], encoded(INPUTS)
    for row, ids, _ in targets_of(CHOICES):
        labels = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([inputs[row]]), labels=labels).logits
        expected.append(float(torch.log_softmax(logits, -1).gather(-1, labels[..., None]).double().sum()))
    assert len(expected) == 10 and np.ptp(expected) > 1
    np.testing.assert_allclose(scores(), expected, rtol=0, atol=1e-4)


def test_log_probabilities_depend_on_no_other_candidate_and_no_padding() -> None:
    targets = [Target(0, ids) for ids in encoded(CHOICES[3])]
    alone = score(small_mesh(), targets, INPUTS[3:], length=40)
    np.testing.assert_allclose(alone, scores()[4:], rtol=0, atol=2e-5)


def test_a_mesh_gives_the_log_probabilities_of_one_device() -> None:
    found = score(make_mesh(1, 2, 2, devices=jax.devices()[:4]), targets_of(CHOICES))
    np.testing.assert_allclose(found, scores(), rtol=0, atol=2e-5)


def test_tokens_before_the_start_are_given() -> None:
    (ids,) = encoded(("( 2 + 3 )",))
    whole, first, rest = score(small_mesh(), [Target(0, ids), Target(0, ids[:3]), Target(0, ids, 3)])
    assert first < -1 and rest == pytest.approx(whole - first, abs=2e-5)


def test_no_candidates_give_no_log_probabilities() -> None:
    assert score(small_mesh(), []).shape == (0,)


def label_scores(objective: str, output: LabelOutput) -> LabelScores:
    with jax.set_mesh(mesh := small_mesh()):
        scorer = LabelScorer(STUDENT, VOCABULARY, objective, mesh)
        (found,) = scorer(params(), *inputs_on(mesh, params(), INPUTS, 24), [output])
    return found


def test_a_label_after_a_rationale_is_scored_given_the_rationale() -> None:
    """Of two marks the last one counts; the confidence is that of the tokens which were generated."""
    text = "2 + 3 = 4. So the answer is 4. 2 + 3 = 5. So the answer is ( 2 + 3 )"
    (ids,) = encoded((text,))
    padded = np.array([*ids, 0, 0], np.int32)
    found = label_scores("single_task", LabelOutput(0, padded, text, None, ("5", "( 2 + 3 )")))
    (given,) = VOCABULARY.encode([text.removesuffix(" ( 2 + 3 )")])
    assert ids[: len(given)] == given
    other = encoded((text.replace("( 2 + 3 )", "5"),))[0]
    expected = score(small_mesh(), [Target(0, other, len(given)), Target(0, ids, len(given))])
    assert found.confidence == pytest.approx(np.exp(expected[1]), rel=1e-4)
    np.testing.assert_allclose(found.log_p, expected, atol=2e-5)


def test_an_output_without_a_label_has_candidates_but_no_confidence() -> None:
    """Its text counts as the rationale."""
    (ids,) = encoded(("2 + 3 = 5.",))
    found = label_scores("single_task", LabelOutput(1, np.array(ids), "2 + 3 = 5.", None, ("5", "7")))
    forced = encoded(tuple(f"2 + 3 = 5. So the answer is {n}" for n in (5, 7)))
    start = len(VOCABULARY.encode(["2 + 3 = 5. So the answer is"])[0])
    assert found.confidence is None
    np.testing.assert_allclose(found.log_p, score(small_mesh(), [Target(1, ids, start) for ids in forced]), atol=2e-5)


def test_choices_are_ranked_and_ties_keep_their_order() -> None:
    assert ranked(("a", "b", "c", "d"), (-2.0, -1.0, -3.0, -1.0)) == [("b", -1), ("d", -1), ("a", -2), ("c", -3)]


# The command predict.


def predict(lines: list[Line], objective: str = "standard", **settings: Any) -> list[Answer]:
    settings = {"task": "predict", "decoding": Decoding(max_tokens=4)} | settings
    with jax.set_mesh(mesh := small_mesh()):
        predictor = Predictor(STUDENT, params(), VOCABULARY, objective, mesh, **settings)
        for line in lines:
            predictor.check(line)
        return [answer for window in predictor.answers(lines, 4) for _, (answer,) in window]


def test_predict_ranks_the_choices_of_a_line_or_those_given_for_all() -> None:
    rows = [{"input": text, "choices": list(choices)} if len(choices) > 1 else None for text, choices in ASKED]
    lines = [Line(number, text, row) for number, ((text, _), row) in enumerate(zip(ASKED, rows, strict=True))]
    answers = predict(lines, candidates=("5", "( 2 + 3 )"))
    for row, ((_, choices), answer) in enumerate(zip(ASKED, answers, strict=True)):
        asked = choices if len(choices) > 1 else ("5", "( 2 + 3 )")
        log_p = score(small_mesh(), [Target(row, ids) for ids in encoded(asked)])
        expected = ranked(asked, log_p)
        assert [each["label"] for each in answer["candidates"]] == [label for label, _ in expected]
        np.testing.assert_allclose([each["log_p"] for each in answer["candidates"]], sorted(log_p)[::-1], atol=5e-5)
        probability = [each["probability"] for each in answer["candidates"]]
        assert sum(probability) == pytest.approx(1) and probability == sorted(probability, reverse=True)
        assert list(answer) == ["label", "confidence", "candidates"] and 0 < answer["confidence"] < 1


def test_an_answer_to_a_line_without_candidates_stays_as_it_was() -> None:
    line = Line(1, INPUTS[0], {"input": INPUTS[0], "choices": {"a": "of another form"}})
    chosen = Line(2, INPUTS[1], {"input": INPUTS[1], "choices": ["5", "7"]})
    plain, ranks = predict([line, chosen])
    assert list(plain) == ["label"] and list(ranks) == ["label", "confidence", "candidates"]


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (("yes",), r"\['yes'\]: give at least 2 candidates"),
        (("yes", " "), "none of them blank"),
        (("5", "7", "5"), "a candidate is there twice"),
        (("5", "東"), "label '東' becomes '.*' in the vocabulary, which lacks a character of it"),
    ],
)
def test_candidates_that_cannot_be_ranked_are_refused(choices: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=f"--candidates.*{message}"):
        predict([], candidates=choices)
    line = Line(7, INPUTS[0], {"input": INPUTS[0], "choices": list(choices)})
    with pytest.raises(UserError, match=f"line 7 of the input: choices.*{message}"):
        predict([line])


@pytest.mark.parametrize("task", ["raw", "explain"])
def test_candidates_need_a_task_that_gives_a_label(task: Any) -> None:
    with pytest.raises(UserError, match=f"--candidates ranks labels, and --task={task} gives none"):
        predict([], "dss", task=task, candidates=("5", "7"))


def test_a_line_that_cannot_be_used_is_skipped_or_an_error() -> None:
    content, skipped = b'{"input": "a", "choices": ["x"]}\n{"input": "b"}\n', list[str]()

    def check(line: Line) -> None:
        if line.choices == ("x",):
            raise UserError(f"line {line.number}")

    found = list(read_lines(io.BytesIO(content), "auto", skipped.append, check))
    assert [line.text for line in found if line] == ["b"] and skipped == ["line 1"]
    with pytest.raises(UserError, match="line 1"):
        list(read_lines(io.BytesIO(content), "auto", None, check))
