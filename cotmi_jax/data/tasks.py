"""What each objective asks of the student: the tasks, their prefixes and their targets."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from cotmi_jax.data.example import Example
from cotmi_jax.errors import UserError

ObjectiveName = str  # a key of OBJECTIVES
LabelType = Literal["gt", "llm"]
LABEL_TYPES = ("gt", "llm")

PREDICT, EXPLAIN = "predict", "explain"
PREFIX = {PREDICT: "predict: ", EXPLAIN: "explain: "}
# Before the label in single_task's one target: the teachers' own words, so that most rationales lead to it.
ANSWER_MARK = "So the answer is"


class Text(NamedTuple):
    """One sequence pair as the student reads and writes it."""

    input: str
    target: str


@dataclasses.dataclass(frozen=True)
class ObjectiveSpec:
    """What an objective trains on, and how its outputs are read.

    tasks: (PREDICT,), or (PREDICT, EXPLAIN); with two, a prefix of the input tells the student which one is asked.
    target: (example, task, label) → target text; label is the gold or the teacher's, as config.data.label_type says.
    rationale_tasks: tasks whose target holds the rationale. An example with several rationales has such a target for
      each, and their tokens weigh in the loss what the rationale weighs.
    read_label: output of the predict task → label; "" where there is none.
    read_rationale: output of the predict task → rationale; None where that task writes none.
    has_mi_term: whether the mutual-information term between the two tasks is part of the loss.
    cache_key: identifies the token sequences among prepared tokens. `register_objective` puts the name before it:
      change it whenever `target` is changed.
    """

    tasks: tuple[str, ...]
    target: Callable[[Example, str, str], str]
    rationale_tasks: tuple[str, ...] = ()
    read_label: Callable[[str], str] = str.strip
    read_rationale: Callable[[str], str] | None = None
    has_mi_term: bool = False
    cache_key: tuple[str, ...] = ()

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
        """Whether a student that was trained on it can be asked for a rationale."""
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
UNKNOWN_TRAINING: ObjectiveName = "dss"  # how a student is asked whose objective is not known: by the prefixes


def register_objective(name: str, spec: ObjectiveSpec) -> None:
    """Make an objective available as config.objective.name; it replaces an earlier one that was registered as `name`.

    Raises:
      UserError: a built-in objective has that name.
    """
    if name in _BUILT_IN:
        raise UserError(f"objective {name!r} is built in: register yours under another name")
    OBJECTIVES[name] = dataclasses.replace(spec, cache_key=(name, *spec.cache_key))


def find_objective(name: str) -> ObjectiveSpec:
    """The objective of a name. UserError, listing the known ones, where there is none."""
    if name not in OBJECTIVES:
        raise UserError(
            f"unknown objective {name!r}: choose one of {', '.join(OBJECTIVES)}, or name the file that registers it in "
            "config.extensions"
        )
    return OBJECTIVES[name]


def tasks_of(objective: ObjectiveName) -> tuple[str, ...]:
    """The tasks an objective trains: label only, or label and rationale."""
    return find_objective(objective).tasks


def writes_rationale(objective: ObjectiveName, task: str) -> bool:
    """Whether the target of a task holds a rationale, so that the rationale's weight is that of the target."""
    return task in find_objective(objective).rationale_tasks


def task_input(text: str, objective: ObjectiveName, task: str) -> str:
    """The student's input for a task; only objectives with two tasks distinguish them by a prefix."""
    return PREFIX[task] + text if len(tasks_of(objective)) > 1 else text


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
    """The label in the student's output for the predict task; "" where single_task's holds no ANSWER_MARK."""
    return find_objective(objective).read_label(output)


def read_rationale(output: str, objective: ObjectiveName) -> str | None:
    """The rationale in the student's output for the predict task; None where the objective teaches none there."""
    read = find_objective(objective).read_rationale
    return None if read is None else read(output)
