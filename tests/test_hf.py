"""Hugging Face checkpoints without torch: configurations, files, the cache, and what is refused."""

import dataclasses
import fnmatch
import io
import json
import os
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece
from flax import nnx, traverse_util

from cotmi_jax.errors import UserError
from cotmi_jax.models import hf_source
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.hf import load_hf, resolve_source, save_hf
from cotmi_jax.models.hf_config import config_from_hf, config_to_hf
from cotmi_jax.models.t5 import T5

REPOSITORY = Path(__file__).resolve().parent.parent
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
V10 = {"model_type": "t5", "vocab_size": 13, "d_model": 6, "d_kv": 2, "d_ff": 5, "num_layers": 2, "num_heads": 3}
V11 = V10 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "num_decoder_layers": 1}


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
    """Rewrites model.safetensors with tensors replaced, added, or (None) removed."""
    path = directory / "model.safetensors"
    tensors = safetensors.numpy.load_file(path) | changes
    safetensors.numpy.save_file({name: t for name, t in tensors.items() if t is not None}, path)


def edit_config(directory: Path, **fields: object) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# Configurations


def test_published_families_are_read() -> None:
    old = config_from_hf(V10 | {"n_positions": 512, "output_past": True, "task_specific_params": {"a": 1}})
    assert (old.gated, old.tied, old.num_decoder_layers) == (False, True, 2)  # as the first releases' files say it
    assert (old.relative_buckets, old.relative_max_distance, old.norm_epsilon, old.dropout) == (32, 128, 1e-6, 0.1)
    new = config_from_hf(V11 | {"dense_act_fn": "gelu_new", "is_gated_act": True, "_name_or_path": "x"})
    assert (new.gated, new.tied, new.num_encoder_layers, new.num_decoder_layers) == (True, False, 2, 1)
    v5 = config_from_hf(V11 | {"tie_word_embeddings": True, "scale_decoder_outputs": False})
    assert v5 == new
    multilingual = V10 | {"model_type": "mt5"}
    assert config_from_hf(multilingual | {"tie_word_embeddings": True, "transformers_version": "5.23.0"}).gated
    assert not config_from_hf(multilingual | {"tie_word_embeddings": True, "transformers_version": "5.0"}).tied


@pytest.mark.parametrize("config", [TIED, UNTIED])
def test_configuration_goes_there_and_back(config: T5Config) -> None:
    assert config_from_hf(json.loads(json.dumps(config_to_hf(config)))) == config


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "umt5"}, "model_type = 'umt5'"),
        ({"model_type": "longt5"}, "model_type = 'longt5'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj = 'gated-silu'"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj = 'gelu'"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn = 'gelu'"),
        ({"is_gated_act": False}, "is_gated_act = False"),
        ({"decoder_start_token_id": 2}, "decoder_start_token_id = 2"),
        ({"pad_token_id": None}, "pad_token_id = None"),
        ({"eos_token_id": [1, 2]}, r"eos_token_id = \[1, 2\]"),
        ({"is_decoder": True}, "is_decoder = True"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder = False"),
        ({"tie_encoder_decoder": True}, "tie_encoder_decoder = True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads = "),
        ({"quantization_config": {"bits": 8}}, "quantization_config = "),
        ({"rope_theta": 1e4}, "rope_theta = 10000.0"),
        ({"d_model": None}, "d_model = None"),
        ({"d_model": "6"}, "d_model = '6'"),
        ({"num_heads": True}, "num_heads = True"),
        ({"num_layers": 0}, "num_layers = 0"),
        ({"dropout_rate": 1.0}, "dropout_rate = 1.0"),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets = 2"),
        ({"relative_attention_max_distance": 16}, "relative_attention_max_distance = 16"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings = 'no'"),
        ({"model_type": "mt5", "tie_word_embeddings": True}, "tie_word_embeddings = True"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=f"^some/config.json: {named}") as raised:
        config_from_hf(V11 | changes, "some/config.json")
    assert "\n" not in str(raised.value)


def test_size_has_no_default() -> None:
    for name in ("model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"):
        with pytest.raises(UserError, match=f"{name} = missing"):
            config_from_hf({key: value for key, value in V11.items() if key != name})


# Weights


@pytest.mark.parametrize("config", [TIED, UNTIED])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 1000])
def test_saved_parameters_come_back(config: T5Config, max_shard_bytes: int, tmp_path: Path) -> None:
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
        with pytest.raises(UserError, match=rf"{name} is \(12, 6\), by config.json it is \(13, 6\)"):
            load_hf(tmp_path / "s")
        edit_weights(tmp_path / "s", {name: None})


