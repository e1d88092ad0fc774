"""Workers: every run is trained and evaluated once, whatever is killed, edited, deleted or damaged meanwhile.

The commands of runs are fakes (support/fake_runs.py), which keep the files and locks of the real ones.
"""

import errno
import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import studies
from studies import StudyFolder

from cotmi_jax.errors import UserError
from cotmi_jax.study import study as study_module
from cotmi_jax.study import worker
from cotmi_jax.study.plan import load_plan
from cotmi_jax.study.record import StudyRecord, read_study
from cotmi_jax.study.study import Study
from cotmi_jax.workdir.lock import lock

study = studies.study
LABELS = ["dss-seed0", "infonce-seed0", "dss-seed1", "infonce-seed1"]
ALL_DONE = dict.fromkeys(LABELS, "done")


def test_a_study_runs_each_run_once_and_skips_finished_ones(study: StudyFolder) -> None:
    assert study.work() == 0
    assert study.states() == ALL_DONE
    assert study.done("step") == [(label, step) for label in LABELS for step in range(1, 7)]
    assert study.done("evaluate") == [(label, 0) for label in LABELS]
    run = study.runs()["infonce-seed1"]
    assert (run.arm, run.seed, run.seconds is not None) == ("infonce", 1, True)
    assert json.loads((run.workdir / "run.json").read_text())["config"]["objective"]["name"] == "cotmi"
    events = (study.folder / "study.jsonl").read_text()
    assert study.work() == 0  # nothing is left, and nothing is written
    assert (study.folder / "study.jsonl").read_text() == events and len(study.done("step")) == 24


def test_edits_add_what_is_missing_and_keep_what_is_no_longer_asked_for(study: StudyFolder) -> None:
    said: list[str] = []
    study.work()
    names = {label: run.name for label, run in study.runs().items()}
    study.edit('arms({"dss": {}, ', 'axis("objective.alpha", [0.5, 0.25]), arms({')
    assert study.work(say=said.append) == 0
    record = read_study(study.folder)
    # A key that the sweep now varies is no part of names that were given before.
    assert [run.name for run in record.runs][::2] == [names["infonce-seed0"], names["infonce-seed1"]]
    assert [run.name.rpartition("-")[0] for run in record.runs][1::2] == [f"alpha0.25-seed{seed}" for seed in (0, 1)]
    assert [run.name for run in record.removed] == [names["dss-seed0"], names["dss-seed1"]]
    assert all((run.workdir / "evaluation").is_dir() for run in record.removed)
    assert "2 runs added" in said[0] and "2 runs are no longer in the study file, and are kept: dss-seed0-" in said[1]
    assert len(study.done("evaluate")) == 6
    study.file.write_text(studies.TWO_ARMS)
    assert study.work(say=said.append) == 0
    assert [run.name for run in read_study(study.folder).runs] == list(names.values())
    assert len(study.done("evaluate")) == 6 and "2 runs added, 2 of them known from before" in " ".join(said)


def test_a_file_edited_under_a_worker_is_noticed(study: StudyFolder) -> None:
    said: list[str] = []

    def edit(text: str) -> None:
        said.append(text)
        if "1 running" in text and len(said) == 2:  # the first run
            study.edit("seeds(2)", "seeds(2")
        elif "cannot be used" in text:
            study.edit("seeds(2", "seeds(3)[1:]")

    assert study.work(say=edit) == 0
    text = "\n".join(said)
    assert "two.py has changed and cannot be used, the runs stay as they were: " in text and "SyntaxError" in text
    assert "two.py has changed, and was read again" in text and "no longer in the study file" in text
    assert {label[-1] for label in study.states()} == {"1", "2"} and set(study.states().values()) == {"done"}


def test_an_edit_of_the_evaluation_under_a_worker_evaluates_finished_runs_again(study: StudyFolder) -> None:
    def edit(text: str) -> None:
        if "3 done" in text and "Evaluation()" in study.file.read_text():
            study.edit("Evaluation()", 'Evaluation(metrics="agreement")')

    assert study.work(say=edit) == 0
    assert {run.evaluation["metrics"] for run in study.runs().values()} == {"agreement"}
    assert len(study.done("start")) == 4 and len(study.done("evaluate")) > 4


