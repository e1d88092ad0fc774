"""The T5: which tokens a state depends on, execution options, dropout, sizes. Parity with torch: test_oracle.py."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, numpy_params, random_ids, small_config

from cotmi_jax.errors import UserError
from cotmi_jax.models.attention_pattern import POSITION_BIAS_STD, Pattern, RelativeBias, relative_buckets
from cotmi_jax.models.config import preset
from cotmi_jax.models.remat import rematerialize
from cotmi_jax.models.student import Params, StudentDef, count_parameters

FAMILIES = {"v1.1": dict(gated=True, tied=False), "v1.0": dict(gated=False, tied=True)}
DEEP = dict(num_encoder_layers=2, num_decoder_layers=2)
WEIGHT_D = np.random.default_rng(9).normal(size=16).astype(np.float32)  # projects a state to a scalar

Ids = tuple[np.ndarray, np.ndarray]


def make_student(**changes: Any) -> tuple[StudentDef, Params]:
    student = StudentDef.of(small_config(**changes))
    return student, numpy_params(student)


def make_ids(source_width: int = 7, target_width: int = 5) -> Ids:
    """The same three examples, padded to the given widths."""
    draw = np.random.default_rng(1)
    inputs, targets = random_ids(draw, (7, 2, 4), 7), random_ids(draw, (3, 5, 1), 5)
    return np.pad(inputs, ((0, 0), (0, source_width - 7))), np.pad(targets, ((0, 0), (0, target_width - 5)))


def loss_of(student: StudentDef, params: Params, ids: Ids, key: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
    """Summed cross-entropy over the real target tokens, and the logits."""
    inputs, targets = ids
    logits = student.bind(params)(inputs, targets, key)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], axis=-1)[..., 0]
    return -jnp.where(targets != 0, chosen, 0.0).sum(), logits


def loss_and_grads(student: StudentDef, params: Params, ids: Ids, key: jax.Array | None = None) -> Any:
    grad = jax.value_and_grad(lambda p, ids, key: loss_of(student, p, ids, key), has_aux=True)
    return jax.jit(grad)(params, ids, key)


@pytest.fixture(scope="module")
def plain() -> Any:
    """Default execution on the narrowest batch: ((loss, logits), gradient)."""
    return loss_and_grads(*make_student(**DEEP), make_ids())


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_state_depends_on_the_whole_source_and_on_earlier_targets_only(family: str) -> None:
    """By gradients: all tokens differ, so a row of the embedding's Jacobian shows which states depend on that token."""
    student, params = make_student(**FAMILIES[family])
    inputs, targets = np.array([[2, 3, 4, 5, 6]]), np.array([[10, 11, 12, 13]])

    def projected_states_T(embedding: jax.Array) -> jax.Array:
        bound = student.bind(params | {"embedding": embedding})
        return (bound.decode(bound.encode(inputs), inputs, targets) @ WEIGHT_D)[0]

    jacobian_TxVxD = jax.jit(jax.jacrev(projected_states_T))(params["embedding"])
    expected_TxV = np.zeros((4, 32), bool)
    expected_TxV[:, inputs[0]] = True
    expected_TxV[:, 0] = True  # the start token
    for position, token in enumerate(targets[0]):
        expected_TxV[position + 1 :, token] = True
    np.testing.assert_array_equal(np.abs(jacobian_TxVxD).max(axis=-1) > 0, expected_TxV)


