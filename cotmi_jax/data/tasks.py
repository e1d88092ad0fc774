"""The tasks of each objective, with the prefixes of their inputs and with their targets."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from cotmi_jax.data.example import Example
from cotmi_jax.errors import UserError, unknown_name

ObjectiveName = str  # a key of OBJECTIVES
LabelType = Literal["gt", "llm"]
LABEL_TYPES = ("gt", "llm")

PREDICT, EXPLAIN = "predict", "explain"
PREFIX = {PREDICT: "predict: ", EXPLAIN: "explain: "}
# Precedes the label in the target of single_task; the teachers use the same words.
ANSWER_MARK = "So the answer is"


class Text(NamedTuple):
    """Input and target of one sequence pair."""

    input: str
    target: str


@dataclasses.dataclass(frozen=True)
class ObjectiveSpec:
    """What an objective trains on, and how its outputs are parsed.

    tasks: (PREDICT,), or (PREDICT, EXPLAIN); with two, each input begins with the prefix of its task.
    prefix: whether inputs have the prefix of their task also with one task.
    target: (example, task, label) → target text; label is the gold or the teacher's label, by config.data.label_type.
    rationale_tasks: tasks whose target holds the rationale. An example with several rationales has one such target for
      each; the loss of its tokens is multiplied by the weight of the rationale.
    read_label: output of the predict task → label; "" if there is none.
    read_rationale: output of the predict task → rationale; None if the target of that task has none.
    has_mi_term: whether the mutual-information term between the two tasks is part of the loss.
    cache_key: identifies the token sequences in the cache of prepared tokens, with the objective's name, which
      `register_objective` prepends. Change it whenever `target` changes.
    """

    tasks: tuple[str, ...]
    target: Callable[[Example, str, str], str]
    rationale_tasks: tuple[str, ...] = ()
    read_label: Callable[[str], str] = str.strip
    read_rationale: Callable[[str], str] | None = None
    has_mi_term: bool = False
    cache_key: tuple[str, ...] = ()
    prefix: bool = False

    def __post_init__(self) -> None:
        if self.tasks not in ((PREDICT,), (PREDICT, EXPLAIN)):
            raise UserError(
                f"tasks of an objective are {self.tasks}: give ({PREDICT!r},) or ({PREDICT!r}, {EXPLAIN!r})"
            )
        if not set(self.rationale_tasks) <= set(self.tasks):
            raise UserError(f"rationale_tasks of an objective are {self.rationale_tasks}: choose among {self.tasks}")
        if self.has_mi_term and EXPLAIN not in self.tasks:
            raise UserError(f"an objective with has_mi_term needs the tasks {PREDICT} and {EXPLAIN}, not {self.tasks}")

    @property
    def gives_rationale(self) -> bool:
        """Whether a student trained on it can generate a rationale."""
        return EXPLAIN in self.tasks or self.read_rationale is not None


def label_or_rationale(example: Example, task: str, label: str) -> str:
    """The target of separate tasks: the label of predict, the rationale of explain."""
    return label if task == PREDICT else example.rationale


def _rationale_then_label(example: Example, task: str, label: str) -> str:
    return f"{example.rationale} {ANSWER_MARK} {label}"


def _text_after_mark(output: str) -> str:
    return output.rpartition(ANSWER_MARK)[2].strip() if ANSWER_MARK in output else ""


def _text_before_mark(output: str) -> str:
    return output.rpartition(ANSWER_MARK)[0].strip()


_TWO_TASKS = ObjectiveSpec(
    (PREDICT, EXPLAIN), label_or_rationale, (EXPLAIN,), cache_key=("two tasks", *PREFIX.values())
)
OBJECTIVES: dict[str, ObjectiveSpec] = {
    "standard": ObjectiveSpec((PREDICT,), label_or_rationale, cache_key=("standard",)),
    "predict": ObjectiveSpec((PREDICT,), label_or_rationale, cache_key=("predict", PREFIX[PREDICT]), prefix=True),
    "single_task": ObjectiveSpec(
        (PREDICT,),
        _rationale_then_label,
        (PREDICT,),
        _text_after_mark,
        _text_before_mark,
        cache_key=("single_task",),
    ),
    "dss": _TWO_TASKS,
    "cotmi": dataclasses.replace(_TWO_TASKS, has_mi_term=True),
}
_BUILT_IN = frozenset(OBJECTIVES)
DEFAULT_OBJECTIVE: ObjectiveName = "dss"  # assumed of a student whose objective is not known: inputs get prefixes


def register_objective(name: str, spec: ObjectiveSpec) -> None:
    """Make an objective available as config.objective.name, in place of one registered earlier under the same name.

    Raises:
      UserError: a built-in objective has this name.
    """
    if name in _BUILT_IN:
        raise UserError(f"objective {name!r} is built in: register yours under another name")
    OBJECTIVES[name] = dataclasses.replace(spec, cache_key=(name, *spec.cache_key))


def find_objective(name: str) -> ObjectiveSpec:
    """The objective with this name. UserError, listing the known ones, if there is none."""
    if name not in OBJECTIVES:
        raise unknown_name(f"unknown objective {name!r}", OBJECTIVES)
    return OBJECTIVES[name]


def tasks_of(objective: ObjectiveName) -> tuple[str, ...]:
    """The tasks an objective trains: label only, or label and rationale."""
    return find_objective(objective).tasks


def writes_rationale(objective: ObjectiveName, task: str) -> bool:
    """Whether the target of a task holds the rationale, so that its weight multiplies the loss of the target."""
    return task in find_objective(objective).rationale_tasks


def task_input(text: str, objective: ObjectiveName, task: str) -> str:
    """The student's input for a task; it has a prefix if the objective has two tasks or asks for it."""
    spec = find_objective(objective)
    return PREFIX[task] + text if len(spec.tasks) > 1 or spec.prefix else text


def training_label(example: Example, label_type: LabelType) -> str:
    """The gold or the teacher's label; an unreadable teacher label is the empty string, as in the release."""
    return example.label if label_type == "gt" else example.teacher_label or ""


def task_texts(examples: Sequence[Example], objective: ObjectiveName, task: str, label_type: LabelType) -> list[Text]:
    """Input and target of each example for one task of an objective (MI and DSS papers, section 3).

    Raises:
      UserError: an unknown objective or label type.
    """
    spec = find_objective(objective)
    if label_type not in LABEL_TYPES:
        raise UserError(f"unknown label type {label_type!r}: choose one of {', '.join(LABEL_TYPES)}")
    return [
        Text(
            task_input(example.input, objective, task), spec.target(example, task, training_label(example, label_type))
        )
        for example in examples
    ]


def read_label(output: str, objective: ObjectiveName) -> str:
    """The label in the student's output for the predict task; "" if there is none."""
    return find_objective(objective).read_label(output)


def read_rationale(output: str, objective: ObjectiveName) -> str | None:
    """The rationale in the student's output for the predict task; None if its target has none."""
    read = find_objective(objective).read_rationale
    return None if read is None else read(output)
