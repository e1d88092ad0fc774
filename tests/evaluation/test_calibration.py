"""Calibration errors, scores and recalibration against definitions, scikit-learn, relplot and known noise floors."""

import dataclasses
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import calibration, recalibration
from cotmi_jax.evaluation.calibration import ece, noise_floor


def students(size: int, power: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and answers that are correct with probability confidence ** power: overconfident above 1."""
    draw = np.random.default_rng(seed)
    confidence_N = draw.beta(6, 2, size)
    return confidence_N, draw.random(size) < confidence_N**power


def test_errors_of_bins_are_those_of_the_definition() -> None:
    confidence_N = np.array([0.1, 0.2, 0.6, 0.7, 0.9, 0.9])
    correct_N = np.array([0, 1, 1, 0, 1, 1])
    bins = calibration.bin_examples(confidence_N, correct_N, 2, "width")
    np.testing.assert_array_equal(bins.count_B, [2, 4])
    np.testing.assert_allclose(bins.gap_B, [0.5 - 0.15, 0.75 - 0.775])
    assert ece(confidence_N, correct_N, 2, "width") == pytest.approx((2 * 0.35 + 4 * 0.025) / 6)
    assert calibration.mce(confidence_N, correct_N, 2, "width") == pytest.approx(0.35)
    square = (2 * (0.35**2 - 0.25 / 1) + 4 * (0.025**2 - 0.1875 / 3)) / 6
    assert square < 0 and calibration.debiased_ece(confidence_N, correct_N, 2, "width") == 0.0
    # The two examples at .9 share a bin of equal mass.
    assert calibration.bin_examples(confidence_N, correct_N, 6).count_B.tolist() == [1, 1, 1, 1, 2]


@pytest.mark.parametrize(("scheme", "strategy"), [("mass", "quantile"), ("width", "uniform")])
def test_bins_and_scores_are_those_of_scikit_learn(scheme: calibration.Scheme, strategy: str) -> None:
    sklearn = pytest.importorskip("sklearn.calibration")
    metrics = pytest.importorskip("sklearn.metrics")
    confidence_N, correct_N = students(500, 2.0)
    confidence_N = confidence_N.round(2)  # with ties
    bins = calibration.bin_examples(confidence_N, correct_N, 10, scheme)
    accuracy_B, confidence_B = sklearn.calibration_curve(correct_N, confidence_N, n_bins=10, strategy=strategy)
    np.testing.assert_allclose(bins.accuracy_B, accuracy_B, atol=1e-12)
    np.testing.assert_allclose(bins.confidence_B, confidence_B, atol=1e-12)
    found = calibration.brier(confidence_N, correct_N)
    assert found.score == pytest.approx(metrics.brier_score_loss(correct_N, confidence_N), abs=1e-12)
    assert calibration.nll(confidence_N, correct_N) == pytest.approx(
        metrics.log_loss(correct_N, confidence_N), abs=1e-9
    )
    assert calibration.auroc(confidence_N, correct_N) == pytest.approx(metrics.roc_auc_score(correct_N, confidence_N))


def test_isotonic_regression_is_that_of_scikit_learn() -> None:
    sklearn = pytest.importorskip("sklearn.isotonic")
    confidence_N, correct_N = students(400, 2.0)
    confidence_N = confidence_N.round(2)
    theirs = sklearn.IsotonicRegression(out_of_bounds="clip").fit(confidence_N, correct_N)
    probed = np.linspace(0, 1, 101)
    np.testing.assert_allclose(
        recalibration.fit_isotonic(confidence_N, correct_N)(probed), theirs.predict(probed), atol=1e-9
    )


def test_the_decomposition_of_the_brier_score_is_exact_where_a_bin_has_one_confidence() -> None:
    confidence_N, correct_N = students(400)
    found = calibration.brier(confidence_N.round(1), correct_N, bins=1000)
    assert found.within == pytest.approx(0.0, abs=1e-12)
    assert found.score == pytest.approx(found.reliability - found.resolution + found.uncertainty)


def test_the_smooth_error_is_the_integral_of_its_definition() -> None:
    """With the kernel's images at both sides summed, instead of multiplied in cosine space."""
    confidence_N, correct_N = students(300)
    value, width = calibration.smooth_ece(confidence_N, correct_N)
    assert 0 < value == pytest.approx(width, abs=1e-6)
    points = np.linspace(0.0, 1.0, 4001)
    total = np.zeros_like(points)
    for image in (sign * confidence_N + 2 * shift for sign in (1, -1) for shift in range(-3, 4)):
        kernel = np.exp(-0.5 * ((points[:, None] - image) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        total += kernel @ (correct_N - confidence_N) / len(confidence_N)
    assert value == pytest.approx(np.trapezoid(np.abs(total), points), abs=1e-6)


def test_the_smooth_error_is_that_of_relplot() -> None:
    """Within the grid of relplot, which searches the width in steps of 1/1024."""
    relplot = pytest.importorskip("relplot")
    relplot.config.use_logit_scaling = False
    for power in (1.0, 2.0):
        confidence_N, correct_N = students(1000, power)
        theirs = relplot.smECE(confidence_N, correct_N.astype(float))
        assert calibration.smooth_ece(confidence_N, correct_N).value == pytest.approx(theirs, abs=2e-3)


def test_the_sweep_stops_at_the_first_decrease() -> None:
    """Accuracies of two bins are 1/2, 1, of three 1/2, 3/4, 1, of four 2/3, 1/3, 1, 1."""
    confidence_N = np.linspace(0.05, 0.95, 12)
    correct_N = np.array([0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1, 1])
    rising = [
        (np.diff(calibration.bin_examples(confidence_N, correct_N, bins).accuracy_B) >= 0).all() for bins in (2, 3, 4)
    ]
    assert rising == [True, True, False]
    assert calibration.ece_sweep(confidence_N, correct_N) == ece(confidence_N, correct_N, 3)


@pytest.mark.parametrize(
    ("size", "bins", "floor"), [(200, 100, 0.239), (1000, 100, 0.100), (200, 15, 0.083), (1221, 15, 0.034)]
)
def test_the_noise_floor_of_a_calibrated_student(size: int, bins: int, floor: float) -> None:
    """Beta(6, 2) confidences, as simulated independently; the floor varies with the confidences by a few percent."""
    confidence_N, correct_N = students(size)

    def measure(confidence_N: np.ndarray, correct_N: np.ndarray) -> float:
        return ece(confidence_N, correct_N, bins)

    found = noise_floor(confidence_N, measure, draws=200)
    assert found.mean == pytest.approx(floor, rel=0.08) and found.low < found.mean < found.high
    assert found.explains(measure(confidence_N, correct_N))
    assert not found.explains(measure(*students(size, 8.0)))


@pytest.mark.parametrize(
    "measure",
    [calibration.debiased_ece, lambda p, y: calibration.smooth_ece(p, y).value, calibration.ece_sweep, ece],
    ids=["debiased", "smooth", "sweep", "binned"],
)
def test_a_known_error_is_found(measure: Callable) -> None:
    """Every confidence is .2 above the accuracy, with 20,000 examples."""
    draw = np.random.default_rng(0)
    rate_N = draw.uniform(0.1, 0.7, 20_000)
    assert measure(rate_N + 0.2, draw.random(20_000) < rate_N) == pytest.approx(0.2, abs=0.01)
    assert measure(rate_N, draw.random(20_000) < rate_N) < 0.03


@pytest.mark.parametrize(
    ("of_many", "of_one"),
    [
        (lambda answers: answers.ece(15, "mass"), ece),
        (lambda answers: answers.mce(10, "width"), lambda p, y: calibration.mce(p, y, 10, "width")),
        (lambda answers: answers.debiased_ece(15, "mass"), calibration.debiased_ece),
        (lambda answers: answers.ece_sweep(), calibration.ece_sweep),
        (lambda answers: answers.smooth_ece(), lambda p, y: calibration.smooth_ece(p, y).value),
    ],
    ids=["ece", "mce", "debiased", "sweep", "smooth"],
)
def test_floors_of_many_draws_at_once_are_those_of_one_by_one(of_many: Callable, of_one: Callable) -> None:
    """In chunks of 7 draws; of high confidences some draws are all correct."""
    for confidence_N in (students(80)[0].round(2), np.linspace(0.95, 1.0, 40)):
        with mock.patch.object(calibration, "_CHUNK", 7 * len(confidence_N)):
            found = calibration.noise_floors(confidence_N, {"it": of_many}, draws=30)["it"]
        expected = noise_floor(confidence_N, of_one, draws=30)
        np.testing.assert_allclose(dataclasses.astuple(found), dataclasses.astuple(expected), atol=2e-5)


def test_the_band_holds_the_accuracies_of_a_calibrated_student() -> None:
    confidence_N, _ = students(3000)
    low_B, high_B = calibration.reliability_band(confidence_N, draws=400)
    draw = np.random.default_rng(1)
    accuracy_RxB = np.stack(
        [calibration.bin_examples(confidence_N, draw.random(3000) < confidence_N).accuracy_B for _ in range(200)]
    )
    assert 0.92 <= ((low_B <= accuracy_RxB) & (accuracy_RxB <= high_B)).mean() <= 0.98


def test_auroc_and_risk_of_ties_and_of_one_class() -> None:
    same = np.full(4, 0.5)
    assert calibration.auroc(same, np.array([1, 0, 1, 0])) == 0.5
    assert calibration.auroc(same, np.ones(4)) is None
    coverage, risk = calibration.risk_coverage(np.array([0.9, 0.5, 0.5, 0.1]), np.array([1, 1, 0, 0]))
    np.testing.assert_allclose(coverage, [0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(risk, [0.0, 0.25, 1 / 3, 0.5])  # of the tie half an error at each
    assert calibration.area_under_risk_coverage(same, np.array([1, 0, 1, 0])) == 0.5


def test_a_temperature_recovers_the_one_that_was_applied() -> None:
    draw = np.random.default_rng(0)
    confidence_N = draw.uniform(0.02, 0.98, 20_000)
    sharp_N = recalibration.tempered(confidence_N, 1 / 3)
    found = recalibration.fit_temperature(sharp_N, draw.random(20_000) < confidence_N)
    assert found == pytest.approx(3.0, rel=0.05)
    np.testing.assert_allclose(recalibration.tempered(sharp_N, 3.0), confidence_N, atol=1e-9)


def test_a_temperature_of_candidates_recovers_the_one_that_was_applied() -> None:
    """Questions with three and with four candidates; −inf stands for none."""
    draw = np.random.default_rng(0)
    score_NxC = draw.normal(size=(20_000, 4))
    score_NxC[::2, 3] = -np.inf
    probability_NxC = recalibration.tempered_scores(score_NxC, 1.0)
    gold_N = (probability_NxC.cumsum(axis=1) < draw.random((20_000, 1))).sum(axis=1)
    assert recalibration.fit_score_temperature(2.5 * score_NxC, gold_N) == pytest.approx(2.5, rel=0.05)
    assert not probability_NxC[::2, 3].any()


def test_bad_input_is_named() -> None:
    with pytest.raises(UserError, match=r"^confidences of shape \(2,\), answers of shape \(3,\): give one"):
        ece(np.ones(2), np.ones(3))
    with pytest.raises(UserError, match=r"^1 confidences are outside \[0, 1\], the first 1.5"):
        ece(np.array([0.5, 1.5]), np.ones(2))
    with pytest.raises(UserError, match=r"^1 confidences are outside \[0, 1\], the first nan"):
        ece(np.array([0.5, np.nan]), np.ones(2))
    with pytest.raises(UserError, match="^bins = 0: give at least 1"):
        ece(np.ones(2), np.ones(2), 0)
    with pytest.raises(UserError, match="^correctness holds values other than 0 and 1"):
        ece(np.ones(2), np.array([0.5, 1.0]))
    with pytest.raises(UserError, match="^2 bins of 2 examples hold one each: give fewer bins"):
        calibration.debiased_ece(np.array([0.1, 0.9]), np.ones(2), 2)