@pytest.mark.slow
def test_padding_changes_no_logit_and_no_gradient(plain: Any) -> None:
    (loss, logits), grads = plain
    (padded_loss, padded_logits), padded_grads = loss_and_grads(*make_student(**DEEP), make_ids(12, 9))
    np.testing.assert_allclose(padded_logits[:, :5], logits, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(padded_loss, loss, rtol=1e-6)
    assert_trees_close(padded_grads, grads, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_states_do_not_depend_on_padded_source_positions() -> None:
    student, params = make_student()
    inputs, targets = make_ids()
    padded_BxS = inputs == 0

    @jax.jit
    def projections(embedding: jax.Array, disturbance: jax.Array) -> tuple[jax.Array, jax.Array]:
        bound = student.bind(params | {"embedding": embedding})
        encoded = bound.encode(inputs)
        encoded_total = jnp.where(padded_BxS, 0.0, encoded @ WEIGHT_D).sum()
        return encoded_total, bound.decode(encoded + disturbance, inputs, targets) @ WEIGHT_D

    disturbance = 1e4 * np.random.default_rng(2).normal(size=(*inputs.shape, 16)) * padded_BxS[..., None]
    states = projections(params["embedding"], np.zeros_like(disturbance))[1]
    np.testing.assert_array_equal(projections(params["embedding"], disturbance)[1], states)
    embedding_grad = jax.grad(lambda embedding: projections(embedding, disturbance)[0])(params["embedding"])
    assert not np.asarray(embedding_grad[0]).any()  # no encoder state depends on the embedding of padding
    assert np.asarray(embedding_grad[inputs[0]]).all()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [dict(scan_layers=False), dict(remat="dots"), dict(remat="full")], ids=str)
def test_unrolling_and_rematerialization_change_no_value(changes: dict[str, Any], plain: Any) -> None:
    assert_trees_close(loss_and_grads(*make_student(**DEEP, **changes), make_ids()), plain, rtol=1e-4, atol=1e-5)


def test_rematerialization_repeats_matmuls() -> None:
    def matmuls(remat: str) -> int:
        student, params = make_student(remat=remat)
        return str(jax.make_jaxpr(jax.grad(lambda p: loss_of(student, p, make_ids())[0]))(params)).count("dot_general")

    assert matmuls("auto") == matmuls("none") < matmuls("dots") < matmuls("full")


def test_auto_recomputes_on_accelerators_and_in_the_loops_of_large_students(monkeypatch: pytest.MonkeyPatch) -> None:
    def saves_all(**changes: Any) -> bool:
        layer = jnp.sin
        return rematerialize(layer, small_config(**changes)) is layer

    assert [saves_all(remat=remat) for remat in ("auto", "none", "dots", "full")] == [True, True, False, False]
    large = dict(vocab_size=320_000)
    assert [saves_all(**large, scan_layers=looped) for looped in (True, False)] == [False, True]
    monkeypatch.setattr("cotmi_jax.models.remat.current_platform", lambda: "tpu")
    assert [saves_all(remat=remat) for remat in ("auto", "none")] == [False, True]


@pytest.mark.slow
def test_dtype_applies_to_activations_only() -> None:
    student, params = make_student(dtype="bfloat16")
    full, _ = make_student()
    inputs, targets = ids = make_ids()
    (loss, logits), grads = jax.eval_shape(lambda p: loss_and_grads(student, p, ids), params)
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, logits, grads, student.shapes))} == {jnp.dtype("float32")}
    assert jax.eval_shape(lambda p: student.bind(p).encode(inputs), params).dtype == jnp.bfloat16
    half_logits, logits = (jax.jit(lambda p, s=s: loss_of(s, p, ids)[1])(params) for s in (student, full))
    error = np.abs(half_logits - logits).mean() / np.abs(logits).mean()
    assert 1e-4 < error < 0.05


