"""The launchers on fake machines: they start, follow, save, stop and resume runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_cluster
import launching
import pytest
import runs
from hosts import free_address
from launching import (
    GKE,
    POD,
    REPOSITORY,
    SECRET,
    TPU,
    TRAIN,
    TRICKY,
    WORKLOAD,
    background,
    environment,
    launch,
    recorded,
    until,
)

checkout, fakes = launching.checkout, launching.fakes

# TPU workers.


@pytest.mark.slow
def test_a_tpu_slice_from_create_to_delete(checkout: Path, fakes: Path) -> None:
    """Arguments and secrets arrive on every worker as they were given; stop lets the run save."""
    variables = environment(fakes)
    pod = f"{TPU} --type=v5litepod-16"
    (fakes / "trainer").write_text("wait")
    for command in (f"create {pod}", f"setup {TPU}"):
        done = launch(checkout, "tpu_vm", command, [], variables)
        assert done.returncode == 0, done.stderr
    done = launch(checkout, "tpu_vm", f"run {pod} --env=HF_TOKEN", [*TRAIN, *TRICKY], variables)
    assert done.returncode == 0, done.stderr
    until(lambda: len(recorded(fakes, "trainings")) == fake_cluster.WORKERS)
    assert recorded(fakes, "trainings") == fake_cluster.WORKERS * [
        {"arguments": [*TRAIN[1:], *TRICKY], "environment": {"HF_TOKEN": SECRET, "COTMI_COORDINATOR": "auto"}}
    ]
    assert "secret" not in json.dumps(recorded(fakes))
    assert list(fakes.glob("worker-*/cotmi_jax_run/env")) == []
    again = launch(checkout, "tpu_vm", f"run {pod} --env=HF_TOKEN", TRAIN, variables)
    assert again.returncode != 0 and "has a run already" in again.stderr
    assert list(fakes.glob("worker-*/cotmi_jax_run/env")) == []  # nor does a refused run leave the secret
    assert launch(checkout, "tpu_vm", f"status {TPU}", [], variables).stdout.count("running pid") == 2
    assert launch(checkout, "tpu_vm", f"stop {TPU}", [], variables).stdout == 2 * "here: stopped\n"
    logs = launch(checkout, "tpu_vm", f"logs {TPU} --worker=1 --no-follow", [], variables).stdout.splitlines()
    assert logs[0].startswith("--- ") and logs[1:] == ["training", "saved"]
    assert launch(checkout, "tpu_vm", f"status {TPU}", [], variables).stdout == "READY\n" + 2 * "stopped\n"
    assert launch(checkout, "tpu_vm", f"delete {TPU}", [], variables).returncode == 0
    assert list(fakes.glob("worker-*")) == []


@pytest.mark.slow
@pytest.mark.parametrize("queued", ["", " --queued"])
def test_watch_resumes_after_a_preemption(queued: str, checkout: Path, fakes: Path) -> None:
    """Started, preempted, started again with the same arguments, finished; the TPU is not deleted."""
    variables = environment(fakes)
    (fakes / "states").write_text("READY READY PREEMPTED")
    (fakes / "trainer").write_text("wait")
    command = [
        "bash",
        str(checkout / "launch/tpu_vm.sh"),
        *f"watch {POD} --spot --poll=1 --env=HF_TOKEN{queued}".split(),
        *TRAIN,
    ]
    with background(command, variables) as watch:
        until(lambda: len(recorded(fakes, "trainings")) == 2)
        (fakes / "trainer").write_text("0")
        _, output = watch.communicate(timeout=120)
    assert watch.returncode == 0, output
    assert "PREEMPTED" in output and "the run is finished" in output and "is billed" in output
    trainings = recorded(fakes, "trainings")
    assert len(trainings) == 4 and all(training == trainings[0] for training in trainings)
    verbs = [call["arguments"][3] for call in recorded(fakes) if call["name"] == "gcloud"]
    assert [v for v in verbs if v in ("create", "delete")] == ["create", "delete", "create"]
    assert "secret" not in json.dumps(recorded(fakes)) + output


@pytest.mark.parametrize(("code", "starts"), [("75", 2), ("3", 1)])
def test_watch_starts_again_only_what_was_interrupted(code: str, starts: int, checkout: Path, fakes: Path) -> None:
    (fakes / "trainer").write_text(code)
    command = ["bash", str(checkout / "launch/tpu_vm.sh"), *f"watch {POD} --poll=1".split(), *TRAIN]
    with background(command, environment(fakes)) as watch:
        if starts == 2:
            until(lambda: len(recorded(fakes, "trainings")) == 2)
            (fakes / "trainer").write_text("0")
        _, output = watch.communicate(timeout=120)
    assert (watch.returncode, len(recorded(fakes, "trainings"))) == (0 if starts == 2 else 2, 2 * starts), output


@pytest.mark.slow
def test_watch_sets_up_again_after_a_failed_installation(checkout: Path, fakes: Path) -> None:
    """One worker lacks the packages: no worker is started before it has them."""
    (fakes / "pip").write_text("worker-1")
    command = ["bash", str(checkout / "launch/tpu_vm.sh"), *f"watch {POD} --poll=1".split(), *TRAIN]
    with background(command, environment(fakes)) as watch:
        _, output = watch.communicate(timeout=120)
    assert watch.returncode == 0 and "could not be started" in output, output
    asked = [fake_cluster.flag(c["arguments"], "command") for c in recorded(fakes) if "ssh" in c["arguments"]]
    done = [verb for line in asked for verb in ("worker.sh setup", "worker.sh start") if verb in line]
    assert done == ["worker.sh setup", "worker.sh setup", "worker.sh start"]


@pytest.mark.parametrize("command", ["create", "resume", "watch"])
def test_a_stopped_tpu_is_an_error(command: str, checkout: Path, fakes: Path) -> None:
    (fakes / "states").write_text("STOPPED STOPPED STOPPED")
    extra = [] if command == "create" else TRAIN
    done = launch(checkout, "tpu_vm", f"{command} {POD} --poll=1", extra, environment(fakes))
    assert done.returncode == 2
    assert "t5 is STOPPED: start it (gcloud compute tpus tpu-vm start t5 --zone=us-west4-a" in done.stderr


def test_watch_reports_each_time_that_workers_do_not_answer(checkout: Path, fakes: Path) -> None:
    command = ["bash", str(checkout / "launch/tpu_vm.sh"), *f"watch {POD} --poll=1".split(), *TRAIN]
    with background(command, environment(fakes, FAKE_FAILURE="ssh")) as watch:
        until(lambda: sum("ssh" in call["arguments"] for call in recorded(fakes)) >= 4)
        os.killpg(watch.pid, signal.SIGKILL)
        _, output = watch.communicate(timeout=10)
    assert output.count("the workers do not answer, retrying in 1 s; the TPU is billed meanwhile") >= 2, output


# GKE, SLURM, GPUs, CPU.


def test_a_workload_gets_its_arguments(checkout: Path, fakes: Path) -> None:
    """As XPK runs --command: in a subshell of the bash that gets SIGTERM. An interrupted run is not a finished one."""
    variables = environment(fakes)
    (fakes / "trainer").write_text("wait")
    done = launch(checkout, "gke_xpk", f"resume {WORKLOAD} --docker-image=i", [*TRAIN, *TRICKY], variables)
    assert done.returncode == 0, done.stderr
    calls = [call["arguments"] for call in recorded(fakes)]
    assert [call[1] for call in calls] == ["list", "delete", "create"]
    assert "--workload=w" in calls[1]
    command = fake_cluster.flag(calls[2], "command")
    pod = f"cd {checkout}; ({command}) & PID=$!; trap 'kill -TERM $PID' TERM; wait; wait $PID; exit $?"
    with background(["bash", "-c", pod], variables) as process:
        until(lambda: recorded(fakes, "trainings"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
    assert recorded(fakes, "trainings") == [
        {"arguments": [*TRAIN[1:], *TRICKY], "environment": {"COTMI_COORDINATOR": "auto", "HF_TOKEN": SECRET}}
    ]


@pytest.mark.parametrize(
    ("kind", "slices", "several"),
    [
        ("v5litepod-4", 1, False),
        ("v5litepod-8", 1, True),
        ("v6e-1", 1, False),
        ("v6e-4", 1, False),
        ("v6e-4", 2, True),
        ("v6e-8", 1, True),
        ("v6e-2x4", 1, True),
        ("v4-8", 1, False),
        ("v4-16", 1, True),
        ("v5p-8", 1, False),
        ("v5p-16", 1, True),
        ("tpu7x-2x2x1", 1, False),
        ("tpu7x-2x2x2", 1, True),
        ("tpu7x-8", 1, False),
        ("tpu7x-16", 1, True),
    ],
)
def test_a_workload_of_several_vms_sets_the_coordinator(
    kind: str, slices: int, several: bool, checkout: Path, fakes: Path
) -> None:
    """XPK gives each VM 4 chips."""
    flags = f"run {GKE} --workload=w --tpu-type={kind} --num-slices={slices} --docker-image=i"
    assert launch(checkout, "gke_xpk", flags, TRAIN, environment(fakes)).returncode == 0
    (created,) = recorded(fakes)
    assert ("COTMI_COORDINATOR=auto" in fake_cluster.flag(created["arguments"], "command")) == several


@pytest.mark.parametrize(
    ("kind", "several"), [("v5litepod-8", False), ("v6e-8", False), ("v6e-16", True), ("v4-8", False), ("v5p-16", True)]
)
def test_a_tpu_of_several_hosts_sets_the_coordinator(kind: str, several: bool, checkout: Path, fakes: Path) -> None:
    """A host of Cloud TPU has 8 chips of v5e and v6e, else 4."""
    variables = environment(fakes, FAKE_PASSIVE="1")
    assert launch(checkout, "tpu_vm", f"run {TPU} --type={kind}", TRAIN, variables).returncode == 0
    (started,) = recorded(fakes)
    assert ("COTMI_COORDINATOR=auto" in fake_cluster.flag(started["arguments"], "command")) == several


@pytest.mark.parametrize(
    ("trainer", "number", "code", "requeued"),
    [
        ("wait", signal.SIGUSR1, 0, True),
        ("75", None, 75, True),
        ("75 75", None, 75, True),
        ("3", None, 3, False),
        ("75 1", None, 1, False),  # process 1 fails, and the other exits because of it
        ("75 139", None, 139, False),
    ],
)
def test_a_slurm_job_is_requeued_at_its_time_limit(
    trainer: str, number: int | None, code: int, requeued: bool, checkout: Path, fakes: Path
) -> None:
    variables = environment(fakes)
    (fakes / "trainer").write_text(trainer)
    flags = "run --name=n --time=1:00 --gpus-per-node=4 --processes-per-node=1 --nodes=2 --env=HF_TOKEN"
    flags += " --setup='export COTMI_OF_SETUP=1$NOT_SET_ANYWHERE'"
    assert launch(checkout, "slurm", flags, [*TRAIN, *TRICKY], variables).returncode == 0
    (submitted,) = recorded(fakes)
    assert "--requeue" in submitted["arguments"] and "--export=HOME,PATH,USER,HF_TOKEN" in submitted["arguments"]
    (fakes / "job.sh").write_text(submitted["input"])
    shellcheck = [Path(sys.executable).with_name("shellcheck"), "-S", "warning", fakes / "job.sh"]
    assert subprocess.run(shellcheck, stdout=subprocess.DEVNULL).returncode == 0
    job = ["bash", str(fakes / "job.sh")]  # not -l: this machine's profile is not the cluster's
    given = fake_cluster.flag(submitted["arguments"], "export")
    slurm = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": str(len(trainer.split())), "SLURM_EXPORT_ENV": given}
    with background(job, fake_cluster.exported(variables, given) | slurm) as process:
        until(lambda: recorded(fakes, "trainings"))
        if number:
            process.send_signal(number)
        assert process.wait(10) == code
    training, *more = recorded(fakes, "trainings")
    assert more == [training] * (len(trainer.split()) - 1)
    assert training["arguments"] == [*TRAIN[1:], *TRICKY]
    assert training["environment"] == {
        "COTMI_COORDINATOR": "auto",
        "COTMI_OF_SETUP": "1",
        "JAX_LOCAL_DEVICE_IDS": "0,1,2,3",
        "HF_TOKEN": SECRET,
    }
    asked = [call["arguments"] for call in recorded(fakes) if call["name"] == "scontrol"]
    assert asked == ([["requeue", "17"]] if requeued else [])


def test_a_gpu_run_outlives_the_shell_and_stops(checkout: Path, fakes: Path) -> None:
    variables = environment(fakes)
    (fakes / "trainer").write_text("wait")
    run = f"run --dir={fakes}/state --gpus=1,3 --xla-flags=--a\\ --b"
    assert launch(checkout, "gpus", run, [*TRAIN, *TRICKY], variables).returncode == 0
    until(lambda: recorded(fakes, "trainings"))
    (training,) = recorded(fakes, "trainings")
    assert training["arguments"] == [*TRAIN[1:], *TRICKY]
    assert training["environment"] == {"CUDA_VISIBLE_DEVICES": "1,3", "XLA_FLAGS": "--a --b", "HF_TOKEN": SECRET}
    assert launch(checkout, "gpus", f"status --dir={fakes}/state", [], variables).stdout.startswith("running pid ")
    assert launch(checkout, "gpus", f"stop --dir={fakes}/state", [], variables).returncode == 0
    assert launch(checkout, "gpus", f"status --dir={fakes}/state", [], variables).stdout == "stopped\n"
    (fakes / "trainer").write_text("3")
    assert launch(checkout, "gpus", run, TRAIN, variables).returncode == 0
    until(lambda: launch(checkout, "gpus", f"status --dir={fakes}/state", [], variables).stdout == "failed 3\n")


def test_local_processes_have_their_ids_and_end_together(checkout: Path, fakes: Path) -> None:
    (fakes / "trainer").write_text("7 in 1")
    done = launch(checkout, "local", "--processes=3 --devices=2 --port=12399", [*TRAIN, *TRICKY], environment(fakes))
    assert done.returncode == 7
    assert sorted(done.stdout.splitlines()) == ["[1] training", "[2] saved", "[2] training", "saved", "training"]
    trainings = sorted(recorded(fakes, "trainings"), key=lambda t: t["environment"]["COTMI_PROCESS_ID"])
    for index, training in enumerate(trainings):
        assert training["arguments"] == [*TRAIN[1:], *TRICKY]
        assert training["environment"] == {
            "COTMI_COORDINATOR": "127.0.0.1:12399",
            "COTMI_PROCESSES": "3",
            "COTMI_PROCESS_ID": str(index),
            "JAX_NUM_CPU_DEVICES": "2",
            "HF_TOKEN": SECRET,
        }


def test_local_waits_after_ctrl_c_until_every_process_has_saved(checkout: Path, fakes: Path) -> None:
    """Ctrl-C reaches the whole group, so that it also ends the command with which the launcher waits."""
    (fakes / "trainer").write_text("wait in 9")
    command = ["bash", str(checkout / "launch/local.sh"), "--processes=3", "--port=12399", *TRAIN]
    with background(command, environment(fakes)) as local:
        until(lambda: len(recorded(fakes, "trainings")) == 3)
        time.sleep(0.3)
        os.killpg(local.pid, signal.SIGINT)
        _, errors = local.communicate(timeout=60)
    assert local.returncode == 0, errors


@pytest.mark.parametrize(("codes", "code"), [("2 75 75", 2), ("75 75 1", 1), ("75 75 75", 75), ("0 0 0", 0)])
def test_local_exits_with_the_code_of_the_failed_process(codes: str, code: int, checkout: Path, fakes: Path) -> None:
    """It exits later than the processes that end because of it."""
    (fakes / "trainer").write_text(codes)
    done = launch(checkout, "local", "--processes=3 --port=12399", TRAIN, environment(fakes))
    assert done.returncode == code


@pytest.mark.slow
def test_local_trains(tmp_path: Path) -> None:
    """The real trainer, in two processes with two devices each."""
    variables = runs.quick_environment()
    quick = ["--config.objective.name=standard", "--config.eval.every=0", "--config.steps=2"]
    command = [f"--config={REPOSITORY}/configs/quickstart.py:smoke", f"--workdir={tmp_path}/a run", *quick]
    port = free_address().rpartition(":")[2]
    flags = f"--processes=2 --devices=2 --port={port} --python={sys.executable}"
    done = launch(REPOSITORY, "local", flags, ["--", *command], variables)
    assert done.returncode == 0, done.stderr
    assert "'data': 4" in done.stderr and (tmp_path / "a run" / "run.json").is_file()