def test_missing_unknown_and_misshapen_tensors_are_named(checkpoint: Path) -> None:
    query = "decoder.block.1.layer.1.EncDecAttention.q.weight"
    for name, tensor, complaint in (
        (query, None, f"lacks {query}"),
        ("lm_head.weight", None, "lacks lm_head.weight"),
        ("decoder.block.1.layer.1.EncDecAttention.q.bias", np.ones(4, "f"), "has unknown .*q.bias"),
        (query, np.ones((6, 4), "f"), rf"{query} is \(6, 4\), by config.json it is \(4, 6\)"),
        (query, np.ones((4, 6), np.float64), f"{query} is F64"),
        (query, np.ones((4, 6), np.int8), f"{query} is I8"),
    ):
        original = safetensors.numpy.load_file(checkpoint / "model.safetensors")
        edit_weights(checkpoint, {name: tensor})
        with pytest.raises(UserError, match=complaint):
            load_hf(checkpoint)
        safetensors.numpy.save_file(original, checkpoint / "model.safetensors")
    edit_config(checkpoint, num_layers=3)  # Nine tensors are missing: three are shown.
    with pytest.raises(UserError, match="lacks encoder.block.2.*, .*, .* and 6 more: ") as raised:
        load_hf(checkpoint)
    assert str(checkpoint) in str(raised.value) and "\n" not in str(raised.value)


def test_safetensors_go_before_pickles(checkpoint: Path) -> None:
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
    with pytest.raises(UserError, match="no weights: one of model.safetensors, "):
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
        (b"[1]", ": holds a list"),
        (b"\xff", ": not a text"),
    ):
        (checkpoint / "config.json").write_bytes(contents)
        with pytest.raises(UserError, match=f"config.json{complaint}"):
            load_hf(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(UserError, match="config.json: no such file"):
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


def test_export_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_parameters_of_another_network_are_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not those of the configuration"):
        save_hf(make_params(TIED), UNTIED, tmp_path / "s", vocabulary_file=None)
    assert not list(tmp_path.iterdir())


# Vocabulary


def train_vocabulary(path: Path, **settings: Any) -> Path:
    """A vocabulary of made-up sentences in T5's convention, normalized as T5's is."""
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghij"), draw.integers(1, 7))) for _ in range(60)]
    texts = [" ".join(draw.choice(words, 8)) + f" ({draw.integers(99)} + {draw.integers(9)})." for _ in range(400)]
    model = io.BytesIO()
    settings = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "vocab_size": 80, "minloglevel": 2} | settings
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(texts), model_writer=model, **settings)
    path.write_bytes(model.getvalue())
    return path


def ids_of_export(vocabulary: Path, vocab_size: int, directory: Path, texts: list[str]) -> tuple[list[list[int]], int]:
    """Ids that AutoTokenizer gives after an export, and how many tokens it knows."""
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(UNTIED, vocab_size=vocab_size)
    save_hf(make_params(config), config, directory, vocabulary_file=vocabulary)
    assert (directory / "spiece.model").read_bytes() == vocabulary.read_bytes()
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert tokenizer.decode(tokenizer("a b").input_ids, skip_special_tokens=True) == "a b"
    return [tokenizer(text).input_ids for text in texts], len(tokenizer)


@pytest.mark.parametrize(("vocab_size", "known"), [(80, 80), (179, 80), (180, 180), (256, 180)])
def test_exported_tokenizer_gives_the_vocabularys_ids(vocab_size: int, known: int, tmp_path: Path) -> None:
    """And never an id beyond the embeddings: sentinels are there only where there is room for them."""
    vocabulary = train_vocabulary(tmp_path / "vocabulary.model")
    texts = ["abc  def gh", "", "  a (12 + 3).\n\nfed\tcab ", "Zebra é ½ ﬁ", "jihgfedcba a+b"]
    ids, size = ids_of_export(vocabulary, vocab_size, tmp_path / "s", texts)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    assert ids == [[*processor.encode(text), 1] for text in texts]
    assert size == known <= vocab_size


