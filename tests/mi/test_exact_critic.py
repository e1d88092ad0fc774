"""Every bound with the exact critic of correlated Gaussians, against the known values."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mi_oracle as oracle
import numpy as np
import pytest

from cotmi_jax.mi import bounds
from cotmi_jax.mi.bounds import Bound, MineState

Array = jax.Array

DIMENSIONS = 20
RHO = {2: 0.425757, 4: 0.574178, 6: 0.671706, 8: 0.742072, 10: 0.795060}  # MI = −10 log(1 − ρ²)
READINGS: dict[tuple[str, int], list[float]] = {
    ("infonce", 64): [1.817, 3.070, 3.739, 4.024, 4.122],
    ("infonce", 128): [1.893, 3.343, 4.213, 4.627, 4.786],
    ("infonce column", 128): [1.893, 3.343, 4.213, 4.627, 4.786],  # z and v are exchangeable
    ("infonce", 512): [1.961, 3.690, 4.952, 5.698, 6.051],
    ("nwj", 128): [2.005, 4.011, 6.02, 8.0, 10.1],
    ("js", 128): [2.005, 4.011, 6.02, 8.0, 10.1],  # read as nwj(f + 1)
    ("tuba", 128): [2.005, 4.011, 6.02, 8.0, 10.1],  # at a = 0 it is nwj(f + 1)
    ("dv", 128): [2.006, 4.030, 6.122, 8.343, 10.78],
    ("mine", 128): [2.006, 4.030, 6.122, 8.343, 10.78],
    ("interpolated", 128): [2.005, 3.990, 5.864, 7.471, 8.693],
    ("smile", 1024): [2.030, 4.254, 6.697, 9.288, 11.960],  # this K stands for the population
    ("club", 128): [4.43, 9.84, 16.44, 24.51, 34.37],
}
GROUPS: list[tuple[int, int, list[str]]] = [  # K, batches, what is read on them
    (64, 600, ["infonce"]),
    (128, 1000, ["infonce", "infonce column", "nwj", "js", "tuba", "dv", "mine", "club"]),
    (128, 150, ["interpolated"]),
    (512, 60, ["infonce"]),
    (1024, 40, ["smile"]),
]
EXACT: dict[str, Callable[[Array, Array], Bound]] = {  # of log p(v|z) / p(v) and log p(v|z)
    "infonce": lambda ratio, _: bounds.infonce(ratio),
    "infonce column": lambda ratio, _: bounds.infonce(ratio, axis="column"),
    "nwj": lambda ratio, _: bounds.nwj(ratio + 1),
    "js": lambda ratio, _: bounds.js(ratio),
    "tuba": lambda ratio, _: bounds.tuba(ratio, jnp.zeros(len(ratio))),
    "dv": lambda ratio, _: bounds.dv(ratio),
    "mine": lambda ratio, _: bounds.mine(ratio, MineState.start())[0],
    "interpolated": lambda ratio, _: bounds.interpolated(ratio),
    "smile": lambda ratio, _: bounds.smile(ratio),
    "club": lambda _, log_q: bounds.club(log_q),
}


def exact_scores(z: Array, v: Array, rho: Array | float) -> tuple[Array, Array]:
    """log p(v_j | z_i) − log p(v_j), the exact critic, and log p(v_j | z_i), both [i, j]."""
    variance = 1 - rho**2
    squares = (v**2).sum(-1)[None, :] + rho**2 * (z**2).sum(-1)[:, None] - 2 * rho * (z @ v.T)
    log_q = -0.5 * DIMENSIONS * jnp.log(2 * jnp.pi * variance) - squares / (2 * variance)
    log_marginal = -0.5 * DIMENSIONS * math.log(2 * math.pi) - (v**2).sum(-1) / 2
    return log_q - log_marginal[None, :], log_q


@functools.partial(jax.jit, static_argnums=0)
def readings(names: tuple[str, ...], z: Array, noise: Array, rho: float) -> dict[str, Array]:
    """The value of each estimator on every batch of z and noise [batches, K, dimensions]."""

    def one(batch: tuple[Array, Array]) -> dict[str, Array]:
        z, noise = batch
        pair = exact_scores(z, rho * z + jnp.sqrt(1 - rho**2) * noise, rho)
        return {name: EXACT[name](*pair).value for name in names}

    return jax.lax.map(one, (z, noise))


@pytest.fixture(scope="module")
def exact_critic() -> dict[tuple[str, int], list[np.ndarray]]:
    """Value of every batch, per row of the table, for MI = 2, 4, 6, 8, 10."""
    draw = np.random.default_rng(2019)
    table: dict[tuple[str, int], list[np.ndarray]] = {row: [] for row in READINGS}
    jax.config.update("jax_disable_most_optimizations", False)  # here the time goes into arithmetic
    try:
        for size, batches, names in GROUPS:
            z, noise = jnp.asarray(draw.normal(size=(2, batches, size, DIMENSIONS)), jnp.float32)
            for rho in RHO.values():
                for name, values in readings(tuple(names), z, noise, rho).items():
                    table[name, size].append(np.asarray(values, np.float64))
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
    return table


@pytest.mark.slow
@pytest.mark.parametrize("row", READINGS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_the_exact_critic_gives_the_known_values(
    row: tuple[str, int], exact_critic: dict[tuple[str, int], list[np.ndarray]]
) -> None:
    """Accepted within five standard errors, or .03 where those are smaller."""
    for information, expected, batches in zip(RHO, READINGS[row], exact_critic[row], strict=True):
        error = batches.std(ddof=1) / math.sqrt(len(batches))
        assert abs(batches.mean() - expected) <= max(0.03, 5 * error), (information, batches.mean(), error)


def test_the_exact_critic_is_the_log_density_ratio() -> None:
    """Some bounds are invariant under an error of the critic in one variable, which the table would not show."""
    z, v = np.random.default_rng(5).normal(size=(2, 3, DIMENSIONS))
    expected = [[oracle.gaussian_log_ratio(a, b, RHO[6]) for b in v] for a in z]
    scores, _ = exact_scores(jnp.asarray(z, jnp.float32), jnp.asarray(v, jnp.float32), RHO[6])
    np.testing.assert_allclose(scores, np.array(expected), rtol=1e-5, atol=1e-4)