@pytest.mark.slow
def test_dropout_is_determined_by_its_key() -> None:
    student, params = make_student(dropout=0.3)
    logits = jax.jit(lambda p, ids, key: loss_of(student, p, ids, key)[1])
    first, again, other = (logits(params, make_ids(), jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).mean() > 0.1


def test_no_random_bits_are_drawn_at_rate_0_or_without_a_key() -> None:
    def draws(rate: float, key: jax.Array | None) -> int:
        student, params = make_student(dropout=rate)
        jaxpr = jax.make_jaxpr(lambda p, key: loss_of(student, p, make_ids(), key))(params, key)
        return str(jaxpr).count("random_unwrap")  # of a key, where a mask is drawn

    key = jax.random.key(0)
    assert draws(0.1, key) == 14  # 4 in the encoder's layer, 6 in the decoder's; embeddings and final states twice
    assert draws(0.1, None) == draws(0.0, key) == 0


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (16, 100)])
def test_relative_buckets(bidirectional: bool, num_buckets: int, max_distance: int) -> None:
    """In exact integers: of the n log-spaced buckets, the j-th starts at distance exact · (max/exact)^(j/n)."""

    def bucket(distance: int) -> int:  # of key − query
        half = num_buckets // 2 if bidirectional else num_buckets
        away = abs(distance) if bidirectional else max(-distance, 0)
        offset = half if bidirectional and distance > 0 else 0
        exact = half // 2
        if away < exact:
            return offset + away
        far = half - exact
        started = [j for j in range(far) if away**far * exact**j >= exact**far * max_distance**j]
        return offset + exact + max(started)

    distances = np.arange(-3 * max_distance, 3 * max_distance + 1)
    static = dict(bidirectional=bidirectional, num_buckets=num_buckets, max_distance=max_distance)
    buckets = relative_buckets(jnp.asarray(distances), **static)
    np.testing.assert_array_equal(buckets, [bucket(int(distance)) for distance in distances])


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_position_bias_depends_on_key_minus_query(stack: str) -> None:
    student, params = make_student()
    position: RelativeBias = getattr(student.bind(params), stack).position
    bias_1xHxTxS = position.add_to(Pattern(first_query=2)).bias(3, 6)
    assert bias_1xHxTxS is not None
    bias_HxTxS = bias_1xHxTxS[0]
    embedding = params[stack]["position"]["embedding"]
    assert bias_HxTxS.shape == (4, 3, 6)
    np.testing.assert_array_equal(bias_HxTxS[:, 1, 3], embedding[0])  # the query itself
    np.testing.assert_array_equal(bias_HxTxS[:, 1, 2], embedding[1])  # the key before it
    np.testing.assert_array_equal(bias_HxTxS[:, 1, 4], embedding[5 if stack == "encoder" else 0])  # the key after it


@pytest.mark.parametrize("family", FAMILIES)
def test_output_layer(family: str) -> None:
    student, params = make_student(**FAMILIES[family])
    states = np.random.default_rng(3).normal(size=(2, 3, 16)).astype(np.float32)
    expected = states @ params["embedding"].T / 4.0 if family == "v1.0" else states @ params["head"]
    np.testing.assert_allclose(student.bind(params).logits(states), expected, rtol=1e-5, atol=1e-5)
    assert ("head" in params) == (family == "v1.1")


@pytest.mark.slow
def test_initialization() -> None:
    """Standard deviations as in Mesh TensorFlow, where the query's includes attention's 1/√K; norms are ones."""
    student = StudentDef.of(small_config(**DEEP, d_model=48, d_kv=12, d_ff=40, vocab_size=300))
    params = student.init(jax.random.key(0))
    jax.tree.map(lambda leaf, shape: np.testing.assert_equal((leaf.shape, leaf.dtype), (shape.shape, shape.dtype)),
                 params, student.shapes)  # fmt: skip
    variances = {
        "query": 48 * 12,
        "key": 48,
        "value": 48,
        "out": 48,
        "gate": 48,
        "up": 48,
        "down": 40,
        "head": 48,
        "embedding": 1,
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name == "scale":
            assert (leaf == 1).all()
            continue
        is_position = len(path) > 1 and path[-2].key == "position"
        expected = POSITION_BIAS_STD if is_position else variances[name] ** -0.5
        assert abs(float(jnp.std(leaf)) / expected - 1.0) < (0.5 if is_position else 0.06), path
    assert not np.array_equal(*(params["encoder"]["blocks"]["mlp"]["up"][layer] for layer in (0, 1)))


# Counted by transformers on the published checkpoints.
PUBLISHED = {
    ("v1.0", "small"): 60_506_624,
    ("v1.0", "base"): 222_903_552,
    ("v1.0", "large"): 737_668_096,
    ("v1.0", "xl"): 2_851_598_336,
    ("v1.0", "xxl"): 11_307_321_344,
    ("v1.1", "small"): 76_961_152,
    ("v1.1", "base"): 247_577_856,
    ("v1.1", "large"): 783_150_080,
    ("v1.1", "xl"): 2_849_757_184,
    ("v1.1", "xxl"): 11_135_332_352,
}


@pytest.mark.parametrize(("family", "name"), PUBLISHED)
def test_presets_have_the_published_sizes(family: str, name: str) -> None:
    assert count_parameters(StudentDef.of(preset(name, family)).shapes) == PUBLISHED[family, name]


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(UserError, match="'huge'.*tiny, mini, small"):
        preset("huge")
    with pytest.raises(UserError, match=r"'v2'.*v1\.0, v1\.1"):
        preset("small", "v2")
