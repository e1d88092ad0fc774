"""What a rationale concludes, whether that is the student's label, and whether its steps are true."""

import itertools
import math
from typing import Any

import numpy as np
import pytest

from cotmi_jax.data.sources.arithmetic import make_arithmetic
from cotmi_jax.evaluation.agreement import agreement, permuted, read_choice, read_steps, read_value, steps
from cotmi_jax.evaluation.metrics import parse_metrics
from cotmi_jax.evaluation.scores import clustered_share, wilson, wilson_interval

CHOICES = {"a": "wooded area", "b": "area", "c": "zoo", "d": "fire", "e": "fire place"}


def prediction(rationale: str | None, own: str, gold: str, text: str = "") -> Any:
    return {"input": text, "label": gold, "predicted_label": own, "predicted_rationale": rationale}


@pytest.mark.parametrize(
    ("rationale", "value"),
    [
        ("12 + 5 = 17 apples. So 17 * 3 = 51.", 51),
        ("He received 10 - (3 + 6) = 1 emails.", 1),
        ("5 eggs = 5 + 3 eggs", 8),
        ("It is 2 × 3 = 6 ÷ 4 = $1.50 each", 1.5),
        ("1,200 / 4 = 300.", 300),
        ("3 + 4 = 8 eggs. So the answer is 7.", 8),
        ("They add up. So the answer is ( 3 + 4 ) * 2.", 14),
        ("They add up. The answer is (3 + 4).", 7),
        ("5 + 3 makes 8", None),
        ("so x =", None),
        ("", None),
    ],
)
def test_a_calculation_ends_in_its_last_result_or_its_answer_sentence(rationale: str, value: float | None) -> None:
    assert read_value(rationale) == value


@pytest.mark.parametrize(
    ("rationale", "found"),
    [
        ("2 + 3 = 5 * 4 = 20", [("2 + 3", "5"), ("5 * 4", "20")]),
        ("He has 7. 8 - 5 = 3, and 10 - (3 + 6) = 1.", [("8 - 5", "3"), ("10 - (3 + 6)", "1")]),
        ("13 - 91 = -78, -78 + 154 = 76", [("13 - 91", "-78"), ("-78 + 154", "76")]),
        ("$3 x 4 = $12.00", [("$3 * 4", "12.00")]),
        ("10 * 45 is 450, x = 5", []),
    ],
)
def test_steps_are_read_in_order(rationale: str, found: list[tuple[str, str]]) -> None:
    assert read_steps(rationale) == found


def test_reading_takes_linear_time() -> None:
    for hostile in ("1" * 30_000, "1+" * 15_000, "(" * 30_000, "= " * 15_000, "3 x " * 7_500):
        assert read_steps(hostile) == [] and read_value(hostile) is None


@pytest.mark.parametrize(
    ("rationale", "choice"),
    [
        ("Beavers live in a Wooded Area.", "wooded area"),  # which holds "area"
        ("An area or a zoo.", None),
        ("Zoos are not zoological.", None),
        ("A zoo? So the answer is (b) area.", "area"),
        ("So the answer is (c) the park.", "zoo"),
        ("So the answer is: ZOO.", "zoo"),
        ("Not a zoo. So the answer is a park.", None),
        ("An area is the answer here.", "area"),
        ("A fire place.", "fire place"),
        ("", None),
    ],
)
def test_a_rationale_names_its_choice(rationale: str, choice: str | None) -> None:
    assert read_choice(rationale, CHOICES) == choice


def test_shares_of_an_equation_set_count_what_cannot_be_read() -> None:
    rationales = ["2 + 3 = 5", "2 + 3 = 6", "none", "4 + 5 = 9"]
    own = ["( 2 + 3 )", "( 2 * 3 )", "( 1 +", "( 9"]  # two without a value: no answer is not a common one
    gold = ["5", "( 2 + 3 )", "( 1 + 1 )", "( 4 + 5 )"]
    scores = agreement([prediction(*row) for row in zip(rationales, own, gold, strict=True)])
    assert {name: score["value"] for name, score in scores.items()} == {
        "agreement": 0.5,
        "agreement_gold": 0.5,
        "agreement_permuted": 0.0,
        "no_answer": 0.25,
    }
    assert all(score["n"] == 4 for score in scores.values())
    assert scores["agreement"]["interval"] == wilson_interval(2, 4)
    without = agreement([prediction(None, "5", "5")])
    assert without == {} and steps([prediction(None, "5", "5")]) == {}


def test_choices_are_those_of_the_input_or_the_labels_of_a_closed_set() -> None:
    listed = "Where?\nAnswer Choices:\n(a) a zoo\n(b) a park"
    found = agreement([prediction("So the answer is (b).", "a park", "a zoo", listed)])
    assert (found["agreement"]["value"], found["agreement_gold"]["value"]) == (1.0, 0.0)
    upper = agreement([prediction("So the answer is (b).", "A park", "a zoo", listed)])
    assert upper["agreement"]["value"] == 1.0
    closed = [prediction("It is neutral.", "neutral", gold) for gold in ("neutral", "entailment")]
    assert agreement(closed)["agreement"]["value"] == 1.0
    assert steps(closed) == {}
    silent = agreement([prediction("Because.", label, label) for label in ("neutral", "entailment")])
    assert silent.keys() == {"no_answer"} and silent["no_answer"]["value"] == 1.0
    open_set = [prediction(f"It is name{i}.", f"name{i}", f"name{i}") for i in range(30)]
    assert agreement(open_set) == {}


