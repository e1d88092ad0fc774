"""Scaling of each column before a critic is fitted. Mutual information is the same under injective maps of a column."""

from typing import Literal

import numpy as np

from cotmi_jax.errors import UserError

Pairs = tuple[np.ndarray, np.ndarray]  # z [N, D] and v [N, E]
Scaling = bool | Literal["ranks"]


def check_scaling(scaling: Scaling) -> None:
    """Raises UserError for another value than those of Scaling."""
    if scaling not in (True, False, "ranks"):
        raise UserError(
            f"standardize is {scaling!r}: choose 'ranks' (normal scores), True (mean and variance) or False"
        )


def scaled(sets: list[Pairs], scaling: Scaling) -> list[Pairs]:
    """Sets of pairs, with every column scaled as fitted to the first set. False: as they are.

    True: to mean 0 and variance 1. "ranks": to normal scores, Φ⁻¹((rank − ½) / N) with the mean rank of ties, and by
    linear interpolation between the values of the first set; values beyond those get the score of the outermost. A
    column that is constant in the first set becomes 0.
    """
    if scaling is False:
        return sets
    scale = _normal_scores if scaling == "ranks" else _standardized
    z_sets, v_sets = (scale([pairs[side] for pairs in sets]) for side in (0, 1))
    return list(zip(z_sets, v_sets, strict=True))


def _standardized(arrays: list[np.ndarray]) -> list[np.ndarray]:
    mean, std = arrays[0].mean(axis=0), arrays[0].std(axis=0)
    scale = np.where(std > 1e-6 * max(float(std.max()), 1e-30), 1.0 / np.where(std == 0, 1.0, std), 0.0)
    return [(array - mean) * scale for array in arrays]


def _normal_scores(arrays: list[np.ndarray]) -> list[np.ndarray]:
    from scipy.special import ndtri  # here: it takes long to import

    scores = [np.empty(array.shape) for array in arrays]
    for column in range(arrays[0].shape[1]):
        values, counts = np.unique(arrays[0][:, column], return_counts=True)
        score = ndtri((np.cumsum(counts) - counts / 2) / counts.sum())
        for array, score_NxD in zip(arrays, scores, strict=True):
            score_NxD[:, column] = np.interp(array[:, column], values, score)
    return scores
