"""MINE: its moving average over steps and its gradient, against the float64 oracle."""

import math

import jax
import jax.numpy as jnp
import mi_oracle as oracle
import numpy as np
import pytest
from jax import Array
from mi_scores import assert_close, f32, scores

from cotmi_jax.mi import bounds
from cotmi_jax.mi.bounds import MineState


@pytest.mark.parametrize("decay", [0.99, 0.5])
def test_the_average_of_mine_and_its_gradient_match_the_oracle(decay: float) -> None:
    state, terms = MineState.start(), []
    step = jax.jit(lambda f, state: bounds.mine(f, state, decay=decay))
    objective = jax.jit(jax.grad(lambda f, state: bounds.mine(f, state, decay=decay)[0].objective))
    for count in range(6):
        score = scores(20 + count, 5)[0] + count  # the partition function grows, so its average lags
        terms.append(oracle.over_product(score, math.exp))
        average = oracle.moving_average(terms, decay)
        actual = objective(f32(score), state)
        assert_close(actual, oracle.gradient(lambda f, average=average: oracle.mine_objective(f, average), score))
        of_dv = jax.grad(lambda f: bounds.dv(f).objective)(f32(score))
        apart = np.max(np.abs(actual - of_dv))
        assert apart < 1e-5 if count == 0 else apart > 0.02
        bound, state = step(f32(score), state)
        assert_close(bound.value, oracle.dv(score))
        assert int(state.steps) == count + 1


def test_mine_uses_a_decay_of_99_percent_by_default() -> None:
    score, _ = scores(30, 5)
    _, state = bounds.mine(f32(score), MineState.start())
    for given in (bounds.mine(f32(score + 2), state), bounds.mine(f32(score + 2), state, decay=0.99)):
        last = jax.grad(lambda f, s=given[1]: bounds.mine(f, s)[0].objective)(f32(score))
        terms = [oracle.over_product(f, math.exp) for f in (score, score + 2, score)]
        average = oracle.moving_average(terms, 0.99)
        assert_close(last, oracle.gradient(lambda f, average=average: oracle.mine_objective(f, average), score))


def test_the_state_of_mine_has_no_gradient() -> None:
    first, second = (f32(scores(seed, 5)[0]) for seed in (31, 32))

    def two_steps(f: Array) -> Array:
        _, state = bounds.mine(f, MineState.start())
        return bounds.mine(second, state)[0].objective

    assert np.all(np.asarray(jax.grad(two_steps)(first)) == 0)


def test_the_average_of_mine_is_exact_where_its_exponential_overflows() -> None:
    """Adding a constant to all scores changes no gradient: the average must represent e^120."""
    state = {shift: MineState.start() for shift in (0, 120)}
    for seed in (33, 34, 35):
        score = scores(seed, 5)[0]
        by_score = {}
        for shift in state:
            moved = f32(score + shift)
            by_score[shift] = jax.grad(lambda f, s=state[shift]: bounds.mine(f, s)[0].objective)(moved)
            _, state[shift] = bounds.mine(moved, state[shift])
        assert_close(by_score[120], by_score[0], rtol=1e-3, atol=1e-5)  # float32 has steps of 8e-6 at 120


def test_mine_skips_a_batch_without_pairs() -> None:
    score, _ = scores(36, 5)
    _, state = bounds.mine(f32(score), MineState.start())
    _, skipped = bounds.mine(jnp.full((5, 5), math.nan), state, jnp.zeros(5, bool))
    plain, after = (jax.grad(lambda f, s=s: bounds.mine(f, s)[0].objective)(f32(score + 1)) for s in (state, skipped))
    assert_close(after, np.asarray(plain))
