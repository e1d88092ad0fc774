"""The scan over chunks of positions against all logits at once: values, gradients, memory, FLOPs, meshes."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, numpy_params, small_config
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.token_scan import EMPTY, TokenScan, scan_tokens
from cotmi_jax.parallel.batch import batch_sharding
from cotmi_jax.parallel.mesh import make_mesh

B, T, D, V = 4, 10, 6, 16
POOLS = (None, "max", "mean")
Scan = Callable[..., TokenScan]


def whole(states: Array, targets: Array, logits: Callable, *, member: Array | None, pool: str | None) -> TokenScan:
    """The plain form, with [B, T, V] and [B, N, T, V] in memory."""
    logits_BxTxV = logits(states)
    normalizer = jax.nn.logsumexp(logits_BxTxV, axis=-1)
    loss = normalizer - jnp.take_along_axis(logits_BxTxV, targets[..., None], axis=-1)[..., 0]
    hit = jnp.argmax(logits_BxTxV, axis=-1) == targets
    if member is None:
        return TokenScan(loss, hit, None)
    log_p = jnp.where(member[..., None], jax.nn.log_softmax(logits_BxTxV)[:, None], EMPTY)
    if pool == "max":
        return TokenScan(loss, hit, log_p.max(axis=2))
    return TokenScan(
        loss, hit, jax.nn.logsumexp(log_p, axis=2) - jnp.log(jnp.maximum(member.sum(axis=2), 1))[..., None]
    )


@functools.cache
def chunked(chunk: int, mask_lengths: tuple[int, ...] | None = None) -> Scan:
    def scan(states: Array, targets: Array, logits: Callable, *, member: Array | None, pool: Any) -> TokenScan:
        mask = None if mask_lengths is None else one_segment(mask_lengths)[:, 0]
        return scan_tokens(states, targets, logits, member_BxNxT=member, pool=pool, mask_BxT=mask, chunk=chunk)

    return scan


def make(scale: float = 1.0, batch: int = B) -> tuple[Array, Array, Array]:
    """States, head and targets; the targets are the likeliest tokens about half of the time."""
    draw = np.random.default_rng(0)
    states = jnp.asarray(scale * draw.normal(size=(batch, T, D)), jnp.float32)
    head = jnp.asarray(draw.normal(size=(D, V)), jnp.float32)
    likeliest = np.argmax(np.asarray(states @ head), axis=-1)
    targets = np.where(draw.random((batch, T)) < 0.5, likeliest, draw.integers(0, V, (batch, T)))
    return states, head, jnp.asarray(targets, jnp.int32)


def one_segment(lengths: tuple[int, ...], width: int = T) -> Array:
    return jnp.asarray(np.arange(width) < np.array(lengths)[:, None])[:, None]


def objective(
    scan: Scan, pool: str | None, states: Array, head: Array, targets: Array, member: Array, used: Array | float = 1.0
) -> tuple[Array, TokenScan]:
    """A scalar with a different weight for every loss that is used and every pooled entry, and the results."""

    def logits(states: Array) -> Array:
        return jnp.matmul(states, head.astype(states.dtype), preferred_element_type=jnp.float32)

    def weighted(x: Array) -> Array:
        return jnp.sin(1.0 + jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape) * x

    result = scan(states, targets, logits, member=None if pool is None else member, pool=pool)
    total = jnp.where(jnp.equal(used, 1), weighted(result.loss_BxT), 0.0).sum()
    if result.log_pooled_BxNxV is not None:
        # Scaled, not masked: the gradient of an empty segment must be 0 without a mask.
        scale = jnp.where(result.log_pooled_BxNxV == EMPTY, -1.0 / EMPTY, 1.0)
        total += weighted(scale * result.log_pooled_BxNxV).sum()
    return total, result


@functools.cache
def differentiate(scan: Scan, pool: str | None) -> Callable[..., tuple[tuple[Array, TokenScan], tuple[Array, Array]]]:
    """Jitted (states, head, targets, member[, used]) → (objective, gradient in states and head)."""
    return jax.jit(jax.value_and_grad(functools.partial(objective, scan, pool), (0, 1), has_aux=True))


def assert_close(actual: Any, expected: Any, tolerance: float = 1e-6) -> None:
    """Within the tolerance of each array's largest magnitude."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        size = np.abs(np.asarray(other, np.float32)).max()
        np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=0, atol=tolerance * size)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("chunk", [1, 4, 64], ids="chunk{}".format)
