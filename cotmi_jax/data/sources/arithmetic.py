"""Embedded synthetic data: arithmetic word problems, worked solutions, and a teacher that errs at a known rate.

The seed determines everything. A problem is a story made from one of a few templates, whose sentences come in a fixed
order and with varying words; some stories hold a distractor, a sentence with a number that the solution does not use.
Every number in a problem and every result of a step, right or wrong, is an integer in 2..99. In version 2 of the set
numbers are at most 16 and results at most 24: about 500 different steps, which a student of the size of `tiny` learns
in minutes; of version 1 it learns which operations solve a problem, but not their results.
"""

import dataclasses
import functools
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from cotmi_jax.data.example import SPLITS, Corpus, Example
from cotmi_jax.data.sources.arithmetic_templates import CONTAINERS, NAMES, OTHER_THINGS, TEMPLATES, Step, Template
from cotmi_jax.data.sources.base import check_generated

VOCABULARY_PATH = pathlib.Path(__file__).with_name("arithmetic.spiece.model")

HELD_OUT = 500  # examples of valid and of test in the data set that runs use
_SMALLEST = 2
_DISTRACTOR_RATE = 0.35
_CHOICE = re.compile(r"\[([^]]*)\]")
_OPERATIONS = "+-*/"
_Term = TypeVar("_Term", int, str)


class _Limits(NamedTuple):
    """The largest number of a story, and the largest result of a step.

    enumerated: whether numbers are drawn from a list of those that solve a template, instead of drawn until they do.
      The distribution is the same, the sequence is not; of few solutions among many numbers the list is faster.
    """

    number: int
    result: int
    enumerated: bool = False


_LIMITS = {1: _Limits(99, 99), 2: _Limits(16, 24, enumerated=True)}  # by version


@dataclasses.dataclass(frozen=True)
class _Problem:
    """A story: its text, the numbers in it, and its steps, whose wordings have open operands."""

    text: str
    numbers: dict[str, int]
    steps: tuple[Step, ...]


def make_arithmetic(
    seed: int,
    num_train: int,
    num_valid: int | None = None,
    num_test: int | None = None,
    teacher_error_rate: float = 0.2,
    version: int = 1,
) -> Corpus:
    """Makes the data set: the same arguments give the same examples on every machine.

    num_valid, num_test: HELD_OUT where they are not given.

    Inputs are unique over all splits. A shorter split is the beginning of a longer one, but for the examples on which
    the teacher errs; valid and test do not depend on num_train. The teacher errs on exactly
    round(teacher_error_rate * n) of the n examples of each split: one step of its solution has a wrong operation or a
    wrong number of the story, the later steps are computed from its result, and the value of teacher_label differs from
    the gold label's. version: 1 has numbers and results up to 99; 2 numbers up to 16, results up to 24.

    Raises:
      UserError: a negative seed or size, a rate outside [0, 1], or an unknown version.
    """
    held_out = {"valid": num_valid, "test": num_test}
    sizes = {"train": num_train} | {key: HELD_OUT if size is None else size for key, size in held_out.items()}
    check_generated("arithmetic", seed, sizes, teacher_error_rate, version, _LIMITS)
    limits = _LIMITS[version]
    seen: set[str] = set()
    splits: dict[str, tuple[Example, ...]] = {}
    for split in ("test", "valid", "train"):  # Train comes last, so that its size cannot change the others.
        stream = SPLITS.index(split)
        problems = _make_problems(np.random.default_rng([seed, stream, 0]), sizes[split], seen, limits)
        splits[split] = _annotate(np.random.default_rng([seed, stream, 1]), problems, split, teacher_error_rate, limits)
    return Corpus("arithmetic", {split: splits[split] for split in SPLITS})


def _make_problems(rng: np.random.Generator, count: int, seen: set[str], limits: _Limits) -> list[_Problem]:
    """Makes `count` problems whose texts are not in `seen`, and adds the texts to it."""
    problems: list[_Problem] = []
    while len(problems) < count:
        problem = _make_problem(rng, TEMPLATES[int(rng.integers(len(TEMPLATES)))], limits)
        if problem.text not in seen:
            seen.add(problem.text)
            problems.append(problem)
    return problems


def _annotate(
    rng: np.random.Generator, problems: list[_Problem], split: str, teacher_error_rate: float, limits: _Limits
) -> tuple[Example, ...]:
    order = rng.permutation(len(problems))
    wrong = set(order[: round(teacher_error_rate * len(problems))].tolist())
    examples = []
    for row, problem in enumerate(problems):
        steps = problem.steps
        if row in wrong:
            solutions = _wrong_solutions(problem.numbers, steps, limits)
            steps = solutions[int(rng.integers(len(solutions)))]
        examples.append(
            Example(
                id=f"arithmetic/{split}/{row}",
                input=problem.text,
                label=_expression(problem.numbers, problem.steps),
                rationale=_rationale(problem.numbers, steps, limits),
                teacher_label=_expression(problem.numbers, steps),
                kind="equation",
            )
        )
    return tuple(examples)


