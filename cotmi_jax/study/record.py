"""What a study's folder says of its runs: which there are, and which are pending, running, done or failed.

    {study}/study.jsonl        events (journal.py)
    {study}/runs/{name}/       the workdir of a run, as `train` and `evaluate` leave it
    {study}/leases/{name}.json of a run that a worker is working on: host, process and start
    {study}/logs/{name}.log    what its commands printed

Events, each with `time` (of the writer's clock, for people alone):

    study    version, name, claim, evaluation, code: facts of the study; the last one counts
    run      name, arm, seed, recipe, settings, config, hash: a run that a study file asked for
    plan     runs, removed: the names of the runs that the study file asks for now, and of those that it no longer does,
             as one process sees it: those that it does not name, of a process started with --only, stay as they are
    submitted  name, job: it was given to a scheduler, and is pending until the job starts
    running  name, host, pid; the lease says whether that worker still lives
    stopped  name, seconds: it was interrupted, and is pending again
    done     name, seconds, evaluation: its settings
    failed   name, seconds, reason
"""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path as LocalPath
from typing import Any, Literal, get_args

from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, as_path, is_remote
from cotmi_jax.study.journal import JOURNAL_FILE, Event, Journal

VERSION = 1  # of the events
RUNS_FOLDER = "runs"
State = Literal["pending", "running", "done", "failed"]


@dataclasses.dataclass(frozen=True)
class StudyRun:
    """A run of a study. settings: the dotted config keys of the sweep. seconds: time of its commands so far, or None.

    state: running means that a worker started it and has recorded no end, also where that worker was killed since.
    """

    name: str
    arm: str
    seed: int
    state: State
    workdir: Path
    settings: Mapping[str, Any]
    reason: str = ""
    seconds: float | None = None
    failures: int = 0
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # keys that differ from base()
    hash: str = ""
    holder: str = ""  # host and process that started it last
    job: str = ""  # that it was submitted as, to a scheduler
    evaluation: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # settings, once it is done


@dataclasses.dataclass(frozen=True)
class StudyRecord:
    """A study: `runs` in the order of the sweep; `removed`: runs that were in the study file and no longer are."""

    name: str
    claim: str
    split: str
    runs: tuple[StudyRun, ...]
    removed: tuple[StudyRun, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # the fields of the last event `study`

    def find(self, name: str) -> StudyRun | None:
        """The run with this name, also a removed one."""
        return next((run for run in (*self.runs, *self.removed) if run.name == name), None)


def is_study(folder: "Path | LocalPath | str") -> bool:
    """Whether a folder, on disk or in a bucket, holds a study."""
    place = as_path(str(folder))
    return bool(Journal(place).read()) if is_remote(place) else (place / JOURNAL_FILE).exists()


def read_study(folder: "Path | LocalPath | str") -> StudyRecord:
    """The study in a folder. Raises UserError if it holds none, or one of a later version."""
    place = as_path(str(folder))
    events = Journal(place).read()
    if not events:
        raise UserError(f"{place} holds no study: give the --workdir of python -m cotmi_jax.study")
    return fold(place, events)


def fold(folder: Path, events: Iterable[Event]) -> StudyRecord:
    """The study that events describe. Raises UserError for events of a later version."""
    facts: Event = {}
    runs: dict[str, StudyRun] = {}
    planned: list[str] | None = None
    for event in events:
        kind, name = event["event"], str(event.get("name", ""))
        if kind == "study":
            if event.get("version", VERSION) > VERSION:
                raise UserError(
                    f"{folder} is a study of a later version of this package (events of version {event['version']}, "
                    f"known are those up to {VERSION}): update the package"
                )
            facts = event
        elif kind == "plan":
            gone = {*event["runs"], *event.get("removed", planned or ())}
            planned = [*event["runs"], *(name for name in planned or () if name not in gone)]
        elif kind == "run":
            runs.setdefault(name, _new_run(folder, event))
        elif name in runs:
            runs[name] = _after(runs[name], kind, event)
    names = list(runs) if planned is None else [name for name in planned if name in runs]
    removed = tuple(run for name, run in runs.items() if name not in set(names))
    split = str(facts.get("evaluation", {}).get("split", "test"))
    described = (str(facts.get("name", "")), str(facts.get("claim", "")), split)
    return StudyRecord(*described, tuple(runs[name] for name in names), removed, facts)


def _new_run(folder: Path, event: Event) -> StudyRun:
    name = str(event["name"])
    return StudyRun(
        name=name,
        arm=str(event["arm"]),
        seed=int(event["seed"]),
        state="pending",
        workdir=folder / RUNS_FOLDER / name,
        settings=event["settings"],
        config=event.get("config", {}),
        hash=str(event.get("hash", "")),
    )


def _after(run: StudyRun, kind: str, event: Event) -> StudyRun:
    """A run after an event of its own."""
    if kind == "submitted":
        return dataclasses.replace(run, job=str(event.get("job", "")))
    state: State = "pending" if kind == "stopped" else kind  # type: ignore[assignment]
    if state not in get_args(State):
        return run
    seconds = run.seconds
    if "seconds" in event:
        seconds = (seconds or 0.0) + float(event["seconds"])
    holder = f"{event.get('host', '?')}, process {event.get('pid', '?')}" if kind == "running" else run.holder
    return dataclasses.replace(
        run,
        state=state,
        seconds=seconds,
        holder=holder,
        reason=str(event.get("reason", "")),
        failures=run.failures + (kind == "failed"),
        evaluation=event.get("evaluation", {}) if kind == "done" else run.evaluation,
    )