def test_any_chunk_gives_the_values_and_gradients_of_the_plain_form(pool: str | None, chunk: int) -> None:
    states, head, targets = make()
    operands = states, head, targets, one_segment((10, 7, 1, 4))
    (_, result), grads = differentiate(chunked(chunk), pool)(*operands)
    (_, expected), expected_grads = differentiate(whole, pool)(*operands)
    assert 0.3 < expected.hit_BxT.mean() < 0.9
    np.testing.assert_array_equal(result.hit_BxT, expected.hit_BxT)
    assert (result.log_pooled_BxNxV is None) == (pool is None)
    assert_close(result[::2], expected[::2])
    assert_close(grads, expected_grads)


@pytest.mark.parametrize("pool", POOLS)
def test_logits_of_large_scale_stay_exact(pool: str | None) -> None:
    """Probabilities that underflow in float32: their logarithms and the gradients through them do not."""
    states, head, targets = make(scale=60.0)
    operands = states, head, targets, one_segment((10, 7, 1, 4))
    (_, result), grads = differentiate(chunked(4), pool)(*operands)
    (_, expected), expected_grads = differentiate(whole, pool)(*operands)
    if result.log_pooled_BxNxV is not None:
        assert result.log_pooled_BxNxV.min() < -300
    assert_close(result[::2], expected[::2])
    # The fraction of a position in a sum is the difference of two logarithms, here of hundreds of nats.
    assert_close(grads, expected_grads, 5e-5 if pool == "mean" else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS[1:])
def test_packed_segments_equal_separate_rows(pool: str) -> None:
    states, head, targets = make(batch=2)
    spans = [[(0, 2), (2, 9), (9, 9)], [(5, 10), (0, 1), (1, 4)]]  # in any order, one empty, gaps between them
    member = np.zeros((2, 3, T), bool)
    apart = np.zeros((6, T, D), np.float32)
    for row, segments in enumerate(spans):
        for n, (start, end) in enumerate(segments):
            member[row, n, start:end] = True
            apart[3 * row + n, : end - start] = states[row, start:end]
    lengths = tuple(end - start for segments in spans for start, end in segments)

    def pooled(states: Array, head: Array, member: Array, targets: Array) -> tuple[Array, Array]:
        _, result = objective(chunked(4), pool, states, head, targets, member)
        weights = jnp.sin(jnp.arange(6 * V, dtype=jnp.float32)).reshape(6, V)
        rows = result.log_pooled_BxNxV.reshape(6, V)
        return (weights * rows).sum(), rows

    grad = jax.jit(jax.value_and_grad(pooled, (0, 1), has_aux=True))
    (_, together), (d_states, d_head) = grad(states, head, jnp.asarray(member), targets)
    (_, alone), (d_apart, d_head_apart) = grad(jnp.asarray(apart), head, one_segment(lengths), jnp.zeros((6, T), int))
    assert_close((together, d_head), (alone, d_head_apart))
    expected = np.zeros_like(states)
    for row, segments in enumerate(spans):
        for n, (start, end) in enumerate(segments):
            expected[row, start:end] = d_apart[3 * row + n, : end - start]
    assert_close(d_states, expected)


@pytest.mark.slow
@pytest.mark.parametrize("junk", [np.nan, np.inf])
@pytest.mark.parametrize("pool", POOLS)
def test_values_at_masked_positions_change_nothing(pool: str | None, junk: float) -> None:
    states, head, targets = make()
    lengths = (10, 7, 0, 4)
    used = one_segment(lengths)[:, 0]
    run = differentiate(chunked(4, lengths), pool)
    operands = head, targets, jnp.ones((B, 1, T), bool), used  # the mask alone keeps the padding out of the segment
    (value, result), grads = run(jnp.where(used[..., None], states, junk), *operands)
    (clean_value, clean), clean_grads = run(states, *operands)
    assert np.isfinite(value) and np.isfinite(result.loss_BxT).all()
    assert value == clean_value
    assert_trees_close((result, grads), (clean, clean_grads), rtol=0, atol=0)
    _, expected_grads = differentiate(whole, pool)(states, head, targets, one_segment(lengths), used)
    assert_close(grads, expected_grads)
    assert not np.asarray(grads[0])[~np.asarray(used)].any() and np.asarray(grads[0])[np.asarray(used)].all()


@pytest.mark.parametrize("pool", POOLS[1:])
def test_a_segment_without_positions_is_constant(pool: str) -> None:
    states, head, targets = make()
    member = one_segment((10, 0, 3, 0))
    unused = jnp.zeros((B, T), bool)
    (_, result), grads = differentiate(chunked(4), pool)(states, head, targets, member, unused)
    pooled = np.asarray(result.log_pooled_BxNxV)
    assert (pooled[[1, 3]] == EMPTY).all() and (pooled[[0, 2]] > -100).all()
    assert all(np.isfinite(grad).all() for grad in grads)
    d_states = np.asarray(grads[0])
    assert not d_states[[1, 3]].any() and d_states[0].any() and d_states[2, :3].any() and not d_states[2, 3:].any()


