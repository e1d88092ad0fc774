"""What each objective asks of the student: the tasks, their prefixes and their targets."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from cotmi_jax.data.example import Example
from cotmi_jax.errors import UserError

Objective = Literal["standard", "single_task", "dss", "cotmi"]
LabelType = Literal["gt", "llm"]
OBJECTIVES = ("standard", "single_task", "dss", "cotmi")
LABEL_TYPES = ("gt", "llm")

PREDICT, EXPLAIN = "predict", "explain"
PREFIX = {PREDICT: "predict: ", EXPLAIN: "explain: "}
# Before the label in single_task's one target: the teachers' own words, so that most rationales lead to it.
ANSWER_MARK = "So the answer is"


class Text(NamedTuple):
    """One sequence pair as the student reads and writes it."""

    input: str
    target: str


def tasks_of(objective: Objective) -> tuple[str, ...]:
    """The tasks an objective trains: label only, or label and rationale."""
    return (PREDICT, EXPLAIN) if objective in ("dss", "cotmi") else (PREDICT,)


def writes_rationale(objective: Objective, task: str) -> bool:
    """Whether the target of a task holds a rationale, so that the rationale's weight is that of the target."""
    return task == EXPLAIN or objective == "single_task"


def task_input(text: str, objective: Objective, task: str) -> str:
    """The student's input for a task; only the two-task objectives tell tasks apart by a prefix."""
    return PREFIX[task] + text if len(tasks_of(objective)) > 1 else text


def training_label(example: Example, label_type: LabelType) -> str:
    """The gold or the teacher's label; an unreadable teacher label is the empty string, as in the release."""
    return example.label if label_type == "gt" else example.teacher_label or ""


def task_texts(examples: Sequence[Example], objective: Objective, task: str, label_type: LabelType) -> list[Text]:
    """Input and target of each example for one task of an objective (MI and DSS papers, section 3)."""
    if objective not in OBJECTIVES:
        raise UserError(f"unknown objective {objective!r}: choose one of {', '.join(OBJECTIVES)}")
    if label_type not in LABEL_TYPES:
        raise UserError(f"unknown label type {label_type!r}: choose one of {', '.join(LABEL_TYPES)}")
    texts = []
    for example in examples:
        label = training_label(example, label_type)
        if objective == "single_task":
            target = f"{example.rationale} {ANSWER_MARK} {label}"
        else:
            target = label if task == PREDICT else example.rationale
        texts.append(Text(task_input(example.input, objective, task), target))
    return texts


def read_label(output: str, objective: Objective) -> str:
    """The label in what the student wrote for the predict task; empty where single_task wrote none."""
    if objective != "single_task":
        return output.strip()
    return output.rpartition(ANSWER_MARK)[2].strip() if ANSWER_MARK in output else ""


def read_rationale(output: str, objective: Objective) -> str:
    """The rationale in single_task's output."""
    return output.rpartition(ANSWER_MARK)[0].strip() if objective == "single_task" and ANSWER_MARK in output else ""
