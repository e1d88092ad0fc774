"""Estimators without a network, for vectors of few dimensions, in numpy on the host. Values in nats."""

import numpy as np
from tqdm import tqdm

from cotmi_jax.errors import UserError

TREE_DIMS = 10  # dimensions of (x, y) above which a tree takes longer than all distances: it visits most points
_MAX_PRODUCT = 1e12  # N²·(D + E) of all distances: about a quarter of an hour
_ROWS = 128  # of the matrix of distances at a time
_BAR_DELAY = 2.0  # seconds before a progress bar appears


def ksg(x_NxD: np.ndarray, y_NxE: np.ndarray, *, neighbours: int = 3) -> float:
    """I(X;Y) by nearest neighbours (Kraskov, Stögbauer and Grassberger 2004, eq. 8); biased down as dimensions grow.

    ψ(k) + ψ(N) − ⟨ψ(n_x + 1) + ψ(n_y + 1)⟩ with n the points strictly nearer in one space than the k-th neighbour is in
    the joint one, by the maximum norm. Neighbours are found by trees up to TREE_DIMS dimensions D + E, and above by all
    N² distances, 128 rows at a time. Raises UserError for N ≤ neighbours and where the distances take too long.
    """
    from scipy.special import digamma  # here: scipy takes as long to import as the rest of the package

    size, dims = len(x_NxD), x_NxD.shape[1] + y_NxE.shape[1]
    if size <= neighbours:
        raise UserError(f"ksg with {neighbours} neighbours on {size} pairs: give more pairs")
    if dims > TREE_DIMS and dims * size**2 > _MAX_PRODUCT:
        most = int((_MAX_PRODUCT / dims) ** 0.5)
        raise UserError(
            f"ksg of {dims} dimensions on {size:,} pairs takes hours (no tree helps above {TREE_DIMS} dimensions): "
            f"give at most {most:,} pairs, or take an estimator with a critic"
        )
    for name, side in (("x", x_NxD), ("y", y_NxE)):
        if len(np.unique(side, axis=0)) < 0.99 * size:
            raise UserError(
                f"ksg: rows of {name} repeat, and it needs continuous values; take an estimator with a critic"
            )
    count = _counts_by_trees if dims <= TREE_DIMS else _counts_by_distances
    counts = count(x_NxD.astype(np.float64), y_NxE.astype(np.float64), neighbours)
    return float(digamma(neighbours) + digamma(size) - np.mean(digamma(counts[0]) + digamma(counts[1])))


def _counts_by_trees(x_NxD: np.ndarray, y_NxE: np.ndarray, neighbours: int) -> list[np.ndarray]:
    """n_x + 1 and n_y + 1 of every point: the counts include the point itself."""
    from scipy.spatial import cKDTree

    joint = np.concatenate([x_NxD, y_NxE], axis=1)
    # The nearest neighbour found is the point itself.
    distance = cKDTree(joint).query(joint, k=neighbours + 1, p=np.inf)[0][:, -1]
    radius = np.nextafter(distance, 0.0)
    return [cKDTree(side).query_ball_point(side, radius, p=np.inf, return_length=True) for side in (x_NxD, y_NxE)]


def _counts_by_distances(x_NxD: np.ndarray, y_NxE: np.ndarray, neighbours: int) -> list[np.ndarray]:
    """The same from all distances."""
    from scipy.spatial.distance import cdist

    counts: list[list[np.ndarray]] = [[], []]
    with tqdm(total=len(x_NxD), desc="ksg", unit="row", leave=False, disable=None, delay=_BAR_DELAY) as bar:
        for start in range(0, len(x_NxD), _ROWS):
            sides = [cdist(side[start : start + _ROWS], side, "chebyshev") for side in (x_NxD, y_NxE)]
            radius_Rx1 = np.partition(np.maximum(*sides), neighbours, axis=1)[:, neighbours : neighbours + 1]
            for side, found in zip(sides, counts, strict=True):
                found.append((side < radius_Rx1).sum(axis=1))
            bar.update(len(radius_Rx1))
    return [np.concatenate(found) for found in counts]


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
