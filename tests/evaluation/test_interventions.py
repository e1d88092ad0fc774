"""Labels after changed rationales: of students that use what they wrote, and of others that do not."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from cotmi_jax.config import base
from cotmi_jax.data.example import Example
from cotmi_jax.data.tasks import ANSWER_MARK
from cotmi_jax.evaluation.interventions import early, filled, interventions, mistaken
from cotmi_jax.evaluation.probe import Probe

RATIONALE = "Tom has 3 and 4, so 3 + 4 = 7. Then 7 * 2 = 14 cups."


def test_rationales_are_cut_filled_and_given_a_mistake() -> None:
    assert (early("a b c d", 0), early("a b c d", 50), early("a b c", 75)) == ("", "a b", "a b")
    assert filled("a bc d.") == "... ... ..."
    draws = [np.random.default_rng(seed) for seed in range(40)]
    wrong = {mistaken(RATIONALE, [], draw) for draw in draws}
    assert None not in wrong and len(wrong) > 10
    for text in wrong:
        start, number = re.fullmatch(r"(.*= )(\d+)", text).groups()  # type: ignore[union-attr, arg-type]
        right = re.match(r"\d+", RATIONALE.removeprefix(start))
        assert RATIONALE.startswith(start) and right is not None and 1 <= abs(int(number) - int(right[0])) <= 9


def test_a_mistake_of_a_text_is_another_candidate() -> None:
    choices = ["a zoo", "a park", "the sea"]
    found = {mistaken("It is A park near a zoo.", choices, np.random.default_rng(seed)) for seed in range(20)}
    assert found == {"It is a zoo", "It is the sea"}
    assert mistaken("It is a lake.", choices, np.random.default_rng(0)) is None
    assert mistaken("It is a lake.", [], np.random.default_rng(0)) is None


def probe(complete: Callable[[str, str], str], n: int = 12, objective: str = "single_task") -> Probe:
    """complete: input and prefix of an output → the output."""
    examples = [
        Example(f"s/test/{row}", f"Tom has {row}.", f"( {row} + 1 )", "", kind="equation", choices=())
        for row in range(n)
    ]
    lines: list[Any] = []
    for row, example in enumerate(examples):
        rationale = f"He has {row}. Then {row} + 1 = {row + 1}."
        line = {"id": example.id, "input": example.input, "label": example.label, "predicted_label": f"( {row} + 1 )"}
        lines.append(line | {"predicted_rationale": rationale})

    def continue_after(asked: Sequence[Example], prefixes: Sequence[str]) -> list[str]:
        return [complete(example.input, prefix) for example, prefix in zip(asked, prefixes, strict=True)]

    config = base()
    config.objective.name = objective
    return Probe(config, examples, lines, lambda asked: [], None, continue_after)


def values(asked: Probe) -> dict[str, float]:
    return {name: score["value"] for name, score in interventions(asked).items()}


def from_rationale(text: str, prefix: str) -> str:
    """The last result that the output states, else 0; a mistake is continued to the answer."""
    mark = "" if prefix.endswith(ANSWER_MARK) else f". {ANSWER_MARK}"
    results = re.findall(r"= (\d+)", prefix) or ["0"]
    return f"{prefix}{mark} {results[-1]}"


def from_input(text: str, prefix: str) -> str:
    mark = "" if prefix.endswith(ANSWER_MARK) else f". {ANSWER_MARK}"
    number = re.findall(r"\d+", text)[0]
    return f"{prefix}{mark} ( {number} + 1 )"


def test_a_student_that_reads_its_rationale_changes_its_label_and_one_that_reads_the_input_does_not() -> None:
    reads = values(probe(from_rationale))
    assert reads["changed_control"] == 0.0  # compared by value: 4 is ( 3 + 1 )
    assert reads["changed_early_0"] == reads["changed_filler"] == reads["changed_mistake"] == 1.0
    assert reads["changed_early_75"] == 1.0  # the last result is cut
    ignores = values(probe(from_input))
    assert set(ignores.values()) == {0.0} and ignores.keys() == reads.keys()


def test_prefixes_end_before_the_label_and_a_lost_label_is_a_change() -> None:
    seen: list[str] = []

    def record(text: str, prefix: str) -> str:
        seen.append(prefix)
        return prefix

    found = interventions(probe(record, 1))
    assert seen[:3] == [
        f"He has 0. Then 0 + 1 = 1. {ANSWER_MARK}",
        ANSWER_MARK,
        f"He has {ANSWER_MARK}",
    ]
    assert seen[5] == f"{' '.join(['...'] * 9)} {ANSWER_MARK}" and seen[6].startswith("He has 0. Then 0 + 1 = ")
    assert len(seen) == 7 and ANSWER_MARK not in seen[6]
    assert found["changed_control"]["value"] == 1.0 and found["changed_control"]["n"] == 1


def test_a_label_that_does_not_follow_a_rationale_has_no_interventions() -> None:
    for objective in ("dss", "standard"):
        found = interventions(probe(from_input, objective=objective))
        assert found == {"interventions": {"not_available": "the student's label does not follow its rationale"}}
    silent = probe(from_input)
    for line in silent.predictions:
        line["predicted_rationale"] = " "
    reason = "no output of the student has both rationale and label"
    assert interventions(silent) == {"interventions": {"not_available": reason}}
    plain = probe(from_input)
    for line in plain.predictions:
        line["predicted_rationale"] = "One more."
    assert "place for a mistake" in interventions(plain)["changed_mistake"]["not_available"]


@pytest.mark.parametrize("rationale", ["= 9", "3 + 6 =  9.", "= 1,234", "= 0"])
def test_a_mistake_is_never_the_right_number(rationale: str) -> None:
    for seed in range(40):
        found = mistaken(rationale, [], np.random.default_rng(seed))
        assert found is None or not rationale.startswith(found)