def test_a_failed_run_has_a_reason_and_is_retried_when_asked(study: StudyFolder) -> None:
    study.act({"dss-seed0": {"command": "train", "at": 4, "exit": 2, "say": "error: a key is wrong: set it"}})
    said: list[str] = []
    assert study.work(say=said.append) == 1
    assert study.states() == ALL_DONE | {"dss-seed0": "failed"}
    assert study.runs()["dss-seed0"].reason == "a key is wrong: set it"
    log = study.folder / "logs" / f"{study.runs()['dss-seed0'].name}.log"
    assert (
        f"failed: a key is wrong: set it (log: {log})" in "\n".join(said) and "error: a key is wrong" in log.read_text()
    )
    assert study.work() == 1 and len(study.done("start")) == 4  # not retried
    assert study.work(retry_failed=True) == 1  # once more, from its last checkpoint
    assert study.done("start")[4:] == [("dss-seed0", 2)] and study.runs()["dss-seed0"].failures == 2
    study.act({})
    assert study.work(retry_failed=True) == 0
    assert study.states() == ALL_DONE


def test_a_failed_evaluation_is_retried_without_training(study: StudyFolder) -> None:
    study.act({"dss-seed0": {"command": "evaluate", "exit": 1, "say": "ValueError: a defect", "times": 1}})
    assert study.work("dss-seed0") == 1
    assert study.runs()["dss-seed0"].reason == "ValueError: a defect"
    assert study.work("dss-seed0", retry_failed=True) == 0
    assert len(study.done("start")) == 1 and study.done("evaluate") == [("dss-seed0", 0)]


def test_fail_fast_stops_at_the_first_failure(study: StudyFolder) -> None:
    study.act({"infonce-seed0": {"command": "train", "exit": 1, "say": "boom"}})
    assert study.work(fail_fast=True) == 1
    assert list(study.states().values()) == ["done", "failed", "pending", "pending"]
    assert study.work(fail_fast=True) == 1  # the failure is known: the others run
    assert study.states() == ALL_DONE | {"infonce-seed0": "failed"}


def test_only_runs_what_it_selects_and_drops_nothing(study: StudyFolder) -> None:
    assert study.work("seed=1,dss") == 0
    assert study.states() == {"dss-seed1": "done"}
    assert study.work() == 0 and study.work("infonce") == 0
    assert study.states() == ALL_DONE and not read_study(study.folder).removed
    with pytest.raises(UserError, match="--only=seed=7 matches no run; there are 4, such as dss-seed0, infonce-seed0"):
        study.work("seed=7")


def test_first_workers_with_different_selections_keep_the_runs_of_each_other(study: StudyFolder) -> None:
    one, other = study.study("dss"), study.study("infonce")
    empty = other.record()
    other.record = lambda: empty  # type: ignore[method-assign]  # both read before one has written
    one.enroll()
    other.enroll()
    record = read_study(study.folder)
    assert sorted(run.name.rpartition("-")[0] for run in record.runs) == sorted(LABELS) and not record.removed
    assert study.work() == 0 and list(study.states()) == LABELS


def test_an_edit_whose_data_cannot_be_read_changes_nothing(study: StudyFolder) -> None:
    own = study.study()
    own.enroll()
    events = (study.folder / "study.jsonl").read_text()
    study.edit("Evaluation()", 'Evaluation(metrics="agreement")')
    study.edit("seeds(2), ", 'axis("data.dataset", ["arithmetic", "jsonl:later.jsonl"]), seeds(2), ')
    with pytest.raises(UserError, match="later.jsonl"):
        own.replan(load_plan(str(study.file)))
    assert (study.folder / "study.jsonl").read_text() == events
    assert own.plan.evaluation.metrics is None and not own.plan.is_current()  # the next look tries again


