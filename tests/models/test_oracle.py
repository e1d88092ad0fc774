"""The T5 against transformers' T5 in torch, and checkpoints converted in both directions."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util

from cotmi_jax.errors import UserError
from cotmi_jax.models.attention_pattern import relative_buckets
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.hf import load_hf, save_hf
from cotmi_jax.models.hf_config import config_from_hf
from cotmi_jax.models.t5 import T5

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

IGNORED = -100  # the label that transformers excludes from the loss
# d_kv * num_heads != d_model, stacks of unequal depth, and sources longer than relative_attention_max_distance.
SHAPES: dict[str, dict[str, Any]] = {
    "v1.1": dict(num_layers=3, num_decoder_layers=2, feed_forward_proj="gated-gelu", tie_word_embeddings=False)
    | dict(relative_attention_num_buckets=32, relative_attention_max_distance=128),
    "v1.0": dict(num_layers=1, num_decoder_layers=3, feed_forward_proj="relu", d_kv=16, num_heads=2)
    | dict(relative_attention_num_buckets=8, relative_attention_max_distance=20),
}
LENGTHS = {"v1.1": (150, 140), "v1.0": (37, 30)}


class Oracle(NamedTuple):
    """A torch T5 saved in a directory, and its outputs for one batch."""

    model: Any
    directory: Path
    inputs: np.ndarray  # [B, S], padded
    labels: np.ndarray  # [B, T], IGNORED beyond the end
    logits: np.ndarray  # [B, T, V]
    loss: float

    @property
    def targets(self) -> np.ndarray:
        return np.where(self.labels == IGNORED, 0, self.labels)

    def state(self) -> dict[str, Any]:
        """The model's tensors without the copies of the embedding."""
        state = self.model.state_dict()
        tied = self.model.lm_head.weight is self.model.shared.weight
        copies = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} | (
            {"lm_head.weight"} if tied else set()
        )
        return {name: tensor for name, tensor in state.items() if name not in copies}


