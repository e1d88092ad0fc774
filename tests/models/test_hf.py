"""Hugging Face checkpoints without torch: weights, vocabularies, errors."""

import dataclasses
import io
import json
import os
import resource
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece
from flax import nnx, traverse_util
from paths import REPOSITORY

from cotmi_jax.errors import UserError
from cotmi_jax.files import user_error_on_failure
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.hf import load_hf, save_hf
from cotmi_jax.models.t5 import T5

UNTIED = T5Config(
    vocab_size=13,
    d_model=6,
    d_kv=2,
    d_ff=5,
    num_encoder_layers=2,
    num_decoder_layers=3,
    num_heads=2,
    relative_buckets=8,
    relative_max_distance=16,
    dropout=0.0,
)
TIED = dataclasses.replace(UNTIED, gated=False, tied=True)


def make_params(config: T5Config) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(T5(config, rngs=nnx.Rngs(0)))))
    return jax.tree.map(lambda leaf: draw.normal(size=leaf.shape).astype(np.float32), shapes)


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    flat_a, flat_b = (traverse_util.flatten_dict(tree, sep=".") for tree in (a, b))
    assert flat_a.keys() == flat_b.keys()
    for name, value in flat_a.items():
        assert value.dtype == flat_b[name].dtype == np.float32
        np.testing.assert_array_equal(value, flat_b[name], err_msg=name)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untied checkpoint in one file."""
    save_hf(make_params(UNTIED), UNTIED, tmp_path / "student", vocabulary_file=None)
    return tmp_path / "student"


def edit_weights(directory: Path, changes: dict[str, np.ndarray | None]) -> None:
    """Rewrite model.safetensors with tensors replaced, added, or (None) removed."""
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | changes
    safetensors.numpy.save_file({name: t for name, t in tensors.items() if t is not None}, path)


def edit_config(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# Weights


@pytest.mark.parametrize("config", [TIED, UNTIED])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 1000])
def test_saved_parameters_are_loaded(config: T5Config, max_shard_bytes: int, tmp_path: Path) -> None:
    params, directory = make_params(config), tmp_path / "a" / "student"
    save_hf(
        jax.tree.map(jax.numpy.asarray, params),
        config,
        directory,
        vocabulary_file=None,
        max_shard_bytes=max_shard_bytes,
    )
    loaded_config, loaded = load_hf(directory)
    assert loaded_config == config
    assert_same(loaded, params)
    nnx.merge(nnx.split(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0))))[0], loaded)
    sizes = [path.stat().st_size for path in directory.glob("*.safetensors")]
    assert (len(sizes) == 1) == (max_shard_bytes == 10**9)
    assert len(sizes) == 1 or sum(sizes) > 4 * max(sizes)


def test_copies_of_the_embedding_must_be_copies(tmp_path: Path) -> None:
    params = make_params(TIED)
    save_hf(params, TIED, tmp_path / "s", vocabulary_file=None)
    obsolete = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"]
    edit_weights(tmp_path / "s", {name: params["embedding"] for name in copies} | {obsolete: np.ones((8, 2), "f")})
    assert_same(load_hf(tmp_path / "s")[1], params)
    for name in copies:
        edit_weights(tmp_path / "s", {name: params["embedding"] + np.eye(13, 6, dtype=np.float32)})
        with pytest.raises(UserError, match=f"{name} differs from shared.weight"):
            load_hf(tmp_path / "s")
        edit_weights(tmp_path / "s", {name: params["embedding"][:-1]})
        with pytest.raises(UserError, match=rf"{name} has shape \(12, 6\), but config.json implies \(13, 6\)"):
            load_hf(tmp_path / "s")
        edit_weights(tmp_path / "s", {name: None})


def test_missing_unknown_and_misshapen_tensors_are_named(checkpoint: Path) -> None:
    query = "decoder.block.1.layer.1.EncDecAttention.q.weight"
    for name, tensor, complaint in (
        (query, None, f"lacks {query}"),
        ("lm_head.weight", None, "lacks lm_head.weight"),
        ("decoder.block.1.layer.1.EncDecAttention.q.bias", np.ones(4, "f"), "has unknown .*q.bias"),
        (query, np.ones((6, 4), "f"), rf"{query} has shape \(6, 4\), but config.json implies \(4, 6\)"),
        (query, np.ones((4, 6), np.float64), f"{query} is F64"),
        (query, np.ones((4, 6), np.int8), f"{query} is I8"),
    ):
        original = safetensors.numpy.load_file(checkpoint / "model.safetensors")
        edit_weights(checkpoint, {name: tensor})
        with pytest.raises(UserError, match=complaint):
            load_hf(checkpoint)
        safetensors.numpy.save_file(original, checkpoint / "model.safetensors")
    edit_config(checkpoint, num_layers=3)  # nine tensors are missing, of which three are shown
    with pytest.raises(UserError, match="lacks encoder.block.2.*, .*, .* and 6 more: ") as raised:
        load_hf(checkpoint)
    assert str(checkpoint) in str(raised.value) and "\n" not in str(raised.value)


def test_safetensors_are_preferred_to_pickles(checkpoint: Path) -> None:
    (checkpoint / "pytorch_model.bin").write_bytes(b"not to be opened")
    (checkpoint / "model.safetensors.index.json").write_text("not to be opened")
    load_hf(checkpoint)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors.index.json, line 1: not JSON"):
        load_hf(checkpoint)
    (checkpoint / "model.safetensors.index.json").unlink()
    with pytest.raises(UserError, match="pytorch_model.bin: not a torch.save file"):
        load_hf(checkpoint)
    (checkpoint / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no weights: it must have one of model.safetensors, "):
        load_hf(checkpoint)


def test_damaged_files_are_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    whole = path.read_bytes()
    for contents in (
        b"",
        whole[:5],
        whole[:100],
        whole[:-1],
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\xff" * 90,
    ):
        path.write_bytes(contents)
        with pytest.raises(UserError, match="model.safetensors: corrupt or truncated"):
            load_hf(checkpoint)
    for contents, complaint in (
        (b"{\n'a'}", ", line 2: not JSON"),
        (b"[1]", ": contains a list"),
        (b"\xff", ": not JSON .*can't decode"),
    ):
        (checkpoint / "config.json").write_bytes(contents)
        with pytest.raises(UserError, match=f"config.json{complaint}"):
            load_hf(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: No such file"):
        load_hf(checkpoint)


def test_index_and_shards_must_agree(tmp_path: Path) -> None:
    save_hf(make_params(UNTIED), UNTIED, tmp_path / "s", vocabulary_file=None, max_shard_bytes=3000)
    path = tmp_path / "s" / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    first = index["weight_map"]["shared.weight"]
    other = next(file for file in index["weight_map"].values() if file != first)

    def complaint_about(weight_map: object) -> str:
        path.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UserError) as raised:
            load_hf(tmp_path / "s")
        return str(raised.value)

    good = index["weight_map"]
    assert "shared.weight is in the file but not in the index" in complaint_about(
        {name: file for name, file in good.items() if name != "shared.weight"}
    )
    assert "shared.weight is in the" in complaint_about(good | {"shared.weight": other})
    assert "model-9.safetensors: missing" in complaint_about(good | {"shared.weight": "model-9.safetensors"})
    for outside in ("../model.safetensors", "/etc/passwd", "a/model.safetensors", "..", 3):
        assert f"weight_map['shared.weight'] = {outside!r}" in complaint_about(good | {"shared.weight": outside})
    assert "weight_map = {}" in complaint_about({})


# Export


def test_an_interrupted_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, save_file, calls = tmp_path / "student", safetensors.numpy.save_file, []

    def interrupted(*args: Any, **kwargs: Any) -> None:
        assert not target.exists()
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        save_file(*args, **kwargs)

    monkeypatch.setattr(safetensors.numpy, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_hf(make_params(UNTIED), UNTIED, target, vocabulary_file=None, max_shard_bytes=2000)
    assert not list(tmp_path.iterdir())


def test_an_export_without_room_leaves_nothing(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(UserError, match="^cannot write it: [^\\n]*File too large[^\\n]*$"):
            with user_error_on_failure("cannot write it"):
                save_hf(make_params(UNTIED), UNTIED, tmp_path / "student", vocabulary_file=None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_export_overwrites_nothing(checkpoint: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in checkpoint.iterdir()}
    for occupied in (checkpoint, checkpoint / "config.json"):
        with pytest.raises(UserError, match="exists and is not empty"):
            save_hf(make_params(TIED), TIED, occupied, vocabulary_file=None)
    assert {path: path.read_bytes() for path in checkpoint.iterdir()} == before
    (tmp_path / "empty").mkdir()
    save_hf(make_params(TIED), TIED, tmp_path / "empty", vocabulary_file=None)
    assert load_hf(tmp_path / "empty")[0] == TIED
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "empty").stat().st_mode & 0o777 == 0o777 & ~mask
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "empty").iterdir()} == {0o666 & ~mask}


def test_parameters_of_another_network_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not those of the configuration"):
        save_hf(make_params(TIED), UNTIED, tmp_path / "s", vocabulary_file=None)
    assert not list(tmp_path.iterdir())


# Vocabulary


def train_vocabulary(path: Path, **settings: Any) -> Path:
    """A vocabulary from random sentences with T5's special ids and normalization."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), draw.integers(1, 7))) for _ in range(60)]
    texts = [" ".join(draw.choice(words, 8)) + f" ({draw.integers(99)} + {draw.integers(9)})." for _ in range(400)]
    model = io.BytesIO()
    settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 80, "minloglevel": 2} | settings
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **settings)
    path.write_bytes(model.getvalue())
    return path