def test_a_display_that_fails_ends_no_command(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []

    def show(display: worker.Display, record: StudyRecord) -> None:
        if any(run.state == "running" for run in record.runs):
            shown.append("failed")
            raise OSError(errno.EIO, "the terminal is gone")

    monkeypatch.setattr(worker.Display, "show", show)
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.05")
    assert study.work("dss-seed0") == 0
    assert shown and study.states() == {"dss-seed0": "done"} and len(study.done("start")) == 1


def test_a_signal_between_two_commands_starts_no_further_one(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, command = [], worker.Command

    def start(*arguments: Any) -> worker.Command:
        os.kill(os.getpid(), signal.SIGTERM)
        started.append(command(*arguments))  # the signal came before the worker knew the command
        return started[-1]

    write = Study.write

    def write_and_signal(own: Study, kind: str, **fields: Any) -> None:
        write(own, kind, **fields)
        if kind == "running":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.5")
    with monkeypatch.context() as patch:
        patch.setattr(Study, "write", write_and_signal)
        assert study.work("dss-seed0") == 128 + signal.SIGTERM and study.done("start") == []
    monkeypatch.setattr(worker, "Command", start)
    assert study.work("dss-seed0") == 128 + signal.SIGTERM
    assert len(started) == 1 and len(study.done("step")) < 6 and study.states() == {"dss-seed0": "pending"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_or_stopped_training_resumes(study: StudyFolder, number: int) -> None:
    study.act({"dss-seed0": {"command": "train", "at": 4, "kill": number, "times": 2}})
    assert study.work("dss-seed0") == 0
    steps = [step for _, step in study.done("step")]
    assert sorted(set(steps)) == list(range(1, 7)) and len(study.done("start")) > 1


def test_a_training_that_is_killed_without_progress_fails(study: StudyFolder) -> None:
    study.act({"dss-seed0": {"command": "train", "at": 4, "kill": int(signal.SIGKILL)}})
    assert study.work("dss-seed0") == 1
    assert study.runs()["dss-seed0"].reason == "killed by SIGKILL, 3 times without a new checkpoint"
    assert len(study.done("start")) == 4  # the first saved step 2


@pytest.mark.slow
def test_a_stopped_worker_saves_and_the_next_resumes(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.5")  # on a busy machine too it is stopped before the last step

    def stop() -> None:
        while not study.done("step"):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    assert study.work() == 128 + signal.SIGTERM
    assert study.states() == dict.fromkeys(LABELS, "pending")
    monkeypatch.setenv("FAKE_STEP_SECONDS", "0.001")
    assert study.work() == 0
    steps = study.done("step")
    assert len(steps) == len(set(steps)) == 24  # SIGTERM loses no step
    assert study.states() == ALL_DONE


def of_another_version(workdir: Path) -> None:
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["future_key"] = 1
    (workdir / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "again", "reason"),
    [
        (shutil.rmtree, ["start", "evaluate"], "its files are gone"),
        (lambda run: shutil.rmtree(run / "evaluation"), ["evaluate"], "was not evaluated on test"),
        (lambda run: (run / "evaluation/test/predictions.jsonl").write_text(""), ["evaluate"], "has 0 answers"),
        (lambda run: (run / "evaluation/test/metrics.json").write_text("{"), ["evaluate"], "not JSON"),
        (lambda run: (run / "run.json").write_text("{}"), ["evaluate"], "not a run's record"),
        (of_another_version, ["evaluate"], "another config (future_key: 1 → absent)"),
    ],
    ids=["deleted", "no evaluation", "no predictions", "cut", "record", "version"],
)
def test_a_finished_run_that_was_deleted_or_damaged_is_done_again(
    study: StudyFolder, damage, again: list[str], reason: str
) -> None:
    study.work("dss")
    run, said = study.runs()["dss-seed1"], list[str]()
    record = (run.workdir / "run.json").read_text()
    damage(run.workdir)
    if again == ["evaluate"] and record != (run.workdir / "run.json").read_text():
        # The workdir holds a whole training: nothing writes its record again.
        assert study.work("dss", say=said.append) == 1
        assert reason in "\n".join(said)
        (run.workdir / "run.json").write_text(record)
        assert study.work("dss", retry_failed=True) == 0
        return
    assert study.work("dss", say=said.append) == 0
    text = "\n".join(said)
    assert f"{run.name} was done, and is done again: " in text and reason in text
    assert [label for command in again for label, _ in study.done(command)[2:]] == ["dss-seed1"] * len(again)
    assert len(study.done("start", "evaluate")) == 4 + len(again)


def test_other_settings_of_the_evaluation_evaluate_again_and_train_nothing(study: StudyFolder) -> None:
    said: list[str] = []
    study.work("dss")
    study.edit("Evaluation()", 'Evaluation(split="valid", information=False)')
    assert study.work("dss", say=said.append) == 0
    assert "evaluated by other settings (split: test → valid; information: None → False)" in "\n".join(said)
    assert len(study.done("start")) == 2 and len(study.done("evaluate")) == 4
    assert read_study(study.folder).split == "valid"


def test_runs_of_other_code_are_not_mixed_silently(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    study.work("dss-seed0")
    name = study.runs()["dss-seed0"].name
    monkeypatch.setattr(study_module, "code_digest", lambda: "new code")
    with pytest.raises(
        UserError, match="1 runs of .* were made by other code or package versions.*--changed_code=keep"
    ):
        study.work("dss")
    said: list[str] = []
    assert study.work("dss", changed_code="keep", say=said.append) == 0
    assert study.runs()["dss-seed0"].name == name and len(study.done("start")) == 2
    assert "the code has changed" in said[0] and "stay; the others are of this code" in said[0]
    assert study.work("dss") == 0  # this code is accepted now
    assert study.work("dss", changed_code="rerun") == 0  # and may still make them all
    assert study.runs()["dss-seed0"].name != name and len(study.done("start")) == 4
    assert study.work("dss", changed_code="rerun") == 0 and len(study.done("start")) == 4
    name = study.runs()["dss-seed0"].name
    monkeypatch.setattr(study_module, "code_digest", lambda: "newer code")
    assert study.work("dss", changed_code="rerun") == 0
    assert study.runs()["dss-seed0"].name != name and len(study.done("start")) == 6
    assert name in [run.name for run in read_study(study.folder).removed]


def test_code_that_changes_under_a_worker_ends_it(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter(["a", "a", "b", "b"])
    monkeypatch.setattr(study_module, "code_digest", lambda: next(digests))
    with pytest.raises(UserError, match="the source code of cotmi_jax has changed since this worker started"):
        study.work()
    assert study.states() == dict.fromkeys(LABELS, "pending") | {"dss-seed0": "done"}


def test_a_run_in_use_is_left_until_its_training_has_ended(study: StudyFolder) -> None:
    """Of a worker whose lease was taken over while its training continued, as can happen where there are no locks."""
    study.study("dss-seed0").enroll()
    run = study.runs()["dss-seed0"]
    run.workdir.mkdir(parents=True)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "is left for now" in text:
            holder.__exit__(None, None, None)

    holder = lock(run.workdir / "owner.json")
    holder.__enter__()
    assert study.work("dss-seed0", say=say) == 0
    assert f"{run.name} is left for now: another run is training in {run.workdir}" in "\n".join(said)
    assert len(study.done("start")) == 1 and study.states() == {"dss-seed0": "done"}


def test_a_full_disk_ends_the_worker_and_fails_no_run(study: StudyFolder) -> None:
    says = "error: cannot write /x: No space left on device: make room there, and the same command resumes"
    study.act({"dss-seed0": {"command": "train", "at": 3, "exit": 2, "say": says, "times": 1}})
    with pytest.raises(UserError, match="dss-seed0-.*: cannot write /x: No space left on device.*the same command"):
        study.work()
    assert study.states() == dict.fromkeys(LABELS, "pending")
    assert study.work() == 0
    assert study.states() == ALL_DONE and study.done("start")[1] == ("dss-seed0", 2)


def test_a_taken_over_lease_ends_the_command_and_leaves_the_run_to_the_other(
    study: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cotmi_jax.workdir.lock._locked_file", lambda path: None)  # a file system without locks
    monkeypatch.setenv("FAKE_STEP_SECONDS", "1.0")
    said: list[str] = []
    ended = threading.Event()

    def take() -> None:
        while not (files := list((study.folder / "leases").glob("*.json"))) or not study.done("step"):
            time.sleep(0.02)
        owner = json.loads(files[0].read_text()) | {"token": "other", "host": "there"}
        files[0].write_text(json.dumps(owner))
        while not any("is left to another worker" in text for text in said):
            time.sleep(0.02)
        os.environ["FAKE_STEP_SECONDS"] = "0.001"
        files[0].unlink()  # that worker has ended
        ended.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    assert study.work("dss-seed0", say=said.append) == 0
    thread.join(10.0)
    assert ended.is_set() and "is left to another worker: another run has taken" in "\n".join(said)
    assert study.states() == {"dss-seed0": "done"}
