"""What a page shows: evaluated runs of a study or of some workdirs, compared by data set, and what is still missing."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.measures import MEASURES, Measure
from cotmi_jax.evaluation.methods import EvaluatedRun, Method, Methods, group, read_evaluated
from cotmi_jax.evaluation.verdicts import Comparison, Row, compare, compare_all
from cotmi_jax.files import Path, absolute, as_path, read_json_lines
from cotmi_jax.study.record import StudyRecord, StudyRun, is_study, read_study
from cotmi_jax.workdir.metrics import METRICS_FILE
from cotmi_jax.workdir.record import STARTS_FILE, is_workdir

# Keys of a sweep by which sets are divided anyway, or that distinguish runs of a method.
_NO_LEVELS = ("seed", "data.dataset", "data.label_type")


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
    """The methods that were evaluated on one split of one data set with one type of labels and, in a study, one size.

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
    """All that a page is made of. study: its name, "" for workdirs; total: of runs, the missing ones included.

    seconds: time of the commands of a study so far.
    """

    study: str
    claim: str
    split: str
    margin: float
    sets: tuple[ResultSet, ...]
    missing: tuple[Missing, ...]
    total: int
    seconds: float = 0.0

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
    sets = _compare(found, (), split, baseline, margin)
    return Gathered("", "", split, margin, sets, tuple(missing), len(sources))


def _lacks(workdir: Path, split: str) -> bool:
    return is_workdir(str(workdir)) and not (workdir / "evaluation" / split / "metrics.json").exists()


def _unevaluated(name: str, workdir: str, split: str) -> Missing:
    return Missing(name, "not evaluated", f"python -m cotmi_jax.evaluate --workdir={workdir} --split={split}")


def _of_study(study: StudyRecord, split: str | None, baseline: str | None, margin: float) -> Gathered:
    split = split or study.split
    missing: list[Missing] = []
    found: list[EvaluatedRun] = []
    for run in study.runs:
        if run.state != "done":
            missing.append(Missing(run.name, run.state, run.reason))
        elif _lacks(run.workdir, split):
            missing.append(_unevaluated(run.name, str(run.workdir), split))
        else:
            try:
                for name in (METRICS_FILE, STARTS_FILE):  # which charts and costs read of the runs that are kept
                    read_json_lines(run.workdir / name)
                found.append(read_evaluated(str(run.workdir), split))
            except UserError as error:  # one damaged run is no reason to show none
                missing.append(Missing(run.name, "done, but cannot be read", str(error)))
    sets = _compare(found, study.runs, split, baseline, margin) if found else ()
    seconds = sum(run.seconds or 0.0 for run in study.runs)
    return Gathered(study.name, study.claim, split, margin, sets, tuple(missing), len(study.runs), seconds)


def _compare(
    runs: Sequence[EvaluatedRun], study: Sequence[StudyRun], split: str, baseline: str | None, margin: float
) -> tuple[ResultSet, ...]:
    arms = {str(run.workdir): run for run in study}
    wanted = baseline or (study[0].arm if study else None)
    levels = _levels(study, wanted)
    by_data: dict[tuple[str, ...], list[EvaluatedRun]] = {}
    for run in runs:
        values = [_level(run, key) for key in levels]
        by_data.setdefault((run.config["data.dataset"], run.config["data.label_type"], *values), []).append(run)
    groups = {key: group(members, split) for key, members in by_data.items()}
    shown = {key: _shown_names(methods.methods, arms) for key, methods in groups.items()}
    baselines = _baselines(groups, shown, arms, wanted)
    found = dict.fromkeys(name for name in baselines.values() if name)
    places = {name: place for place, name in enumerate(dict.fromkeys([*found, *_all(shown.values())]))}
    titles = _titles(list(groups), levels)
    sets: list[ResultSet] = []
    for key, methods in groups.items():
        names, own_baseline = shown[key], baselines[key]
        first = next(each for each in methods.methods if own_baseline in (None, names[each.name]))
        comparison = compare(methods, first, margin)
        measures = compare_all(methods, first, tuple(MEASURES.values()), ranked=False)
        own = compare_all(methods, first, _own_measures(methods), ranked=False)
        reason = "" if own_baseline else f"the baseline {wanted} has no evaluated run on this set yet"
        rows = [_without_contrast(row, reason) if reason else row for row in comparison.rows]
        shown_arms = tuple(Arm(names[row.method.name], places[names[row.method.name]], row) for row in rows)
        measured = (comparison, tuple(measures), tuple(own))
        title = titles[key]
        about = (_slug(title, len(sets)), title, key[0], key[1])
        sets.append(ResultSet(*about, *measured, shown_arms, own_baseline or "", reason))
    return tuple(sets)


