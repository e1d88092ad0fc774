"""What a study prints: status, dry run, estimates, and the table on a terminal."""

import io
import re
from pathlib import Path

import pytest
import runs
import studies
from studies import StudyFolder

from cotmi_jax.errors import UserError
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.study import compiled
from cotmi_jax.study.compiled import Compiled
from cotmi_jax.study.estimate import estimate, seconds_left
from cotmi_jax.study.record import StudyRecord, StudyRun, read_study
from cotmi_jax.study.table import Display, dry_run, duration, headline, status

quick_compilation = runs.quick_compilation
study = studies.study


def run(state: str, seconds: float | None = None, **config: object) -> StudyRun:
    return StudyRun("n", "a", 0, state, Path("/w"), {}, seconds=seconds, config=config)  # type: ignore[arg-type]


def test_a_run_takes_as_long_as_those_that_are_most_like_it() -> None:
    small = {"model.preset": "tiny", "data.dataset": "a", "steps": 100}
    done = [run("done", 10.0, **small), run("done", 30.0, **small | {"objective.name": "cotmi"})]
    assert estimate(small, done) == 10.0 and estimate(small | {"objective.name": "cotmi"}, done) == 30.0
    assert estimate(small | {"objective.name": "standard"}, done) == 20.0
    assert estimate(small | {"steps": 300, "objective.name": "standard"}, done) == 60.0
    assert estimate(small | {"data.dataset": "b"}, done) == 20.0
    assert estimate({"model.preset": "base"}, done) is None
    waiting = run("pending", **small)
    assert seconds_left(StudyRecord("s", "", "test", (*done, waiting, waiting))) == 20.0
    assert seconds_left(StudyRecord("s", "", "test", (waiting,))) is None
    running = run("running", **small)
    # Two workers, whose runs are half done.
    assert seconds_left(StudyRecord("s", "", "test", (done[0], running, running, waiting, waiting))) == 15.0


def test_the_status_of_a_study_has_every_run_and_needs_no_study_file(study: StudyFolder) -> None:
    study.act({"infonce-seed0": {"command": "train", "exit": 2, "say": "error: why"}})
    study.work("seed=0")
    text = status(read_study(study.folder))
    first, *lines = text.splitlines()
    assert first == "two: 1 done, 0 running, 1 failed, 0 pending, 2 runs; about 0 s left"
    assert re.fullmatch(r"  done    dss-seed0-\w{8}      +\d+ s", lines[0]) and lines[1].endswith("  why")
    study.file.unlink()
    result = runs.command("study", "--status", f"--workdir={study.folder}")
    assert (result.code, result.out, result.err) == (0, text + "\n", "")


def test_a_dry_run_prints_runs_commands_and_hours_and_writes_nothing(study: StudyFolder) -> None:
    study.work("dss-seed0")
    events = (study.folder / "study.jsonl").read_text()
    lines = dry_run(study.study()).splitlines()
    assert [line.split(": ")[-1] for line in lines[:8:2]] == ["done", "pending", "pending", "pending"]
    assert lines[1].startswith("  python -m cotmi_jax.train --config=base ") and "--workdir=" in lines[1]
    assert re.fullmatch(r"4 runs, 3 of them not done: 0.0 hours of one worker, by the runs that are done", lines[-1])
    assert (study.folder / "study.jsonl").read_text() == events


