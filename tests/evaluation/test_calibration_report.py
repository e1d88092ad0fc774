"""Calibration of predictions: both confidences, floors, recalibration on valid, words, and what is not available."""

import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import calibration
from cotmi_jax.evaluation.calibration_report import ERRORS, calibrate, calibration_scores, describe, in_words, log_score
from cotmi_jax.evaluation.confidences import Confidences, closed_set_confidences, sequence_confidences
from cotmi_jax.evaluation.scores import Prediction
from cotmi_jax.report.calibration_rows import calibration_rows

LABELS = ("entailment", "neutral", "contradiction")
DRAWS = 100


def answers(size: int, *, sharper: float = 1.0, seed: int = 0, per_cluster: int = 1) -> list[Prediction]:
    """Predictions of a student that is calibrated, or whose log-probabilities are multiplied."""
    draw = np.random.default_rng(seed)
    made: list[Any] = []
    for number in range(size):
        log_p_C = 2.0 * draw.normal(size=3)
        log_p_C -= np.log(np.exp(log_p_C).sum())
        gold = LABELS[draw.choice(3, p=np.exp(log_p_C))]
        sharp_C = sharper * log_p_C
        sharp_C -= np.log(np.exp(sharp_C).sum())
        ranked = [LABELS[index] for index in np.argsort(-sharp_C)]
        made.append(
            {"id": f"esnli/test/{number}", "cluster": f"premise {number // per_cluster}", "label": gold}
            | {"predicted_label": ranked[0], "correct": ranked[0] == gold, "choices": list(LABELS)}
            | {"confidence": float(np.exp(sharp_C.max()))}
            | {"candidates": [{"label": each, "log_p": float(sharp_C[LABELS.index(each)])} for each in ranked]}
        )
    return made


def test_confidences_of_both_kinds() -> None:
    made = answers(3)
    made[0] |= {"confidence": 0.25, "label": "neutral", "correct": True}
    made[0]["candidates"] = [{"label": " neutral", "log_p": -3.0}, {"label": "entailment", "log_p": -3.0 - math.log(4)}]
    made[1]["confidence"] = None
    made[2]["candidates"] = [{"label": each, "log_p": -1.0} for each in LABELS]  # a tie
    found = sequence_confidences(made)
    np.testing.assert_array_equal(found.confidence_N, [0.25, made[2]["confidence"]])
    ranked = closed_set_confidences(made)
    assert ranked.confidence_N[[0, 2]] == pytest.approx([0.8, 1 / 3])
    assert ranked.correct_N.tolist() == [True, made[1]["correct"], False]
    assert ranked.score_NxC is not None and ranked.score_NxC[0, 2] == -np.inf
    assert ranked.gold_N is not None and ranked.gold_N[0] == 0


def test_every_error_has_the_floor_of_its_own_confidences_and_all_is_json() -> None:
    made = answers(400, per_cluster=2)
    found = calibrate(made, answers(100, seed=1), draws=DRAWS)
    json.dumps(found, allow_nan=False)
    for part in found.values():
        assert (part["n"], part["clusters"]) == (400, 200) and part["errors"].keys() == ERRORS.keys()
        for scaled in (part, part["recalibrated"]["temperature"], part["recalibrated"]["isotonic"]):
            for error in scaled["errors"].values():
                floor = error["noise_floor"]
                assert 0 <= floor["low"] <= floor["mean"] <= floor["high"] and error["value"] >= 0
    confidence_N = np.array([each["confidence"] for each in made])
    expected = calibration.noise_floor(confidence_N, lambda p, y: calibration.ece(p, y, 100), draws=DRAWS)
    ece = found["sequence"]["errors"]["ece_100"]
    assert ece["noise_floor"] == pytest.approx(vars(expected))
    assert ece["value"] == calibration.ece(confidence_N, np.array([each["correct"] for each in made]), 100)
    diagram = found["sequence"]["reliability_diagram"]
    assert sum(diagram["count"]) == 400 and diagram["calibrated_low"][3] <= diagram["confidence"][3]
    gold = [[each["label"] for each in line["candidates"]].index(line["label"]) for line in made]
    log_p = [line["candidates"][index]["log_p"] for line, index in zip(made, gold, strict=True)]
    assert found["closed_set"]["candidate_nll"]["value"] == pytest.approx(-np.mean(log_p))