def _make_problem(rng: np.random.Generator, template: Template, limits: _Limits) -> _Problem:
    def pick(options: Sequence[str]) -> str:
        return options[int(rng.integers(len(options)))]

    (name, he), (friend, _) = (NAMES[int(i)] for i in rng.permutation(len(NAMES))[:2])
    box, boxes = CONTAINERS[int(rng.integers(len(CONTAINERS)))]
    words = {"name": name, "He": he.capitalize(), "friend": friend, "box": box, "boxes": boxes}
    words |= {"thing": pick(template.things), "other": pick(OTHER_THINGS)}
    distracted = bool(rng.random() < _DISTRACTOR_RATE)
    ranges = template.ranges | ({"x": (_SMALLEST, limits.number)} if distracted else {})
    numbers = _draw_numbers(rng, tuple(ranges.items()), template.steps, limits)
    sentences = " ".join(sentence for sentence in template.sentences if distracted or "{x}" not in sentence)
    text = _CHOICE.sub(lambda choice: pick(choice[1].split("|")), sentences).format(**words, **numbers)
    operands = {"left": "{left}", "right": "{right}", "step": "{step}"}  # Left open until the operands are known.
    steps = tuple(dataclasses.replace(s, wording=s.wording.format(**words, **operands)) for s in template.steps)
    return _Problem(text, numbers, steps)


_Ranges = tuple[tuple[str, tuple[int, int]], ...]  # smallest and largest value of each number of a story


def _draw_numbers(
    rng: np.random.Generator, ranges: _Ranges, steps: tuple[Step, ...], limits: _Limits
) -> dict[str, int]:
    """Draws distinct numbers under which every step has a result and at least one wrong solution exists."""
    solved = _solved(ranges, steps, limits) if limits.enumerated else [{}]
    while True:
        numbers = solved[int(rng.integers(len(solved)))] if limits.enumerated else {}
        numbers = numbers | {
            key: int(rng.integers(low, min(high, limits.number) + 1))
            for key, (low, high) in ranges
            if key not in numbers
        }
        distinct = len(set(numbers.values())) == len(numbers)
        if distinct and _results(numbers, steps, limits) and _wrong_solutions(numbers, steps, limits):
            return numbers


@functools.cache
def _solved(ranges: _Ranges, steps: tuple[Step, ...], limits: _Limits) -> list[dict[str, int]]:
    """All values of the operands under which every step has a result."""
    operands = {operand for step in steps for operand in (step.left, step.right)}
    values = {key: range(low, min(high, limits.number) + 1) for key, (low, high) in ranges if key in operands}
    drawn = (dict(zip(values, row, strict=True)) for row in itertools.product(*values.values()))
    return [numbers for numbers in drawn if _results(numbers, steps, limits)]


def _wrong_solutions(numbers: dict[str, int], steps: tuple[Step, ...], limits: _Limits) -> list[tuple[Step, ...]]:
    """All solutions with exactly one wrong step whose results are all valid and whose answer is wrong."""
    gold = _results(numbers, steps, limits)
    solutions = []
    for i, step in enumerate(steps):
        changes = [{"operation": operation} for operation in _OPERATIONS if operation != step.operation]
        for side, operand in (("left", step.left), ("right", step.right)):
            changes += [{side: key} for key in numbers if key != operand and operand in numbers]
        for change in changes:
            changed = (*steps[:i], dataclasses.replace(step, **change), *steps[i + 1 :])
            results = _results(numbers, changed, limits)
            if results and results[-1] != gold[-1]:
                solutions.append(changed)
    return solutions


def _results(numbers: dict[str, int], steps: tuple[Step, ...], limits: _Limits) -> list[int]:
    """Result of each step; empty if one is not an integer in range."""
    results: list[int] = []
    for step in steps:
        left, right = _operands(step, numbers, results)
        if step.operation == "/":
            result, remainder = divmod(left, right)
        else:
            result, remainder = {"+": left + right, "-": left - right, "*": left * right}[step.operation], 0
        if remainder or not _SMALLEST <= result <= limits.result:
            return []
        results.append(result)
    return results


def _operands(step: Step, numbers: Mapping[str, _Term], earlier: Sequence[_Term]) -> tuple[_Term, _Term]:
    left, right = (earlier[int(key[1:])] if key[0] == "#" else numbers[key] for key in (step.left, step.right))
    return left, right


def _expression(numbers: dict[str, int], steps: tuple[Step, ...]) -> str:
    """The last step, expanded to the numbers of the story: ( ( 12 + 5 ) * 3 )."""
    terms = {key: str(number) for key, number in numbers.items()}
    written: list[str] = []
    for step in steps:
        left, right = _operands(step, terms, written)
        written.append(f"( {left} {step.operation} {right} )")
    return written[-1]


def _rationale(numbers: dict[str, int], steps: tuple[Step, ...], limits: _Limits) -> str:
    results = _results(numbers, steps, limits)
    sentences = []
    for step, result in zip(steps, results, strict=True):
        left, right = _operands(step, numbers, results)
        equation = f"{left} {step.operation} {right} = {result}"
        sentences.append(step.wording.format(left=left, right=right, step=equation))
    return " ".join(sentences)