def test_a_nan_at_a_valid_position_is_visible() -> None:
    states, head, targets = make()
    states = states.at[1, 5].set(np.nan)
    one = one_segment((T,) * B)
    for pool, member in itertools.product(POOLS[1:], (one, jnp.pad(one, ((0, 0), (0, 1), (0, 0))))):
        (_, result), _ = differentiate(chunked(4), pool)(states, head, targets, member)
        assert np.isnan(result.loss_BxT[1, 5]) and not result.hit_BxT[1, 5]
        np.testing.assert_array_equal(np.isnan(result.log_pooled_BxNxV).any(axis=(1, 2)), np.arange(B) == 1)


def test_ties() -> None:
    """Of two equal positions the first has the gradient of their maximum. Of k equal logits each is 1/k of a hit."""
    states, head, targets = make()
    states = states.at[:, 7].set(states[:, 2])
    for chunk, segments in ((4, 1), (64, 1), (4, 2)):
        member = jnp.zeros((B, segments, T), bool).at[:, :1, (2, 7)].set(True)
        _, (d_states, _) = differentiate(chunked(chunk), "max")(states, head, targets, member, jnp.zeros((B, T), bool))
        assert np.asarray(d_states[:, 2]).all() and not np.asarray(d_states[:, 7]).any()
    result = scan_tokens(states, targets, lambda x: jnp.zeros((*x.shape[:2], V)))
    np.testing.assert_array_equal(result.hit_BxT, np.full((B, T), 1 / V, np.float32))
    two = jnp.zeros(V).at[:2].set(1.0)
    result = scan_tokens(states, targets % 3, lambda x: jnp.broadcast_to(two, (*x.shape[:2], V)))
    np.testing.assert_array_equal(result.hit_BxT, np.where(targets % 3 < 2, 0.5, 0.0))


@pytest.mark.slow
@pytest.mark.parametrize("pool", POOLS)
def test_micro_batches_in_bfloat16(pool: str | None) -> None:
    """The gradient inside a scan over single rows, as in the training step over micro-batches."""
    states, head, targets = make()
    states, member = states.astype(jnp.bfloat16), one_segment((10, 7, 1, 4))

    def grad_of_row(total: Array, row: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        states, targets, member = (x[None] for x in row)
        _, (d_states, d_head) = differentiate(chunked(4), pool)(states, head, targets, member)
        return total + d_head, d_states[0]

    d_head, d_states = jax.jit(lambda: jax.lax.scan(grad_of_row, jnp.zeros_like(head), (states, targets, member)))()
    assert d_states.dtype == jnp.bfloat16 and d_head.dtype == jnp.float32
    expected_head = jnp.zeros_like(head)
    for row in range(B):
        one = slice(row, row + 1)
        _, (expected, from_row) = differentiate(whole, pool)(states[one], head, targets[one], member[one])
        assert_close(d_states[one], expected, 1e-2)
        expected_head += from_row
    assert_close(d_head, expected_head, 1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_gradients_reach_the_parameters_of_a_student(tied: bool) -> None:
    """The head has its own parameters, or is the embedding transposed."""
    student = StudentDef.of(small_config(tied=tied))
    params = numpy_params(student)
    draw = np.random.default_rng(1)
    states = jnp.asarray(draw.normal(size=(B, T, 16)), jnp.float32)
    targets, member = jnp.asarray(draw.integers(0, 32, (B, T))), one_segment((10, 7, 1, 4))

    def scalar(params: Any, scan: Scan) -> Array:
        bound = student.bind(params)
        first = scan(states, targets, bound.logits, member=member, pool="max")
        second = scan(2.0 * states, targets, bound.logits, member=None, pool=None)
        return first.loss_BxT.sum() - first.log_pooled_BxNxV.sum() + second.loss_BxT.sum()

    grads, expected = (jax.jit(jax.grad(scalar), static_argnums=1)(params, scan) for scan in (chunked(4), whole))
    assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))
    assert_trees_close(grads, expected, rtol=1e-5, atol=1e-5)


def test_changed_parameters_change_the_result() -> None:
    class Student:
        def __init__(self, head: Array) -> None:
            self.head = head

        def logits(self, states: Array) -> Array:
            return states @ self.head

    states, head, targets = make()
    student = Student(head)
    before = scan_tokens(states, targets, student.logits).loss_BxT
    student.head = 2.0 * head
    after = scan_tokens(states, targets, student.logits).loss_BxT
    assert_close(after, whole(states, targets, student.logits, member=None, pool=None).loss_BxT)
    assert np.abs(np.asarray(after - before)).max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 4, 2)], ids=str)
