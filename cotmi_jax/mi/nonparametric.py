"""Estimators without a network, for vectors of few dimensions, in numpy on the host. Values in nats."""

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import digamma

from cotmi_jax.errors import UserError


def ksg(x_NxD: np.ndarray, y_NxE: np.ndarray, *, neighbours: int = 3) -> float:
    """I(X;Y) by nearest neighbours (Kraskov, Stögbauer and Grassberger 2004, eq. 8); biased down as dimensions grow.

    ψ(k) + ψ(N) − ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩ with n the points strictly nearer in one space than the k-th neighbour is in
    the joint one, by the maximum norm. Raises UserError for N ≤ neighbours.
    """
    size = len(x_NxD)
    if size <= neighbours:
        raise UserError(f"ksg with {neighbours} neighbours on {size} pairs: give more pairs")
    for name, side in (("x", x_NxD), ("y", y_NxE)):
        if len(np.unique(side, axis=0)) < 0.99 * size:
            raise UserError(
                f"ksg: rows of {name} repeat, and it needs continuous values; take an estimator with a critic"
            )
    joint = np.concatenate([x_NxD, y_NxE], axis=1).astype(np.float64)
    # The nearest neighbour found is the point itself.
    distance = cKDTree(joint).query(joint, k=neighbours + 1, p=np.inf)[0][:, -1]
    radius = np.nextafter(distance, 0.0)
    counts = []
    for side in (x_NxD, y_NxE):
        tree = cKDTree(side.astype(np.float64))
        within = tree.query_ball_point(side.astype(np.float64), radius, p=np.inf, return_length=True)
        counts.append(digamma(within))  # counts the point itself: n + 1
    return float(digamma(neighbours) + digamma(size) - np.mean(counts[0] + counts[1]))


def cca(x_NxD: np.ndarray, y_NxE: np.ndarray) -> float:
    """I(X;Y) as if both were Gaussian: −½ Σ log(1 − ρ²) over canonical correlations (Gelfand and Yaglom 1957).

    Biased up by about D·E / 2N. Raises UserError unless N > D + E.
    """
    size, dims = len(x_NxD), x_NxD.shape[1] + y_NxE.shape[1]
    if size <= dims:
        raise UserError(f"cca of {dims} dimensions on {size} pairs: every correlation would be 1, give more pairs")
    bases = []
    for side in (x_NxD, y_NxE):
        centred = side.astype(np.float64) - side.mean(axis=0, dtype=np.float64)
        left, singular, _ = np.linalg.svd(centred, full_matrices=False)
        bases.append(left[:, singular > 1e-10 * singular.max()])
    correlation = np.clip(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 0.0, 1.0 - 1e-12)
    return float(-0.5 * np.log1p(-(correlation**2)).sum())