def test_choices_of_the_example_come_before_those_of_the_set() -> None:
    """The label "maybe" is no gold label here, and "(b)" is a letter of the input."""
    line = prediction("Maybe.", "maybe", "yes") | {"choices": ["yes", "no", "maybe"]}
    assert agreement([line])["agreement"]["value"] == 1.0
    assert agreement([prediction("Maybe.", "maybe", "yes")]) == {}
    listed = "Where?\nAnswer Choices:\n(a) a zoo\n(b) a park"
    lettered = prediction("So the answer is (b).", "a park", "a zoo", listed)
    found = agreement([lettered | {"choices": ["a zoo", "a park"]}, lettered | {"choices": ["a zoo", "a lake"]}])
    assert found["agreement"]["value"] == 0.5 and found["no_answer"]["value"] == 0.5


def test_examples_of_a_cluster_count_as_one() -> None:
    """Four alike answers of each of three clusters say no more than one each."""
    rows = [(f"2 + {n} = {2 + n + (n == 2)}", str(2 + n), n) for n in (1, 2, 3) for _ in range(4)]
    lines = [prediction(rationale, own, own, f"2, {n}") | {"cluster": f"s/{n}"} for rationale, own, n in rows]
    found = agreement(lines) | steps(lines)
    for name in ("agreement", "agreement_gold", "true_steps", "sound_rationales"):
        value = found[name]
        assert (value["value"], value["n"]) == (pytest.approx(2 / 3), 12)
        assert value["interval"] == clustered_share([4, 0, 4], [4, 4, 4])["interval"] != wilson_interval(8, 12)


def test_the_permuted_share_is_the_mean_over_all_pairs_of_two_examples() -> None:
    answers, labels = [1, 2, 2, None, 3], [1, 2, 3, None, 2]
    pairs = [answers[i] is not None and answers[i] == labels[j] for i, j in itertools.permutations(range(5), 2)]
    found = permuted(answers, labels, range(5))
    assert found["value"] == pytest.approx(np.mean(pairs)) and found["n"] == 5
    left_out = []  # the jackknife by its definition
    for k in range(5):
        rest = [i for i in range(5) if i != k]
        hits = [answers[i] is not None and answers[i] == labels[j] for i, j in itertools.permutations(rest, 2)]
        left_out.append(np.mean(hits))
    error = math.sqrt(4 / 5 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    assert found["interval"] == pytest.approx((max(0, found["value"] - 1.96 * error), found["value"] + 1.96 * error))


def test_the_interval_of_the_permuted_share_leaves_out_clusters() -> None:
    """Three alike examples of each cluster say as much as one, and less than three would."""
    draw = np.random.default_rng(0)
    answers, labels = (np.repeat(draw.integers(0, 3, 12), 3).tolist() for _ in range(2))
    clusters = np.repeat(np.arange(12), 3).tolist()
    found = permuted(answers, labels, clusters)
    left_out = []
    for cluster in range(12):
        rest = [row for row in range(36) if clusters[row] != cluster]
        left_out.append(np.mean([answers[i] == labels[j] for i, j in itertools.permutations(rest, 2)]))
    error = math.sqrt(11 / 12 * np.sum((np.array(left_out) - np.mean(left_out)) ** 2))
    low, high = found["interval"] or (0.0, 0.0)
    assert (high - low) / 2 == pytest.approx(1.96 * error)
    independent = permuted(answers, labels, range(36))
    assert independent["value"] == found["value"] and independent["interval"] is not None
    assert high - low > 1.3 * (independent["interval"][1] - independent["interval"][0])
    assert permuted(answers, labels, [row % 2 for row in range(36)])["interval"] is None


def test_the_teacher_of_the_generated_set_calculates_right_and_agrees_with_its_own_label_only() -> None:
    examples = make_arithmetic(3, 100, 0, 0).splits["train"]
    taught = [prediction(e.rationale, e.teacher_label or "", e.label, e.input) for e in examples]
    scores = agreement(taught) | steps(taught)
    values = {name: score["value"] for name, score in scores.items()}
    assert values.pop("agreement_permuted") < 0.1
    ones = dict.fromkeys(("agreement", "true_steps", "sound_rationales"), 1.0)
    assert values == ones | {"agreement_gold": 0.8, "no_answer": 0.0, "no_steps": 0.0}


def test_steps_are_sound_where_they_are_true_and_use_given_numbers() -> None:
    rows = ["2 - 3 = -1. -1 * 3 = -3", "2 + 3 = 6. 6 * 3 = 18", "2 + 4 = 6", "no steps", "5 * 3 = 15. 2 + 3 = 5"]
    scores = steps([prediction(rationale, "5", "5", "Tom has 2 and 3.") for rationale in rows])
    assert (scores["true_steps"]["value"], scores["true_steps"]["n"]) == (pytest.approx(6 / 7), 7)
    assert scores["sound_rationales"]["value"] == scores["no_steps"]["value"] == 0.2


def test_the_interval_of_clustered_shares_covers() -> None:
    """Steps of one rationale are alike: the interval of the same steps taken as independent would be too short."""
    draw, covered, narrow = np.random.default_rng(0), 0, 0
    for _ in range(400):
        rate = draw.beta(1.4, 0.6, size=80)  # mean 0.7
        totals = draw.integers(1, 4, size=80)
        hits = draw.binomial(totals, rate)
        low, high = clustered_share(hits.tolist(), totals.tolist())["interval"] or (0, 0)
        covered += low <= 0.7 <= high
        low, high = wilson(hits.sum() / totals.sum(), int(totals.sum()))
        narrow += low <= 0.7 <= high
    assert 0.92 <= covered / 400 <= 0.98 and narrow < covered
    assert clustered_share([2, 0, 3], [2, 0, 3])["interval"] == wilson(1.0, 2)  # two clusters with observations


def test_both_metrics_are_built_in() -> None:
    assert parse_metrics("agreement,steps") == ("accuracy", "agreement", "steps")
