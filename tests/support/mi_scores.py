"""Matrices of critic scores and the comparison with the float64 oracle, for tests of the bounds."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def scores(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A matrix with no symmetry, its positives above its negatives, and a vector for baselines."""
    draw = np.random.default_rng(seed)
    score = draw.normal(-0.5, 1.5, (size, size)) + 2.5 * np.eye(size)
    score += draw.normal(0, 1.0, (size, 1)) - draw.normal(0, 0.5, (1, size))
    return score, draw.normal(0, 0.7, size)


def f32(x: np.ndarray) -> Array:
    return jnp.asarray(x, jnp.float32)


def assert_close(actual: Array, expected: np.ndarray | float, rtol: float = 1e-5, atol: float = 3e-6) -> None:
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=rtol, atol=atol)