def test_a_mesh_gives_the_results_of_one_device(sizes: tuple[int, int, int]) -> None:
    """The batch over data and fsdp, the head over fsdp and tensor, packed segments."""
    states, head, targets = make(batch=8)
    states, head = (jnp.concatenate([x, -x], axis=axis) for x, axis in ((states, 2), (head, 0)))  # D = 12, by 4
    draw = np.random.default_rng(2)
    member = jnp.asarray(draw.integers(0, 4, (8, 1, T)) == np.arange(3)[:, None])  # the fourth part is padding

    mesh = make_mesh(*sizes)
    for pool in POOLS[1:]:
        (_, expected), expected_grads = differentiate(whole, pool)(states, head, targets, member)
        with jax.set_mesh(mesh):
            split_head = jax.device_put(head, NamedSharding(mesh, PartitionSpec("fsdp", "tensor")))
            rows, *labels = (jax.device_put(x, batch_sharding(mesh)) for x in (states, targets, member))
            (_, actual), grads = differentiate(chunked(4), pool)(rows, split_head, *labels)
        assert not grads[1].sharding.is_fully_replicated
        assert_close((actual, grads), (expected, expected_grads), 2e-6)


@pytest.fixture
def optimized() -> Iterator[None]:
    """Compile with full optimization, on which the memory of a program depends."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_no_temporary_has_the_size_of_the_logits() -> None:
    """Temporaries of the gradient in GB, compiled and never run. The logits are 1.05 GB, pooled features 8 MB."""
    batch, length, width, vocab_size = 64, 128, 64, 32128
    dtypes = (jnp.float32, jnp.float32, jnp.int32, jnp.bool_)

    def gigabytes(scan: Scan, pool: str | None, segments: int = 1) -> float:
        shapes = ((batch, length, width), (width, vocab_size), (batch, length), (batch, segments, length))
        operands = [jax.ShapeDtypeStruct(*each) for each in zip(shapes, dtypes, strict=True)]
        program = differentiate(scan, pool).lower(*operands).compile()
        return program.memory_analysis().temp_size_in_bytes / 1e9

    naive = gigabytes(whole, "max")
    scanned = {pool: gigabytes(chunked(8), pool) for pool in POOLS}
    print(f"temporaries: whole logits {naive:.2f} GB, scan {scanned}")
    assert naive > 3.0
    assert scanned[None] < 0.3
    assert scanned["max"] - scanned[None] < 0.1 and scanned["mean"] - scanned[None] < 0.2
    # The pooled features of 8 segments, with their winners and gradient, are 0.2 GB; an array [B, 8, 8, V] is 0.53 GB.
    packed = gigabytes(chunked(8), "max", 8)
    print(f"temporaries of 8 segments: {packed:.2f} GB")
    assert packed - scanned[None] < 0.5


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_detached_features_add_no_flops_to_the_backward_pass() -> None:
    states, head, targets = make()

    def detached(*args: Any, **options: Any) -> TokenScan:
        result = chunked(4)(*args, **options)
        return result._replace(log_pooled_BxNxV=jax.lax.stop_gradient(result.log_pooled_BxNxV))

    def flops(scan: Scan, pool: str | None) -> float:
        grad = jax.jit(lambda *operands: differentiate(scan, pool)(*operands)[1])
        compiled = grad.lower(states, head, targets, one_segment((10, 7, 1, 4))).compile()
        return compiled.cost_analysis()["flops"]

    unpooled = flops(chunked(4), None)
    for pool in POOLS[1:]:
        assert flops(detached, pool) == unpooled < flops(chunked(4), pool)


def test_pool_needs_members() -> None:
    states, head, targets = make()
    for options in (dict(pool="max"), dict(member_BxNxT=one_segment((T,) * B))):
        with pytest.raises(ValueError, match="together"):
            scan_tokens(states, targets, lambda x: x @ head, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("platform, rows", [("cpu", 256), ("tpu", 1024), ("gpu", 1024)])
def test_the_default_chunk_has_more_rows_on_accelerators(
    monkeypatch: pytest.MonkeyPatch, platform: str, rows: int
) -> None:
    monkeypatch.setattr("cotmi_jax.objectives.token_scan.current_platform", lambda: platform)
    largest = []

    def logits(states_BxLxD: Array) -> Array:
        largest.append(states_BxLxD.shape[0] * states_BxLxD.shape[1])
        return states_BxLxD @ jnp.ones((D, V))

    jax.eval_shape(
        lambda states, targets: scan_tokens(states, targets, logits),
        jax.ShapeDtypeStruct((8, 1024, D), jnp.float32),
        jax.ShapeDtypeStruct((8, 1024), jnp.int32),
    )
    assert max(largest) == rows
