"""How well confidences agree with accuracies: calibration errors with their noise floor, scores, and recalibration.

All functions take plain arrays: confidence_N in [0, 1], the probability that a student assigns to its own answer, and
correct_N, whether the answer is correct. Imports no jax. Every calibration error is positive for a perfectly calibrated
student too, since accuracies of few examples vary: report it beside `noise_floor`.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from cotmi_jax.errors import UserError

Scheme = Literal["mass", "width"]
Measure = Callable[[np.ndarray, np.ndarray], float]
PAPER_BINS = 100  # of equal mass: the MI paper's expected calibration error
_GRID = 4096  # intervals of [0, 1] on which residuals are smoothed
_NARROWEST = 1e-4  # kernel width below which the smooth calibration error is called 0


class Bins(NamedTuple):
    """Reliability diagram: of every bin that is not empty the number of examples, mean confidence and accuracy."""

    count_B: np.ndarray
    confidence_B: np.ndarray
    accuracy_B: np.ndarray

    @property
    def gap_B(self) -> np.ndarray:
        """Accuracy minus mean confidence: negative where the student is overconfident."""
        return self.accuracy_B - self.confidence_B

    @property
    def share_B(self) -> np.ndarray:
        """Fraction of the examples."""
        return self.count_B / self.count_B.sum()


def check(confidence_N: np.ndarray, correct_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [N]. Raises UserError for none, for unequal lengths, or for a confidence outside [0, 1]."""
    confidence_N, correct_N = (np.asarray(x, np.float64) for x in (confidence_N, correct_N))
    if confidence_N.ndim != 1 or confidence_N.shape != correct_N.shape or not len(confidence_N):
        raise UserError(
            f"confidences of shape {confidence_N.shape}, answers of shape {correct_N.shape}: give one confidence for "
            "each of at least one answer"
        )
    bad = ~((confidence_N >= 0) & (confidence_N <= 1))
    if bad.any():
        raise UserError(f"{bad.sum()} confidences are outside [0, 1], the first {confidence_N[bad][0]:g}")
    return confidence_N, correct_N


def bin_examples(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15, scheme: Scheme = "mass") -> Bins:
    """Bins of equal mass (the quantiles of the confidences) or of equal width.

    Equal confidences share a bin, so that bins of equal mass can be fewer than asked for.
    """
    confidence_N, correct_N = check(confidence_N, correct_N)
    if bins < 1:
        raise UserError(f"bins = {bins}: give at least 1")
    inner = np.linspace(0.0, 1.0, bins + 1)[1:-1]
    edges = np.quantile(confidence_N, inner) if scheme == "mass" else inner
    number_N = np.searchsorted(edges, confidence_N)
    count_B = np.bincount(number_N, minlength=bins)
    used = count_B > 0
    sums = (np.bincount(number_N, weights=x, minlength=bins)[used] for x in (confidence_N, correct_N))
    return Bins(count_B[used], *(total / count_B[used] for total in sums))


def ece(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15, scheme: Scheme = "mass") -> float:
    """Expected calibration error: the mean over examples of |accuracy − mean confidence| of their bin."""
    found = bin_examples(confidence_N, correct_N, bins, scheme)
    return float((found.share_B * np.abs(found.gap_B)).sum())


def mce(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15, scheme: Scheme = "mass") -> float:
    """Maximum calibration error: the largest |accuracy − mean confidence| of a bin."""
    return float(np.abs(bin_examples(confidence_N, correct_N, bins, scheme).gap_B).max())


def debiased_ece(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15, scheme: Scheme = "mass") -> float:
    """Root mean squared calibration error without the variance of the bins' accuracies.

    From the squared gap of each bin the unbiased variance of its accuracy is subtracted (Bröcker 2012; Ferro and
    Fricker 2012; Kumar et al. 2019). Bins of one example have none and are left out; a negative mean counts as 0.
    """
    found = bin_examples(confidence_N, correct_N, bins, scheme)
    several = found.count_B > 1
    if not several.any():
        raise UserError(f"{bins} bins of {len(confidence_N)} examples hold one each: give fewer bins")
    gap_B, accuracy_B, count_B = (x[several] for x in (found.gap_B, found.accuracy_B, found.count_B))
    square_B = gap_B**2 - accuracy_B * (1.0 - accuracy_B) / (count_B - 1)
    return float(np.sqrt(max(0.0, float((count_B / count_B.sum() * square_B).sum()))))


