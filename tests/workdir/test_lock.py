"""One run in a workdir: by a lock where the file system has them, by a heartbeat elsewhere."""

import json
import multiprocessing.synchronize
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import runs
from etils import epath

from cotmi_jax.errors import UserError
from cotmi_jax.training.job import train
from cotmi_jax.workdir import lock as lock_module
from cotmi_jax.workdir.lock import OWNER_FILE, Owner, Periods, heartbeat_lock, workdir_lock

quick_compilation = runs.quick_compilation
QUICK = Periods(beat=0.1, stale=0.6, settle=0.2)
WHO = rf"{socket.gethostname()}, process {os.getpid()}, since 20"


def quick_heartbeat(workdir: Path) -> AbstractContextManager[Owner]:
    return heartbeat_lock(epath.Path(workdir), QUICK)


KINDS: dict[str, Callable[[Path], AbstractContextManager[Owner]]] = {"lock": workdir_lock, "heartbeat": quick_heartbeat}


def hold(kind: str, workdir: Path, held: multiprocessing.synchronize.Event) -> None:
    with KINDS[kind](workdir):
        held.set()
        time.sleep(600.0)


@pytest.fixture
def killed_owner(tmp_path: Path) -> Iterator[Callable[[str], int]]:
    """Has a process own tmp_path and be killed; gives its id."""

    def kill(kind: str) -> int:
        context = runs._server()
        held = context.Event()
        process = context.Process(target=hold, args=(kind, tmp_path, held))
        process.start()
        assert held.wait(runs.COMMAND_SECONDS) and (tmp_path / OWNER_FILE).exists()
        process.kill()
        process.join()
        return process.pid

    yield kill


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_run_is_refused_with_the_name_of_the_first(tmp_path: Path, kind: str) -> None:
    with KINDS[kind](tmp_path) as owner:
        for _ in range(2):
            with pytest.raises(UserError, match=rf"another run is training in {tmp_path} \({WHO}.*--workdir"):
                with KINDS[kind](tmp_path):
                    pass
        owner.check()
    assert list(tmp_path.iterdir()) == []
    with KINDS[kind](tmp_path) as owner:
        owner.check()


def test_training_is_refused_at_once_and_changes_nothing_while_reading_stays_possible(tmp_path: Path) -> None:
    workdir = shutil.copytree(runs.trained(), tmp_path / "run")
    (workdir / "checkpoints" / "6").rename(tmp_path / "6")
    with workdir_lock(workdir):
        before = sorted(workdir.rglob("*"))
        with pytest.raises(UserError, match=rf"another run is training in {workdir} \({WHO}"):
            train(runs.tiny_config(), str(workdir))
        assert sorted(workdir.rglob("*")) == before
        runs.assert_same(runs.read_params(workdir, "best"), runs.read_params(runs.trained(), "best"))


def test_a_run_owns_its_workdir_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir = shutil.copytree(runs.trained(), tmp_path / "run")
    seen = []

    def look(*args: object) -> None:
        with pytest.raises(UserError, match="another run is training"):
            train(runs.tiny_config(), str(workdir))
        seen.append(json.loads((workdir / OWNER_FILE).read_text())["pid"])

    monkeypatch.setattr("cotmi_jax.training.job.check_batches", look)
    assert train(runs.tiny_config(), str(workdir)) == 6
    assert seen == [os.getpid()] and not (workdir / OWNER_FILE).exists()


def test_a_killed_run_leaves_no_lock(tmp_path: Path, killed_owner: Callable[[str], int]) -> None:
    pid = killed_owner("lock")
    assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == pid
    with workdir_lock(tmp_path):
        assert json.loads((tmp_path / OWNER_FILE).read_text())["pid"] == os.getpid()


def test_a_lock_on_a_removed_owner_file_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, calls = lock_module.fcntl.flock, []

    def slow(*args: int) -> None:
        flock(*args)
        calls.append(args)
        if len(calls) == 1:
            (tmp_path / OWNER_FILE).unlink()

    monkeypatch.setattr(lock_module.fcntl, "flock", slow)
    with workdir_lock(tmp_path):
        assert len(calls) == 2
        with pytest.raises(UserError, match="another run"), workdir_lock(tmp_path):
            pass


