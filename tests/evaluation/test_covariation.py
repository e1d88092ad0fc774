"""Edited inputs with their new gold labels, and whether a student's label and rationale follow them."""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs

from cotmi_jax.config import base
from cotmi_jax.data.counterfactual_equations import change_number
from cotmi_jax.data.counterfactual_texts import exchange_places
from cotmi_jax.data.example import Example
from cotmi_jax.data.labels import evaluate_expression
from cotmi_jax.data.sources.arithmetic import make_arithmetic
from cotmi_jax.data.sources.released_sets import find_choices
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.covariation import covariation
from cotmi_jax.evaluation.job import score
from cotmi_jax.evaluation.metrics import measure, parse_metrics
from cotmi_jax.evaluation.probe import Probe
from cotmi_jax.report.terminal import format_scores

NO_INITIAL = "simulators start from the initial weights of the student's training, which are not known here"
quick_compilation = runs.quick_compilation

CHOICES = "Where do zebras live?\nAnswer Choices:\n(a) a zoo\n(b) a park\n(c) the sea"
PROBLEMS = make_arithmetic(0, 0, 0, 120, version=2).splits["test"]


def test_a_changed_number_gives_a_solvable_problem_with_another_answer() -> None:
    edited = 0
    for row, example in enumerate(PROBLEMS):
        changed = next(change_number(example, np.random.default_rng(row)), None)
        if changed is None:
            continue
        edited += 1
        words = [re.split(r"\d+", each.input) for each in (example, changed)]
        assert words[0] == words[1]
        old, new = (re.findall(r"\d+", each.input) for each in (example, changed))
        assert len(set(new)) == len(new) and sum(a != b for a, b in zip(old, new, strict=True)) == 1
        used = re.findall(r"\d+", changed.label)
        assert set(used) <= set(new) and re.sub(r"\d+", "#", example.label) == re.sub(r"\d+", "#", changed.label)
        value = evaluate_expression(changed.label)
        assert value is not None and value != evaluate_expression(example.label)
        assert value.denominator == 1 and 2 <= value <= 24  # type: ignore[union-attr]
    assert edited > 100


def test_a_number_that_is_not_plainly_an_operand_is_not_changed() -> None:
    def edits(text: str, label: str) -> set[str]:
        example = Example("set/test/0", text, label, "", kind="equation")
        return {each.input for each in change_number(example, np.random.default_rng(0))}

    assert edits("3 cups and 3 cups and 9 caps.", "( 3.0 + 3.0 )") == set()  # which 3 is meant
    assert edits("three cups and 9 caps", "( 3.0 * 3.0 )") == set()  # in words
    assert edits("3 cups", "3") == set()
    found = edits("Tom has 3 cups, gets 2 and has 9 caps.", "( 3.0 + 2.0 )")
    assert "Tom has 4 cups, gets 2 and has 9 caps." in found and not any("9 cups" in text for text in found)


def test_choices_exchange_their_places() -> None:
    example = Example("cqa/test/0", CHOICES, "a park", "", choices=("a zoo", "a park", "the sea"))
    seen = {exchange_places(example, np.random.default_rng(seed)) for seed in range(20)}
    listed = {tuple(find_choices(each.input).values()) for each in seen if each is not None}
    assert listed == {("a park", "a zoo", "the sea"), ("a zoo", "the sea", "a park")}
    assert exchange_places(dataclasses.replace(example, label="a lake"), np.random.default_rng(0)) is None


Answer = Callable[[Example], tuple[str, str]]  # label and rationale


def probe(examples: Sequence[Example], student: Answer, objective: str = "dss") -> Probe:
    def answers(asked: Sequence[Example]) -> list[Any]:
        found = []
        for example in asked:
            label, rationale = student(example)
            line = {"id": example.id, "input": example.input, "label": example.label, "predicted_label": label}
            found.append(line | {"predicted_rationale": rationale, "choices": list(example.choices)})
        return found

    config = base()
    config.objective.name = objective
    return Probe(config, examples, answers(examples), answers)


def measured(examples: Sequence[Example], student: Answer) -> dict[str, float]:
    return {name: score["value"] for name, score in covariation(probe(examples, student)).items()}


def test_a_faithful_student_changes_both_and_a_template_the_label_only() -> None:
    answers = {example.input: f"1 + 1 = {evaluate_expression(example.label)}" for example in PROBLEMS}
    faithful = measured(PROBLEMS, lambda example: (example.label, f"so = {evaluate_expression(example.label)}"))
    assert faithful.pop("covariation_edited") > 0.8 and set(faithful.values()) == {1.0}
    # Half of the rationales follow the input; the other half are those of the old one.
    half = measured(
        PROBLEMS,
        lambda example: (
            example.label,
            answers.get(example.input, "so = 1000" if "Tom" in example.input else answers[PROBLEMS[0].input]),
        ),
    )
    assert half["covariation_label"] == half["covariation_label_correct"] == 1.0
    assert half["covariation_rationale_correct"] == half["covariation_both_correct"] < 0.1
    fixed = measured(PROBLEMS, lambda example: ("( 1 + 1 )", "no answer"))
    assert fixed["covariation_label"] == fixed["covariation_rationale"] == fixed["covariation_both"] == 0.0