def _levels(study: Sequence[StudyRun], baseline: str | None) -> tuple[str, ...]:
    """The keys whose values a study combines with its arms, such as sizes: methods are compared at equal values.

    They are those that vary among the runs of the baseline's arm. Of a study with one arm there are none: there the
    values are what is compared.
    """
    arm = next((run.arm for run in study if baseline in (run.arm, str(run.workdir))), study[0].arm if study else "")
    if len({run.arm for run in study}) < 2:
        return ()
    own = [run.settings for run in study if run.arm == arm]
    keys = dict.fromkeys(key for settings in own for key in settings if key not in _NO_LEVELS)
    return tuple(key for key in keys if len({repr(settings.get(key)) for settings in own}) > 1)


def _level(run: EvaluatedRun, key: str) -> str:
    return str(run.config[key])


def _titles(keys: Sequence[tuple[str, ...]], levels: Sequence[str]) -> dict[tuple[str, ...], str]:
    """By data set, label type and levels a name with what tells the sets of one data set apart."""
    titles = {}
    for key in keys:
        dataset, kind, *values = key
        alike = [other for other in keys if other[0] == dataset]
        parts = [dataset]
        if len({other[1] for other in alike}) > 1:
            parts.append(f"{'gold' if kind == 'gt' else 'teacher'} labels")
        for place, (level, value) in enumerate(zip(levels, values, strict=True)):
            if len({other[2 + place] for other in alike}) > 1:
                parts.append(f"{level.rpartition('.')[2]}={value}")
        titles[key] = ", ".join(parts)
    return titles


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
    """By the name of each method that of its arm, with the settings that vary within it, if they distinguish them."""
    own = {method.name: method.name for method in methods}
    if not arms:
        return own
    first = {method.name: arms[str(method.runs[0].workdir)] for method in methods}
    names = {}
    for name, run in first.items():
        alike = [other.settings for other in first.values() if other.arm == run.arm]
        varied = [key for key in run.settings if key != "seed" and len({repr(each.get(key)) for each in alike}) > 1]
        names[name] = " ".join([run.arm, *(f"{key.rpartition('.')[2]}={run.settings[key]}" for key in varied)])
    return names if len(set(names.values())) == len(names) else own


def _baselines(
    groups: Mapping[tuple[str, ...], Methods],
    shown: Mapping[tuple[str, ...], Mapping[str, str]],
    arms: Mapping[str, StudyRun],
    baseline: str | None,
) -> dict[tuple[str, ...], str | None]:
    """By data set the name shown of its baseline; None where it has no run of it."""
    if baseline is None:
        return {key: shown[key][methods.methods[0].name] for key, methods in groups.items()}
    name = arm = baseline
    for key, methods in groups.items():
        for method in methods.methods:
            if absolute(baseline) in (str(run.workdir) for run in method.runs) or baseline == method.name:
                name, own = shown[key][method.name], arms.get(str(method.runs[0].workdir))
                arm = own.arm if own else arm
    found: dict[tuple[str, ...], str | None] = {}
    for key, methods in groups.items():
        by_arm = [shown[key][each.name] for each in methods.methods if _arm(each, arms) == arm]
        found[key] = name if name in shown[key].values() else next(iter(by_arm), None)
    known_arms = dict.fromkeys([*_all(shown.values()), *(run.arm for run in arms.values())])
    if not any(found.values()) and baseline not in known_arms:
        listed = ", ".join(map(repr, known_arms))
        raise UserError(f"--baseline={baseline} is neither a method nor a workdir of one: choose one of {listed}")
    return found


def _arm(method: Method, arms: Mapping[str, StudyRun]) -> str | None:
    run = arms.get(str(method.runs[0].workdir))
    return run.arm if run else None
