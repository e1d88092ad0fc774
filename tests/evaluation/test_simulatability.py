"""What informative, leaking and irrelevant rationales are worth to simulators; masks; adjustment for leakage."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from cotmi_jax.config import base
from cotmi_jax.data.example import EOS_TEXT, Example
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.probe import CrossFitted, Probe
from cotmi_jax.evaluation.simulatability import leakage_adjusted, mask_labels, simulatability

LABELS = ("entailment", "contradiction")
CLUES = {"entailment": "red", "contradiction": "blue"}
FILLER = ("tom", "ann", "cup", "box", "sun", "sea", "day", "hat")


@pytest.mark.parametrize(
    ("text", "labels", "masked"),
    [
        ("The premise entails it, an Entailment.", ["entailment", "neutral"], "The premise ? it, an ?."),
        ("It contradicts itself. No neutrality.", ["contradiction", "neutral"], "It ? itself. No ?."),
        ("A lake in the wooded areas, of cats", ["wooded area", "the sea"], "A lake in the ?, of cats"),
        ("Zoo keepers feed zoos; zoological.", ["a zoo", "zoo"], "? keepers feed ?; zoological."),
        ("16 - 3 = 13, so 13,000 x 4 cups. Then x.", ["( 16 - 3 )"], "? ? ? ? ?, so ? ? ? cups. Then x."),
        ("Not the label", [], "Not the label"),
        ("so-called yes-men", ["yes", "no"], "so-called ?-men"),
    ],
)
def test_words_of_labels_are_masked(text: str, labels: list[str], masked: str) -> None:
    assert mask_labels(text, labels) == masked


def test_the_mask_does_not_depend_on_which_label_it_was() -> None:
    first, second = (mask_labels(f"So the answer is {label}.", LABELS) for label in LABELS)
    assert first == second == "So the answer is ?."


def naive_bayes(examples: Sequence[Example], group_N: np.ndarray, steps: int, batch: int) -> CrossFitted:
    """A simulator of words: labels by naive Bayes of the words, fitted on the groups of the other parity."""
    words = [set(example.input.split()) for example in examples]
    sign_N = np.array([1 if example.label == LABELS[0] else -1 for example in examples])
    odds_N = np.zeros(len(examples))
    for fold in (0, 1):
        first, second = (
            Counter(word for row in np.flatnonzero((group_N % 2 != fold) & (sign_N == sign)) for word in words[row])
            for sign in (1, -1)
        )
        for row in np.flatnonzero(group_N % 2 == fold):
            odds_N[row] = sum(np.log((first[word] + 50) / (second[word] + 50)) for word in words[row])
    log_p_N, exact_N = -np.logaddexp(0.0, -sign_N * odds_N), sign_N * odds_N > 0
    return CrossFitted(log_p_N, exact_N)


def probe(kind: str, n: int = 400, seed: int = 0, cross_fit: Any = naive_bayes, objective: str = "dss") -> Probe:
    """Labels that no input determines, with rationales of one kind."""
    draw, lines = np.random.default_rng(seed), []
    for row in range(n):
        label = LABELS[int(draw.integers(2))]
        words = list(draw.choice(FILLER, 3))
        said = {"informative": f"it is {CLUES[label]}", "leaking": f"so {label}", "irrelevant": " ".join(words[:2])}
        text = " ".join(draw.choice(FILLER, 4))
        line = {"id": f"s/test/{row}", "input": text, "label": label, "predicted_label": label, "cluster": str(row)}
        lines.append(line | {"predicted_rationale": said[kind], "choices": list(LABELS)})
    config = base()
    config.objective.name = objective
    return Probe(config, [], lines, lambda examples: [], cross_fit)  # type: ignore[arg-type]


def test_informative_rationales_are_worth_what_they_tell_and_leaks_nothing_when_masked() -> None:
    found = simulatability(probe("informative"))
    for name in ("v_information", "v_information_masked"):
        low, high = found[name]["interval"]
        assert 0.5 < low <= found[name]["value"] <= high < np.log(2) and found[name]["n"] == 400
    assert found["simulated_both"]["interval"][0] < 1.0  # all of 400 are not all there are
    assert found["simulated_both"]["value"] == 1.0 and found["simulated_input"]["value"] < 0.6
    leaking = simulatability(probe("leaking"))
    assert leaking["v_information"]["value"] > 0.45 and leaking["simulated_rationale"]["value"] == 1.0
    assert abs(leaking["v_information_masked"]["value"]) < 0.05
    assert abs(leaking["las_masked"]["value"]) < 0.05
    assert "every rationale alone gives the label away" in leaking["las"]["not_available"]
    irrelevant = simulatability(probe("irrelevant"))
    for name in ("v_information", "v_information_masked", "las", "las_masked"):
        low, high = irrelevant[name]["interval"]
        assert low <= 0.0 <= high < 0.06, name


def test_simulators_see_every_form_of_an_example_in_the_same_group() -> None:
    seen: list[Any] = []

    def record(examples: Sequence[Example], group_N: np.ndarray, steps: int, batch: int) -> CrossFitted:
        seen.append((examples, group_N, steps))
        return naive_bayes(examples, group_N, steps, batch)

    simulatability(probe("leaking", 20, cross_fit=record), "7")
    (examples, group_N, steps), line = seen[0], probe("leaking", 20).predictions[0]
    inputs = [example.input.partition(EOS_TEXT) for example in examples[:5]]
    text, said = line["input"], line["predicted_rationale"]
    assert steps == 7 and [(left, right) for left, _, right in inputs] == [
        *((text, ""), ("", said), (text, said), ("", "so ?"), (text, "so ?")),
    ]
    assert len(set(group_N[:5])) == 1 and len(set(group_N)) == 20


def test_leaking_and_other_examples_weigh_alike() -> None:
    draw = np.random.default_rng(0)
    gain_N, leaks_N = np.array([1.0] * 30 + [0.0] * 10), np.array([True] * 30 + [False] * 10)
    assert leakage_adjusted(gain_N, leaks_N, np.arange(40))["value"] == 0.5  # not 3/4
    covered = 0
    for _ in range(300):
        leaks_N = draw.random(200) < 0.8
        gain_N = np.where(leaks_N, 0.6, 0.1) + draw.normal(size=200)
        low, high = leakage_adjusted(gain_N, leaks_N, np.arange(200))["interval"]
        covered += low <= 0.35 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_what_cannot_be_measured_is_said() -> None:
    def reason(asked: Probe) -> str:
        return simulatability(asked)["simulatability"]["not_available"]

    assert "initial weights" in reason(probe("leaking", cross_fit=None))
    assert reason(probe("leaking", objective="standard")) == "the objective gives no rationales"
    assert reason(probe("leaking", 5)).startswith("5 clusters of examples")
    with pytest.raises(UserError, match="simulatability:many: give the number of optimizer steps"):
        simulatability(probe("leaking"), "many")