def test_recalibration_is_fitted_to_valid_and_undoes_a_known_sharpening() -> None:
    found = calibrate(answers(2000, sharper=2.0), answers(1000, sharper=2.0, seed=1), draws=DRAWS)["closed_set"]
    assert found["overconfidence"]["interval"][0] > 0.05
    for name in ("temperature", "isotonic"):
        scaled = found["recalibrated"][name]
        assert abs(scaled["overconfidence"]["value"]) < 0.03 and scaled["brier"]["value"] < found["brier"]["value"]
        assert scaled["errors"]["smooth_ece"]["value"] < 0.5 * found["errors"]["smooth_ece"]["value"]
    assert found["recalibrated"]["temperature"]["temperature"] == pytest.approx(2.0, rel=0.15)
    assert found["recalibrated"]["fitted_examples"] == 1000
    # The other student's valid answers have another temperature.
    other = calibrate(answers(200, sharper=2.0), answers(1000, seed=1), draws=DRAWS)["closed_set"]
    assert other["recalibrated"]["temperature"]["temperature"] == pytest.approx(1.0, rel=0.15)


def test_words_say_what_is_out_of_the_ordinary() -> None:
    parts = [
        calibrate(answers(2000, sharper=sharper), "none", draws=DRAWS)["closed_set"] for sharper in (1.0, 2.0, 0.5)
    ]
    calibrated, over, under = map(in_words, parts)
    assert calibrated.startswith("no worse than a calibrated student's would look")
    assert over.startswith(f"overconfident by {100 * parts[1]['overconfidence']['value']:.1f} points (95% interval ")
    assert under.startswith("underconfident by ") and "-" not in under
    # The mean confidence is right, that of each half is not.
    draw = np.random.default_rng(0)
    confidence_N = np.repeat([0.6, 0.9], 2000)
    mixed = Confidences(confidence_N, draw.random(4000) < 1.5 - confidence_N, np.arange(4000))
    assert in_words(describe(mixed, draws=DRAWS)).startswith("off by more than chance")
    # Beyond the floor of independent answers, but within the interval of ten clusters.
    rate_N = np.linspace(0.5, 0.52, 1000)
    copied = Confidences(rate_N, np.repeat([1, 1, 1, 0, 0, 0, 0, 0, 1, 0], 100), np.repeat(np.arange(10), 100))
    assert "overconfident by" not in in_words(describe(copied, draws=DRAWS)).partition(";")[0]
    equal = Confidences(np.full(50, 0.5), draw.random(50) < 0.5, np.arange(50))
    assert in_words(describe(equal, draws=DRAWS)) == "all are 50.0%, so that they rank no answer above another"
    one = Confidences(np.full(2, 0.5) + [0, 0.1], np.array([1, 0]), np.zeros(2, int))
    assert in_words(describe(one, draws=DRAWS)) == "from examples of one cluster nothing can be said"


def test_answers_that_are_all_right_may_be_those_of_a_calibrated_student() -> None:
    """At a confidence of 99.5% a calibrated student answers all of 200 questions with probability .37."""
    sure = Confidences(np.linspace(0.99, 1.0, 200), np.ones(200), np.arange(200))
    part = describe(sure, draws=DRAWS)
    low, high = part["overconfidence"]["interval"]
    assert low == pytest.approx(-0.005) and high > 0.01
    assert in_words(part).startswith("no worse than a calibrated student's would look; underconfident by 0.5 points")
    unsure = Confidences(np.full(200, 0.9) + np.linspace(0, 0.01, 200), np.ones(200), np.arange(200))
    assert in_words(describe(unsure, draws=DRAWS)).startswith("underconfident by 9.5 points (95% interval 7.6 to 9.5)")


def test_intervals_widen_with_clusters() -> None:
    """Copies of an example in one cluster are one example."""
    single = answers(300)
    copies = [each | {"id": f"{each['id']} {copy}"} for each in single for copy in range(4)]
    one, four = (describe(sequence_confidences(made), draws=100) for made in (single, copies))
    for name in ("overconfidence", "auroc", "aurc", "brier"):
        assert four[name]["interval"] == pytest.approx(one[name]["interval"], abs=0.02), name


def test_auroc_has_the_interval_of_a_bootstrap() -> None:
    made = answers(150)
    interval = calibrate(made, "none", draws=400)["sequence"]["auroc"]["interval"]
    confidence_N, correct_N = (np.array([each[key] for each in made]) for key in ("confidence", "correct"))
    draw = np.random.default_rng(1)
    rows = draw.integers(0, 150, (400, 150))
    drawn = [calibration.auroc(confidence_N[each], correct_N[each]) for each in rows]
    np.testing.assert_allclose(interval, np.quantile(drawn, (0.025, 0.975)), atol=0.02)


