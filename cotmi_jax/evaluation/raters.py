"""Agreement of raters beyond chance: Cohen's kappa of two, Krippendorff's alpha of any number. Imports no jax."""

from typing import Literal

import numpy as np

from cotmi_jax.errors import UserError

Level = Literal["nominal", "ordinal", "interval"]


def cohen_kappa(ours_N: np.ndarray, theirs_N: np.ndarray) -> float:
    """Agreement of two raters on the same items, 1 − observed / expected disagreement (Cohen 1960).

    1: they always agree; 0: as often as raters with these frequencies of categories would by chance; nan: both always
    give one category, so that agreement by chance is certain.

    Raises:
      UserError: no items, or different numbers of them.
    """
    ours_N, theirs_N = np.asarray(ours_N), np.asarray(theirs_N)
    if ours_N.shape != theirs_N.shape or ours_N.ndim != 1 or not len(ours_N):
        raise UserError(f"ratings of shapes {ours_N.shape} and {theirs_N.shape}: give two of each item")
    by_chance = sum(float((ours_N == each).mean() * (theirs_N == each).mean()) for each in np.unique(ours_N))
    if by_chance == 1.0:
        return float("nan")
    return 1.0 - float((ours_N != theirs_N).mean()) / (1.0 - by_chance)


def coincidences(rating_NxR: np.ndarray, category_C: np.ndarray) -> np.ndarray:
    """Per item the coincidence matrix [N, C, C] of its ratings (Krippendorff 2011, section C).

    Every ordered pair of ratings of an item by two raters counts 1 / (number of its ratings − 1). An item with fewer
    than two ratings counts nothing. Missing ratings are nan.
    """
    count_NxC = (rating_NxR[:, :, None] == category_C).sum(axis=1).astype(np.float64)
    rated_N = count_NxC.sum(axis=1)
    pairs_NxCxC = count_NxC[:, :, None] * count_NxC[:, None, :]
    diagonal_C = np.arange(len(category_C))
    pairs_NxCxC[:, diagonal_C, diagonal_C] -= count_NxC
    pairable_N = rated_N > 1
    return np.where(pairable_N[:, None, None], pairs_NxCxC / np.maximum(rated_N - 1, 1)[:, None, None], 0.0)


def alpha_of_coincidences(coincidence_CxC: np.ndarray, category_C: np.ndarray, level: Level) -> float:
    """Krippendorff's alpha of a coincidence matrix; nan where all pairable ratings are of one category."""
    frequency_C = coincidence_CxC.sum(axis=1)
    total = frequency_C.sum()
    distance_CxC = _distances(frequency_C, category_C, level)
    expected = float((np.outer(frequency_C, frequency_C) * distance_CxC).sum())
    if expected == 0.0:
        return float("nan")
    return 1.0 - float((total - 1.0) * (coincidence_CxC * distance_CxC).sum() / expected)


def krippendorff_alpha(rating_NxR: np.ndarray, level: Level = "ordinal") -> float:
    """Agreement of the ratings of items, 1 − observed / expected disagreement (Krippendorff 2011).

    rating_NxR: a number for each item and rater, nan where there is none; of nominal ratings any code. 1: raters agree;
    0: as much as if ratings were assigned to items at random; nan: all are of one category.

    Raises:
      UserError: no item has two ratings.
    """
    rating_NxR = np.asarray(rating_NxR, np.float64)
    if rating_NxR.ndim != 2 or not (np.isfinite(rating_NxR).sum(axis=1) > 1).any():
        raise UserError(f"ratings of shape {rating_NxR.shape}: agreement needs an item with two ratings or more")
    category_C = np.unique(rating_NxR[np.isfinite(rating_NxR)])
    return alpha_of_coincidences(coincidences(rating_NxR, category_C).sum(axis=0), category_C, level)


def _distances(frequency_C: np.ndarray, category_C: np.ndarray, level: Level) -> np.ndarray:
    """Squared distances of categories [C, C]; ordinal ones depend on how many ratings lie between two."""
    if level == "nominal":
        return 1.0 - np.eye(len(category_C))
    if level == "interval":
        return np.subtract.outer(category_C, category_C) ** 2
    middle_C = np.cumsum(frequency_C) - frequency_C / 2
    return np.subtract.outer(middle_C, middle_C) ** 2
