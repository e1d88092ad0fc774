"""Every bound against the float64 oracle, its mask, its sharding."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import mi_oracle as oracle
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from mi_scores import assert_close, f32, scores

from cotmi_jax.mi import bounds
from cotmi_jax.mi.bounds import Bound, MineState
from cotmi_jax.mi.estimators import ESTIMATORS
from cotmi_jax.parallel.mesh import BATCH_AXES, make_mesh

Array = jax.Array
Ours = Callable[[Array, Array, Array | None, Array | None], Bound]  # score_KxK, side_K, valid_K, positive_K
Theirs = Callable[[np.ndarray, np.ndarray], float]  # score, side


class Case(NamedTuple):
    """A bound, its oracle and whether it takes separate positives. `side_K` is the baseline of those that have one."""

    ours: Ours
    value: Theirs
    objective: Theirs
    takes_positive: bool = True


def same(ours: Ours, theirs: Theirs, takes_positive: bool = True) -> Case:
    """A bound whose objective is its value."""
    return Case(ours, theirs, theirs, takes_positive)


CASES: dict[str, Case] = {
    "infonce": same(lambda f, _, valid, p: bounds.infonce(f, valid, positive_K=p), lambda f, _: oracle.infonce_row(f)),
    "infonce column": same(
        lambda f, _, valid, p: bounds.infonce(f, valid, positive_K=p, axis="column"),
        lambda f, _: oracle.infonce_column(f),
    ),
    "infonce symmetric": same(
        lambda f, _, valid, p: bounds.infonce(f, valid, positive_K=p, axis="symmetric"),
        lambda f, _: oracle.infonce_symmetric(f),
    ),
    "nwj": same(lambda f, _, valid, p: bounds.nwj(f, valid, positive_K=p), lambda f, _: oracle.nwj(f)),
    "tuba": same(
        lambda f, side, valid, p: bounds.tuba(f, side, valid, positive_K=p),
        lambda f, side: oracle.tuba(f, list(side)),
    ),
    "interpolated": same(
        lambda f, _, valid, p: bounds.interpolated(f, valid, positive_K=p),
        lambda f, _: oracle.interpolated(f, 0.01, [0.0] * len(f)),
    ),
    "interpolated .3": same(
        lambda f, side, valid, p: bounds.interpolated(f, valid, positive_K=p, alpha=0.3, log_baseline_K=side),
        lambda f, side: oracle.interpolated(f, 0.3, list(side)),
    ),
    "dv": same(lambda f, _, valid, p: bounds.dv(f, valid, positive_K=p), lambda f, _: oracle.dv(f)),
    "js": Case(
        lambda f, _, valid, p: bounds.js(f, valid, positive_K=p),
        lambda f, _: oracle.js_value(f),
        lambda f, _: oracle.js_objective(f),
    ),
    "smile 1": Case(
        lambda f, _, valid, p: bounds.smile(f, valid, positive_K=p, tau=1.0),
        lambda f, _: oracle.smile_value(f, 1.0),
        lambda f, _: oracle.js_objective(f),
    ),
    "club": same(lambda f, _, valid, p: bounds.club(f, valid), lambda f, _: oracle.club(f), takes_positive=False),
    "leave_one_out": same(
        lambda f, _, valid, p: bounds.leave_one_out(f, valid),
        lambda f, _: oracle.leave_one_out(f),
        takes_positive=False,
    ),
    # At the first step the average is the batch's partition function, and the gradient that of DV. More steps below.
    "mine": Case(
        lambda f, _, valid, p: bounds.mine(f, MineState.start(), valid, positive_K=p)[0],
        lambda f, _: oracle.dv(f),
        lambda f, _: oracle.dv(f),
    ),
}

every_bound = pytest.mark.parametrize("name", CASES)


class Read(NamedTuple):
    """A bound and the gradients of its objective."""

    value: Array
    objective: Array
    by_score: Array
    by_side: Array
    by_positive: Array | None


@functools.cache
def compiled(name: str) -> Callable[..., Read]:
    """(score_KxK, side_K, valid_K or None, positive_K or None) → Read, jitted: one compilation per shape."""

    def objective(f: Array, side: Array, positive: Array | None, valid: Array | None) -> tuple[Array, Bound]:
        bound = CASES[name].ours(f, side, valid, positive)
        return bound.objective, bound

    def read(f: Array, side: Array, valid: Array | None = None, positive: Array | None = None) -> Read:
        gradients, bound = jax.grad(objective, argnums=(0, 1, 2), has_aux=True)(f, side, positive, valid)
        return Read(*bound, *gradients)

    return jax.jit(read)


# Values and gradients


@pytest.mark.slow
@pytest.mark.parametrize(("size", "seed"), [(2, 0), (5, 1), (8, 2), (8, 3)])
@every_bound
def test_value_objective_and_gradient_match_the_oracle(name: str, size: int, seed: int) -> None:
    case = CASES[name]
    score, side = scores(seed, size)
    read = compiled(name)(f32(score), f32(side))
    assert read.value.shape == read.objective.shape == ()
    assert read.value.dtype == read.objective.dtype == jnp.float32
    assert_close(read.value, case.value(score, side))
    if name != "mine":  # known by its gradient alone
        assert_close(read.objective, case.objective(score, side))
    assert_close(read.by_score, oracle.gradient(lambda f: case.objective(f, side), score))
    assert_close(read.by_side, oracle.gradient(lambda a: case.objective(score, a), side))


def test_values_known_in_closed_form() -> None:
    """At f = 0 the critic is exact for independent pairs: every estimator is 0 except NWJ, whose optimum is f = 1."""
    flat, zeros = jnp.zeros((8, 8)), jnp.zeros(8)
    for name in CASES:
        assert_close(compiled(name)(flat, zeros).value, -1 / math.e if name == "nwj" else 0.0)
    assert_close(compiled("nwj")(flat + 1, zeros).value, 0.0)


def test_alpha_lies_between_tuba_and_the_contrastive_bound() -> None:
    score, side = scores(7, 6)
    near = {alpha: bounds.interpolated(f32(score), alpha=alpha, log_baseline_K=f32(side)) for alpha in (1e-6, 1 - 1e-6)}
    assert_close(near[1e-6].value, oracle.tuba(score, list(side)), atol=1e-3)
    assert_close(near[1 - 1e-6].value, oracle.interpolated(score, 1.0, list(side)), atol=1e-3)
    for alpha in (-0.1, 0.0, 1.0, 1.1):
        with pytest.raises(ValueError):
            bounds.interpolated(f32(score), alpha=alpha)


@every_bound
def test_scores_in_bfloat16_are_reduced_in_float32(name: str) -> None:
    score, side = scores(8, 8)
    low = f32(score).astype(jnp.bfloat16)
    read = compiled(name)(low, f32(side))
    assert read.value.dtype == read.objective.dtype == jnp.float32
    assert_close(read.value, CASES[name].value(np.asarray(low, np.float64), side))


# Axes


def test_row_infonce_ignores_offsets_of_rows_and_only_those() -> None:
    score, side = scores(9, 8)
    rows, columns = score + 3 * side[:, None], score + 3 * side[None, :]
    plain = {axis: bounds.infonce(f32(score), axis=axis).value for axis in ("row", "column")}
    assert_close(bounds.infonce(f32(rows), axis="row").value, float(plain["row"]))
    assert_close(bounds.infonce(f32(columns), axis="column").value, float(plain["column"]))
    assert abs(bounds.infonce(f32(columns), axis="row").value - plain["row"]) > 0.1
    assert abs(bounds.infonce(f32(rows), axis="column").value - plain["column"]) > 0.1


def test_bounds_with_a_baseline_ignore_offsets_of_columns_that_the_baseline_follows() -> None:
    """c(v) added to the scores and to the baseline a(v) cancels. The baseline of leave-one-out follows the scores."""
    score, side = scores(10, 8)
    moved = f32(score + side[None, :])
    assert_close(bounds.tuba(moved, f32(side)).value, oracle.tuba(score, [0.0] * 8))
    assert_close(
        bounds.interpolated(moved, log_baseline_K=f32(side)).value, float(bounds.interpolated(f32(score)).value)
    )
    assert_close(bounds.leave_one_out(moved).value, oracle.leave_one_out(score))


# Separate positives, and the mask


@pytest.mark.parametrize("junk", [7.5, math.nan])
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.takes_positive])
def test_separate_positives_replace_the_diagonal(name: str, junk: float) -> None:
    case = CASES[name]
    score, side = scores(11, 8)
    without = np.where(np.eye(8, dtype=bool), junk, score)
    read = compiled(name)(f32(without), f32(side), None, f32(np.diagonal(score)))
    assert_close(read.value, case.value(score, side))
    expected = oracle.gradient(lambda f: case.objective(f, side), score)
    assert_close(read.by_positive, np.diagonal(expected))
    assert_close(read.by_score, expected * (1 - np.eye(8)))


@pytest.mark.slow
@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@every_bound
def test_mask_equals_slicing(name: str, junk: float) -> None:
    """Rows and columns of padded pairs, their baselines and their separate positives have arbitrary values."""
    case = CASES[name]
    score, side = scores(12, 8)
    valid = np.array([True, False, True, True, False, True, True, True])
    both = valid[:, None] & valid[None, :]
    padded, padded_side = f32(np.where(both, score, junk)), f32(np.where(valid, side, junk))
    kept, kept_side = score[np.ix_(valid, valid)], side[valid]
    expected = np.zeros((8, 8))
    expected[np.ix_(valid, valid)] = oracle.gradient(lambda f: case.objective(f, kept_side), kept)

    read = compiled(name)(padded, padded_side, jnp.asarray(valid))
    assert_close(read.value, case.value(kept, kept_side))
    assert_close(read.by_score, expected)
    assert np.all(np.asarray(read.by_score)[~both] == 0)
    assert_close(read.by_side[valid], oracle.gradient(lambda a: case.objective(kept, a), kept_side))
    assert np.all(np.asarray(read.by_side)[~valid] == 0)

    if case.takes_positive:
        positive = f32(np.where(valid, np.diagonal(score), junk))
        read = compiled(name)(padded, padded_side, jnp.asarray(valid), positive)
        assert_close(read.value, case.value(kept, kept_side))
        assert_close(read.by_positive, np.diagonal(expected))


@pytest.mark.parametrize("count", [0, 1])
@every_bound
def test_fewer_than_two_valid_pairs_give_zero(name: str, count: int) -> None:
    score, side = scores(13, 8)
    valid = np.arange(8) < count
    padded = np.where(valid[:, None] & valid[None, :], score, math.nan)
    for f in (score, padded):
        read = compiled(name)(f32(f), f32(side), jnp.asarray(valid))
        assert read.value == 0 and read.objective == 0
        assert np.all(np.asarray(read.by_score) == 0) and np.all(np.asarray(read.by_side) == 0)


# Extreme scores


@every_bound
def test_extreme_scores_stay_finite_and_right(name: str) -> None:
    """e^100 overflows in float32 but not in the oracle."""
    score = np.where(np.eye(8, dtype=bool), 100.0, 60.0)
    read = compiled(name)(f32(score), jnp.zeros(8))
    assert all(np.all(np.isfinite(x)) for x in read[:4])
    assert_close(read.value, CASES[name].value(score, np.zeros(8)), rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["infonce", "infonce column", "tuba", "interpolated .3", "dv", "mine", "leave_one_out"]
)
def test_ratios_of_exponentials_are_right_where_each_overflows(name: str) -> None:
    score, side = scores(14, 8)
    read = compiled(name)(f32(score + 120), f32(side + 120))
    assert_close(read.value, CASES[name].value(score, side), rtol=1e-3, atol=1e-4)  # float32 has steps of 8e-6 at 120
    assert_close(read.by_score, oracle.gradient(lambda f: CASES[name].objective(f, side), score), rtol=1e-3, atol=1e-4)


# Metadata and errors


@pytest.mark.parametrize(
    ("direction", "names"),
    [
        ("lower", ["infonce", "nwj", "tuba", "interpolated", "js"]),
        ("neither", ["dv", "mine", "smile"]),
        ("upper", ["club", "leave_one_out"]),
    ],
)
def test_estimators_state_their_direction_and_cap(direction: str, names: list[str]) -> None:
    for name in names:
        estimator = ESTIMATORS[name]
        assert (estimator.name, estimator.direction) == (name, direction)
        caps = {"infonce": math.log(64), "interpolated": math.log(64 / 0.01) + 1}
        assert estimator.cap(64) == pytest.approx(caps.get(name, math.inf))


def test_no_score_gives_a_value_above_the_cap() -> None:
    """The contrastive term of `interpolated` leaves one pair out, so that it is bounded by K − 1 in place of K."""
    separated = jnp.where(jnp.eye(8, dtype=bool), 50.0, -50.0)
    for name in ("infonce", "infonce column", "infonce symmetric"):
        assert_close(compiled(name)(separated, jnp.zeros(8)).value, ESTIMATORS["infonce"].cap(8))
    value = compiled("interpolated")(separated, jnp.zeros(8)).value
    assert_close(value, 1 + math.log(7 / 0.01))
    assert value <= ESTIMATORS["interpolated"].cap(8)


@every_bound
def test_shapes_are_checked(name: str) -> None:
    case = CASES[name]
    square, zeros = jnp.zeros((4, 4)), jnp.zeros(4)
    for shape in [(1, 1), (0, 0), (3, 4), (4,), (2, 4, 4)]:
        with pytest.raises(ValueError):
            case.ours(jnp.zeros(shape), jnp.zeros(shape[0]), None, None)
    for length in (1, 3, 5):
        with pytest.raises(ValueError):
            case.ours(square, zeros, jnp.ones(length, bool), None)
        if case.takes_positive:
            with pytest.raises(ValueError):
                case.ours(square, zeros, None, jnp.zeros(length))
        if name in ("tuba", "interpolated .3"):
            with pytest.raises(ValueError):
                case.ours(square, jnp.zeros(length), None, None)


def test_an_unknown_axis_is_an_error() -> None:
    with pytest.raises(ValueError):
        bounds.infonce(jnp.zeros((4, 4)), axis="rows")


# Eight devices


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "apart"),
    [(name, apart) for name, case in CASES.items() for apart in (False, True) if case.takes_positive or not apart],
)
def test_sharding_rows_over_eight_devices_changes_nothing(name: str, apart: bool) -> None:
    score, side = scores(40, 8)
    score /= 2
    inputs = [f32(score), f32(side), jnp.arange(8) != 4, f32(np.diagonal(score)) if apart else None]
    expected = compiled(name)(*inputs)
    split = NamedSharding(make_mesh(data=4, fsdp=2), PartitionSpec(BATCH_AXES))
    actual = compiled(name)(*jax.device_put(inputs, split))
    assert len(actual.value.sharding.device_set) == 8
    for ours, theirs in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert_close(ours, np.asarray(theirs), rtol=1e-6, atol=1e-6)
