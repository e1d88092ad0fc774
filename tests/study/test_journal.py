"""The events of a study, on disk and in a bucket, and the states that are read from them."""

import json
import multiprocessing
from pathlib import Path

import fake_gcs
import pytest
import studies
from etils import epath

from cotmi_jax.errors import UserError
from cotmi_jax.study.journal import Journal
from cotmi_jax.study.record import fold, is_study, read_study

RUN = {"event": "run", "name": "a-1", "arm": "dss", "seed": 3, "settings": {"seed": 3}, "config": {}, "hash": "1"}


def write(folder: Path, *events: dict) -> Journal:
    journal = Journal(folder)
    for event in events:
        journal.append(event)
    return journal


def test_states_are_read_from_events_in_one_file_that_only_grows(tmp_path: Path) -> None:
    study = {"event": "study", "version": 1, "name": "n", "claim": "c", "evaluation": {"split": "valid"}}
    events = [study, RUN, RUN | {"name": "b-2"}, {"event": "plan", "runs": ["a-1", "b-2"]}]
    assert not is_study(tmp_path)
    journal, before, states = write(tmp_path, *events), b"", []
    for event in (
        {"event": "running", "host": "h", "pid": 7},
        {"event": "stopped", "seconds": 2.0},
        {"event": "running", "host": "h", "pid": 8},
        {"event": "failed", "seconds": 3.0, "reason": "why"},
        {"event": "unknown kind of a later version"},
        {"event": "running", "host": "h", "pid": 9},
        {"event": "done", "seconds": 4.0},
    ):
        journal.append({"name": "a-1", **event})
        run, other = read_study(tmp_path).runs
        states.append((run.state, run.reason, run.seconds))
        assert (tmp_path / "study.jsonl").read_bytes().startswith(before) and other.state == "pending"
        before = (tmp_path / "study.jsonl").read_bytes()
    assert [state for state, _, _ in states] == ["running", "pending", "running", "failed", "failed", "running", "done"]
    assert states[3] == ("failed", "why", 5.0) and states[-1] == ("done", "", 9.0) and run.failures == 1
    record = read_study(tmp_path)
    assert is_study(tmp_path) and (record.name, record.claim, record.split) == ("n", "c", "valid")
    assert (run.arm, run.seed, run.settings, run.workdir) == ("dss", 3, {"seed": 3}, tmp_path / "runs" / "a-1")


def test_a_line_that_a_kill_cut_short_is_said_and_harms_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = write(tmp_path, RUN, {"event": "running", "name": "a-1"})
    with (tmp_path / "study.jsonl").open("a") as file:
        file.write('{"event": "fail')
    assert fold(tmp_path, journal.read()).runs[0].state == "running"  # it may be being written
    assert capsys.readouterr().err == ""
    journal.append({"event": "done", "name": "a-1", "seconds": 1.0})
    assert f"{tmp_path}/study.jsonl ended in a line that a kill cut short: it is ignored" in capsys.readouterr().err
    assert fold(tmp_path, journal.read()).runs[0].state == "done"
    assert capsys.readouterr().err == ""  # it was said
    assert read_study(tmp_path).runs[0].state == "done"
    assert 'study.jsonl, line 3: cut short or damaged, and ignored ({"event": "fail)' in capsys.readouterr().err


def test_a_folder_without_a_study_and_one_of_a_later_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path} holds no study: give the --workdir of"):
        read_study(tmp_path)
    write(tmp_path, {"event": "study", "version": 2})
    with pytest.raises(UserError, match="is a study of a later version of this package .*update the package"):
        read_study(tmp_path)


def append_many(folder: Path, number: int) -> None:
    write(folder, *({"event": "x", "name": f"{number}", "text": "y" * 3000} for _ in range(20)))


def test_events_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=append_many, args=(tmp_path, number)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    lines = [json.loads(line) for line in (tmp_path / "study.jsonl").read_text().splitlines()]
    assert sorted(line["name"] for line in lines) == sorted("0123" * 20)


def test_a_full_disk_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "study.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=f"cannot write {tmp_path}/study.jsonl: No space left on device; make room"):
        Journal(tmp_path).append(RUN)


# In a bucket.

store = studies.store


def test_a_bucket_has_an_object_an_event_whose_order_needs_no_clock(store: fake_gcs.FakeGcs) -> None:
    folder = epath.Path("gs://bucket/study")
    assert not is_study(folder)
    one, other = Journal(folder), Journal(folder)
    one.append({"event": "study", "name": "n"})
    one.append(RUN)
    # The clock of the first worker is five minutes ahead, and it is killed.
    one.append({"event": "running", "name": "a-1", "time": "2026-01-01T12:05:00", "host": "one", "pid": 1})
    other.append({"event": "running", "name": "a-1", "time": "2026-01-01T12:01:00", "host": "other", "pid": 2})
    other.append({"event": "done", "name": "a-1", "time": "2026-01-01T12:03:00", "seconds": 5.0})
    for journal in (one, other, Journal(folder)):
        assert [event["event"] for event in journal.read()] == ["study", "run", "running", "running", "done"]
    record = read_study("gs://bucket/study")
    assert is_study(folder) and record.runs[0].state == "done" and record.runs[0].holder == "other, process 2"
    reads = len(store.reads)
    one.read()
    assert len(store.reads) == reads  # an event is read once