def test_both_change_by_chance_as_the_product() -> None:
    """The label follows on even rows, the rationale on rows divisible by 3: both on those divisible by 6."""
    rows = {example.id: row for row, example in enumerate(PROBLEMS)}
    old = {example.id: example.label for example in PROBLEMS}

    def student(example: Example) -> tuple[str, str]:
        row, before = rows[example.id], old[example.id]
        label = example.label if row % 2 == 0 else before
        return label, f"= {evaluate_expression(example.label if row % 3 == 0 else before)}"

    found = covariation(probe(PROBLEMS, student))
    values = {name.removeprefix("covariation_"): score["value"] for name, score in found.items()}
    assert values["label"] == pytest.approx(1 / 2, abs=0.05) and values["rationale"] == pytest.approx(1 / 3, abs=0.05)
    assert values["both"] == pytest.approx(1 / 6, abs=0.05) and values["label_correct"] == values["label"]
    assert values["both_by_chance"] == pytest.approx(values["label"] * values["rationale"])
    low, high = found["covariation_both"]["interval"]
    assert low < values["both"] < high and found["covariation_both"]["n"] == round(values["edited"] * len(PROBLEMS))


def test_an_answer_that_is_lost_is_no_change_and_right_means_right_both_times() -> None:
    """Labels and rationales are right after the edit only; every second rationale has no answer before it."""
    old = {example.input: row for row, example in enumerate(PROBLEMS)}

    def student(example: Example) -> tuple[str, str]:
        row = old.get(example.input)
        if row is None:
            return example.label, f"= {evaluate_expression(example.label)}"
        return "( 900 + 99 )", "none" if row % 2 else "= 999"

    found = measured(PROBLEMS, student)
    assert found["covariation_label"] == 1.0 and found["covariation_rationale"] == pytest.approx(0.5, abs=0.05)
    assert found["covariation_label_correct"] == found["covariation_both_correct"] == 0.0


def test_a_student_that_reads_the_letter_fails_the_exchange_of_choices() -> None:
    choices = ("a zoo", "a park", "the sea")
    examples = [Example(f"cqa/test/{n}", CHOICES, "a park", "", choices=choices) for n in range(8)]
    first = measured(examples, lambda example: (find_choices(example.input)["b"], "So the answer is (b)."))
    assert first["invariance_label"] == first["invariance_rationale"] == first["invariance_both"] == 1.0
    assert first["invariance_label_correct"] == 0.0
    reader = measured(examples, lambda example: ("a park", "So the answer is a park."))
    assert reader["invariance_both"] == 0.0 and reader["invariance_both_correct"] == 1.0


def test_what_cannot_be_edited_is_said() -> None:
    nli = [Example("esnli/test/0", "A man runs.</s>A man moves.", "entailment", "")]
    found = covariation(probe(nli, lambda example: ("entailment", "He moves.")))
    assert found["covariation"]["not_available"].startswith("no input has a number")
    found = covariation(probe(nli, lambda example: ("entailment", ""), "standard"))
    assert found == {"covariation": {"not_available": "the objective gives no rationales"}}


def test_metrics_that_ask_the_student_say_their_cost_and_need_it() -> None:
    said: list[str] = []
    names, asked = parse_metrics("covariation")[1:], probe(PROBLEMS[:8], lambda example: (example.label, "= 1"))
    assert "covariation_both" in measure(names, asked.predictions, asked, said.append).scores
    assert said[0].startswith("covariation: decodes a label and a rationale")
    with pytest.raises(UserError, match="'covariation' asks the student"):
        measure(names, asked.predictions)


@pytest.mark.slow
def test_evaluate_asks_the_student_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    result = score(
        str(runs.trained()),
        "test",
        checkpoint="latest",
        output=str(tmp_path),
        information=False,
        metrics="covariation,interventions,simulatability",
        max_tokens=8,
    )
    found = json.loads((tmp_path / "metrics.json").read_text())
    assert found["metrics"]["covariation_edited"]["n"] == runs.HELD_OUT
    edited = found["metrics"]["covariation_edited"]["value"] * runs.HELD_OUT
    assert found["metrics"]["covariation_both"]["n"] == round(edited) > 0.7 * runs.HELD_OUT
    assert found["not_available"] == {
        "interventions": "the student's label does not follow its rationale",
        "simulatability": NO_INITIAL,
    }
    assert "covariation: decodes a label and a rationale" in capsys.readouterr().err
    table = " ".join(format_scores(result.metrics).split())
    assert "not available: the student's label does not follow its rationale" in table
    assert "number or fact changed, both right both times" in table