def test_without_locks_a_heartbeat_is_kept_and_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: int) -> None:
        raise OSError(lock_module.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock_module.fcntl, "flock", refuse)
    with workdir_lock(tmp_path, QUICK):
        assert "beat" in json.loads((tmp_path / OWNER_FILE).read_text())
    said = capsys.readouterr().err
    assert f"{tmp_path} cannot be locked (No locks available): a heartbeat in" in said
    assert "waiting" not in said  # there was no owner


# The heartbeat alone.


def test_a_killed_run_is_waited_for_until_its_heartbeat_is_stale(
    tmp_path: Path, killed_owner: Callable[[str], int], capsys: pytest.CaptureFixture[str]
) -> None:
    pid = killed_owner("heartbeat")
    owner = json.loads((tmp_path / OWNER_FILE).read_text())
    (tmp_path / OWNER_FILE).write_text(json.dumps(owner | {"beat": time.time()}))
    begun = time.monotonic()
    with quick_heartbeat(tmp_path):
        assert time.monotonic() - begun > QUICK.stale
    said = capsys.readouterr().err
    assert f"process {pid}, since 20" in said and "waiting 0.6 seconds for its next heartbeat" in said


def test_a_run_whose_clock_is_behind_keeps_its_workdir(tmp_path: Path) -> None:
    path, ended, lost = tmp_path / OWNER_FILE, threading.Event(), threading.Event()

    def write() -> None:
        owner = {"host": "there", "pid": 7, "since": "now", "token": "t", "beat": time.time() - 1800.0}
        (tmp_path / "new").write_text(json.dumps(owner))
        (tmp_path / "new").rename(path)

    def beat() -> None:
        while not ended.wait(0.05) and not lost.is_set():
            if '"token": "t"' in path.read_text():
                write()
            else:
                lost.set()

    write()
    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(UserError, match="another run is training in .* \\(there, process 7"):
            with quick_heartbeat(tmp_path):
                pass
        assert not lost.is_set()
    finally:
        ended.set()
        thread.join()


def test_an_old_heartbeat_is_stale(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / OWNER_FILE).write_text(json.dumps({"host": "h", "pid": 1, "since": "s", "token": "t", "beat": 0.0}))
    with quick_heartbeat(tmp_path):
        assert capsys.readouterr().err == ""


def test_a_run_that_ends_during_the_wait_frees_the_workdir(tmp_path: Path) -> None:
    (tmp_path / OWNER_FILE).write_text(json.dumps({"token": "t", "beat": time.time()}))
    threading.Timer(0.2, (tmp_path / OWNER_FILE).unlink).start()
    with heartbeat_lock(tmp_path, Periods(beat=0.1, stale=600.0, settle=0.1)):
        pass


def test_of_two_simultaneous_takeovers_one_is_refused(tmp_path: Path) -> None:
    other = json.dumps({"host": "there", "pid": 7, "since": "now", "token": "t", "beat": time.time()})
    threading.Timer(0.5, (tmp_path / OWNER_FILE).write_text, [other]).start()
    with pytest.raises(UserError, match="another run is training in .* \\(there, process 7, since now\\)"):
        with heartbeat_lock(tmp_path, Periods(beat=0.1, stale=0.6, settle=1.5)):
            pass
    assert (tmp_path / OWNER_FILE).read_text() == other


def test_the_heartbeat_is_renewed_and_another_token_in_the_file_ends_the_run(tmp_path: Path) -> None:
    with quick_heartbeat(tmp_path) as owner:
        first = json.loads((tmp_path / OWNER_FILE).read_text())
        time.sleep(5 * QUICK.beat)
        owner.check()
        later = json.loads((tmp_path / OWNER_FILE).read_text())
        assert later["beat"] > first["beat"] and later["token"] == first["token"]
        other = json.dumps(first | {"host": "there", "token": "another"})
        (tmp_path / OWNER_FILE).write_text(other)
        time.sleep(5 * QUICK.beat)
        with pytest.raises(UserError, match=rf"another run has taken {tmp_path} over \(there, process"):
            owner.check()
    assert (tmp_path / OWNER_FILE).read_text() == other


def test_a_heartbeat_may_fail_twice_before_it_is_stale() -> None:
    periods = Periods()
    assert periods.stale >= 3 * periods.beat and periods.settle < periods.beat
