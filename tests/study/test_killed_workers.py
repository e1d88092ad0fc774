"""Several workers on one study, killed at random: nothing is lost, nothing is done twice, results are the same."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import runs
import studies
from studies import StudyFolder

from cotmi_jax.study.record import read_study

quick_compilation = runs.quick_compilation
study = studies.study


def results(study: StudyFolder) -> dict[str, str]:
    return {
        label: (run.workdir / "evaluation" / "test" / "metrics.json").read_text() for label, run in study.runs().items()
    }


@pytest.mark.slow
def test_workers_killed_at_random_finish_every_run_once(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 runs, two workers at a time, 10 kills: of a worker, and every third time of the command of a run too."""
    study.edit("seeds(2)", "seeds(6)")
    undisturbed = StudyFolder.__new__(StudyFolder)
    undisturbed.file, undisturbed.folder, undisturbed.fakes = study.file, tmp_path / "undisturbed", study.fakes
    undisturbed.folder.mkdir()
    assert undisturbed.work() == 0
    (study.fakes / "done.jsonl").unlink()

    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.15")
    draw, workers, kills = random.Random(0), list(), 0
    deadline = time.monotonic() + 300.0
    while set(study.states().values() if (study.folder / "study.jsonl").exists() else [""]) != {"done"}:
        assert time.monotonic() < deadline
        workers = [worker for worker in workers if worker.is_alive()]
        while len(workers) < 2:
            workers.append(study.start(folder=tmp_path / f"worker-{kills}-{len(workers)}-{time.monotonic_ns()}"))
        time.sleep(draw.uniform(0.3, 0.9))
        if kills < 10 and study.done("start"):
            command = json.loads((study.fakes / "done.jsonl").read_text().splitlines()[-1])["pid"]
            victim = workers[draw.randrange(2)]
            victim.kill()
            victim.join()
            kills += 1
            if kills % 3 == 0:
                try:
                    os.kill(command, signal.SIGKILL)
                except ProcessLookupError:
                    pass  # it had ended
    for worker in workers:
        worker.join(60.0)
        assert worker.exitcode == 0
    assert kills == 10 and len(study.states()) == 12
    assert results(study) == results(undisturbed)
    starts = study.done("start")
    assert len([step for _, step in starts if step == 0]) <= 12 + 10
    steps = study.done("step")
    assert len(steps) <= 72 + 3 * 2  # each kill of a training repeats at most checkpoint.every steps
    assert set(steps) == {(label, step) for label in study.states() for step in range(1, 7)}
    ends = [event for event in read_events(study.folder) if event["event"] == "done"]
    assert len(ends) == len({event["name"] for event in ends}) == 12
    assert not read_study(study.folder).removed


def read_events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "study.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_training_of_a_killed_worker_saves_before_another_worker_resumes_it(
    study: StudyFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_STEP_SECONDS", "1.0")  # on a busy machine too it is killed before the last step
    worker = study.start("--only=dss-seed0", folder=tmp_path / "worker")
    deadline = time.monotonic() + 60.0
    while not study.done("step"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    worker.kill()
    worker.join()
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.01")
    said: list[str] = []
    assert study.work("dss-seed0", say=said.append) == 0  # waits for the training, then takes the run over
    first, second = study.done("start")
    assert first == ("dss-seed0", 0) and 0 < second[1] < 6
    assert study.done("step") == [("dss-seed0", step) for step in range(1, 7)]  # none twice
    assert study.done("evaluate") == [("dss-seed0", 0)]
    assert f"is taken over: its worker ({os.uname().nodename}, process {worker.pid}) has ended" in "\n".join(said)
