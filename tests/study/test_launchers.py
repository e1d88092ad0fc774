"""Runs of a study as jobs: dry runs are golden, and jobs are submitted to the fakes of the launchers' tests.

`python tests/study/test_launchers.py` is no command; COTMI_WRITE_GOLDEN=1 with pytest writes golden/launch/study.txt.
"""

import json
import os
import re
import shutil
from pathlib import Path

import launching
import pytest
import studies
from launching import environment, recorded
from paths import GOLDEN
from studies import StudyFolder

from cotmi_jax.errors import UserError
from cotmi_jax.study import launchers
from cotmi_jax.study import study as study_module
from cotmi_jax.study.launchers import accompany, rank, submit
from cotmi_jax.study.record import read_study

study, checkout, fakes = studies.study, launching.checkout, launching.fakes
FILE = GOLDEN / "launch" / "study.txt"
FLAGS = {
    "slurm": ["--time=24:00:00", "--venv=/shared/venv", "--gpus-per-node=2"],
    "xpk": ["--cluster=c", "--zone=us-east5-b", "--tpu-type=v6e-16", "--docker-image=i", "--shared-workdir"],
    "queued": ["--zone=us-west4-a", "--type=v5litepod-8", "--shared-workdir"],
}


@pytest.fixture(autouse=True)
def in_checkout(checkout: Path, fakes: Path, monkeypatch: pytest.MonkeyPatch, study: StudyFolder) -> None:
    """The launchers of a checkout of its own, which holds the study file, and fake machines on PATH."""
    monkeypatch.setattr(launchers, "_ROOT", checkout)
    (checkout / "configs").mkdir(exist_ok=True)
    study.file = Path(shutil.copy(study.file, checkout / "configs" / "two.py"))
    for name, value in environment(fakes).items():
        monkeypatch.setenv(name, value)


