"""Factors of the weights of rationales: by the teacher's answer, or from a file with a weight for each id."""

import dataclasses
from collections.abc import Callable, Sequence

from cotmi_jax.data.example import MAX_WEIGHT, Example, is_weight, with_factors
from cotmi_jax.data.labels import is_correct
from cotmi_jax.data.sources.base import digest_files
from cotmi_jax.data.sources.rows import Row, read_rows, text_field
from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.files import absolute, as_path

UNIFORM, CORRECT, FILE = "uniform", "correct", "jsonl:"
Factors = Callable[[Example], Sequence[float]]  # one for each rationale of an example


def check_rationale_weights(given: str) -> None:
    """Raises UserError for a value that config.data.rationale_weights cannot have."""
    if given not in (UNIFORM, CORRECT) and (not given.startswith(FILE) or given == FILE):
        raise UserError(
            f"config.data.rationale_weights is {shown(given)}: choose {UNIFORM}, {CORRECT} or {FILE}PATH, a file of "
            "python -m cotmi_jax.weigh or of your own"
        )


def with_absolute_file(given: str) -> str:
    """The value with the absolute path of its file, if it names one."""
    return FILE + absolute(given.removeprefix(FILE)) if given.startswith(FILE) else given


def identity(given: str) -> tuple[str, ...]:
    """What the weights depend on besides the examples; nothing of uniform ones, as of versions without weights."""
    if given == UNIFORM:
        return ()
    weights = given if given == CORRECT else digest_files([("weights", as_path(given.removeprefix(FILE)))])
    return ("rationale_weights", weights)


@dataclasses.dataclass(frozen=True)
class Weighed:
    """Train examples with their new weights, and a message about them."""

    examples: tuple[Example, ...]
    note: str


def weigh(given: str, examples: Sequence[Example]) -> Weighed:
    """Multiply the weights of rationales, by config.data.rationale_weights.

    correct: by 0 where the teacher's label is not the gold one, or there is none that can be read. jsonl:PATH: by those
    of a file with a row {"id": …, "weight": …} for each example with a rationale; the weight is a number, or a list of
    one for each rationale. Other fields are ignored.

    A rationale of weight 0 is left out, and of an example that has no other only the label is trained.

    Raises:
      UserError: a file that cannot be read, or lacks an example; weights that are invalid, or all 0.
    """
    notes = []
    if given == CORRECT:
        factors: Factors = _correctness
    else:
        factors, unused = _read_factors(given.removeprefix(FILE), examples)
        notes = [f"{unused} of its ids are none of these examples"] * bool(unused)
    weighed = tuple(with_factors(each, factors(each)) if _positive([each]) else each for each in examples)
    before, left = _positive(examples), _positive(weighed)
    if before and not left:
        why = "no teacher's label is the gold one" if given == CORRECT else "it gives every rationale weight 0"
        raise UserError(f"config.data.rationale_weights {given}: {why}: set it to {UNIFORM}")
    values = f", weights {min(left):.3g} to {max(left):.3g}" if left else ""
    note = f"train: {len(left)} of {len(before)} rationales count ({given}){values}"
    return Weighed(weighed, "; ".join([note, *notes]))


def _positive(examples: Sequence[Example]) -> list[float]:
    """The weights above 0 of all rationales."""
    return [weight for example in examples for _, weight in example.rationales if weight > 0]


def _correctness(example: Example) -> list[float]:
    label = example.teacher_label
    correct = label is not None and is_correct(label, example.label, example.kind)
    return [float(correct)] * len(example.rationales)


def _read_factors(path: str, examples: Sequence[Example]) -> tuple[Factors, int]:
    """The factors of a file, and how many of its ids are not those of an example."""
    found: dict[str, object] = {}
    places: dict[str, str] = {}
    for place, row in read_rows(as_path(path)):
        name = text_field(row, "id", place)
        if name in places:
            raise UserError(f"{place}: id {one_line(name)} is also that of {places[name]}; give each id once")
        found[name], places[name] = _weight(row, place), place
    missing = [each.id for each in examples if each.id not in found and _positive([each])]
    if missing:
        listed = ", ".join(map(one_line, missing[:3]))
        raise UserError(
            f"{path} has no weight of {len(missing)} of the {len(examples)} train examples, such as {listed}: give "
            "each of them one, for example with python -m cotmi_jax.weigh and the config of this run"
        )

    def factors(example: Example) -> Sequence[float]:
        weight, number = found[example.id], len(example.rationales)
        if not isinstance(weight, list):
            return [float(weight)] * number  # type: ignore[arg-type]
        if len(weight) != number:
            raise UserError(
                f"{places[example.id]}: {len(weight)} weights for the {number} rationales of {one_line(example.id)}: "
                "give one number, or as many"
            )
        return weight

    return factors, len(found.keys() - {example.id for example in examples})


def _weight(row: Row, place: str) -> object:
    weight = row.get("weight")
    for number in weight if isinstance(weight, list) and weight else [weight]:
        if isinstance(number, bool) or not isinstance(number, int | float) or not is_weight(number):
            raise UserError(
                f"{place}: weight = {shown(weight)}; give a number of 0 to {MAX_WEIGHT:g}, or a list of them"
            )
    return weight
