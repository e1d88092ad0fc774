"""Evaluated runs as methods: which workdirs are seeds of one method, and their answers to the same examples.

A method is a config without its seed.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cotmi_jax.config import RESUMABLE_KEYS, TERM_KEYS, flatten
from cotmi_jax.data.tasks import OBJECTIVES
from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, absolute, as_path, read_json, read_json_lines
from cotmi_jax.workdir.record import RUN_FILE, read_config, read_extensions

# Keys that change no result: runs that differ in them are one method. Vocabularies count by their key, since one that
# is trained on a subsample differs by seed; extensions by the content of their files.
_SAME_METHOD = (
    *(key for key in RESUMABLE_KEYS if key != "data.vocabulary"),
    *("seed", "extensions", "eval.batch_size"),
)
# Keys that have to be equal in all methods: differences of data or labels are not differences of methods.
_SAME_DATA = ("data.dataset", "data.label_type")


@dataclasses.dataclass(frozen=True)
class EvaluatedRun:
    """A run and its predictions of a split, by example. extensions: their names with the beginning of their digests."""

    workdir: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    predictions: Mapping[str, Mapping[str, Any]]
    extensions: tuple[str, ...] = ()

    @property
    def seed(self) -> int:
        """config.seed of the training."""
        return int(self.config["seed"])


@dataclasses.dataclass(frozen=True)
class Method:
    """Runs with one config and different seeds, in the order of the seeds."""

    name: str
    runs: tuple[EvaluatedRun, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the runs."""
        return tuple(run.seed for run in self.runs)


@dataclasses.dataclass(frozen=True)
class Methods:
    """Methods on the same examples, with the cluster and the id of each."""

    dataset: str
    split: str
    methods: tuple[Method, ...]
    cluster_N: np.ndarray
    ids: tuple[str, ...]

    def find(self, name: str) -> Method:
        """The method with this name, or the one that a workdir of this name is a run of. UserError if there is none."""
        for method in self.methods:
            if name == method.name or absolute(name) in (str(run.workdir) for run in method.runs):
                return method
        known = ", ".join(repr(method.name) for method in self.methods)
        raise UserError(f"--baseline={name} is neither a method nor a workdir of one: choose one of {known}")


def read_evaluated(workdir: str, split: str) -> EvaluatedRun:
    """A run with its evaluation of a split. Raises UserError if it was not evaluated, or its files are damaged."""
    folder = as_path(absolute(workdir))
    results = folder / "evaluation" / split
    remedy = f"run python -m cotmi_jax.evaluate --workdir={workdir} --split={split}"
    if (folder / RUN_FILE).exists() and not (results / "metrics.json").exists():
        raise UserError(f"{workdir} was not evaluated on {split}: {remedy}")
    config = flatten(read_config(folder))
    metrics = read_json(results / "metrics.json", remedy)
    lines = read_json_lines(results / "predictions.jsonl")
    predictions = {str(line.get("id")): line for line in lines}
    if len(predictions) != metrics.get("n") or not all(isinstance(line.get("correct"), bool) for line in lines):
        raise UserError(
            f"{results}/predictions.jsonl has {len(predictions)} answers and metrics.json states {metrics.get('n')}: "
            f"{remedy} again"
        )
    correct = sum(line["correct"] for line in lines) / len(lines)
    if not np.isclose(correct, metrics.get("accuracy", -1.0)):
        raise UserError(f"{results}/predictions.jsonl is not that of metrics.json: {remedy} again")
    return EvaluatedRun(folder, config, metrics, predictions, read_extensions(folder))


def group(runs: Sequence[EvaluatedRun], split: str) -> Methods:
    """Runs as methods. Raises UserError for different data, or for two runs of one method with the same seed."""
    first = runs[0]
    for run in runs[1:]:
        check_same_data(first, run, split)
    groups: dict[str, list[EvaluatedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(_identity(run), sort_keys=True), []).append(run)
    ids = list(first.predictions)
    methods = []
    for name, members in zip(_names([members[0] for members in groups.values()]), groups.values(), strict=True):
        members = sorted(members, key=lambda run: run.seed)
        for one, other in zip(members, members[1:], strict=False):
            if one.seed == other.seed:
                raise UserError(
                    f"{one.workdir} and {other.workdir} have the same config and seed {one.seed}: give one of them"
                )
        methods.append(Method(name, tuple(members)))
    clusters = [str(first.predictions[each].get("cluster") or each) for each in ids]
    cluster_N = np.unique(clusters, return_inverse=True)[1]
    return Methods(first.config["data.dataset"], split, tuple(methods), cluster_N, tuple(ids))


def check_same_data(first: EvaluatedRun, run: EvaluatedRun, split: str) -> None:
    """Raises UserError, which names both runs, unless they were evaluated on the same examples of the same data."""
    for key in _SAME_DATA:
        if run.config[key] != first.config[key]:
            raise UserError(
                f"{first.workdir} has config.{key} {first.config[key]!r} and {run.workdir} {run.config[key]!r}: "
                "compare runs on the same data and labels"
            )
    if run.predictions.keys() != first.predictions.keys():
        raise UserError(
            f"{first.workdir} and {run.workdir} were evaluated on other examples of {split} "
            f"({len(first.predictions)} and {len(run.predictions)}): evaluate both on the same data"
        )
    for each, line in run.predictions.items():
        for field, what in (("label", "gold labels"), ("input", "inputs")):
            if line.get(field) != first.predictions[each].get(field):
                raise UserError(
                    f"{first.workdir} and {run.workdir} have other {what} of example {each}: evaluate both on the "
                    "same data"
                )


def _identity(run: EvaluatedRun) -> dict[str, Any]:
    spec = OBJECTIVES.get(run.config["objective.name"])  # None: of an extension
    ignored = _SAME_METHOD if spec is None or spec.has_mi_term else (*_SAME_METHOD, *TERM_KEYS)
    found = {key: value for key, value in run.config.items() if not key.startswith(ignored)}
    return found | {"extensions": ",".join(run.extensions)}


def _names(runs: Sequence[EvaluatedRun]) -> list[str]:
    """For each of the runs the objective, and the keys with their values that differ among the runs that have them.

    A key is shown by its last part where that is unique.
    """
    identities = [_identity(run) for run in runs]
    keys = dict.fromkeys(key for each in identities for key in each if key != "objective.name")
    varied = [key for key in keys if len({json.dumps(each[key]) for each in identities if key in each}) > 1]
    last = [key.rpartition(".")[2] for key in varied]
    short = {
        key: part if last.count(part) == 1 and part != "name" else key for key, part in zip(varied, last, strict=True)
    }
    return [
        " ".join([each["objective.name"], *(f"{short[key]}={each[key]}" for key in varied if key in each)])
        for each in identities
    ]
