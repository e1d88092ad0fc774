"""What a judge's scores and preferences say, with 95% intervals over clusters of items. Plain numpy; imports no jax."""

from collections.abc import Callable

import numpy as np

from cotmi_jax.evaluation.comparison import mean_by_cluster
from cotmi_jax.evaluation.raters import Level, alpha_of_coincidences, cohen_kappa, coincidences
from cotmi_jax.evaluation.scores import NotAvailable, Score, clustered_share

SCALE = (1, 2, 3, 4, 5)
_DRAWS = 999
_ONE_REPEAT = NotAvailable(not_available="agreement of repeats needs --repeats=2 or more")
_EQUAL = "the judge gave one answer only, so that agreement by chance is certain"

Value = Score | NotAvailable


def bootstrap_interval(
    statistic: Callable[[np.ndarray], float], cluster_N: np.ndarray, *, draws: int = _DRAWS, seed: int = 0
) -> tuple[float, float] | None:
    """Percentiles 2.5 and 97.5 of a function of item indices over resampled clusters.

    Draws for which it is nan are left out; None if that is half of them or more, or for fewer than two clusters.
    """
    number_N = np.unique(cluster_N, return_inverse=True)[1]
    members = np.split(np.argsort(number_N, kind="stable"), np.cumsum(np.bincount(number_N))[:-1])
    if len(members) < 2:
        return None
    draw = np.random.default_rng(seed)
    resampled = (draw.integers(0, len(members), len(members)) for _ in range(draws))
    drawn_D = np.array([statistic(np.concatenate([members[number] for number in chosen_G])) for chosen_G in resampled])
    defined_D = drawn_D[np.isfinite(drawn_D)]
    if 2 * len(defined_D) <= draws:
        return None
    low, high = np.quantile(defined_D, (0.025, 0.975))
    return float(low), float(high)


def _bootstrapped(statistic: Callable[[np.ndarray], float], cluster_N: np.ndarray, undefined: str) -> Value:
    value = statistic(np.arange(len(cluster_N)))
    if not np.isfinite(value):
        return NotAvailable(not_available=undefined)
    return Score(value=float(value), interval=bootstrap_interval(statistic, cluster_N), n=len(cluster_N))


def _share(hit_NxR: np.ndarray, counted_NxR: np.ndarray, cluster_N: np.ndarray, nothing: str) -> Value:
    """Hits among those that are counted, with an interval over clusters."""
    number_N = np.unique(cluster_N, return_inverse=True)[1]
    hits_G = np.bincount(number_N, weights=(hit_NxR & counted_NxR).sum(axis=1)).astype(int)
    totals_G = np.bincount(number_N, weights=counted_NxR.sum(axis=1)).astype(int)
    if not totals_G.sum():
        return NotAvailable(not_available=nothing)
    return clustered_share(hits_G.tolist(), totals_G.tolist())


def _repeats(
    rating_NxR: np.ndarray, cluster_N: np.ndarray, level: Level, categories: tuple[int, ...]
) -> dict[str, Value]:
    """Krippendorff's alpha of repeated answers, and beside it the share of equal pairs, which ignores chance."""
    if rating_NxR.shape[1] < 2:
        return {"repeat_agreement": _ONE_REPEAT}
    category_C = np.array(categories, np.float64)
    pairs_NxCxC = coincidences(rating_NxR, category_C)
    rated_N = pairs_NxCxC.any(axis=(1, 2))
    if not rated_N.any():
        return {"repeat_agreement": NotAvailable(not_available="no item has two readable answers")}
    pairs_NxCxC, cluster_N = pairs_NxCxC[rated_N], cluster_N[rated_N]

    def alpha(items: np.ndarray) -> float:
        return alpha_of_coincidences(pairs_NxCxC[items].sum(axis=0), category_C, level)

    def equal(items: np.ndarray) -> float:
        total_CxC = pairs_NxCxC[items].sum(axis=0)
        return float(np.trace(total_CxC) / total_CxC.sum())

    return {
        "repeat_agreement": _bootstrapped(alpha, cluster_N, _EQUAL),
        "repeat_equal": _bootstrapped(equal, cluster_N, _EQUAL),
    }


def summarize_scores(score_NxR: np.ndarray, words_N: np.ndarray, cluster_N: np.ndarray) -> dict[str, Value]:
    """What absolute scores say of one student's rationales.

    score_NxR: scores of SCALE by item and repeat, nan where an answer cannot be read; every item has one at least.
    words_N: lengths of the rationales. An item's score is the mean of its repeats.

    score: the mean over items. length_correlation: Spearman's, of score and length. repeat_agreement: Krippendorff's
    ordinal alpha; repeat_equal: the share of pairs of repeats that are equal.
    """
    from scipy import stats

    score_NxR, words_N, cluster_N = np.asarray(score_NxR, np.float64), np.asarray(words_N), np.asarray(cluster_N)
    mean_N = np.nanmean(score_NxR, axis=1)

    def spearman(items: np.ndarray) -> float:
        if np.ptp(mean_N[items]) == 0 or np.ptp(words_N[items]) == 0:
            return float("nan")
        return float(stats.spearmanr(mean_N[items], words_N[items]).statistic)

    constant = "all scores or all lengths are equal"
    return {
        "score": mean_by_cluster(mean_N, cluster_N),
        "length_correlation": _bootstrapped(spearman, cluster_N, constant),
        **_repeats(score_NxR, cluster_N, "ordinal", SCALE),
    }