def test_a_dry_run_without_the_data_says_so_once(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COTMI_DATA_ROOT", raising=False)
    study.edit('"arithmetic"', '"svamp"')
    said: list[str] = []
    text = dry_run(study.study(say=said.append))
    assert (
        len(said) == 1
        and "4 runs cannot be named completely (dss-seed0, infonce-seed0, dss-seed1 and 1 more)" in said[0]
    )
    assert "no data root" in said[0] and text.startswith("dss-seed0: pending")


def test_hours_on_a_slice_come_from_one_compiled_step_for_each_kind_of_run(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def compile_step(config: object, mesh: object) -> Compiled:
        found.append(config.objective.name)  # type: ignore[attr-defined]
        return Compiled(600.0, "8 rows") if config.objective.name == "dss" else Compiled(None, missing="too large")  # type: ignore[attr-defined]

    monkeypatch.setattr(compiled, "_compile", compile_step)
    monkeypatch.setattr(compiled, "topology_devices", lambda name: [None] * 4)
    monkeypatch.setattr(compiled, "make_mesh", lambda **_: None)
    said: list[str] = []
    text = dry_run(study.study(say=said.append), "v5e-4")
    assert found == ["dss", "cotmi"]  # once for both seeds
    # 2 runs of 6 steps of 600 s on 4 devices.
    assert "4 runs, 4 of them not done: 8.0 device-hours of v5e-4 at least" in text
    assert "hours of 2 runs are not available: see above" in text
    assert said == [
        "dss-seed0: a step of 8 rows takes at least 600000.0 ms on v5e-4",
        "infonce-seed0: hours not available: too large",
    ]


def test_a_step_is_that_of_the_named_checkpoint_with_the_batches_of_the_data(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler of slices has tests of its own (tests/aot)."""
    monkeypatch.delenv("COTMI_DATA_ROOT", raising=False)
    study.edit("config.steps = 6", "config.steps = 6\n    config.data.size = 8")
    (one,) = (entry.planned for entry in study.study("dss-seed0").preview())
    one.config.unlock()
    one.config.model.init, one.config.data.packing, one.config.data.dataset = (
        "google/t5-v1_1-small",
        False,
        "arithmetic",
    )
    config = compiled._as_compiled(one.config)
    assert (config.model.preset, config.data.packing, one.config.data.packing) == ("small", True, False)
    config.model.init = "random"
    shape, origin = compiled._shape(config, make_mesh())
    assert origin == "as the data gives" and shape.rows * shape.input_length < 64 * 1024
    config.data.dataset = "svamp"
    shape, origin = compiled._shape(config, make_mesh())
    assert "as the data cannot be read: no data root" in origin and shape.input_length == 1024
    with pytest.raises(UserError, match="v9"):
        dry_run(study.study("dss-seed0"), "v9-4")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_table_that_is_redrawn_and_lines_above_it(study: StudyFolder) -> None:
    terminal, printed = Terminal(), list[str]()
    mine = study.study(say=printed.append)
    mine.enroll()
    mine.write("running", name=next(iter(study.runs().values())).name, host="h", pid=7)
    with Display(mine, terminal) as display:
        display.show(mine.record())
        display.show(mine.record())
        mine.say("a word")
    text = terminal.getvalue()
    assert text.count("two: 0 done, 1 running, 0 failed, 3 pending") == 2 and "h, process 7" in text
    assert text.count("\x1b[2F\x1b[J") == 2  # before the second table, and before the word
    assert printed[-1].endswith(" a word") and mine.say == printed.append


def test_elsewhere_a_line_is_printed_when_a_state_changes(study: StudyFolder) -> None:
    printed: list[str] = []
    mine = study.study(say=printed.append)
    mine.enroll()
    with Display(mine, io.StringIO()) as display:
        display.show(mine.record())
        display.show(mine.record())
        mine.write("running", name=next(iter(study.runs().values())).name)
        display.show(mine.record())
    assert [line.partition(" ")[2].split("; ")[0] for line in printed] == [
        "two: 0 done, 0 running, 0 failed, 4 pending, 4 runs",
        "two: 0 done, 1 running, 0 failed, 3 pending, 4 runs",
    ]
    assert "not available" in headline(mine.record()) and [duration(each) for each in (5, 600, 9000)] == [
        *("5 s", "10 min", "2.5 h")
    ]


def test_the_command_names_what_is_missing(tmp_path: Path) -> None:
    runs.assert_refused(runs.command("study", "--config=first"), "--workdir must have a value")
    runs.assert_refused(
        runs.command("study", f"--workdir={tmp_path}"), "--config must have a value, except with --status"
    )
    runs.assert_refused(runs.command("study", f"--workdir={tmp_path}", "--status"), "holds no study")
