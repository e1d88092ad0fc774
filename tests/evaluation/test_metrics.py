"""Which labels are correct, the interval of an accuracy, and the registry of metrics."""

import math
from typing import Any
from unittest import mock

import numpy as np
import pytest

from cotmi_jax.data.labels import is_correct
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.metrics import (
    METRICS,
    Score,
    measure,
    parse_metrics,
    register_metric,
    summarize,
)
from cotmi_jax.evaluation.scores import wilson_interval


def test_text_must_match_exactly_except_for_outer_whitespace() -> None:
    assert is_correct(" entailment\n", "entailment", "text")
    assert not is_correct("Entailment", "entailment", "text")
    assert not is_correct("fire place", "fireplace", "text")
    assert not is_correct("( 2 + 1 )", "( 1 + 2 )", "text")


def test_equations_match_by_value() -> None:
    assert is_correct("( 5 + 12 ) * 3", "( ( 12.0 + 5.0 ) * 3.0 )", "equation")
    assert is_correct("51", "( ( 12 + 5 ) * 3 )", "equation")
    assert not is_correct("( 12 + 5 * 3 )", "( ( 12 + 5 ) * 3 )", "equation")
    assert not is_correct("abc", "abc", "equation")
    assert not is_correct("", " ", "equation")


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_has_the_published_values(correct: int, total: int, low: float, high: float) -> None:
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize(("correct", "total"), [(3, 7), (136, 200), (1, 1000)])
def test_the_ends_of_the_interval_solve_the_score_test(correct: int, total: int) -> None:
    z = 2.5758293035489004  # 99.5% quantile of the standard normal distribution.
    for bound in wilson_interval(correct, total, confidence=0.99):
        score = abs(correct / total - bound) / math.sqrt(bound * (1 - bound) / total)
        assert score == pytest.approx(z, rel=1e-9)


def test_the_interval_stays_within_zero_and_one() -> None:
    for total in (1, 3, 10, 977):
        assert wilson_interval(0, total)[0] == 0.0
        high = wilson_interval(total, total)[1]
        assert high <= 1.0 and high == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("arguments", [(0, 0), (-1, 5), (6, 5), (1, 5, 0.0), (1, 5, 1.0)])
def test_interval_refuses_impossible_counts(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"total|correct|confidence"):
        wilson_interval(*arguments)


def test_summary() -> None:
    summary = summarize([True, False, True, True])
    assert summary == {"accuracy": 0.75, "interval": wilson_interval(3, 4), "n": 4}
    with pytest.raises(ValueError, match="at least one example"):
        summarize([])


def prediction(correct: bool) -> dict:
    return {"label": "yes", "predicted_label": "yes" if correct else "no", "correct": correct}


@mock.patch.dict(METRICS)
def test_metrics_are_chosen_by_name_after_accuracy() -> None:
    @register_metric("errors")
    def errors(predictions):
        wrong = sum(not prediction["correct"] for prediction in predictions)
        return {"errors": Score(value=wrong, interval=None, n=len(predictions))}

    names = parse_metrics(" errors, accuracy,")
    assert names == ("accuracy", "errors") and parse_metrics("") == ("accuracy",)
    scores = measure(names, [prediction(True), prediction(False), prediction(True), prediction(True)])
    assert scores.not_available == {}
    assert scores.scores == {
        "accuracy": {"value": 0.75, "interval": wilson_interval(3, 4), "n": 4},
        "errors": {"value": 1, "interval": None, "n": 4},
    }
    register_metric("again")(errors)
    with pytest.raises(UserError, match="'again' gives errors, as another metric does"):
        measure(("errors", "again"), [prediction(True)])


@mock.patch.dict(METRICS)
def test_a_metric_can_give_a_reason_in_place_of_a_value() -> None:
    register_metric("one")(lambda predictions: {"a": Score(value=1.0, interval=None, n=1), "b": {"not_available": "x"}})
    found = measure(("one",), [prediction(True)])
    assert found.scores.keys() == {"a"} and found.not_available == {"b": "x"}
    register_metric("two")(lambda predictions: {"b": Score(value=1.0, interval=None, n=1)})
    with pytest.raises(UserError, match="'two' gives b, as another metric does"):
        measure(("one", "two"), [prediction(True)])


def test_an_unknown_or_built_in_metric_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown metric 'bleu', 'f2': choose one of accuracy, .*, agreement, steps"):
        parse_metrics("bleu,accuracy,f2")
    with pytest.raises(UserError, match="metric 'accuracy' is built in"):
        register_metric("accuracy")


def answered(label: str, cluster: str, **log_p: float) -> Any:
    return {"id": label, "label": label, "cluster": cluster, "correct": False} | {
        "candidates": [{"label": text, "log_p": value} for text, value in log_p.items()]
    }


def test_ranked_accuracy_is_that_of_the_best_candidate_and_shares_ties() -> None:
    predictions = [
        answered("yes", "a", yes=-0.1, no=-2.0),
        answered("no", "a", yes=-0.1, no=-2.0),
        answered("yes", "b", no=-1.0, yes=-1.0, maybe=-3.0),
        answered("no", "c", maybe=-1.0, yes=-1.0, no=-2.0),
        answered("7", "d"),  # open
    ]
    score = measure(["ranked_accuracy"], predictions).scores["ranked_accuracy"]
    assert (score["value"], score["n"]) == (1.5 / 4, 4)
    apart = [{**each, "cluster": str(row)} for row, each in enumerate(predictions)]
    together = [{**each, "cluster": "a"} for each in predictions]
    width = [
        np.ptp(measure(["ranked_accuracy"], each).scores["ranked_accuracy"]["interval"]) for each in (apart, together)
    ]
    assert width[0] < width[1]


def test_ranked_accuracy_of_open_labels_is_not_available() -> None:
    assert measure(["ranked_accuracy"], [answered("7", "d")]) == (
        {},
        {"ranked_accuracy": "no example has choices: labels are open"},
    )