def test_embedded_vocabulary_is_exported(tmp_path: Path) -> None:
    vocabulary = REPOSITORY / "cotmi_jax" / "data" / "arithmetic.spiece.model"
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

    assert "80 pieces, but the model has vocab_size 79" in refused(train_vocabulary(tmp_path / "a.model"), 79)
    shifted = train_vocabulary(tmp_path / "b.model", unk_id=0, pad_id=2)
    assert "b.model: pieces 0, 1, 2 are <unk> </s> <pad>" in refused(shifted, 80)
    (tmp_path / "c.model").write_text("no vocabulary")
    assert "c.model: not a SentencePiece model" in refused(tmp_path / "c.model", 80)
    assert "d.model: not a SentencePiece model" in refused(tmp_path / "d.model", 80)


# Where checkpoints are found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to the hub."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def fill_cache(cache: Path, name: str, files: dict[str, bytes]) -> Path:
    """Lays files out as the hub's client does: blobs by hash, a snapshot of links, a reference to the commit."""
    root, commit = cache / f"models--{name.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    for number, (file, contents) in enumerate(files.items()):
        (root / "blobs" / f"{number:040x}").write_bytes(contents)
        (root / "snapshots" / commit / file).symlink_to(f"../../blobs/{number:040x}")
    return root / "snapshots" / commit


def contents_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_directory_is_itself(checkpoint: Path) -> None:
    assert resolve_source(str(checkpoint)) == resolve_source(checkpoint) == checkpoint


@pytest.mark.parametrize("vocabulary", [{}, {"spiece.model": b"pieces"}])
def test_cached_name_needs_no_network(vocabulary: dict[str, bytes], checkpoint: Path, cache: Path) -> None:
    snapshot = fill_cache(cache, "owner/student", contents_of(checkpoint) | vocabulary)
    assert resolve_source("owner/student", cache) == snapshot
    assert_same(load_hf("owner/student", cache)[1], make_params(UNTIED))


def test_name_out_of_reach_says_what_to_do(checkpoint: Path, cache: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(UserError) as raised:
            resolve_source(name, cache)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    for _ in range(2):  # Neither an empty cache nor one with half a download will do.
        message = refused("owner/student")
        assert "hf download owner/student --local-dir DIR" in message and "HF_HOME" in message
        shutil.rmtree(cache, ignore_errors=True)
        fill_cache(cache, "owner/student", {"config.json": (checkpoint / "config.json").read_bytes()})
    for name in ("runs/my/student", "/no/such/place", "-x", "a..b"):
        assert "no such directory" in refused(name)


def test_silent_network_is_given_up_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that accepts connections and never answers, as behind some firewalls."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hf_source, "_TIMEOUT", 0.5)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        start = time.monotonic()
        with pytest.raises(UserError, match="the hub cannot be used"):
            resolve_source("owner/student", tmp_path)
        assert time.monotonic() - start < 5


@pytest.mark.parametrize("pickled_only", [False, True])
def test_download_takes_pickles_only_without_safetensors(
    pickled_only: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    shutil.copytree(checkpoint, hub)
    for name in ("spiece.model", "pytorch_model.bin", "tf_model.h5", "README.md", "model.fp16.safetensors", "run.py"):
        (hub / name).write_bytes(b"")
    if pickled_only:
        (hub / "model.safetensors").unlink()

    def download(name: str, *, cache_dir: Path, allow_patterns: list[str]) -> str:
        wanted = {n: c for n, c in contents_of(hub).items() if any(fnmatch.fnmatch(n, p) for p in allow_patterns)}
        shutil.rmtree(cache_dir, ignore_errors=True)
        return str(fill_cache(cache_dir, name, wanted))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: None)
    found = {path.name for path in resolve_source("owner/student", cache).iterdir()}
    weights = "pytorch_model.bin" if pickled_only else "model.safetensors"
    assert found == {"config.json", "generation_config.json", "spiece.model", weights}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # From now on the cache alone answers.
    assert resolve_source("owner/student", cache).is_dir()