def ece_sweep(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Expected calibration error with the most bins of equal mass whose accuracies do not decrease.

    Roelofs et al. 2022, algorithm 1: bins are added one at a time until a bin is less accurate than the one before.
    """
    confidence_N, correct_N = check(confidence_N, correct_N)
    bins = 1
    while bins < len(confidence_N):
        if (np.diff(bin_examples(confidence_N, correct_N, bins + 1).accuracy_B) < 0).any():
            break
        bins += 1
    return ece(confidence_N, correct_N, bins)


class SmoothECE(NamedTuple):
    """The smooth calibration error and the width of its kernel, which equals it."""

    value: float
    width: float


def smooth_ece(confidence_N: np.ndarray, correct_N: np.ndarray) -> SmoothECE:
    """Smooth calibration error (Błasiok and Nakkiran 2023): no bins, and continuous in the confidences.

    smECE_σ = ∫₀¹ |mean_i (y_i − p_i) K_σ(t, p_i)| dt with a Gaussian kernel of width σ that is reflected at 0 and 1.
    The width is the one at which smECE_σ = σ.
    """
    from scipy import optimize

    spectrum = _residual_spectrum(*check(confidence_N, correct_N))

    def excess(width: float) -> float:
        return float(np.trapezoid(np.abs(_smoothed(spectrum, width)), dx=1.0 / _GRID)) - width

    if excess(_NARROWEST) <= 0:
        return SmoothECE(0.0, 0.0)
    width = float(optimize.brentq(excess, _NARROWEST, 2.0, xtol=1e-9))
    return SmoothECE(width + excess(width), width)


def smoothed_residual(confidence_N: np.ndarray, correct_N: np.ndarray, width: float) -> tuple[np.ndarray, np.ndarray]:
    """Points t in [0, 1] and at each the integrand of smECE, mean_i (y_i − p_i) K_width(t, p_i)."""
    spectrum = _residual_spectrum(*check(confidence_N, correct_N))
    return np.linspace(0.0, 1.0, _GRID + 1), _smoothed(spectrum, width)


def _residual_spectrum(confidence_N: np.ndarray, correct_N: np.ndarray) -> np.ndarray:
    """Cosine transform of the residuals, each divided between the two nearest points of the grid.

    A Gaussian that is reflected at both ends multiplies the coefficient of cos(kπt) by exp(−(kπσ)²/2).
    """
    from scipy import fft

    place_N = confidence_N * _GRID
    left_N = np.minimum(place_N.astype(np.int64), _GRID - 1)
    rest_N, residual_N = place_N - left_N, (correct_N - confidence_N) / len(confidence_N)
    mass: np.ndarray = np.bincount(left_N, residual_N * (1.0 - rest_N), _GRID + 1)
    mass = mass + np.bincount(left_N + 1, residual_N * rest_N, _GRID + 1)
    mass[0], mass[-1] = 2.0 * mass[0], 2.0 * mass[-1]  # a point at an end has half an interval
    return np.asarray(fft.dct(mass * _GRID, type=1))


def _smoothed(spectrum: np.ndarray, width: float) -> np.ndarray:
    from scipy import fft

    return np.asarray(fft.idct(spectrum * np.exp(-0.5 * (np.pi * width * np.arange(len(spectrum))) ** 2), type=1))


def confidence_gap(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Mean confidence minus accuracy: positive for an overconfident student."""
    confidence_N, correct_N = check(confidence_N, correct_N)
    return float(confidence_N.mean() - correct_N.mean())


class Brier(NamedTuple):
    """The Brier score and Murphy's (1973) decomposition: score = reliability − resolution + uncertainty + within.

    within: what bins leave out of the decomposition, since confidences in a bin differ (Stephenson et al. 2008).
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


def brier(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15) -> Brier:
    """Mean squared difference of confidence and correctness."""
    confidence_N, correct_N = check(confidence_N, correct_N)
    found, rate = bin_examples(confidence_N, correct_N, bins), float(correct_N.mean())
    score = float(((confidence_N - correct_N) ** 2).mean())
    reliability = float((found.share_B * found.gap_B**2).sum())
    resolution = float((found.share_B * (found.accuracy_B - rate) ** 2).sum())
    uncertainty = rate * (1.0 - rate)
    return Brier(score, reliability, resolution, uncertainty, score - (reliability - resolution + uncertainty))


def nll(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Negative log-likelihood of the correctness, nats; infinite where a confidence of 0 or 1 is wrong."""
    confidence_N, correct_N = check(confidence_N, correct_N)
    with np.errstate(divide="ignore"):
        return float(-np.log(np.where(correct_N > 0, confidence_N, 1.0 - confidence_N)).mean())


def auroc(confidence_N: np.ndarray, correct_N: np.ndarray) -> float | None:
    """Probability that a correct answer has a higher confidence than a wrong one, ties half; None if all are alike."""
    from scipy import stats

    confidence_N, correct_N = check(confidence_N, correct_N)
    hits = int(correct_N.sum())
    misses = len(correct_N) - hits
    if not hits or not misses:
        return None
    return float((stats.rankdata(confidence_N)[correct_N > 0].sum() - hits * (hits + 1) / 2) / (hits * misses))


def risk_coverage(confidence_N: np.ndarray, correct_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coverage 1/N … 1 and the error rate of the most confident examples at each; ties have their mean error."""
    confidence_N, correct_N = check(confidence_N, correct_N)
    order = np.argsort(-confidence_N, kind="stable")
    _, start, count = np.unique(-confidence_N[order], return_index=True, return_counts=True)
    error = np.repeat(np.add.reduceat(1.0 - correct_N[order], start) / count, count)
    kept = np.arange(1, len(error) + 1)
    return kept / len(error), np.cumsum(error) / kept


def area_under_risk_coverage(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Mean over coverages of the error rate (Geifman and El-Yaniv 2017): 0 is perfect, the error rate is chance."""
    return float(risk_coverage(confidence_N, correct_N)[1].mean())


@dataclasses.dataclass(frozen=True)
class NoiseFloor:
    """What a measure reads for a perfectly calibrated student with the same confidences: mean and 95% range."""

    mean: float
    low: float
    high: float

    def explains(self, value: float) -> bool:
        """Whether a calibrated student's value would often be as high."""
        return value <= self.high


def noise_floor(confidence_N: np.ndarray, measure: Measure, *, draws: int = 1000, seed: int = 0) -> NoiseFloor:
    """Parametric bootstrap: `measure` of correctness that is drawn as Bernoulli(confidence), `draws` times."""
    confidence_N, _ = check(confidence_N, np.zeros(len(confidence_N)))
    draw = np.random.default_rng(seed)
    values = [measure(confidence_N, draw.random(len(confidence_N)) < confidence_N) for _ in range(draws)]
    low, high = np.quantile(values, (0.025, 0.975))
    return NoiseFloor(float(np.mean(values)), float(low), float(high))
