"""Features of states: every pooling against a loop over tokens in float64, on padded and on packed rows."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close

from cotmi_jax.objectives import pooling

D = 4
QUERY = np.array([1.5, -1.0, 0.5, 2.0], np.float32)
LENGTHS = (6, 3, 1, 0)  # of padded rows, the last without a token
# Two packed rows of up to three examples, with padding between and after them; the first of the second row is empty.
SEGMENTS = np.array([[1, 1, 1, 2, 0, 3, 3, 0], [2, 2, 2, 2, 3, 0, 0, 0]])
NUM = 3

Pooled = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # states, members, query → features
POOLINGS: dict[str, Pooled] = {
    "mean": lambda states, member, query: pooling.mean(states, member),
    "maximum": lambda states, member, query: pooling.maximum(states, member),
    "attention": pooling.attention,
    "first": lambda states, member, query: pooling.first(states, member),
}
every_pooling = pytest.mark.parametrize("name", POOLINGS)


def by_loop(name: str, tokens: list[np.ndarray]) -> np.ndarray:
    """The feature of one example from its tokens, in order."""
    if not tokens:
        return np.zeros(D)
    if name == "first":
        return tokens[0]
    if name == "maximum":
        return np.array([max(token[d] for token in tokens) for d in range(D)])
    weights = [1.0] * len(tokens)
    if name == "attention":
        weights = [np.exp(sum(QUERY[d] * token[d] for d in range(D)) / np.sqrt(D)) for token in tokens]
    return sum(weight * token for weight, token in zip(weights, tokens, strict=True)) / sum(weights)


def make_states(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*shape, D)).astype(np.float32)


def padded(width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """States of rows with one example each, and its members."""
    member = np.arange(width) < np.array(LENGTHS)[:, None]
    states = np.zeros((len(LENGTHS), width, D), np.float32)
    states[:, :6] = make_states(len(LENGTHS), 6)
    return states, member[:, None, :]


@functools.cache
def compiled(name: str) -> Callable:
    """(states, members, query, weights) → features, and the gradients of ⟨weights, features⟩ by states and query."""

    def run(states: jax.Array, member: jax.Array, query: jax.Array, weights: jax.Array) -> tuple:
        features, pull_back = jax.vjp(lambda states, query: POOLINGS[name](states, member, query), states, query)
        return features, pull_back(weights)

    return jax.jit(run)


def pool(name: str, states: np.ndarray, member: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, and their gradients by states and query along fixed weights."""
    weights = make_states(*member.shape[:2], seed=1)
    features, (by_state, by_query) = compiled(name)(states, member, QUERY, weights)
    assert features.dtype == jnp.float32
    return np.asarray(features), np.asarray(by_state), np.asarray(by_query)


@every_pooling
def test_features_are_those_of_a_loop_over_tokens(name: str) -> None:
    states, member = padded()
    rows = [by_loop(name, list(row[:length].astype(np.float64))) for row, length in zip(states, LENGTHS, strict=True)]
    features, by_state, _ = pool(name, states, member)
    np.testing.assert_allclose(features[:, 0], rows, rtol=1e-5, atol=1e-6)
    assert by_state[member[:, 0]].any() and not by_state[~member[:, 0]].any()