def test_dry_runs_are_golden_and_submit_nothing(
    study: StudyFolder, checkout: Path, fakes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for launcher, flags in FLAGS.items():
        code = submit(launcher, flags, str(study.file), study.study("seed=0"), again=False, dry_run=True)
        assert code == 0
        given = " ".join(f"--launcher_flag={flag}" for flag in flags)
        texts.append(f"# --launcher={launcher} {given}\n{capfd.readouterr().out}")
    found = "\n".join(texts).replace(str(checkout), "/checkout").replace(str(study.folder), "/shared/S")
    found = re.sub(r"-[0-9a-f]{8}\b", "-HASH", found)
    if os.environ.get("COTMI_WRITE_GOLDEN"):
        FILE.write_text(found)
    assert found == FILE.read_text()
    assert recorded(fakes) == [] and not (study.folder / "study.jsonl").exists()


def test_each_run_is_a_job_once(study: StudyFolder, fakes: Path) -> None:
    said: list[str] = []
    (fakes / "bin" / "sbatch").write_text((fakes / "bin" / "sbatch").read_text().replace("exec ", "echo 17; exec "))
    arguments = ("slurm", FLAGS["slurm"], str(study.file))
    assert submit(*arguments, study.study("seed=0", said.append), again=False, dry_run=False) == 0
    jobs = [call["input"] for call in recorded(fakes) if call["name"] == "sbatch"]
    names = [run.name for run in read_study(study.folder).runs]
    for job, name in zip(jobs, names, strict=True):
        assert f"-m cotmi_jax.study --config=configs/two.py --workdir={study.folder} --only={name} " in job
        assert "--changed_code=keep" in job
    assert said[-1] == f"{names[1]}: slurm job 17" and set(study.states().values()) == {"pending"}
    assert submit(*arguments, study.study("seed=0", said.append), again=False, dry_run=False) == 0
    assert "was submitted before (slurm job 17): --retry_failed submits it again" in said[-1]
    assert len(recorded(fakes)) == 2
    assert study.work(names[0], changed_code="keep") == 0  # what the job does
    assert list(study.states().values()) == ["done", "pending"]
    assert submit(*arguments, study.study("seed=0"), again=True, dry_run=False) == 0
    assert len(recorded(fakes)) == 3  # a run that is done is no job again


def test_a_run_that_failed_or_is_running_is_a_job_only_when_asked(study: StudyFolder, fakes: Path) -> None:
    said: list[str] = []
    study.act({"dss-seed0": {"command": "train", "exit": 2, "say": "error: no memory", "times": 1}})
    assert study.work("dss-seed0") == 1 and study.work("dss-seed1") == 0
    own = study.study("dss", said.append)
    own.enroll()
    name, done = (run.name for run in study.runs().values())
    arguments = ("slurm", FLAGS["slurm"], str(study.file), own)
    assert submit(*arguments, again=False, dry_run=False) == 0 and recorded(fakes) == []
    assert said == [f"{name} has failed (no memory): --retry_failed submits it again"]
    assert submit(*arguments, again=True, dry_run=False) == 0
    (job,) = (call["input"] for call in recorded(fakes))
    assert f"--only={name} --changed_code=keep --retry_failed" in job
    assert study.work(name, changed_code="keep", retry_failed=True) == 0  # what the job does
    own.write("running", name=name, host="h", pid=7)
    assert submit(*arguments, again=False, dry_run=False) == 0 and len(recorded(fakes)) == 1
    assert said[-1] == f"{name} is recorded as running (h, process 7): --retry_failed submits it again"
    shutil.rmtree(study.folder / "runs" / done)
    assert submit("slurm", FLAGS["slurm"], str(study.file), study.study(done), again=False, dry_run=False) == 0
    assert len(recorded(fakes)) == 2


def test_jobs_of_other_code_are_not_submitted_silently(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert study.work("dss-seed0") == 0
    monkeypatch.setattr(study_module, "code_digest", lambda: "new code")
    arguments = ("slurm", FLAGS["slurm"], str(study.file), study.study())
    with pytest.raises(UserError, match="made by other code.*--changed_code=keep"):
        submit(*arguments, again=False, dry_run=False)
    assert submit(*arguments, again=False, dry_run=True) == 0


@pytest.mark.slow
def test_a_tpu_of_queued_resources_is_made_for_a_run_and_deleted_after_it(study: StudyFolder, fakes: Path) -> None:
    assert (
        submit("queued", FLAGS["queued"], str(study.file), study.study("dss,seed=0"), again=False, dry_run=False) == 0
    )
    calls = [call["arguments"] for call in recorded(fakes) if call["name"] == "gcloud"]
    (name,) = {each[4] for each in calls if each[2:4] == ["queued-resources", "create"]}
    assert calls[-1][2:5] == ["queued-resources", "delete", name] and name.startswith("r-dss-seed0-")
    trainings = [each["arguments"] for each in recorded(fakes, "trainings")]
    assert trainings and all("--config=configs/two.py" in each for each in trainings)  # on every worker of the TPU


def test_a_job_that_is_refused_is_said(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("FAKE_FAILURE", "--requeue")
    assert submit("slurm", FLAGS["slurm"], str(study.file), study.study("dss", said.append), again=False, dry_run=False)
    assert "run of slurm failed with exit code" in said[-1]
    monkeypatch.setattr(launchers, "_ROOT", Path("/nowhere"))
    with pytest.raises(UserError, match="--launcher needs a checkout of the repository"):
        submit("slurm", [], str(study.file), study.study("dss"), again=False, dry_run=False)


def test_further_processes_of_a_job_run_its_commands_and_record_nothing(study: StudyFolder) -> None:
    assert [rank(each) for each in ({}, {"SLURM_PROCID": "1"}, {"COTMI_COORDINATOR": "auto", "SLURM_PROCID": "1"})] == [
        *(0, 0, 1)
    ]
    study.study("dss-seed0").enroll()
    before = (study.folder / "study.jsonl").read_text()
    assert accompany(study.study(next(run.name for run in read_study(study.folder).runs))) == 0
    assert (study.folder / "study.jsonl").read_text() == before
    assert len(study.done("step")) == 6 and study.done("evaluate") == [("dss-seed0", 0)]


def test_a_lost_process_ends_the_worker_of_a_job_so_that_it_starts_again(study: StudyFolder) -> None:
    study.act({"dss-seed0": {"command": "train", "at": 4, "exit": 75, "times": 1}})
    assert study.work("dss-seed0", in_job=True) == 75
    assert study.states() == {"dss-seed0": "pending"}
    assert study.work("dss-seed0", in_job=True) == 0
    assert json.loads((study.fakes / "done.jsonl").read_text().splitlines()[-1])["command"] == "evaluate"
