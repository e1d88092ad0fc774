"""Calibration of a split's predictions: every measure with its noise floor or interval, raw and recalibrated.

The result is JSON: the part `calibration` of metrics.json. Imports no jax.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import calibration, recalibration
from cotmi_jax.evaluation.calibration import PAPER_BINS, Answers
from cotmi_jax.evaluation.comparison import cluster_draws, mean_by_cluster
from cotmi_jax.evaluation.confidences import KINDS, Confidences, closed_set_confidences
from cotmi_jax.evaluation.scores import NotAvailable, Prediction, Score, share_by_cluster

BINS = 15
DRAWS = 1000  # of a calibrated student for noise floors, and of clusters for intervals
FITTING_EXAMPLES = 1000  # of valid to which recalibration is fitted, at most
MIN_FITTING_EXAMPLES = 20
COVERAGES = (0.5, 0.8, 0.9)  # shares of the answers, the most confident first, whose accuracy is stated

# Errors that a calibrated student has too, by their keys in metrics.json.
ERRORS: dict[str, Callable[[Answers], np.ndarray]] = {
    "smooth_ece": Answers.smooth_ece,
    "debiased_ece": lambda answers: answers.debiased_ece(BINS, "mass"),
    "ece_sweep": Answers.ece_sweep,
    f"ece_{BINS}": lambda answers: answers.ece(BINS, "mass"),
    f"ece_{PAPER_BINS}": lambda answers: answers.ece(PAPER_BINS, "mass"),
    f"ece_width_{BINS}": lambda answers: answers.ece(BINS, "width"),
    f"mce_{BINS}": lambda answers: answers.mce(BINS, "mass"),
}

Json = dict[str, Any]


def calibrate(predictions: Sequence[Prediction], valid: Sequence[Prediction] | str, *, draws: int = DRAWS) -> Json:
    """By kind of confidence (`confidences.KINDS`) the measures of `describe`, or {"not_available": reason}.

    valid: predictions of the valid split, for recalibration; or the reason why there are none.
    """
    found: Json = {}
    for kind, read in KINDS.items():
        try:
            confidences = read(predictions)
            found[kind] = describe(confidences, draws=draws)
            found[kind]["recalibrated"] = _recalibrated(confidences, valid, read, draws)
        except UserError as error:
            found[kind] = {"not_available": str(error)}
    return found


def calibration_scores(predictions: Sequence[Prediction]) -> dict[str, Score | NotAvailable]:
    """The metric `calibration`: of each kind of confidence overconfidence and brier, with their intervals."""
    scores: dict[str, Score | NotAvailable] = {}
    reasons = []
    for kind, read in KINDS.items():
        try:
            found = read(predictions)
        except UserError as error:
            reasons.append(str(error))
            continue
        gap_N = found.confidence_N - found.correct_N
        for name, value_N in (("overconfidence", gap_N), ("brier", gap_N**2)):
            scores[f"{kind}_{name}"] = mean_by_cluster(value_N, found.cluster_N)
    return scores or {"calibration": NotAvailable(not_available="; ".join(reasons))}


def log_score(predictions: Sequence[Prediction]) -> dict[str, Score | NotAvailable]:
    """The mean log-probability of the gold label among the candidates, nats, at the temperature at which it is highest.

    A proper score of what a student knows: unlike accuracy it varies little with few examples, and unlike the loss it
    does not depend on overconfidence, which a temperature removes. The temperature is fitted to the same examples.
    """
    try:
        found = closed_set_confidences(predictions)
    except UserError as error:
        return {"log_score": NotAvailable(not_available=str(error))}
    assert found.score_NxC is not None and found.gold_N is not None
    if outside := int((found.gold_N < 0).sum()):
        return {"log_score": NotAvailable(not_available=f"the gold label of {outside} examples is no candidate")}
    temperature = recalibration.fit_score_temperature(found.score_NxC, found.gold_N)
    log_p_NxC = recalibration.log_softmax(found.score_NxC / temperature)
    score = mean_by_cluster(log_p_NxC[np.arange(len(found.gold_N)), found.gold_N], found.cluster_N)
    limit = recalibration.limit_reached(temperature)
    score["settings"] = f"temperature {temperature:.3g}{f', {limit}' if limit else ''}"
    return {"log_score": score}


def describe(found: Confidences, *, draws: int = DRAWS) -> Json:
    """All measures of some confidences; where one cannot be had, {"not_available": reason} stands in its place.

    n, clusters; accuracy, confidence (mean) and overconfidence, their difference; errors: the value of each of ERRORS;
    of these and of overconfidence noise_floor: mean and 95% range of a calibrated student with these confidences;
    brier with Murphy's decomposition; nll in nats; auroc and aurc (area under the risk–coverage curve);
    accuracy_at_coverage; reliability_diagram: by bin. Intervals are of 95% and resample clusters.
    """
    confidence_N, correct_N = calibration.check(found.confidence_N, found.correct_N)
    result: Json = {
        "n": len(confidence_N),
        "clusters": int(found.cluster_N.max()) + 1,
        "accuracy": share_by_cluster(correct_N > 0, found.cluster_N),
        "all_equal": bool((confidence_N == confidence_N[0]).all()),
    }
    result |= _quality(found, draws)
    if found.score_NxC is not None and found.gold_N is not None:
        result |= _of_candidates(found.score_NxC, found.gold_N, found.cluster_N)
    result |= _ranking(confidence_N, correct_N, found.cluster_N, draws)
    bins = calibration.bin_examples(confidence_N, correct_N, BINS)
    low_B, high_B = calibration.reliability_band(confidence_N, BINS, draws=draws)
    columns = {"count": bins.count_B, "confidence": bins.confidence_B, "accuracy": bins.accuracy_B}
    columns |= {"calibrated_low": low_B, "calibrated_high": high_B}
    return result | {"reliability_diagram": {name: column.tolist() for name, column in columns.items()}}


def _quality(found: Confidences, draws: int) -> Json:
    """The measures that recalibration changes."""
    confidence_N, correct_N = calibration.check(found.confidence_N, found.correct_N)
    brier = calibration.brier(confidence_N, correct_N, BINS)._asdict()
    brier.pop("score")
    return {
        "confidence": float(confidence_N.mean()),
        "overconfidence": _overconfidence(confidence_N, correct_N, found.cluster_N, draws),
        "errors": _errors(confidence_N, correct_N, draws),
        "brier": _mean((confidence_N - correct_N) ** 2, found.cluster_N) | brier,
        "nll": _nll(confidence_N, correct_N, found.cluster_N),
    }


def _mean(value_N: np.ndarray, cluster_N: np.ndarray) -> Json:
    """The mean and its interval, without the number of examples, which all measures of a kind share."""
    score = mean_by_cluster(value_N, cluster_N)
    return {"value": score["value"], "interval": score["interval"]}


def _overconfidence(confidence_N: np.ndarray, correct_N: np.ndarray, cluster_N: np.ndarray, draws: int) -> Json:
    """Mean confidence minus accuracy with its interval, and as noise_floor the range of a calibrated student.

    Where all answers are alike, their differences from the confidences do not say how accuracy varies: the interval is
    then that of the accuracy.
    """
    result = _mean(confidence_N - correct_N, cluster_N)
    accuracy = share_by_cluster(correct_N > 0, cluster_N)
    if accuracy["value"] in (0.0, 1.0) and accuracy["interval"] is not None and result["interval"] is not None:
        low, high = accuracy["interval"]
        result["interval"] = (float(confidence_N.mean()) - high, float(confidence_N.mean()) - low)
    gap = {"gap": lambda answers: answers.confidence_N.mean() - answers.correct_DxN.mean(axis=1)}
    return result | {"noise_floor": vars(calibration.noise_floors(confidence_N, gap, draws=draws)["gap"])}


def _errors(confidence_N: np.ndarray, correct_N: np.ndarray, draws: int) -> Json:
    answers = Answers.of(confidence_N, correct_N)
    values: dict[str, float | str] = {}
    for name, measure in ERRORS.items():
        try:
            values[name] = float(measure(answers)[0])
        except UserError as error:
            values[name] = str(error)
    known = {name: ERRORS[name] for name, value in values.items() if not isinstance(value, str)}
    floors = calibration.noise_floors(confidence_N, known, draws=draws)
    return {
        name: {"not_available": value}
        if isinstance(value, str)
        else {"value": value, "noise_floor": vars(floors[name])}
        for name, value in values.items()
    }


def _nll(confidence_N: np.ndarray, correct_N: np.ndarray, cluster_N: np.ndarray) -> Json:
    given_N = np.where(correct_N > 0, confidence_N, 1.0 - confidence_N)
    if impossible := int((given_N == 0).sum()):
        return {"not_available": f"infinite: {impossible} answers were given probability 0 of being what they are"}
    return _mean(-np.log(given_N), cluster_N)


def _of_candidates(score_NxC: np.ndarray, gold_N: np.ndarray, cluster_N: np.ndarray) -> Json:
    """candidate_nll: of the gold label among the candidates; gold_not_candidate: examples without it."""
    outside = int((gold_N < 0).sum())
    if outside:
        reason = f"infinite: the gold label of {outside} examples is no candidate"
        return {"candidate_nll": {"not_available": reason}, "gold_not_candidate": outside}
    log_p_N = recalibration.log_softmax(score_NxC)[np.arange(len(gold_N)), gold_N]
    if not np.isfinite(log_p_N).all():
        return {"candidate_nll": {"not_available": "infinite: a gold label has probability 0"}, "gold_not_candidate": 0}
    return {"candidate_nll": _mean(-log_p_N, cluster_N), "gold_not_candidate": 0}


def _ranking(confidence_N: np.ndarray, correct_N: np.ndarray, cluster_N: np.ndarray, draws: int) -> Json:
    """What confidence says about which answers are correct: auroc, aurc, and accuracy_at_coverage."""
    coverage, risk = calibration.risk_coverage(confidence_N, correct_N)
    at = {f"{100 * share:g}%": float(1.0 - risk[np.searchsorted(coverage, share - 1e-12)]) for share in COVERAGES}
    aurc = calibration.area_under_risk_coverage(confidence_N, correct_N)
    auroc = calibration.auroc(confidence_N, correct_N)
    intervals = _ranking_intervals(confidence_N, correct_N, cluster_N, draws)
    result: Json = {"aurc": {"value": aurc, "interval": intervals and intervals[1]}, "accuracy_at_coverage": at}
    if auroc is None:
        alike = "correct" if correct_N.all() else "wrong"
        return result | {"auroc": {"not_available": f"all answers are {alike}"}}
    return result | {"auroc": {"value": auroc, "interval": intervals and intervals[0]}}


def _ranking_intervals(
    confidence_N: np.ndarray, correct_N: np.ndarray, cluster_N: np.ndarray, draws: int
) -> tuple[list[float] | None, list[float] | None] | None:
    """Percentile intervals of AUROC and area under the risk–coverage curve, by a bootstrap of clusters."""
    clusters = int(cluster_N.max()) + 1
    if clusters < 2:
        return None
    order = np.argsort(-confidence_N, kind="stable")
    start = np.unique(-confidence_N[order], return_index=True)[1]  # of answers with equal confidence
    auroc, aurc = [], []
    for times_G in cluster_draws(clusters, draws):
        weight_N = times_G[cluster_N[order]]
        wrong = np.add.reduceat(weight_N * (correct_N[order] == 0), start)
        drawn = np.add.reduceat(weight_N, start)
        pairs = (drawn - wrong).sum() * wrong.sum()
        if pairs:
            auroc.append(1.0 - ((drawn - wrong) * (np.cumsum(wrong) - wrong / 2)).sum() / pairs)
        error = np.repeat(wrong / np.maximum(drawn, 1), drawn)  # of a tie its mean
        aurc.append((np.cumsum(error) / np.arange(1, len(error) + 1)).mean())
    return _range(auroc), _range(aurc)


def _range(values: Sequence[float]) -> list[float] | None:
    return np.quantile(values, (0.025, 0.975)).tolist() if values else None


def _recalibrated(
    found: Confidences,
    valid: Sequence[Prediction] | str,
    read: Callable[[Sequence[Prediction]], Confidences],
    draws: int,
) -> Json:
    """Temperature and isotonic regression fitted to valid: parameters, and measures of the new confidences."""
    if isinstance(valid, str):
        return {"not_available": valid}
    try:
        fitted = read(valid)
        _check_fitting(fitted)
    except UserError as error:
        return {"not_available": f"valid: {error}"}
    temperature, tempered_N = _temper(found, fitted)
    isotonic = recalibration.fit_isotonic(fitted.confidence_N, fitted.correct_N)
    both = {
        "temperature": (
            {"temperature": temperature, "limit": recalibration.limit_reached(temperature) or None},
            tempered_N,
        ),
        "isotonic": (
            {"knots": isotonic.knots.tolist(), "values": isotonic.values.tolist()},
            isotonic(found.confidence_N),
        ),
    }
    scaled = {
        name: parameters | _quality(found._replace(confidence_N=confidence_N), draws)
        for name, (parameters, confidence_N) in both.items()
    }
    return {"fitted_examples": len(fitted.confidence_N)} | scaled


def _check_fitting(fitted: Confidences) -> None:
    size, correct = len(fitted.correct_N), int(fitted.correct_N.sum())
    if size < MIN_FITTING_EXAMPLES:
        raise UserError(f"{size} confidences, at least {MIN_FITTING_EXAMPLES} are needed to fit a recalibration")
    if correct in (0, size):
        raise UserError(f"all {size} answers are {'correct' if correct else 'wrong'}: no recalibration fits them")


def _temper(found: Confidences, fitted: Confidences) -> tuple[float, np.ndarray]:
    """The temperature, and the confidences after it: of candidates' scores where there are any, else of log-odds."""
    if found.score_NxC is None or fitted.score_NxC is None or fitted.gold_N is None:
        temperature = recalibration.fit_temperature(fitted.confidence_N, fitted.correct_N)
        return temperature, recalibration.tempered(found.confidence_N, temperature)
    known_N = fitted.gold_N >= 0
    temperature = recalibration.fit_score_temperature(fitted.score_NxC[known_N], fitted.gold_N[known_N])
    return temperature, recalibration.tempered_scores(found.score_NxC, temperature)[:, 0]


def in_words(part: Mapping[str, Any]) -> str:
    """Anomalies in the result of `describe`, as short texts."""
    value, interval = part["overconfidence"]["value"], part["overconfidence"]["interval"]
    if part["all_equal"]:
        return f"all are {part['confidence']:.1%}, so that they rank no answer above another"
    if interval is None:
        return "from examples of one cluster nothing can be said"
    word = "overconfident" if value > 0 else "underconfident"
    low, high = sorted(100 * end if value > 0 else -100 * end for end in interval)
    gap = f"{word} by {abs(100 * value):.1f} points (95% interval {low:.1f} to {high:.1f})"
    floor = part["overconfidence"]["noise_floor"]
    if low > 0 and not floor["low"] <= value <= floor["high"]:
        return gap
    error = part["errors"]["smooth_ece"]
    if error["value"] > error["noise_floor"]["high"]:
        return "off by more than chance, too high for some answers and too low for others"
    return f"no worse than a calibrated student's would look; {gap}"