@every_pooling
def test_gradients_are_those_of_the_loop(name: str) -> None:
    """Along random directions, by central differences in float64."""
    states, member = padded()
    weights = make_states(len(LENGTHS), 1, seed=1)[:, 0]
    _, by_state, _ = pool(name, states, member)

    def value(states: np.ndarray) -> float:
        rows = [by_loop(name, list(row[:length])) for row, length in zip(states, LENGTHS, strict=True)]
        return float((weights * np.array(rows)).sum())

    for seed in range(3):
        direction = make_states(len(LENGTHS), 6, seed=10 + seed).astype(np.float64)
        slope = (value(states + 1e-6 * direction) - value(states - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose((by_state * direction).sum(), slope, rtol=1e-4, atol=1e-5)


@every_pooling
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_values_at_padding_affect_neither_features_nor_gradients(name: str, junk: float) -> None:
    for states, member in (padded(), (make_states(2, 8), np.asarray(pooling.members(SEGMENTS, NUM)))):
        clean = pool(name, states, member)
        filled = np.where(member.any(axis=1)[..., None], states, np.float32(junk))
        for actual, expected in zip(pool(name, filled, member), clean, strict=True):
            np.testing.assert_array_equal(actual, expected)


@every_pooling
def test_more_padding_changes_nothing(name: str) -> None:
    features, by_state, by_query = pool(name, *padded())
    states, member = padded(width=11)
    states[:, 6:] = 50.0
    wider = pool(name, states, member)
    assert_trees_close([wider[0], wider[1][:, :6], wider[2]], [features, by_state, by_query], atol=1e-7)
    assert not wider[1][:, 6:].any()


def test_members_of_packed_rows() -> None:
    member = np.asarray(pooling.members(jnp.asarray(SEGMENTS), NUM))
    assert member.shape == (2, NUM, 8) and member.dtype == bool
    assert [np.flatnonzero(member[0, n]).tolist() for n in range(NUM)] == [[0, 1, 2], [3], [5, 6]]
    assert [np.flatnonzero(member[1, n]).tolist() for n in range(NUM)] == [[], [0, 1, 2, 3], [4]]


@every_pooling
def test_packed_examples_equal_those_in_separate_rows(name: str) -> None:
    """The same tokens, one example a row: features, and the gradients of each token and of the query."""
    states, member = make_states(2, 8, seed=2), np.asarray(pooling.members(SEGMENTS, NUM))
    alone, own = np.zeros((2 * NUM, 8, D), np.float32), np.zeros((2 * NUM, 8), bool)
    for index, row in enumerate(member.reshape(-1, 8)):
        alone[index, : row.sum()], own[index, : row.sum()] = states[index // NUM][row], True
    weights = make_states(2, NUM, seed=1)
    features, (by_state, by_query) = compiled(name)(states, member, QUERY, weights)
    expected, (by_own, by_own_query) = compiled(name)(alone, own[:, None], QUERY, weights.reshape(-1, 1, D))
    np.testing.assert_allclose(features.reshape(-1, D), expected[:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(by_query, by_own_query, rtol=1e-5, atol=1e-6)
    for index, row in enumerate(member.reshape(-1, 8)):
        np.testing.assert_allclose(by_state[index // NUM][row], by_own[index][: row.sum()], rtol=1e-5, atol=1e-6)
    assert not np.asarray(by_state)[SEGMENTS == 0].any() and not np.asarray(features)[1, 0].any()


def test_first_is_the_first_token_of_each_example() -> None:
    states = make_states(2, 8)
    features, by_state, _ = pool("first", states, np.asarray(pooling.members(SEGMENTS, NUM)))
    np.testing.assert_array_equal(features[0], states[0, [0, 3, 5]])
    np.testing.assert_array_equal(features[1, 1:], states[1, [0, 4]])
    assert {tuple(place) for place in np.argwhere(by_state.any(axis=-1))} == {(0, 0), (0, 3), (0, 5), (1, 0), (1, 4)}


@every_pooling
def test_features_are_float32_of_bfloat16_states(name: str) -> None:
    """Reduced in float32: only the states are rounded."""
    states, member = padded()
    rounded = jnp.asarray(states, jnp.bfloat16)
    features = POOLINGS[name](rounded, jnp.asarray(member), jnp.asarray(QUERY))
    assert features.dtype == jnp.float32
    np.testing.assert_allclose(
        features, POOLINGS[name](rounded.astype(jnp.float32), member, jnp.asarray(QUERY)), rtol=1e-6, atol=1e-7
    )
