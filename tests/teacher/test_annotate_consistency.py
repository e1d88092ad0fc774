"""Majority, filter and weights of a question's samples; rate limit and backoff."""

import email.utils
import random
import time

import pytest

from cotmi_jax.data.example import Pair
from cotmi_jax.teacher.answers import RULES
from cotmi_jax.teacher.consistency import Policy, annotate_question, majority
from cotmi_jax.teacher.journal import Choice
from cotmi_jax.teacher.questions import Question
from cotmi_jax.teacher.rate_limit import RateLimit, backoff, retry_after

DROP, KEEP, DOWNWEIGHT = Policy("drop", 0.25, 0.5), Policy("keep", 0.25, 0.5), Policy("downweight", 0.25, 0.5)


def completions(*texts: str) -> list[Choice]:
    """Completions from "rationale > answer"; without ">" there is no answer."""
    return [Choice(text.replace(" >", ". So the answer is") + ".", "stop") for text in texts]


def annotate(samples, policy=DROP, hinted=(), label="red"):
    return annotate_question(Question("q", "Which?", label, "f:1"), samples, hinted, RULES["generic"], policy)


@pytest.mark.parametrize(
    ("answers", "kind", "expected"),
    [
        (["a", "b", "b"], "text", "b"),
        (["a", "b", "b", "a"], "text", "a"),
        ([None, None, "b"], "text", "b"),
        ([None], "text", None),
        ([], "text", None),
        (["(1 + 2)", "(2 * 2)", "(4.0)", "3"], "equation", "(1 + 2)"),
        (["(1 + 2)", "(2 * 2)", "(8 / 2)"], "equation", "(2 * 2)"),
        (["4", "4.0"], "text", "4"),
    ],
)
def test_majority(answers, kind, expected):
    assert majority(answers, kind) == expected


@pytest.mark.parametrize(
    ("policy", "rationales"),
    [
        (DROP, (("Warm.", 1.0),)),
        (KEEP, (("Warm.", 1.0), ("Cold.", 1.0), ("Hmm.", 1.0))),
        (DOWNWEIGHT, (("Warm.", 1.0), ("Cold.", 0.25), ("Hmm.", 0.25))),
    ],
)
def test_policies_for_inconsistent_rationales(policy, rationales):
    """A rationale without answer is inconsistent."""
    one = annotate(completions("Warm > red", "Cold > blue", "Hmm"), policy)
    assert one.rationales == rationales
    assert one.answers == ("red", "blue", None) and one.teacher_label == "red"


@pytest.mark.parametrize("answers", [("blue", "red", "red"), ("red", "blue", "red"), ("red", "red", "blue")])
def test_one_of_identical_rationales_is_kept_with_the_largest_weight(answers):
    one = annotate(completions(*(f"Same > {answer}" for answer in answers)), DOWNWEIGHT)
    assert one.rationales == (("Same.", 1.0),)
    assert one.counts["duplicate"] == 2


@pytest.mark.parametrize("policy", [DROP, KEEP])
def test_other_answers_are_counterfactuals_once_each_with_their_first_rationale(policy):
    samples = completions("Warm > red", "Cold > blue", "Colder > blue", "Hmm", "Grass > green")
    samples.append(Choice("So the answer is pink.", "stop"))  # without a rationale
    assert annotate(samples, policy).counterfactuals == (Pair("blue", "Cold."), Pair("green", "Grass."))
    of_majority = annotate(completions("A > blue", "B > blue", "C > red"), policy, label=None)
    assert of_majority.counterfactuals == (Pair("red", "C."),)


def test_the_gold_label_takes_precedence_over_the_majority():
    one = annotate(completions("A > blue", "B > blue", "C > red"))
    assert (one.label, one.teacher_label, one.rationales) == ("red", "blue", (("C.", 1.0),))


def test_without_gold_rationales_are_filtered_by_the_majority():
    one = annotate(completions("A > blue", "B > blue", "C > red"), label=None)
    assert (one.label, one.rationales) == ("blue", (("A.", 1.0), ("B.", 1.0)))


def test_hinted_rationales_are_used_if_they_give_the_label():
    one = annotate(completions("A > blue"), KEEP, hinted=completions("B > red", "C > green", "D"))
    assert one.rationales == (("A.", 1.0), ("B.", 0.5))
    assert one.answers == ("blue",) and one.teacher_label == "blue"
    assert one.counts["rationalized"] == 1 and one.counts["rationalized_drop"] == 2


def test_hinted_rationales_are_unused_if_a_sample_without_hint_gives_the_label():
    assert annotate(completions("A > red"), hinted=completions("B > red")).rationales == (("A.", 1.0),)


def test_an_answer_without_rationale_counts_as_empty():
    one = annotate([Choice("So the answer is red.", "stop")])
    assert one.rationales == () and one.counts["empty"] == 1 and one.teacher_label == "red"


def test_a_rate_limit_spreads_amounts_evenly_and_corrects_them():
    now = [100.0]
    limit = RateLimit(60.0, clock=lambda: now[0])  # one unit per second
    assert [limit.reserve(), limit.reserve(), limit.reserve(3)] == [0.0, 1.0, 2.0]
    assert limit.reserve() == 5.0
    limit.correct(-2.0)
    assert limit.reserve() == 4.0
    now[0] = 1000.0
    assert [limit.reserve(), limit.reserve()] == [0.0, 1.0]  # unused time is not saved up


def test_backoff_is_uniform_from_zero_and_doubles_up_to_a_minute():
    random.seed(0)
    for attempt, longest in ((0, 1.0), (3, 8.0), (20, 60.0)):
        waits = [backoff(attempt, 1.0, None) for _ in range(2000)]
        assert 0.95 * longest < max(waits) <= longest
        assert min(waits) < 0.05 * longest
    waits = [backoff(9, 2.0, 30.0) for _ in range(200)]
    assert 30.0 <= min(waits) < 31.0 < max(waits) <= 32.0


def test_retry_after_is_seconds_or_a_date():
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after": "9", "retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": "soon"}) is None and retry_after({}) is None
    assert retry_after({"retry-after": "inf"}) is None and retry_after({"retry-after": "-1"}) is None
    assert retry_after({"retry-after": email.utils.formatdate(time.time() + 20)}) == pytest.approx(20, abs=1.5)
    assert retry_after({"retry-after": email.utils.formatdate(time.time() - 20)}) == 0.0
