"""A worker on a study in a bucket: leases are heartbeats there, and the clocks of workers differ by minutes."""

import json
import threading
import time

import fake_gcs
import pytest
import studies
from studies import QUICK, StudyFolder

from cotmi_jax import files
from cotmi_jax.study import commands
from cotmi_jax.study import worker as worker_module
from cotmi_jax.study.commands import Log
from cotmi_jax.study.plan import load_plan
from cotmi_jax.study.record import read_study
from cotmi_jax.study.study import Study, absolute_paths
from cotmi_jax.study.worker import Ending, Options, Worker
from cotmi_jax.workdir.lock import Owner

store, study = studies.store, studies.study


def owner(beat: float) -> bytes:
    """The lease of a worker on another host."""
    return json.dumps({"host": "there", "pid": 7, "since": "s", "token": "t", "beat": beat}).encode()


@pytest.mark.slow
def test_a_killed_worker_is_taken_over_and_a_living_one_is_not_whatever_the_clocks(
    study: StudyFolder, store: fake_gcs.FakeGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, said, done = files.as_path("gs://bucket/S"), list[str](), list[str]()
    mine = Study(folder, load_plan(str(study.file)), only="seed=0", say=said.append)
    mine.enroll()
    killed, living = (run.name for run in read_study(folder).runs)
    configs = {entry.run.name: entry.planned.config for entry in mine.entries(mine.record())}

    def execute(worker: Worker, command: list[str], log: Log, lease: Owner) -> Ending:
        """As the commands of a run leave a bucket."""
        name = next(part for part in command if part.startswith("--workdir=")).rpartition("/")[2]
        workdir, config = folder / "runs" / name, absolute_paths(configs[name])
        done.append(f"{command[2].rpartition('.')[2]} {name}")
        if "train" in command[2]:
            (workdir / "run.json").write_text(json.dumps({"config": config.to_dict(), "student": {}}))
            (workdir / "checkpoints" / "6" / "commit_success.txt").write_text("")
        else:
            results = workdir / "evaluation" / "test"
            (results / "predictions.jsonl").write_text(json.dumps({"id": "0", "correct": True}) + "\n")
            (results / "metrics.json").write_text(json.dumps({"n": 1, "accuracy": 1.0}))
        return Ending("done")

    for name in ("train_command", "evaluate_command"):
        monkeypatch.setattr(worker_module, name, getattr(commands, name))
    monkeypatch.setattr(Worker, "_execute", execute)
    # The clock of the killed worker is five minutes ahead, that of the living one five minutes behind.
    for name, beat in ((killed, time.time() + 300.0), (living, time.time() - 300.0)):
        mine.write("running", name=name, host="there", pid=7)
        store.put(f"S/leases/{name}.json", owner(beat))
    ended = threading.Event()

    def live() -> None:
        while f"evaluate {killed}" not in done:
            store.put(f"S/leases/{living}.json", owner(time.time() - 300.0))
            time.sleep(0.1)
        store.objects.pop(f"S/leases/{living}.json")  # that worker stops
        mine.write("stopped", name=living, seconds=1.0)
        ended.set()

    thread = threading.Thread(target=live, daemon=True)
    thread.start()
    worker = Worker(str(study.file), mine, Options(**QUICK))  # type: ignore[arg-type]
    assert worker.work() == 0
    thread.join(10.0)
    assert done == [f"{command} {name}" for name in (killed, living) for command in ("train", "evaluate")]
    assert ended.is_set() and f"{killed} is taken over: its worker (there, process 7) has ended" in "\n".join(said)
    assert [run.state for run in read_study("gs://bucket/S").runs] == ["done", "done"]
    assert store.names("S/leases/") == [] and store.names(f"S/logs/{killed}.log")