def test_the_log_score_is_that_of_the_best_temperature() -> None:
    plain, sharp = (log_score(answers(500, sharper=sharper))["log_score"] for sharper in (1.0, 3.0))
    assert plain["value"] == pytest.approx(sharp["value"], rel=1e-4) and plain["n"] == 500
    gold = [each["log_p"] for line in answers(500) for each in line["candidates"] if each["label"] == line["label"]]
    assert np.mean(gold) <= plain["value"] < np.mean(gold) + 0.01
    assert plain["interval"][0] < plain["value"] < plain["interval"][1]
    outside = answers(5)
    outside[2]["label"] = "maybe"
    assert log_score(outside)["log_score"] == {"not_available": "the gold label of 1 examples is no candidate"}


def test_a_temperature_at_the_limit_says_so() -> None:
    """Where every gold label is the most probable candidate, no temperature is low enough; a wrong one, none high."""
    made = answers(40)
    for each in made:
        each["candidates"] = sorted(each["candidates"], key=lambda one: one["label"] != each["label"])
        for rank, candidate in enumerate(each["candidates"]):
            candidate["log_p"] = -1.0 - rank
    assert log_score(made)["log_score"]["settings"] == "temperature 0.01, the lowest that is searched, 0.01"
    # Of two valid answers in three gold is the least probable candidate.
    for number, each in enumerate(made):
        each["label"] = each["candidates"][-1 if number % 3 else 0]["label"]
    fitted = calibrate(made, made, draws=DRAWS)
    assert fitted["closed_set"]["recalibrated"]["temperature"]["limit"] == "the highest that is searched, 100"
    shown = dict(calibration_rows(fitted))
    assert shown["  after temperature 100.00"].endswith("smooth; the temperature is the highest that is searched, 100")
    usual = calibrate(answers(60), answers(60), draws=DRAWS)["closed_set"]["recalibrated"]["temperature"]
    assert usual["limit"] is None


def test_what_is_not_available_has_a_reason() -> None:
    made = answers(30)
    for each in made:
        each |= {"candidates": [], "choices": [], "correct": True, "confidence": 1.0}
    found = calibrate(made, made[:5], draws=DRAWS)
    assert found["closed_set"] == {"not_available": "the labels are open: no example has candidates"}
    part = found["sequence"]
    assert part["auroc"] == {"not_available": "all answers are correct"}
    assert part["recalibrated"]["not_available"].startswith("valid: 5 confidences, at least 20 are needed")
    assert part["nll"]["value"] == 0.0
    assert "valid: all 30 answers are correct" in str(calibrate(made, made, draws=DRAWS)["sequence"]["recalibrated"])
    made[0]["correct"] = False
    assert calibrate(made, "no valid split", draws=DRAWS)["sequence"]["nll"]["not_available"].startswith("infinite: 1 ")
    assert "no valid split" in str(calibrate(made, "no valid split", draws=DRAWS)["sequence"]["recalibrated"])
    old = [{key: each[key] for key in ("id", "label", "predicted_label", "correct")} for each in made]
    assert calibrate(old, "none")["sequence"] == {  # type: ignore[arg-type]
        "not_available": "the predictions hold no confidence of a generated label"
    }
    assert "calibration" in calibration_scores(old)  # type: ignore[arg-type]
    outside = answers(30)
    outside[3]["label"] = "maybe"
    reason = calibrate(outside, "none", draws=DRAWS)["closed_set"]["candidate_nll"]["not_available"]
    assert reason == "infinite: the gold label of 1 examples is no candidate"


def test_one_example_is_measured_without_intervals() -> None:
    found = calibrate(answers(1), "none", draws=DRAWS)["sequence"]
    assert found["errors"]["debiased_ece"]["not_available"].startswith("15 bins of 1 examples hold one each")
    assert found["overconfidence"]["interval"] is None and found["errors"]["ece_15"]["value"] > 0
    json.dumps(found, allow_nan=False)


def test_an_edited_confidence_is_an_error_of_one_line() -> None:
    made = answers(3)
    made[1]["confidence"] = 1.7
    reason = calibrate(made, "none", draws=DRAWS)["sequence"]["not_available"]
    assert reason == "1 confidences are outside [0, 1], the first 1.7"
    with pytest.raises(UserError, match="no candidate with a finite"):
        for each in made[0]["candidates"]:
            each["log_p"] = float("nan")
        closed_set_confidences(made)


def test_the_library_imports_no_jax() -> None:
    modules = "calibration, recalibration, calibration_report, comparison, label_scores, metrics"
    check = "assert not {'jax', 'flax', 'tensorflow'} & sys.modules.keys()"
    subprocess.run(
        [sys.executable, "-c", f"import sys\nfrom cotmi_jax.evaluation import {modules}\n{check}"], check=True
    )