def consistent(verdict_NxRx2: np.ndarray) -> np.ndarray:
    """The preference [N, R] of each comparison: that of both orders; 0, a tie, where they differ; nan: unreadable."""
    first_NxR, second_NxR = verdict_NxRx2[..., 0], verdict_NxRx2[..., 1]
    missing_NxR = np.isnan(verdict_NxRx2).any(axis=-1)
    return np.where(missing_NxR, np.nan, np.where(first_NxR == second_NxR, first_NxR, 0.0))


def summarize_preferences(verdict_NxRx2: np.ndarray, words_Nx2: np.ndarray, cluster_N: np.ndarray) -> dict[str, Value]:
    """What a judge's preferences between the rationales of two students say.

    verdict_NxRx2: by item, repeat and order of presentation (ours first, theirs first) 1: ours is better, -1: theirs,
    0: a tie, nan: the answer cannot be read. words_Nx2: lengths, ours and theirs. A comparison is an item and a repeat
    with readable answers in both orders; where these differ, it is a tie. One at least is needed.

    wins, losses, ties: shares of comparisons. preference: mean over items of 1, -1, 0. flips: share of comparisons
    whose answers differ by order; order_agreement: Cohen's kappa of the two orders. first_wins: share of answers other
    than a tie that prefer what is presented first, half if the position has no effect. longer_wins: share of decided
    comparisons won by the longer rationale; wins_if_longer, wins_if_shorter: share of those won by ours, by whether
    ours is the longer one. repeat_agreement: Krippendorff's nominal alpha of answers in the same order.
    """
    verdict_NxRx2, words_Nx2 = np.asarray(verdict_NxRx2, np.float64), np.asarray(words_Nx2)
    cluster_N = np.asarray(cluster_N)
    preference_NxR = consistent(verdict_NxRx2)
    compared_NxR = np.isfinite(preference_NxR)
    first_NxR, second_NxR = verdict_NxRx2[..., 0], verdict_NxRx2[..., 1]
    kept_N = compared_NxR.any(axis=1)
    longer_N = np.sign(words_Nx2[:, 0] - words_Nx2[:, 1])[:, None]
    decided_NxR = compared_NxR & (preference_NxR != 0)

    def kappa(items: np.ndarray) -> float:
        counted = compared_NxR[items]
        return cohen_kappa(first_NxR[items][counted], second_NxR[items][counted])

    def share(hit_NxR: np.ndarray, counted_NxR: np.ndarray, nothing: str = "no comparison is decided") -> Value:
        return _share(hit_NxR, counted_NxR, cluster_N, nothing)

    # Answers of both orders side by side; the first presented is ours in one order and theirs in the other.
    answers_NxA = np.concatenate([first_NxR, -second_NxR], axis=1)
    counted_NxA = np.concatenate([compared_NxR, compared_NxR], axis=1) & (answers_NxA != 0)
    lengths = "no decided comparison has rationales of different length"
    by_order_NxR = np.concatenate([first_NxR, second_NxR], axis=0)
    return {
        "preference": mean_by_cluster(np.nanmean(preference_NxR[kept_N], axis=1), cluster_N[kept_N]),
        "wins": share(preference_NxR == 1, compared_NxR),
        "losses": share(preference_NxR == -1, compared_NxR),
        "ties": share(preference_NxR == 0, compared_NxR),
        "flips": share(first_NxR != second_NxR, compared_NxR),
        "order_agreement": _bootstrapped_of(kappa, kept_N, cluster_N),
        "first_wins": share(answers_NxA == 1, counted_NxA, "every answer is a tie"),
        "longer_wins": share(preference_NxR == longer_N, decided_NxR & (longer_N != 0), lengths),
        "wins_if_longer": share(preference_NxR == 1, decided_NxR & (longer_N == 1), lengths),
        "wins_if_shorter": share(preference_NxR == 1, decided_NxR & (longer_N == -1), lengths),
        **_repeats(by_order_NxR, np.concatenate([cluster_N, cluster_N]), "nominal", (-1, 0, 1)),
    }


def _bootstrapped_of(statistic: Callable[[np.ndarray], float], kept_N: np.ndarray, cluster_N: np.ndarray) -> Value:
    """As _bootstrapped, over the items that are kept."""
    index_K = np.flatnonzero(kept_N)
    return _bootstrapped(lambda items: statistic(index_K[items]), cluster_N[kept_N], _EQUAL)
