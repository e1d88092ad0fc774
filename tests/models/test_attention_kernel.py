"""The attention kernel: equality with the plain form in value and gradient, skipped tiles, meshes, TPU compilation.

On CPU the kernel is interpreted: its tiles have 32 positions here, 128 on a TPU.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from cotmi_jax.aot.topology import topology_devices
from cotmi_jax.models import attention_kernel
from cotmi_jax.models.attention import attend
from cotmi_jax.models.attention_kernel import fused_attention, unsupported
from cotmi_jax.models.attention_pattern import Pattern
from cotmi_jax.parallel.mesh import BATCH_AXES, make_mesh

KEY = jax.random.key(7)
TILE = 32


class Case(NamedTuple):
    """Shapes of one call. segments: ascending, none, or in any order; last: also a padded rest of each row."""

    queries: int
    keys: int
    heads: int
    size: int
    biased: bool = False
    causal: bool = False
    segments: str = "none"
    rate: float = 0.0
    batch: int = 2


class Inputs(NamedTuple):
    query_BxTxHxK: Array
    keys_BxSxHxK: Array
    values_BxSxHxK: Array
    table_PxNxH: Array | None


ENCODER = Case(64, 64, 2, 64, biased=True, segments="ascending", rate=0.1)
DECODER = Case(40, 40, 1, 128, biased=True, causal=True, segments="any order", rate=0.1)
CROSS = Case(40, 90, 1, 128, segments="ascending", rate=0.1)


def make_inputs(case: Case, dtype: jnp.dtype = jnp.float32) -> tuple[Inputs, Pattern, Array]:
    """Inputs, the pattern without its table, and weights of the context in the loss."""
    random = np.random.default_rng(0)
    lengths = case.queries, case.keys, case.keys, case.queries
    shapes = [(case.batch, length, case.heads, case.size) for length in lengths]
    query, keys, values, weights = (jnp.asarray(0.3 * random.normal(size=shape), dtype) for shape in shapes)
    table = jnp.asarray(random.normal(size=(1, 32, case.heads)), jnp.float32) if case.biased else None
    query_segments = key_segments = None
    if case.segments != "none":
        query_segments, key_segments = (random.integers(1, 5, (case.batch, n)) for n in (case.queries, case.keys))
        if case.segments == "ascending":
            query_segments, key_segments = np.sort(query_segments, 1), np.sort(key_segments, 1)
            query_segments[:, -5:] = key_segments[:, -9:] = 0
        if case.queries == case.keys:
            query_segments = key_segments
        query_segments, key_segments = (jnp.asarray(x, jnp.int32) for x in (query_segments, key_segments))
    pattern = Pattern(None, query_segments, key_segments, bidirectional=not case.causal, causal=case.causal)
    return Inputs(query, keys, values, table), pattern, weights


def value_and_gradients(function, inputs: Inputs, pattern: Pattern, weights: Array, rate: float) -> tuple:
    """The context, and the gradients of its weighted sum."""

    def loss(inputs: Inputs) -> tuple[Array, Array]:
        *states, table = inputs
        context = function(*states, dataclasses.replace(pattern, table_PxNxH=table), KEY, rate=rate)
        return (context.astype(jnp.float32) * weights.astype(jnp.float32)).sum(), context

    gradients, context = jax.jit(jax.grad(loss, has_aux=True))(inputs)
    return context, gradients


def kernel(*arguments, **options) -> Array:
    return fused_attention(*arguments, **options, tile=TILE, interpret=True)


def assert_close(mine: object, theirs: object, tolerance: float) -> None:
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        assert x.dtype == y.dtype
        x, y = (np.asarray(z, np.float32) for z in (x, y))
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * np.abs(y).max())


@pytest.mark.slow
@pytest.mark.parametrize("case", [ENCODER, DECODER, CROSS], ids=["encoder", "decoder", "cross"])
def test_the_kernel_equals_the_plain_form(case: Case) -> None:
    """Bias, segments, causality, dropout, two heads in 128 lanes, lengths that are no multiple of a tile."""
    arguments = *make_inputs(case), case.rate
    assert_close(value_and_gradients(kernel, *arguments), value_and_gradients(attend, *arguments), 1e-5)


@pytest.mark.slow
def test_bfloat16_is_rounded_no_more_than_in_the_plain_form() -> None:
    """Context and gradients of both differ from float32 by about 2^-8 of the largest element (measured: 0.5%)."""
    inputs, pattern, weights = make_inputs(Case(40, 40, 1, 128, biased=True), jnp.bfloat16)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
    exact = jax.tree.leaves(value_and_gradients(attend, exact, pattern, weights, 0.0))
    for function in (kernel, attend):
        rounded = value_and_gradients(function, inputs, pattern, weights, 0.0)
        assert rounded[0].dtype == jnp.bfloat16
        rounded = [x.astype(jnp.float32) for x in jax.tree.leaves(rounded)]
        assert_close(rounded, exact, 0.01)


@pytest.mark.slow
def test_tiles_of_other_segments_are_not_computed() -> None:
    """Segments 1 and 2 have a tile each: NaN in the keys and values of one reaches no result of the other, forward and
    backward. A tile that is computed and masked would give 0 · NaN."""
    case = Case(2 * TILE, 2 * TILE, 1, 128, biased=True, batch=1)
    inputs, pattern, weights = make_inputs(case)
    segments = jnp.repeat(jnp.array([[1, 2]]), TILE, axis=1)
    pattern = dataclasses.replace(pattern, query_segments_BxT=segments, key_segments_BxS=segments)
    weights = weights.at[:, TILE:].set(0.0)
    context, gradients = value_and_gradients(kernel, inputs, pattern, weights, 0.0)
    foreign = inputs._replace(
        keys_BxSxHxK=inputs.keys_BxSxHxK.at[:, TILE:].set(jnp.nan),
        values_BxSxHxK=inputs.values_BxSxHxK.at[:, TILE:].set(jnp.nan),
    )
    with_nan, gradients_with_nan = value_and_gradients(kernel, foreign, pattern, weights, 0.0)
    assert jnp.isnan(with_nan[:, TILE:]).all()
    np.testing.assert_array_equal(with_nan[:, :TILE], context[:, :TILE])
    for mine, theirs in zip(gradients_with_nan[:3], gradients[:3], strict=True):
        np.testing.assert_array_equal(mine[:, :TILE], theirs[:, :TILE])


@pytest.mark.parametrize("causal", [False, True])
def test_key_tiles_enclose_all_visible_pairs(causal: bool) -> None:
    """Ascending segments with padding are skipped where possible; segments in any order are never lost."""
    random = np.random.default_rng(1)
    static = attention_kernel.Static(1, 4, 4, causal, 0.0, True)
    for segments in (random.integers(0, 4, (20, 16)), np.sort(random.integers(1, 9, (20, 16)), axis=1)):
        ids = jnp.asarray(np.where(segments == 0, 1 << 30, segments))
        begin, end = np.asarray(attention_kernel._key_tiles(static, ids, ids))
        seen = segments[:, :, None] == segments[:, None, :]
        seen = seen & np.tri(16, dtype=bool) if causal else seen
        seen = seen.reshape(20, 4, 4, 4, 4).any(axis=(2, 4))
        tile = np.arange(4)
        inside = (begin[..., None] <= tile) & (tile < end[..., None])
        assert not (seen & ~inside).any()
    np.testing.assert_array_equal(inside, seen)  # the last ones ascend: exactly the visible tiles
    assert inside.mean() < 0.6


@pytest.mark.slow
def test_a_query_that_sees_no_key_has_a_finite_context_and_no_gradient() -> None:
    inputs, pattern, weights = make_inputs(Case(40, 40, 1, 128))
    queries, keys = jnp.ones((2, 40), jnp.int32).at[:, 3].set(5), jnp.ones((2, 40), jnp.int32).at[1].set(6)
    pattern = dataclasses.replace(pattern, query_segments_BxT=queries, key_segments_BxS=keys)
    unread = weights.at[:, 3].set(0.0).at[1].set(0.0)
    context, gradients = value_and_gradients(kernel, inputs, pattern, unread, 0.0)
    assert jnp.isfinite(context).all()
    for gradient in jax.tree.leaves(gradients):
        assert jnp.isfinite(gradient).all()
        assert not gradient[1].any()
    assert not gradients.query_BxTxHxK[0, 3].any() and gradients.query_BxTxHxK[0, 4].any()


@pytest.mark.slow
@pytest.mark.parametrize("copies", [1, 4])
def test_eight_devices_draw_the_masks_of_one(copies: int) -> None:
    """Batch over four devices and heads over two: values and gradients, also of a bias that all devices share, or of
    which each batch shard has a copy."""
    inputs, pattern, weights = make_inputs(Case(20, 20, 2, 128, biased=True, segments="any order", batch=4))
    inputs = inputs._replace(table_PxNxH=jnp.tile(inputs.table_PxNxH, (copies, 1, 1)))
    expected = value_and_gradients(attend, inputs, pattern, weights, 0.2)
    with jax.set_mesh(make_mesh(data=2, fsdp=2, tensor=2)):
        found = value_and_gradients(kernel, inputs, pattern, weights, 0.2)
    assert_close(found, expected, 1e-5)


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.bfloat16)


def test_what_is_unsupported_is_said() -> None:
    row, pattern, position = shape(8, 256, 12, 64), Pattern(), Pattern(first_query=jnp.int32(0))
    assert unsupported(row, row, pattern) == "it is compiled for TPUs, not for cpu"
    pytest.importorskip("libtpu")
    with jax.set_mesh(make_mesh(devices=topology_devices("v5e-8"))):
        assert unsupported(row, row, pattern) is None
        assert unsupported(row, row, position) == "it is for whole rows, not for one position of a decoding loop"
        assert unsupported(*[shape(8, 256, 12, 16)] * 2, pattern) == ("it takes heads of 64 or 128 features, not of 16")
        assert (
            unsupported(*[shape(3, 256, 12, 64)] * 2, pattern) == "3 rows and 12 heads do not divide over 8 × 1 devices"
        )
        assert unsupported(*[shape(8, 9216, 12, 64)] * 2, pattern) == (
            "rows of 9216 → 9216 tokens need 45 MiB of vector memory, of which 40 may be used"
        )
    with jax.set_mesh(make_mesh(devices=topology_devices("v4-8"))):
        text = unsupported(*[shape(8, 3072, 12, 64)] * 2, pattern)
        assert text is not None and text.endswith("of which 12 may be used")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["v4-8", "v5e-8", "v6e-8"])
def test_both_passes_compile_for_tpus(name: str) -> None:
    """By libtpu's compiler, sharded over the slice: several tiles, dropout, causality, a bias, two heads in a step."""
    pytest.importorskip("libtpu")
    mesh = make_mesh(devices=topology_devices(name))
    batch, copies = NamedSharding(mesh, PartitionSpec(BATCH_AXES)), NamedSharding(mesh, PartitionSpec())
    state = jax.ShapeDtypeStruct((8, 208, 2, 64), jnp.bfloat16, sharding=batch)
    segments = jax.ShapeDtypeStruct((8, 208), jnp.int32, sharding=batch)
    table = jax.ShapeDtypeStruct((1, 32, 2), jnp.float32, sharding=copies)

    def loss(inputs: Inputs, segments: Array) -> Array:
        *states, table = inputs
        pattern = Pattern(table, segments, segments, causal=True)
        assert unsupported(*states[:2], pattern) is None
        return fused_attention(*states, pattern, KEY, rate=0.1).astype(jnp.float32).sum()

    with jax.set_mesh(mesh):
        program = jax.jit(jax.grad(loss)).lower(Inputs(state, state, state, table), segments).compile()
    assert program.as_text().count('custom_call_target="tpu_custom_call"') == 2
