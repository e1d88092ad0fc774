"""What a page shows: evaluated runs of a study or of some workdirs, compared by data set, and what is still missing."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.measures import MEASURES, Measure
from cotmi_jax.evaluation.methods import EvaluatedRun, Method, Methods, group, read_evaluated
from cotmi_jax.evaluation.verdicts import Comparison, Row, compare, compare_all
from cotmi_jax.files import Path, absolute, as_path
from cotmi_jax.study.record import StudyRecord, StudyRun, is_study, read_study
from cotmi_jax.workdir.record import is_workdir


@dataclasses.dataclass(frozen=True)
class Arm:
    """A method as the page names it: in a study by the name of its arm. place: of its colour, the same in all sets."""

    name: str
    place: int
    row: Row

    @property
    def method(self) -> Method:
        """Its runs."""
        return self.row.method

    @property
    def accuracy(self) -> float:
        """Mean over seeds, a fraction: every evaluated run has one."""
        assert self.row.mean is not None
        return self.row.mean

    @property
    def runs(self) -> tuple[EvaluatedRun, ...]:
        """Those with an evaluation, in the order of their seeds."""
        return self.row.method.runs


@dataclasses.dataclass(frozen=True)
class ResultSet:
    """The methods that were evaluated on one split of one data set with one type of labels.

    comparison: in label accuracy. measures: in all measures, accuracy among them, with p-values adjusted for all.
    own_measures: in metrics that extensions registered. baseline: the name shown of the method that the others are
    compared with; no_baseline: why there is no comparison.
    """

    slug: str  # for names of files
    name: str
    dataset: str
    label_type: str
    comparison: Comparison
    measures: tuple[Comparison, ...]
    own_measures: tuple[Comparison, ...]
    arms: tuple[Arm, ...]
    baseline: str
    no_baseline: str = ""


@dataclasses.dataclass(frozen=True)
class Missing:
    """A run that the page lacks: pending, running, failed, or not evaluated, and what gives it."""

    name: str
    state: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Gathered:
    """All that a page is made of. study: its name, "" for workdirs; total: of runs, the missing ones included."""

    study: str
    claim: str
    split: str
    margin: float
    sets: tuple[ResultSet, ...]
    missing: tuple[Missing, ...]
    total: int

    @property
    def arms(self) -> dict[str, int]:
        """Names of all methods with the place of their colour."""
        return {arm.name: arm.place for each in self.sets for arm in each.arms}


def gather(sources: Sequence[str], split: str | None, baseline: str | None, margin: float) -> Gathered:
    """Read a study, or the workdirs of evaluated runs.

    split: None: that of the study, or test. baseline: a method, an arm or a workdir; None: the first method of each
    data set. margin: the difference in accuracy, as a fraction, below which methods are equivalent.

    Raises UserError for no sources, for a study beside other sources, for files that are damaged, for an unknown
    baseline, and where no run was evaluated.
    """
    if not sources:
        raise UserError("no folder: give that of a study, or the workdirs of evaluated runs")
    studies = [source for source in sources if is_study(as_path(absolute(source)))]
    if studies and len(sources) > 1:
        raise UserError(f"{studies[0]} is a study: give it alone, or workdirs of runs")
    if studies:
        return _of_study(read_study(as_path(absolute(studies[0]))), split, baseline, margin)
    split = split or "test"
    missing = [_unevaluated(source, source, split) for source in sources if _lacks(as_path(absolute(source)), split)]
    found = [read_evaluated(source, split) for source in sources if not _lacks(as_path(absolute(source)), split)]
    if not found:
        raise UserError(f"no run was evaluated on {split}: {missing[0].reason}")
    # As `compare` does: the baseline is the method of the first workdir of its data set.
    sets = _compare(found, {}, split, baseline, margin)
    return Gathered("", "", split, margin, sets, tuple(missing), len(sources))


def _lacks(workdir: Path, split: str) -> bool:
    return is_workdir(str(workdir)) and not (workdir / "evaluation" / split / "metrics.json").exists()


def _unevaluated(name: str, workdir: str, split: str) -> Missing:
    return Missing(name, "not evaluated", f"python -m cotmi_jax.evaluate --workdir={workdir} --split={split}")


def _of_study(study: StudyRecord, split: str | None, baseline: str | None, margin: float) -> Gathered:
    split = split or study.split
    missing, found, arms = [], [], {}
    for run in study.runs:
        if run.state != "done":
            missing.append(Missing(run.name, run.state, run.reason))
        elif _lacks(run.workdir, split):
            missing.append(_unevaluated(run.name, str(run.workdir), split))
        else:
            try:
                found.append(read_evaluated(str(run.workdir), split))
            except UserError as error:  # one damaged run is no reason to show none
                missing.append(Missing(run.name, "done, but cannot be read", str(error)))
                continue
            arms[str(found[-1].workdir)] = run
    sets = _compare(found, arms, split, baseline, margin) if found else ()
    return Gathered(study.name, study.claim, split, margin, sets, tuple(missing), len(study.runs))


def _compare(
    runs: Sequence[EvaluatedRun], arms: Mapping[str, StudyRun], split: str, baseline: str | None, margin: float
) -> tuple[ResultSet, ...]:
    by_data: dict[tuple[str, str], list[EvaluatedRun]] = {}
    for run in runs:
        by_data.setdefault((run.config["data.dataset"], run.config["data.label_type"]), []).append(run)
    groups = {key: group(members, split) for key, members in by_data.items()}
    shown = {key: _shown_names(methods.methods, arms) for key, methods in groups.items()}
    baselines = _baselines(groups, shown, baseline)
    order = dict.fromkeys(name for name in baselines.values() if name)
    places = {name: place for place, name in enumerate(dict.fromkeys([*order, *_all(shown.values())]))}
    several_types = {dataset for dataset, kind in groups if sum(dataset == other for other, _ in groups) > 1}
    sets: list[ResultSet] = []
    for (dataset, kind), methods in groups.items():
        names, wanted = shown[dataset, kind], baselines[dataset, kind]
        first = next(each for each in methods.methods if wanted in (None, names[each.name]))
        comparison = compare(methods, first, margin)
        measures = compare_all(methods, first, tuple(MEASURES.values()), ranked=False)
        own = compare_all(methods, first, _own_measures(methods), ranked=False)
        reason = "" if wanted else f"the baseline {baseline} has no evaluated run on this set yet"
        rows = [_without_contrast(row, reason) if reason else row for row in comparison.rows]
        found = tuple(Arm(names[row.method.name], places[names[row.method.name]], row) for row in rows)
        label = f"{dataset}, {'gold' if kind == 'gt' else 'teacher'} labels" if dataset in several_types else dataset
        measured = (comparison, tuple(measures), tuple(own))
        sets.append(ResultSet(_slug(label, len(sets)), label, dataset, kind, *measured, found, wanted or "", reason))
    return tuple(sets)


def _slug(name: str, number: int) -> str:
    """A name of ASCII letters and digits, which the number makes unique."""
    plain = re.sub("[^a-z0-9]+", "-", name.lower())[:40].strip("-")
    return f"{plain}-{number + 1}" if number else plain or "set"


def _own_measures(methods: Methods) -> list[Measure]:
    """The metrics in metrics.json that the table of measures does not have.

    Nothing is known of their direction or of a difference that does not matter: none is called equivalent.
    """
    runs = [run for method in methods.methods for run in method.runs]
    names = dict.fromkeys(name for run in runs for name in run.metrics.get("metrics", {}) if name not in MEASURES)
    return [Measure(name, name, "", None, 3, 1e-12, ("metrics", name, "value")) for name in names]


def _all(names: Iterable[Mapping[str, str]]) -> list[str]:
    return [name for each in names for name in each.values()]


def _without_contrast(row: Row, reason: str) -> Row:
    return dataclasses.replace(row, contrast=None, missing=row.missing or reason)


def _shown_names(methods: Sequence[Method], arms: Mapping[str, StudyRun]) -> dict[str, str]:
    """By the name of each method that of its arm, where the arms of a study tell the methods apart."""
    by_method = {
        method.name: {arms[str(run.workdir)].arm for run in method.runs if str(run.workdir) in arms}
        for method in methods
    }
    unique = [next(iter(names)) if len(names) == 1 else "" for names in by_method.values()]
    if "" in unique or len(set(unique)) < len(unique):
        return {method.name: method.name for method in methods}
    return dict(zip(by_method, unique, strict=True))


def _baselines(
    groups: Mapping[Any, Methods], shown: Mapping[Any, Mapping[str, str]], baseline: str | None
) -> dict[Any, str | None]:
    """By data set the name shown of its baseline; None where it has no run of it."""
    if baseline is None:
        return {key: shown[key][methods.methods[0].name] for key, methods in groups.items()}
    name = baseline
    for key, methods in groups.items():
        for method in methods.methods:
            if absolute(baseline) in (str(run.workdir) for run in method.runs) or baseline == method.name:
                name = shown[key][method.name]
    found = {key: name if name in shown[key].values() else None for key in groups}
    if not any(found.values()):
        known = ", ".join(repr(each) for each in dict.fromkeys(_all(shown.values())))
        raise UserError(f"--baseline={baseline} is neither a method nor a workdir of one: choose one of {known}")
    return found
