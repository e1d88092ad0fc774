"""Every published kind of T5 against transformers in torch: logits, greedy texts, a step, its export."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import Vocabulary, find_tokenizer
from cotmi_jax.inference.load import load_trained
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.hf import load_hf, save_hf
from cotmi_jax.models.student import StudentDef
from cotmi_jax.training.job import train

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

quick_compilation = runs.quick_compilation

TEXTS = ["predict: Tom had 12 apples and ate 4.", "explain: 7 + 5", "( 3 * 4 )"]
SHAPE = dict(d_model=20, d_kv=4, d_ff=24, num_heads=2, num_layers=3, num_decoder_layers=2, decoder_start_token_id=0)
BUCKETS = dict(relative_attention_num_buckets=8, relative_attention_max_distance=20)
# Kind → transformers' config, its further fields, and the file of its vocabulary.
KINDS: dict[str, tuple[str, dict[str, Any], str]] = {
    "v1.0": ("T5", dict(feed_forward_proj="relu"), "spiece.model"),
    "v1.1": ("T5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False), "tokenizer.json"),
    "byt5": ("T5", dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False), "tokenizer_config.json"),
    "mt5": ("MT5", {}, "spiece.model"),
    "umt5": ("UMT5", {}, "tokenizer.json"),
    "umt5 of release 4": ("UMT5", {}, "spiece.model"),
}


def save_tokenizer(directory: Path, file: str) -> Any:
    """The tokenizer of a checkpoint, with `file` as the only one that holds a vocabulary."""
    if file == "tokenizer_config.json":
        tokenizer = transformers.ByT5Tokenizer()
        tokenizer.save_pretrained(directory)
        return tokenizer
    (directory / "spiece.model").write_bytes(VOCABULARY_PATH.read_bytes())
    tokenizer = transformers.T5Tokenizer.from_pretrained(directory, extra_ids=0)
    if file == "tokenizer.json":
        tokenizer.backend_tokenizer.save(str(directory / file))
        (directory / "spiece.model").unlink()
    return tokenizer


def make_checkpoint(kind: str, directory: Path) -> tuple[Any, Any]:
    """A network of random parameters in torch and its tokenizer, saved as a published checkpoint of that kind is."""
    name, fields, file = KINDS[kind]
    directory.mkdir()
    tokenizer = save_tokenizer(directory, file)
    torch.manual_seed(0)
    size = dict(vocab_size=384 if kind == "byt5" else 512)
    config = getattr(transformers, f"{name}Config")(**SHAPE, **BUCKETS, **size, **fields)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    if kind != "v1.0":  # transformers 5 ties the weights that it initializes
        model.lm_head.weight = torch.nn.Parameter(torch.randn(size["vocab_size"], SHAPE["d_model"]))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "relative_attention_bias" in path:
                parameter.normal_(0, 1.5)
    model.save_pretrained(directory)
    if kind == "umt5 of release 4":
        written = json.loads((directory / "config.json").read_text())
        written |= {"tie_word_embeddings": False, "scalable_attention": True, "transformers_version": "4.31.0"}
        (directory / "config.json").write_text(json.dumps(written))
        model.config.tie_word_embeddings = False  # which is what release 4 had for such a file
    return model, tokenizer


def logits_of(model: Any, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    ids = torch.tensor(inputs)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=(ids != 0).long(), labels=torch.tensor(targets)).logits.numpy()


@pytest.fixture(scope="module")
def batch() -> tuple[np.ndarray, np.ndarray]:
    """Inputs [3, 26] and targets [3, 25] beyond relative_attention_max_distance, without pad among the targets."""
    draw = np.random.default_rng(0)
    inputs, targets = draw.integers(3, 200, (3, 26)), draw.integers(3, 200, (3, 25))
    inputs[1, 4:] = 0
    return inputs, targets


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_logits_texts_and_export_equal_those_of_transformers(
    kind: str, batch: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    model, tokenizer = make_checkpoint(kind, tmp_path / "published")
    config, params = load_hf(tmp_path / "published")
    student, vocabulary = StudentDef.of(config), Vocabulary(find_tokenizer(tmp_path / "published"))
    expected = logits_of(model, *batch)
    logits = jax.jit(lambda p, inputs, targets: student.bind(p)(inputs, targets))(params, *map(jnp.asarray, batch))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)

    asked = tokenizer(TEXTS, padding=True)["input_ids"]
    assert [[*ids, 1] for ids in vocabulary.encode(TEXTS)] == tokenizer(TEXTS)["input_ids"]
    ids = torch.tensor(asked)
    theirs = model.generate(ids, attention_mask=(ids != 0).long(), max_new_tokens=12, num_beams=1, do_sample=False)
    decoding = Decoding("greedy", max_tokens=12)
    ours = jax.jit(lambda p, inputs: generate(student.bind(p), inputs, decoding).tokens)(params, jnp.asarray(asked))
    texts = [vocabulary.decode(np.asarray(row)) for row in ours]
    assert texts == tokenizer.batch_decode(theirs, skip_special_tokens=True)
    assert all(texts) and (len(set(texts)) > 1 or config.tied)  # random tied parameters repeat one word

    save_hf(params, config, tmp_path / "exported", vocabulary_file=vocabulary.path)
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "exported")
    assert type(again) is type(model)
    np.testing.assert_allclose(logits_of(again, *batch), expected, rtol=0, atol=1e-4)
    exported = transformers.AutoTokenizer.from_pretrained(tmp_path / "exported")
    assert exported(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert exported.batch_decode(theirs, skip_special_tokens=True) == texts
    again_config, again_params = load_hf(tmp_path / "exported")
    assert again_config == config
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again_params, params)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["v1.1", "byt5", "mt5", "umt5"])
def test_a_run_keeps_its_tokenizer(kind: str, tmp_path: Path) -> None:
    """Trained a step from a checkpoint, the workdir alone serves evaluation, prediction and export."""
    make_checkpoint(kind, tmp_path / "published")
    changes = {
        "steps": 1, "eval.every": 0, "checkpoint.every": 1, "objective.name": "standard",
        "model.init": str(tmp_path / "published"), "model.scan_layers": True, "data.max_input_tokens": 32,
    }  # fmt: skip
    assert train(runs.tiny_config(changes), str(tmp_path / "run")) == 1
    (tmp_path / "published").rename(tmp_path / "gone")
    trained = load_trained(str(tmp_path / "run"), "latest")
    assert trained.vocabulary.path == tmp_path / "run" / KINDS[kind][2]
    assert trained.vocabulary.decode(trained.vocabulary.encode(["12 apples"])[0]) == "12 apples"
    assert trained.student.config.model_type == KINDS[kind][0].lower()
    before = load_hf(tmp_path / "gone")[1]
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, jax.device_get(trained.params))
    assert min(jax.tree.leaves(moved)) > 0, moved
