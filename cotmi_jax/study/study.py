"""A study's plan and its record together: which runs there are, under which names, and made by which code."""

import dataclasses
import datetime
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ml_collections import ConfigDict

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.methods import read_evaluated
from cotmi_jax.experiment import with_data_root
from cotmi_jax.files import Path
from cotmi_jax.study.grid import ARM, RECIPE
from cotmi_jax.study.identity import changed_settings, code_digest, run_hash
from cotmi_jax.study.journal import Event, Journal
from cotmi_jax.study.plan import Plan, PlannedRun
from cotmi_jax.study.record import VERSION, StudyRecord, StudyRun, fold
from cotmi_jax.workdir.checkpoint import LATEST, steps_saved
from cotmi_jax.workdir.provenance import revision
from cotmi_jax.workdir.record import check_resumable, is_workdir

ChangedCode = Literal["error", "keep", "rerun"]
Say = Callable[[str], None]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run of the plan with what the study's folder says of it."""

    planned: PlannedRun
    run: StudyRun

    @property
    def is_trained(self) -> bool:
        """Whether its workdir has a checkpoint of the last step."""
        steps = steps_saved(self.run.workdir / LATEST)
        return bool(steps) and steps[-1] >= self.planned.config.steps


class Study:
    """A study in a folder, as one process sees it. `only`: terms that runs have to match, as `matches`."""

    def __init__(self, folder: Path, plan: Plan, *, only: str = "", say: Say = _say):
        self.folder, self.plan, self.only, self.say = folder, plan, only, say
        self.journal = Journal(folder)
        self.code = code_digest()
        self._names: dict[str, PlannedRun] = {}
        self._sound: set[str] = set()  # finished runs whose files were found complete

    def record(self) -> StudyRecord:
        """The runs as the folder has them now."""
        return fold(self.folder, self.journal.read())

    def replan(self, plan: Plan) -> None:
        """Follow an edited study file, and record what has changed. Where that raises UserError, the plan stays."""
        before, self.plan = self.plan, plan
        try:
            self.enroll()
        except UserError:
            self.plan = before
            raise
        self._sound.clear()  # it may ask for another evaluation

    def write(self, kind: str, **fields: Any) -> None:
        """Append an event."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        self.journal.append({"event": kind, "time": now, **fields})

    def enroll(self, changed_code: ChangedCode = "error") -> None:
        """Record the plan: the study, its new runs, and which runs it now has. Raises UserError for other code."""
        record = self.record()
        code = self._accepted_code(record, changed_code)
        identified = self._identify(record, str(code["pinned"]))  # may raise: nothing was written yet
        self._write_facts(record, code)
        known = {run.name for run in (*record.runs, *record.removed)}
        for name, planned in identified.items():
            if name not in known:
                self._write_run(name, planned)
        before = [run.name for run in record.runs]
        names = list(identified)
        if self.only:  # what is not selected stays
            selected = {planned.label for planned in identified.values()}
            kept = [name for name in before if name in identified or name.rpartition("-")[0] not in selected]
            names = [*kept, *(name for name in names if name not in kept)]
        if names != before or not record.facts:
            self.write("plan", runs=names, removed=[name for name in before if name not in names])
            self._say_changes(before, names, known)
        self._names = identified

    def entries(self, record: StudyRecord) -> list[Entry]:
        """The selected runs that are in the plan as this process read it, and in that of the record, in order."""
        return [Entry(self._names[run.name], run) for run in record.runs if run.name in self._names]

    def preview(self) -> list[Entry]:
        """The runs as `enroll` would record them, without writing. Runs whose data cannot be read have no hash."""
        record = self.record()
        pinned = str(record.facts.get("code", {}).get("pinned", self.code))
        known = {run.name: run for run in (*record.runs, *record.removed)}
        entries = []
        unreadable: dict[str, list[str]] = {}
        for planned in self._selected():
            try:
                name = self._name(record, planned, run_hash(planned.config, pinned))
            except UserError as error:
                unreadable.setdefault(str(error), []).append(planned.label)
                name = planned.label
            entries.append(Entry(planned, known.get(name) or fold(self.folder, [_run_event(name, planned)]).runs[0]))
        for reason, labels in unreadable.items():
            self.say(f"{len(labels)} runs cannot be named completely ({_few(labels)}): {reason}")
        return entries

    def previewed(self) -> StudyRecord:
        """The record with the runs of `preview` for its own, and all others as removed."""
        record, runs = self.record(), tuple(entry.run for entry in self.preview())
        names = {run.name for run in runs}
        # What --only leaves out is in the study nevertheless.
        others = () if self.only else tuple(run for run in (*record.runs, *record.removed) if run.name not in names)
        return dataclasses.replace(record, name=self.plan.name, claim=self.plan.claim, runs=runs, removed=others)

    def fault(self, entry: Entry) -> str:
        """Why a run that is recorded as done has to be done again; "" if its files are complete."""
        run = entry.run
        if run.name in self._sound:
            return ""
        if not is_workdir(str(run.workdir)):
            return "its files are gone"
        evaluation = dataclasses.asdict(self.plan.evaluation)
        if dict(run.evaluation) != evaluation:
            return f"it was evaluated by other settings ({_changes(run.evaluation, evaluation)})"
        try:
            check_resumable(run.workdir, absolute_paths(entry.planned.config))
            read_evaluated(str(run.workdir), self.plan.evaluation.split)
        except UserError as error:
            return str(error)
        self._sound.add(run.name)
        return ""

    def check_code(self) -> None:
        """Raises UserError where the source code is not that with which this process started."""
        if code_digest() != self.code:
            raise UserError(
                "the source code of cotmi_jax has changed since this worker started: the runs that follow would be of "
                "other code; give the same command again, which says what it does with them"
            )

    def _accepted_code(self, record: StudyRecord, changed_code: ChangedCode) -> dict[str, Any]:
        """The digest of code that names are made with (`pinned`), and those that runs may have, this code among them.

        Raises UserError for other code that --changed_code does not accept.
        """
        code: dict[str, Any] = dict(record.facts.get("code", {"pinned": self.code, "accepted": {}}))
        started = [run for run in record.runs if run.state != "pending" or run.seconds]
        again = changed_code == "rerun" and code["pinned"] != self.code
        if self.code not in code["accepted"] or again:
            if started and changed_code == "error":
                raise UserError(self._other_code(code, len(started)))
            if changed_code != "keep" and (not started or changed_code == "rerun"):
                code = {"pinned": self.code, "accepted": {}}
            code["accepted"] = code["accepted"] | {self.code: revision()}
            if started:
                what = "start again under new names" if changed_code == "rerun" else "stay; the others are of this code"
                self.say(f"the code has changed (now revision {revision()}): the runs that were started {what}")
        return code

    def _write_facts(self, record: StudyRecord, code: Mapping[str, Any]) -> None:
        """Write the event `study` where it is new or has changed."""
        evaluation = dataclasses.asdict(self.plan.evaluation)
        facts = {"version": VERSION, "name": self.plan.name, "claim": self.plan.claim, "evaluation": evaluation}
        facts["code"] = code
        if any(record.facts.get(key) != value for key, value in facts.items()):
            self.write("study", **facts)

    def _other_code(self, code: Mapping[str, Any], started: int) -> str:
        theirs = ", ".join(sorted(str(each) for each in code["accepted"].values()))
        return (
            f"{started} runs of {self.folder} were made by other code or package versions (revision {theirs}; now "
            f"{revision()}, digest {self.code}): use that revision, or give --changed_code=keep to keep these runs and "
            "run the others by this code, or --changed_code=rerun to run all again under new names"
        )

    def _selected(self) -> list[PlannedRun]:
        selected = [planned for planned in self.plan.runs if matches(planned, self.only)]
        if not selected:
            labels = ", ".join(planned.label for planned in self.plan.runs[:3])
            raise UserError(f"--only={self.only} matches no run; there are {len(self.plan.runs)}, such as {labels}")
        return selected

    def _identify(self, record: StudyRecord, pinned: str) -> dict[str, PlannedRun]:
        """The selected runs by name."""
        names: dict[str, PlannedRun] = {}
        for planned in self._selected():
            try:
                digits = run_hash(planned.config, pinned)
            except UserError as error:
                raise UserError(f"{planned.label}: {error}") from error
            names[self._name(record, planned, digits)] = planned
        return names

    @staticmethod
    def _name(record: StudyRecord, planned: PlannedRun, digits: str) -> str:
        """That of the recorded run with this hash, which keeps its name when labels change, or a new one."""
        known = {run.hash: run.name for run in (*record.runs, *record.removed)}
        return known.get(digits) or f"{planned.label}-{digits}"

    def _write_run(self, name: str, planned: PlannedRun) -> None:
        event = _run_event(name, planned)
        del event["event"]
        self.write("run", **event)

    def _say_changes(self, before: Sequence[str], names: Sequence[str], known: set[str]) -> None:
        added = [name for name in names if name not in before]
        removed = [name for name in before if name not in names]
        if added and before:
            back = len([name for name in added if name in known])
            self.say(f"{len(added)} runs added" + (f", {back} of them known from before" if back else ""))
        if removed:
            self.say(f"{len(removed)} runs are no longer in the study file, and are kept: {_few(removed)}")


def matches(planned: PlannedRun, only: str) -> bool:
    """Whether a run matches all terms of --only: parts of its name, or key=value, where a key may be its last part."""
    values = {ARM: planned.arm, RECIPE: planned.recipe, **planned.settings, "seed": planned.seed}
    for term in filter(None, (each.strip() for each in only.split(","))):
        key, equals, value = term.partition("=")
        if equals:
            if not any(key in (name, name.rpartition(".")[2]) and str(values[name]) == value for name in values):
                return False
        elif term not in planned.label and term.rpartition("-")[0] != planned.label:
            return False
    return True


def absolute_paths(config: ConfigDict) -> ConfigDict:
    """The config as training records it, but for the place of the release, which may be another."""
    config = config.copy_and_resolve_references()
    config.data.root = config.data.root or "/"
    return with_data_root(config)


def _run_event(name: str, planned: PlannedRun) -> Event:
    fields = {"arm": planned.arm, "seed": planned.seed, "recipe": planned.recipe, "settings": dict(planned.settings)}
    digits = name.rpartition("-")[2]
    return {"event": "run", "name": name, **fields, "config": changed_settings(planned.config), "hash": digits}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return "; ".join(f"{key}: {before.get(key)} → {value}" for key, value in after.items() if before.get(key) != value)