def ids_of_export(vocabulary: Path, vocab_size: int, directory: Path, texts: list[str]) -> tuple[list[list[int]], int]:
    """Ids that AutoTokenizer gives after an export, and the number of its tokens."""
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(UNTIED, vocab_size=vocab_size)
    save_hf(make_params(config), config, directory, vocabulary_file=vocabulary)
    assert (directory / "spiece.model").read_bytes() == vocabulary.read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.decode(tokenizer("a b").input_ids, skip_special_tokens=True) == "a b"
    return [tokenizer(text).input_ids for text in texts], len(tokenizer)


@pytest.mark.parametrize(("vocab_size", "known"), [(80, 80), (179, 80), (180, 180), (256, 180)])
def test_exported_tokenizer_gives_the_ids_of_the_vocabulary(vocab_size: int, known: int, tmp_path: Path) -> None:
    """Never an id beyond the embeddings: sentinels exist only if the embeddings have rows for them."""
    vocabulary = train_vocabulary(tmp_path / "vocabulary.model")
    texts = ["abc  def gh", "", "  a (12 + 3).\n\nfed\tcab ", "Zebra é ½ ﬁ", "jihgfedcba a+b"]
    ids, size = ids_of_export(vocabulary, vocab_size, tmp_path / "s", texts)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    assert ids == [[*processor.encode(text), 1] for text in texts]
    assert size == known <= vocab_size