def make_model(shape: dict[str, Any]) -> Any:
    defaults = dict(vocab_size=61, d_model=24, d_kv=5, d_ff=40, num_heads=3, decoder_start_token_id=0)
    torch.manual_seed(0)
    config = transformers.T5Config(**(defaults | shape), layer_norm_epsilon=1e-5)
    model = transformers.T5ForConditionalGeneration(config).eval()
    if not shape.get("tie_word_embeddings", True):  # transformers 5 ties the weights that it initializes
        model.lm_head.weight = torch.nn.Parameter(torch.randn(61, 24) * 0.3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.uniform_(0.5, 1.5)
            if "relative_attention_bias" in name:
                parameter.normal_(0, 1.5)
    return model


def make_batch(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Four examples of unequal lengths, without pad and end-of-sequence ids among the inner tokens."""
    draw = np.random.default_rng(0)
    inputs, labels = draw.integers(2, 61, (4, source)), draw.integers(2, 61, (4, target))
    for row, (s, t) in enumerate(zip((source, 3, source // 2, 1), (target // 2, target, 1, 2), strict=True)):
        inputs[row, s:], labels[row, t:] = 0, IGNORED
        inputs[row, s - 1], labels[row, t - 1] = 1, 1
    return inputs, labels


@pytest.fixture(scope="module", params=list(SHAPES))
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    model = make_model(SHAPES[request.param])
    inputs, labels = make_batch(*LENGTHS[request.param])
    tensors = torch.tensor(inputs)
    out = model(input_ids=tensors, attention_mask=(tensors != 0).long(), labels=torch.tensor(labels))
    out.loss.backward()
    directory = tmp_path_factory.mktemp("oracle") / request.param
    model.save_pretrained(directory)
    return Oracle(model, directory, inputs, labels, out.logits.detach().numpy(), out.loss.item())


def loss_of(graph: Any, params: Any, oracle: Oracle) -> tuple[jax.Array, jax.Array]:
    logits = nnx.merge(graph, params)(jnp.asarray(oracle.inputs), jnp.asarray(oracle.targets))
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(oracle.targets)[..., None], axis=-1)[..., 0]
    real = jnp.asarray(oracle.labels != IGNORED)
    return -jnp.sum(chosen * real) / jnp.sum(real), logits


def graph_of(config: T5Config, **execution: Any) -> Any:
    """The network's structure; nothing is initialized."""
    return nnx.split(nnx.eval_shape(lambda: T5(dataclasses.replace(config, **execution), rngs=nnx.Rngs(0))))[0]


def logits_of(config: T5Config, params: Any, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    graph = graph_of(config)
    return jax.jit(lambda p, i, t: nnx.merge(graph, p)(i, t))(params, inputs, targets)


@pytest.mark.slow
def test_logits_and_loss_of_unrolled_layers_equal_torch(oracle: Oracle) -> None:
    config, params = load_hf(oracle.directory)
    graph = graph_of(config, scan_layers=False)
    loss, logits = jax.jit(lambda p: loss_of(graph, p, oracle))(params)
    np.testing.assert_allclose(logits, oracle.logits, rtol=0, atol=1e-4)
    assert abs(float(loss) - oracle.loss) < 1e-5


@pytest.mark.slow
def test_logits_loss_and_gradient_equal_torch(oracle: Oracle, tmp_path: Path) -> None:
    config, params = load_hf(oracle.directory)
    graph = graph_of(config, scan_layers=True)
    (loss, logits), gradient = jax.jit(jax.value_and_grad(lambda p: loss_of(graph, p, oracle), has_aux=True))(params)
    np.testing.assert_allclose(logits, oracle.logits, rtol=0, atol=1e-4)
    assert abs(float(loss) - oracle.loss) < 1e-5

    # torch's gradient is saved as a checkpoint, so that load_hf converts it to the layout of our parameters.
    named = dict(oracle.model.named_parameters())
    (tmp_path / "config.json").write_bytes((oracle.directory / "config.json").read_bytes())
    gradients = {name: named[name].grad for name in oracle.state()}
    safetensors_torch.save_file(gradients, tmp_path / "model.safetensors")
    _, expected = load_hf(tmp_path)
    flat = traverse_util.flatten_dict(gradient, sep=".")
    for path, value in traverse_util.flatten_dict(expected, sep=".").items():
        np.testing.assert_allclose(flat[path], value, rtol=1e-3, atol=1e-5 * np.abs(value).max(), err_msg=path)


def test_every_weight_format_gives_the_same_parameters(oracle: Oracle, tmp_path: Path) -> None:
    _, expected = load_hf(oracle.directory)
    forms = {name: tmp_path / name for name in ("shards", "bin", "bin_shards")}
    oracle.model.save_pretrained(forms["shards"], max_shard_size="8KB")
    assert len(list(forms["shards"].glob("model-*.safetensors"))) > 3
    for name in ("bin", "bin_shards"):
        forms[name].mkdir()
        (forms[name] / "config.json").write_bytes((oracle.directory / "config.json").read_bytes())
    state = oracle.model.state_dict()  # with the copies of the embedding, as old releases saved them
    torch.save(state, forms["bin"] / "pytorch_model.bin")
    weight_map = {name: f"pytorch_model-{1 + i % 2:05}-of-00002.bin" for i, name in enumerate(state)}
    for file in set(weight_map.values()):
        torch.save({n: t for n, t in state.items() if weight_map[n] == file}, forms["bin_shards"] / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (forms["bin_shards"] / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for form, directory in forms.items():
        _, params = load_hf(directory)
        jax.tree.map(lambda a, b, form=form: np.testing.assert_array_equal(a, b, err_msg=form), params, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("form", ["model.safetensors", "pytorch_model.bin"])
def test_half_precision_is_read_exactly(dtype: str, form: str, oracle: Oracle, tmp_path: Path) -> None:
    half = {name: tensor.to(getattr(torch, dtype)) for name, tensor in oracle.state().items()}
    (tmp_path / "config.json").write_bytes((oracle.directory / "config.json").read_bytes())
    save = safetensors_torch.save_file if form == "model.safetensors" else torch.save
    save(half, tmp_path / form)
    _, params = load_hf(tmp_path)
    assert isinstance(params["embedding"], np.ndarray) and params["embedding"].dtype == np.float32
    np.testing.assert_array_equal(params["embedding"], half["shared.weight"].float().numpy())


def test_loaded_and_saved_tensors_are_bit_equal(oracle: Oracle, tmp_path: Path) -> None:
    config, params = load_hf(oracle.directory)
    save_hf(params, config, tmp_path / "back", vocabulary_file=None)
    back = safetensors_torch.load_file(tmp_path / "back" / "model.safetensors")
    state = oracle.state()
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name
    ours, theirs = (transformers.T5Config.from_pretrained(d) for d in (tmp_path / "back", oracle.directory))
    kept = [name for name in theirs.to_dict() if name not in ("transformers_version", "tie_word_embeddings")]
    assert {name: ours.to_dict()[name] for name in kept} == {name: theirs.to_dict()[name] for name in kept}


@pytest.mark.slow
@pytest.mark.parametrize("family", ["v1.0", "v1.1"])
def test_exported_student_gives_the_same_logits_in_transformers(family: str, tmp_path: Path) -> None:
    """Initialized here, exported in shards, loaded by transformers without a missing or unexpected key."""
    config = T5Config(
        vocab_size=61, d_model=16, d_kv=6, d_ff=20, num_encoder_layers=2, num_decoder_layers=3, num_heads=2,
        relative_buckets=8, relative_max_distance=24, norm_epsilon=1e-5,
        gated=family == "v1.1", tied=family == "v1.0", dropout=0.2,
    )  # fmt: skip
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: nnx.to_pure_dict(nnx.state(T5(config, rngs=nnx.Rngs(0)))))
    params = jax.tree.map(lambda leaf: draw.normal(0.5, 0.5, leaf.shape).astype(np.float32), shapes)
    save_hf(params, config, tmp_path / "student", vocabulary_file=None, max_shard_bytes=8000)
    assert len(list((tmp_path / "student").glob("*.safetensors"))) > 2
    load = transformers.T5ForConditionalGeneration.from_pretrained
    model, report = load(tmp_path / "student", output_loading_info=True)
    assert not any(report.values()), report
    assert model.dtype == torch.float32 and model.config.dropout_rate == 0.2
    assert model.generation_config.decoder_start_token_id == 0 and model.generation_config.eos_token_id == 1

    inputs, labels = make_batch(30, 20)
    targets = np.where(labels == IGNORED, 0, labels)
    tensors = torch.tensor(inputs)
    theirs = model(input_ids=tensors, attention_mask=(tensors != 0).long(), labels=torch.tensor(labels)).logits
    ours = logits_of(config, params, inputs, targets)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=0, atol=1e-5)


def test_a_network_that_transformers_5_tied_is_not_scaled(tmp_path: Path) -> None:
    """It is saved without an output matrix: the embedding is used, and the logits are not scaled."""
    shape = SHAPES["v1.1"] | {"vocab_size": 31}
    config = transformers.T5Config(d_model=16, d_ff=8, d_kv=4, num_heads=2, decoder_start_token_id=0, **shape)
    model = transformers.T5ForConditionalGeneration(config).eval()
    if model.lm_head.weight is not model.shared.weight:
        pytest.skip(f"transformers {transformers.__version__} does not tie them")
    model.save_pretrained(tmp_path)
    ours, params = load_hf(tmp_path)
    assert not ours.tied
    np.testing.assert_array_equal(params["head"], np.asarray(params["embedding"]).T)
    ids = np.array([[5, 7, 1]])
    expected = model(input_ids=torch.tensor(ids), labels=torch.tensor(ids)).logits.detach().numpy()
    got = logits_of(ours, params, ids, ids)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_mt5_is_not_scaled(tmp_path: Path) -> None:
    config = transformers.MT5Config(
        vocab_size=31, d_model=16, d_ff=8, d_kv=4, num_heads=2, num_layers=1, decoder_start_token_id=0
    )
    model = transformers.MT5ForConditionalGeneration(config).eval()
    model.lm_head.weight = torch.nn.Parameter(torch.randn(31, 16))
    model.save_pretrained(tmp_path)
    ours, params = load_hf(tmp_path)
    ids = np.array([[5, 7, 1]])
    expected = model(input_ids=torch.tensor(ids), labels=torch.tensor(ids)).logits.detach().numpy()
    got = logits_of(ours, params, ids, ids)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_related_networks_are_refused() -> None:
    """Configs that transformers writes for networks of another function."""
    for config in (
        transformers.LongT5Config(),
        transformers.SwitchTransformersConfig(),
        transformers.T5Config(feed_forward_proj="gated-silu"),
        transformers.T5Config(feed_forward_proj="gelu"),
        transformers.T5Config(decoder_start_token_id=2),
    ):
        with pytest.raises(UserError):
            config_from_hf(config.to_diff_dict())


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (16, 100), (64, 512)])
def test_buckets_of_all_distances(bidirectional: bool, num_buckets: int, max_distance: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-3000, 3001)
    expected = T5Attention._relative_position_bucket(torch.tensor(distance), bidirectional, num_buckets, max_distance)
    options = {"num_buckets": num_buckets, "max_distance": max_distance}
    got = jax.jit(lambda d: relative_buckets(d, bidirectional=bidirectional, **options))(jnp.asarray(distance))
    np.testing.assert_array_equal(got, expected.numpy())
