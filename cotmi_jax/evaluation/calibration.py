"""How well confidences agree with accuracies: calibration errors with their noise floor, scores, and recalibration.

All functions take plain arrays: confidence_N in [0, 1], the probability that a student assigns to its own answer, and
correct_N, whether the answer is correct. Imports no jax. Every calibration error is positive for a perfectly calibrated
student too, since accuracies of few examples vary: report it beside `noise_floor`.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from cotmi_jax.errors import UserError

Scheme = Literal["mass", "width"]
Measure = Callable[[np.ndarray, np.ndarray], float]
PAPER_BINS = 100  # of equal mass: the MI paper's expected calibration error
_GRID = 4096  # intervals of [0, 1] on which residuals are smoothed
_FLOOR_GRID = 1024  # the same for noise floors, which need less precision
_NARROWEST = 1e-4  # kernel width below which the smooth calibration error is called 0
_CHUNK = 4_000_000  # drawn answers at a time, for memory


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
    """Both as float64 [N]. Raises UserError for none, for unequal lengths, or for a value outside [0, 1]."""
    confidence_N, correct_N = (np.asarray(x, np.float64) for x in (confidence_N, correct_N))
    if confidence_N.ndim != 1 or confidence_N.shape != correct_N.shape or not len(confidence_N):
        raise UserError(
            f"confidences of shape {confidence_N.shape}, answers of shape {correct_N.shape}: give one confidence for "
            "each of at least one answer"
        )
    bad = ~((confidence_N >= 0) & (confidence_N <= 1))
    if bad.any():
        raise UserError(f"{bad.sum()} confidences are outside [0, 1], the first {confidence_N[bad][0]:g}")
    if not ((correct_N == 0) | (correct_N == 1)).all():
        raise UserError("correctness holds values other than 0 and 1: give whether each answer is correct")
    return confidence_N, correct_N


class Answers:
    """Answers sorted by confidence, with D vectors of their correctness: what an error of calibration depends on.

    Bins depend on the confidences alone, so that a measure of many vectors costs little more than that of one.
    """

    def __init__(self, confidence_N: np.ndarray, correct_DxN: np.ndarray) -> None:
        order = np.argsort(confidence_N, kind="stable")
        self.confidence_N, self.correct_DxN = confidence_N[order], np.asarray(correct_DxN, bool)[:, order]
        zero_Dx1 = np.zeros((len(correct_DxN), 1), np.int64)
        self._hits_before_DxN1 = np.hstack([zero_Dx1, self.correct_DxN.cumsum(axis=1)])

    @classmethod
    def of(cls, confidence_N: np.ndarray, correct_N: np.ndarray) -> "Answers":
        """Of one vector of correctness; raises UserError as `check` does."""
        confidence_N, correct_N = check(confidence_N, correct_N)
        return cls(confidence_N, correct_N[None])

    def bins(self, bins: int, scheme: Scheme, draws: np.ndarray | slice = slice(None)) -> Bins:
        """With accuracies [D, B] of some of the draws. Raises UserError for fewer than one bin."""
        if bins < 1:
            raise UserError(f"bins = {bins}: give at least 1")
        inner = np.linspace(0.0, 1.0, bins + 1)[1:-1]
        edges = np.quantile(self.confidence_N, inner) if scheme == "mass" else inner
        last = len(self.confidence_N)
        end_B = np.unique(np.append(np.searchsorted(self.confidence_N, edges, "right"), last))
        end_B = end_B[end_B > 0]
        start_B = np.append(0, end_B[:-1])
        count_B = end_B - start_B
        before_DxN1 = self._hits_before_DxN1[draws]
        hits_DxB = before_DxN1[:, end_B] - before_DxN1[:, start_B]
        return Bins(count_B, np.add.reduceat(self.confidence_N, start_B) / count_B, hits_DxB / count_B)

    def ece(self, bins: int, scheme: Scheme) -> np.ndarray:
        """As the function `ece`, of each draw."""
        found = self.bins(bins, scheme)
        return np.asarray(np.abs(found.gap_B) @ found.share_B)

    def mce(self, bins: int, scheme: Scheme) -> np.ndarray:
        """As the function `mce`, of each draw."""
        return np.asarray(np.abs(self.bins(bins, scheme).gap_B).max(axis=1))

    def debiased_ece(self, bins: int, scheme: Scheme) -> np.ndarray:
        """As the function `debiased_ece`, of each draw."""
        found = self.bins(bins, scheme)
        several = found.count_B > 1
        if not several.any():
            raise UserError(f"{bins} bins of {len(self.confidence_N)} examples hold one each: give fewer bins")
        gap_DxB, accuracy_DxB, count_B = found.gap_B[:, several], found.accuracy_B[:, several], found.count_B[several]
        square_DxB = gap_DxB**2 - accuracy_DxB * (1.0 - accuracy_DxB) / (count_B - 1)
        return np.asarray(np.sqrt(np.maximum(0.0, square_DxB @ (count_B / count_B.sum()))))

    def ece_sweep(self) -> np.ndarray:
        """As the function `ece_sweep`, of each draw."""
        size = len(self.confidence_N)
        bins_D = np.full(len(self.correct_DxN), 1)
        # Where accuracies of equal confidences do not decrease, neither do those of any bins.
        start = np.unique(self.confidence_N, return_index=True)[1]
        hits_DxV = np.add.reduceat(self.correct_DxN, start, axis=1, dtype=np.int64)
        rises_D = (np.diff(hits_DxV / np.diff(np.append(start, size)), axis=1) >= 0).all(axis=1)
        bins_D[rises_D] = size
        rising, bins = np.flatnonzero(~rises_D), 1
        while bins < size and len(rising):
            bins += 1
            accuracy_DxB = self.bins(bins, "mass", rising).accuracy_B
            rising = rising[(np.diff(accuracy_DxB, axis=1) >= 0).all(axis=1)]
            bins_D[rising] = bins
        found_D = np.empty(len(bins_D))
        for bins in np.unique(bins_D):
            chosen = self.bins(int(bins), "mass", bins_D == bins)
            found_D[bins_D == bins] = np.abs(chosen.gap_B) @ chosen.share_B
        return found_D

    def smooth_ece(self) -> np.ndarray:
        """As the function `smooth_ece`, of each draw: the value, which is the width. Of several on a coarser grid."""
        from scipy.optimize import elementwise

        grid = _GRID if len(self.correct_DxN) == 1 else _FLOOR_GRID
        spectrum_DxK = np.stack(
            [_residual_spectrum(self.confidence_N, correct_N, grid) for correct_N in self.correct_DxN]
        )

        def excess(width_D: np.ndarray, draw_D: np.ndarray) -> np.ndarray:
            smoothed = _smoothed(spectrum_DxK[draw_D], width_D[:, None])
            return np.asarray(np.trapezoid(np.abs(smoothed), dx=1.0 / grid, axis=1)) - width_D

        draw_D = np.arange(len(spectrum_DxK))
        some = draw_D[excess(np.full(len(draw_D), _NARROWEST), draw_D) > 0]
        found_D = np.zeros(len(draw_D))
        if len(some):
            ends = np.full(len(some), _NARROWEST), np.full(len(some), 2.0)
            tolerances = {"xatol": 1e-9 if grid == _GRID else 1e-5, "xrtol": 0.0, "fatol": 0.0, "frtol": 0.0}
            found_D[some] = elementwise.find_root(excess, ends, args=(some,), tolerances=tolerances).x
        return found_D


def bin_examples(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15, scheme: Scheme = "mass") -> Bins:
    """Bins of equal mass (the quantiles of the confidences) or of equal width.

    Equal confidences share a bin, so that bins of equal mass can be fewer than asked for.
    """
    found = Answers.of(confidence_N, correct_N).bins(bins, scheme)
    return found._replace(accuracy_B=found.accuracy_B[0])


def ece(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15, scheme: Scheme = "mass") -> float:
    """Expected calibration error: the mean over examples of |accuracy − mean confidence| of their bin."""
    return float(Answers.of(confidence_N, correct_N).ece(bins, scheme)[0])


def mce(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15, scheme: Scheme = "mass") -> float:
    """Maximum calibration error: the largest |accuracy − mean confidence| of a bin."""
    return float(Answers.of(confidence_N, correct_N).mce(bins, scheme)[0])


def debiased_ece(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15, scheme: Scheme = "mass") -> float:
    """Root mean squared calibration error without the variance of the bins' accuracies.

    From the squared gap of each bin the unbiased variance of its accuracy is subtracted (Bröcker 2012; Ferro and
    Fricker 2012; Kumar et al. 2019). Bins of one example have none and are left out; a negative mean counts as 0.
    """
    return float(Answers.of(confidence_N, correct_N).debiased_ece(bins, scheme)[0])


def ece_sweep(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """Expected calibration error with the most bins of equal mass whose accuracies do not decrease.

    Roelofs et al. 2022, algorithm 1: bins are added one at a time until a bin is less accurate than the one before.
    """
    return float(Answers.of(confidence_N, correct_N).ece_sweep()[0])


class SmoothECE(NamedTuple):
    """The smooth calibration error and the width of its kernel, which equals it."""

    value: float
    width: float


def smooth_ece(confidence_N: np.ndarray, correct_N: np.ndarray) -> SmoothECE:
    """Smooth calibration error (Błasiok and Nakkiran 2023): no bins, and continuous in the confidences.

    smECE_σ = ∫₀¹ |mean_i (y_i − p_i) K_σ(t, p_i)| dt with a Gaussian kernel of width σ that is reflected at 0 and 1.
    The width is the one at which smECE_σ = σ.
    """
    width = float(Answers.of(confidence_N, correct_N).smooth_ece()[0])
    return SmoothECE(width, width)


def _residual_spectrum(confidence_N: np.ndarray, correct_N: np.ndarray, grid: int) -> np.ndarray:
    """Cosine transform of the residuals, each divided between the two nearest points of the grid.

    A Gaussian that is reflected at both ends multiplies the coefficient of cos(kπt) by exp(−(kπσ)²/2).
    """
    from scipy import fft

    place_N = confidence_N * grid
    left_N = np.minimum(place_N.astype(np.int64), grid - 1)
    rest_N, residual_N = place_N - left_N, (correct_N - confidence_N) / len(confidence_N)
    mass: np.ndarray = np.bincount(left_N, residual_N * (1.0 - rest_N), grid + 1)
    mass = mass + np.bincount(left_N + 1, residual_N * rest_N, grid + 1)
    mass[0], mass[-1] = 2.0 * mass[0], 2.0 * mass[-1]  # a point at an end has half an interval
    return np.asarray(fft.dct(mass * grid, type=1))


def _smoothed(spectrum: np.ndarray, width: float | np.ndarray) -> np.ndarray:
    from scipy import fft

    frequency_K = np.arange(spectrum.shape[-1])
    return np.asarray(fft.idct(spectrum * np.exp(-0.5 * (np.pi * width * frequency_K) ** 2), type=1))


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
    return _floor([measure(confidence_N, draw.random(len(confidence_N)) < confidence_N) for _ in range(draws)])


def noise_floors(
    confidence_N: np.ndarray,
    measures: Mapping[str, Callable[[Answers], np.ndarray]],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> dict[str, NoiseFloor]:
    """As noise_floor, of several methods of Answers with the same draws; of many examples it is far faster."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in measures}
    for answers in calibrated(confidence_N, draws, seed):
        for name, measure in measures.items():
            found[name].append(measure(answers))
    return {name: _floor(np.concatenate(values)) for name, values in found.items()}


def calibrated(confidence_N: np.ndarray, draws: int, seed: int = 0) -> Iterator[Answers]:
    """Draws of the correctness of a calibrated student with these confidences, some at a time."""
    confidence_N, _ = check(confidence_N, np.zeros(len(confidence_N)))
    draw, chunk = np.random.default_rng(seed), max(1, _CHUNK // len(confidence_N))
    for start in range(0, draws, chunk):
        size = min(chunk, draws - start), len(confidence_N)
        yield Answers(confidence_N, draw.random(size) < confidence_N)


def _floor(values: Sequence[float] | np.ndarray) -> NoiseFloor:
    low, high = np.quantile(values, (0.025, 0.975))
    return NoiseFloor(float(np.mean(values)), float(low), float(high))


def reliability_band(
    confidence_N: np.ndarray, bins: int = 15, scheme: Scheme = "mass", *, draws: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The 95% range of each bin's accuracy for a calibrated student (consistency bars, Bröcker and Smith 2007)."""
    accuracy_DxB = np.concatenate(
        [each.bins(bins, scheme).accuracy_B for each in calibrated(confidence_N, draws, seed)]
    )
    low_B, high_B = np.quantile(accuracy_DxB, (0.025, 0.975), axis=0)
    return low_B, high_B
