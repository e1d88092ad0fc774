"""Recalibration of confidences: temperature and isotonic regression, fitted on valid and applied to test. Plain numpy.

Both change confidences, not answers.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.calibration import check

_TEMPERATURES = (1e-2, 1e2)  # range that is searched


def _logit(confidence: np.ndarray) -> np.ndarray:
    tiny = np.finfo(np.float64).eps
    clipped = np.clip(confidence, tiny, 1.0 - tiny)
    return np.asarray(np.log(clipped) - np.log1p(-clipped))


def tempered(confidence: np.ndarray, temperature: float) -> np.ndarray:
    """Confidences whose log-odds are divided by the temperature: above 1 they move towards one half."""
    return np.asarray(1.0 / (1.0 + np.exp(-_logit(np.asarray(confidence, np.float64)) / temperature)))


def log_softmax(score_NxC: np.ndarray) -> np.ndarray:
    """Log-probabilities [N, C] of candidates among each other; −inf is no candidate."""
    shifted_NxC = np.asarray(score_NxC, np.float64) - np.max(score_NxC, axis=1, keepdims=True)
    return np.asarray(shifted_NxC - np.log(np.exp(shifted_NxC).sum(axis=1, keepdims=True)))


def tempered_scores(score_NxC: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities [N, C] of candidates from their log-probabilities / temperature; −inf is no candidate."""
    return np.asarray(np.exp(log_softmax(np.asarray(score_NxC, np.float64) / temperature)))


def _minimize(loss_of_log_temperature: Callable[[float], float]) -> float:
    """The temperature with the least loss; an end of the range if none within it has less."""
    from scipy import optimize

    bounds = tuple(np.log(_TEMPERATURES))
    within = optimize.minimize_scalar(loss_of_log_temperature, bounds=bounds, method="bounded").x
    return float(np.exp(min((*bounds, within), key=loss_of_log_temperature)))


def limit_reached(temperature: float) -> str:
    """Which end of the searched range a fitted temperature is at, as text; "" for one between them.

    At an end the loss still falls: no temperature is best, as where all answers are right.
    """
    for limit, which in zip(_TEMPERATURES, ("lowest", "highest"), strict=True):
        if np.isclose(temperature, limit, rtol=1e-4):
            return f"the {which} that is searched, {limit:g}"
    return ""


def fit_temperature(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
    """The temperature of log-odds with the least negative log-likelihood, between .01 and 100 (Guo et al. 2017)."""
    confidence_N, correct_N = check(confidence_N, correct_N)
    logit_N, sign_N = _logit(confidence_N), 2.0 * correct_N - 1.0
    return _minimize(lambda log_t: np.logaddexp(0.0, -sign_N * logit_N / np.exp(log_t)).mean())


def fit_score_temperature(score_NxC: np.ndarray, gold_N: np.ndarray) -> float:
    """As fit_temperature, of candidates' log-probabilities [N, C] with gold_N the index of the gold candidate."""
    score_NxC, rows = np.asarray(score_NxC, np.float64), np.arange(len(gold_N))
    if not len(rows):
        raise UserError("no examples to fit a temperature to: give at least one")

    return _minimize(lambda log_t: float(-log_softmax(score_NxC / np.exp(log_t))[rows, gold_N].mean()))


@dataclasses.dataclass(frozen=True)
class Isotonic:
    """A monotone map of confidences: constant outside of the knots, linear between them."""

    knots: np.ndarray
    values: np.ndarray

    def __call__(self, confidence: np.ndarray) -> np.ndarray:
        """Recalibrated confidences."""
        return np.asarray(np.interp(confidence, self.knots, self.values))


def fit_isotonic(confidence_N: np.ndarray, correct_N: np.ndarray) -> Isotonic:
    """The monotone map with the least squared error (Zadrozny and Elkan 2002), by pooling adjacent violators."""
    from scipy import optimize

    confidence_N, correct_N = check(confidence_N, correct_N)
    knots, group_N, count = np.unique(confidence_N, return_inverse=True, return_counts=True)
    rate = np.bincount(group_N, weights=correct_N) / count
    values = np.asarray(optimize.isotonic_regression(rate, weights=count).x)
    rises = np.diff(values) != 0
    ends = np.append(True, rises) | np.append(rises, True)  # knots within a constant piece change nothing
    return Isotonic(knots[ends], values[ends])