def test_embedded_vocabulary_is_exported(tmp_path: Path) -> None:
    vocabulary = REPOSITORY / "cotmi_jax" / "data" / "sources" / "arithmetic.spiece.model"
    texts = ["predict: Tom had 12 apples and ate 4. How many are left?", "( 12 - 4 )", "12 - 4 = 8, so 8 are left."]
    ids, _ = ids_of_export(vocabulary, 512, tmp_path / "s", texts)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    assert ids == [[*processor.encode(text), 1] for text in texts]


def test_published_vocabulary_is_exported(tmp_path: Path, data_root: Path) -> None:
    vocabulary = data_root / "t5" / "spiece.model"
    rows = [json.loads(line) for line in (data_root / "dss/svamp/svamp_test.json").read_text().splitlines()]
    texts = [str(value) for row in rows for value in row.values()]
    ids, size = ids_of_export(vocabulary, 32128, tmp_path / "s", texts)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    assert ids == [[*processor.encode(text), 1] for text in texts]
    assert size == 32100


def test_vocabularies_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(vocabulary: Path, vocab_size: int) -> str:
        config = dataclasses.replace(UNTIED, vocab_size=vocab_size)
        with pytest.raises(UserError) as raised:
            save_hf(make_params(config), config, tmp_path / "s", vocabulary_file=vocabulary)
        assert not (tmp_path / "s").exists()
        return str(raised.value)

    assert "has 80 pieces but the model has 79 embeddings" in refused(train_vocabulary(tmp_path / "a.model"), 79)
    shifted = train_vocabulary(tmp_path / "b.model", unk_id=0, pad_id=2)
    assert "b.model: a T5 vocabulary has pad 0 and eos 1, this one has pad 2 and eos 1" in refused(shifted, 80)
    (tmp_path / "c.model").write_text("no vocabulary")
    assert "c.model is not a SentencePiece model" in refused(tmp_path / "c.model", 80)
    assert f"no vocabulary at {tmp_path}/d.model" in refused(tmp_path / "d.model", 80)
