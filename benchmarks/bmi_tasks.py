"""Twelve tasks of the bmi benchmark with their true mutual information (Czyż et al. 2023, "Beyond Normal").

The distributions are those of github.com/cbg-ethz/bmi, written anew; samples differ from its samples. Spirals rotate by
‖x‖²/D radians, the speed of its current version.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Samples = tuple[np.ndarray, np.ndarray]  # x [N, D] and y [N, E]
Transform = Callable[[np.ndarray], np.ndarray]


class Task(NamedTuple):
    """A distribution of pairs: its true mutual information in nats, and `draw`, which samples N pairs of it."""

    name: str
    truth: float
    draw: Callable[[np.random.Generator, int], Samples]

    def sample(self, size: int, seed: int) -> Samples:
        """`size` pairs, determined by the seed."""
        return self.draw(np.random.default_rng(seed), size)

    def mapped(self, name: str, map_x: Transform, map_y: Transform | None = None) -> "Task":
        """The task under injective maps of x and y, which leave the mutual information as it is."""

        def draw(rng: np.random.Generator, size: int) -> Samples:
            x_NxD, y_NxE = self.draw(rng, size)
            return map_x(x_NxD), y_NxE if map_y is None else map_y(y_NxE)

        return Task(name, self.truth, draw)


def multinormal(name: str, dims: int, correlation_CxC: np.ndarray) -> Task:
    """Gaussians of this correlation matrix; the first `dims` of the C dimensions are x, the others y."""

    def log_det(matrix: np.ndarray) -> float:
        return float(np.linalg.slogdet(matrix)[1])

    x, y = correlation_CxC[:dims, :dims], correlation_CxC[dims:, dims:]
    factor_CxC = np.linalg.cholesky(correlation_CxC)

    def draw(rng: np.random.Generator, size: int) -> Samples:
        xy_NxC = rng.standard_normal((size, len(correlation_CxC))) @ factor_CxC.T
        return xy_NxC[:, :dims], xy_NxC[:, dims:]

    return Task(name, 0.5 * (log_det(x) + log_det(y) - log_det(correlation_CxC)), draw)


def dense(dims: int) -> Task:
    """Any two of all the dimensions have correlation ½."""
    return multinormal(f"dense {dims}×{dims}", dims, 0.5 * (np.eye(2 * dims) + 1.0))


def sparse(dims: int) -> Task:
    """The first two dimensions of x have correlation .8 with those of y; all others are independent."""
    correlation_CxC = np.eye(2 * dims)
    for i in range(2):
        correlation_CxC[i, dims + i] = correlation_CxC[dims + i, i] = 0.8
    return multinormal(f"sparse {dims}×{dims}", dims, correlation_CxC)


def student(dims: int, freedom: int) -> Task:
    """Multivariate Student t with identity dispersion: dependent only by the common scale of x and y.

    Its truth is the sum of the differential entropies of both less the joint one (Arellano-Valle et al. 2013, eq. 7).
    """

    def entropy(size: int) -> float:
        half = (freedom + size) / 2
        return (
            math.lgamma(freedom / 2)
            - math.lgamma(half)
            + 0.5 * size * math.log(freedom * math.pi)
            + half * (_digamma_of_half(freedom + size) - _digamma_of_half(freedom))
        )

    def draw(rng: np.random.Generator, size: int) -> Samples:
        xy_NxC = rng.standard_normal((size, 2 * dims)) / np.sqrt(rng.chisquare(freedom, (size, 1)) / freedom)
        return xy_NxC[:, :dims], xy_NxC[:, dims:]

    return Task(f"student {dims}×{dims}, {freedom} df", 2 * entropy(dims) - entropy(2 * dims), draw)


def _digamma_of_half(number: int) -> float:
    """ψ(number / 2), by the recurrence from ψ(½) or ψ(1)."""
    value = -np.euler_gamma - (2 * math.log(2) if number % 2 else 0.0)
    return value + sum(2 / step for step in range(2 - number % 2, number, 2))


def additive(noise: float) -> Task:
    """y is x, uniform on [0, 1], plus uniform noise on ±noise, at most ½."""

    def draw(rng: np.random.Generator, size: int) -> Samples:
        x_Nx1 = rng.uniform(0, 1, (size, 1))
        return x_Nx1, x_Nx1 + rng.uniform(-noise, noise, (size, 1))

    return Task(f"additive 1×1, noise {noise:g}", noise - math.log(2 * noise), draw)


def rotate_by_norm(plane: int) -> Transform:
    """Rotates dimensions plane and plane + 1 of x [N, D] by ‖x‖²/D radians; the norm stays, so it is injective."""

    def transform(x_NxD: np.ndarray) -> np.ndarray:
        angle_N = (x_NxD**2).mean(axis=1)
        cosine_N, sine_N = np.cos(angle_N), np.sin(angle_N)
        a_N, b_N = x_NxD[:, plane], x_NxD[:, plane + 1]
        rotated_NxD = x_NxD.copy()
        rotated_NxD[:, plane], rotated_NxD[:, plane + 1] = cosine_N * a_N - sine_N * b_N, sine_N * a_N + cosine_N * b_N
        return rotated_NxD

    return transform


def swiss_roll(u_Nx1: np.ndarray) -> np.ndarray:
    """The interval [0, 1] on a spiral in the plane, of one turn and a half."""
    angle_Nx1 = 1.5 * math.pi * (1 + 2 * u_Nx1)
    return np.concatenate([angle_Nx1 * np.cos(angle_Nx1), angle_Nx1 * np.sin(angle_Nx1)], axis=1) / 21.0


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """Standard normal to uniform on [0, 1]."""
    return 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2)))


def spiral(dims: int) -> Task:
    """`sparse` with x rotated in its first two dimensions, y in its second and third."""
    return sparse(dims).mapped(f"spiral of sparse {dims}×{dims}", rotate_by_norm(0), rotate_by_norm(1))


def tasks() -> list[Task]:
    """The twelve tasks."""
    pair = multinormal("", 1, np.array([[1.0, 0.75], [0.75, 1.0]]))
    return [
        dense(5),
        dense(25),
        sparse(5),
        sparse(25),
        additive(0.1),
        pair.mapped("swiss roll 2×1", lambda x: swiss_roll(normal_cdf(x)), normal_cdf),
        student(1, 1),
        student(5, 2),
        student(5, 2).mapped("asinh of student 5×5, 2 df", np.arcsinh, np.arcsinh),
        spiral(3),
        spiral(5),
        spiral(25),
    ]
