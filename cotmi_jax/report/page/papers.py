"""The values that the papers state, for the column beside ours."""

import functools
import tomllib
from importlib import resources
from typing import Any, NamedTuple

from cotmi_jax.evaluation.methods import Method


class PaperValue(NamedTuple):
    """An accuracy in percent: of which paper and student, from how many runs, and the source."""

    accuracy: float
    paper: str
    student: str
    runs: str
    source: str


@functools.cache
def _table() -> dict[str, Any]:
    return tomllib.loads(resources.files(__package__).joinpath("papers.toml").read_text("utf-8"))


def paper_value(method: Method, label_type: str, split: str) -> PaperValue | None:
    """The papers' value of a method's objective and data set; None: they state none.

    It is that of T5-small for a student of this size, else that of T5-base, also for students that are neither.
    """
    config = method.runs[0].config
    if label_type != "gt" or split != "test" or config["data.subsample"] != 1.0:
        return None
    size = "small" if "small" in (config["model.init"].rpartition("-")[2], config["model.preset"]) else "base"
    for row in _table()["results"]:
        if row["objective"] == config["objective.name"] and row["size"] == size:
            accuracy = row["accuracy"].get(config["data.dataset"])
            if accuracy is not None:
                source = _table()["sources"][row["paper"]]
                return PaperValue(accuracy, row["paper"], f"T5-{row['size']}", row["runs"], source)
    return None


def is_papers_student(method: Method) -> bool:
    """Whether the student is one of the papers': T5 v1.1, small or base, with pretrained weights."""
    return str(method.runs[0].config["model.init"]).endswith(("t5-v1_1-small", "t5-v1_1-base"))
