"""The launchers: what they print is what they run, and it does on fake machines what it should do on real ones.

`python tests/test_launch.py` writes golden/launch anew. Read its diff: each line is a command that somebody pays for.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import fake_cluster
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).parent / "golden" / "launch"
LAUNCHERS = ("tpu_vm", "gke_xpk", "slurm", "gpus", "local", "worker")
SECRET = 'hf_it\'s a "secret" $HOME'
TRICKY = ['--config.a=it\'s "q" $HOME `date` \\ * ~ ;&|<>(){}#!', "--config.b=", "--config.c=ü\tz", "x  y"]

TPU = "--name=t5 --zone=us-west4-a"
POD = f"{TPU} --project=p --type=v5litepod-64"
TRAIN = ["--", "--config=configs/cqa.py", "--workdir=gs://bucket/run", "--config.data.root=it's here"]
GKE = "--cluster=c --zone=us-east5-b --project=p"
WORKLOAD = f"{GKE} --workload=w --tpu-type=v6e-16"
SLURM = "--name=cqa --time=24:00:00 --venv=/shared/venv"

# launcher, its flags, and whether a training command follows.
COMMANDS: dict[str, list[tuple[str, bool]]] = {
    "tpu_vm": [
        (f"create {POD}", False),
        (f"create {TPU} --type=v6e-8 --queued --spot --valid-until-duration=6h --create-flag=--network=n", False),
        (f"create {TPU} --type=v4-8 --version=own-version", False),
        (f"setup {TPU} --project=p --extras=tpu,gcs --ssh-flag=--internal-ip", False),
        (f"run {POD} --env=HF_TOKEN --env=WANDB_API_KEY", True),
        (f"run {TPU} --type=v5litepod-8 --module=cotmi_jax.evaluate", True),
        (f"logs {TPU} --worker=3 --lines=7 --no-follow", False),
        (f"status {TPU} --queued", False),
        (f"stop {TPU} --grace=60", False),
        (f"resume {POD} --queued --spot --env=HF_TOKEN", True),
        (f"watch {POD} --spot --poll=30", True),
        (f"delete {TPU}", False),
        (f"delete {TPU} --queued", False),
    ],
    "gke_xpk": [
        (f"run {WORKLOAD} --docker-image=gcr.io/p/i --num-slices=2 --env=HF_TOKEN --priority=high --spot", True),
        (f"run {GKE} --workload=w --tpu-type=v6e-8 --base-docker-image=python:3.12 --max-restarts=3", True),
        (f"resume {WORKLOAD} --docker-image=gcr.io/p/i", True),
        (f"list {GKE}", False),
        (f"logs {GKE} --workload=w --slice=1 --worker=2", False),
        (f"delete {GKE} --workload=w", False),
    ],
    "slurm": [
        (f"run {SLURM} --nodes=2 --gpus-per-node=4 --partition=gpu --account=a --env=HF_TOKEN --cpus-per-task=8", True),
        ("run --name=cqa --time=1:00:00 --gpus-per-node=4 --processes-per-node=1 --container=/i.sif --mem=0", True),
        (f"run {SLURM} --srun-flag=--cpu-bind=none --sbatch-flag=--exclusive --setup=module\\ load\\ cuda", True),
        ("logs --job=17 --name=cqa --log-dir=/shared/logs", False),
        ("status --job=17", False),
        ("stop --job=17", False),
        ("delete --job=17", False),
    ],
    "gpus": [
        ("run --dir=runs/cqa.launch --gpus=0,1 --xla-flags=--xla_a=true\\ --xla_b=1", True),
        ("logs --dir=runs/cqa.launch", False),
        ("status --dir=runs/cqa.launch", False),
        ("stop --dir=runs/cqa.launch --grace=9", False),
    ],
    "local": [("--devices=2", True), ("--processes=3 --devices=2 --port=12399", True)],
}


def environment(home: Path, **more: str) -> dict[str, str]:
    """Variables of a launcher among the fakes, whose directory is home."""
    plain = {"HF_TOKEN": SECRET, "WANDB_API_KEY": "wandb-secret", "FAKE_CLUSTER": str(home), "HOME": str(home)}
    return {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "TMPDIR": str(home), "USER": "u", **plain, **more}


def launch(
    root: Path, launcher: str, flags: str, extra: Sequence[str], variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Call a launcher of the checkout at root."""
    command = ["bash", str(root / "launch" / f"{launcher}.sh"), *shlex.split(flags), *extra]
    return subprocess.run(command, cwd=root, env=dict(variables), capture_output=True, text=True)


def make_checkout(root: Path) -> Path:
    """A git checkout of the launchers as they are now, committed or not."""
    shutil.copytree(REPOSITORY / "launch", root / "launch")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e", "-c", "init.defaultBranch=main", "-C", str(root)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "launchers"]):
        subprocess.run([*git, *command], check=True)
    return root


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def fakes(tmp_path: Path) -> Path:
    """A directory with the fake machines, and their programs in bin."""
    fake_cluster.install(tmp_path / "bin")
    (tmp_path / "states").touch()
    return tmp_path


def recorded(fakes: Path, name: str = "calls") -> list[dict]:
    """The calls of fake programs, or the trainings, so far."""
    file = fakes / f"{name}.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def until(condition: Callable[[], object]) -> None:
    """Wait for something that happens in another process."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# As they stand.


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_help_explains_every_flag(launcher: str, checkout: Path, fakes: Path) -> None:
    done = launch(checkout, launcher, "--help", [], environment(fakes))
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 120
    source = (REPOSITORY / "launch" / f"{launcher}.sh").read_text()
    specifications = re.findall(r'(?:accepted\+?=|ordering=|flags )"([^"]*)"', source)
    accepted = {flag.rstrip("=+") for flag in " ".join(specifications).split() if not flag.startswith("$")}
    assert accepted and {flag for flag in accepted if f"--{flag}" not in done.stdout} == set()


def test_shellcheck() -> None:
    shellcheck = Path(sys.executable).with_name("shellcheck")
    assert shellcheck.is_file(), "pip install -e '.[test]'"
    files = sorted((REPOSITORY / "launch").glob("*.sh"))
    assert {file.stem for file in files} == {*LAUNCHERS, "lib"}
    done = subprocess.run([shellcheck, "-x", *files], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    for file in files:
        subprocess.run(["bash", "-n", file], check=True)
        assert max(map(len, file.read_text().splitlines())) <= 120, file


def test_commands_of_the_page(checkout: Path, fakes: Path) -> None:
    """Every command of launch/README.md, as a dry run."""
    blocks = re.findall(r"```bash\n(.*?)```", (REPOSITORY / "launch" / "README.md").read_text(), flags=re.DOTALL)
    lines = [re.sub(r"\s+#.*", "", line) for line in "\n".join(blocks).replace("\\\n", " ").splitlines()]
    commands = [re.sub(r"(?= -- |$)", " --dry-run", line, count=1) for line in lines if line.startswith("launch/")]
    settings = [line for line in lines if re.match(r"(export )?[A-Z]+=", line)]
    assert len(commands) >= 17 and {line.split("/")[1].split(".")[0] for line in commands} == set(COMMANDS)
    for command in commands:
        program = "\n".join(["set -e", *settings, command])
        done = subprocess.run(
            ["bash", "-c", program], cwd=checkout, env=environment(fakes), capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (0, ""), command


def dry_runs(launcher: str, root: Path, home: Path) -> str:
    """What --dry-run prints for every command, with the checkout called /checkout."""
    parts = []
    for flags, trains in COMMANDS[launcher]:
        done = launch(root, launcher, f"{flags} --dry-run", TRAIN if trains else [], environment(home))
        assert (done.returncode, done.stderr) == (0, ""), flags
        line = f"$ launch/{launcher}.sh {flags} --dry-run{' ' + shlex.join(TRAIN) if trains else ''}"
        parts.append(f"{line}\n{done.stdout}")
    return "\n".join(parts).replace(str(root), "/checkout")


@pytest.mark.parametrize("launcher", COMMANDS)
def test_dry_run_is_golden_and_runs_nothing(launcher: str, checkout: Path, fakes: Path) -> None:
    found = dry_runs(launcher, checkout, fakes)
    assert found == (GOLDEN / f"{launcher}.txt").read_text(), f"python {Path(__file__).name} writes it anew"
    assert recorded(fakes) == recorded(fakes, "trainings") == []
    assert "secret" not in found


@pytest.mark.parametrize(
    ("launcher", "flags", "extra", "part"),
    [
        ("tpu_vm", "", [], "unknown command ''"),
        ("tpu_vm", "fly", [], "unknown command 'fly'"),
        ("tpu_vm", f"create {TPU} --tpye=v6e-8", [], "unknown flag --tpye"),
        ("tpu_vm", f"create {TPU}", [], "--type is missing"),
        ("tpu_vm", "delete --zone=z", [], "--name is missing"),
        ("tpu_vm", "delete --zone=z --name=", [], "--name needs a value"),
        ("tpu_vm", "delete --zone=z --name", [], "--name needs a value"),
        ("tpu_vm", "delete t5", [], "unexpected argument 't5'"),
        ("tpu_vm", f"create {TPU} --type=tpu", [], "--type=tpu is not an accelerator type"),
        ("tpu_vm", f"create {TPU} --type=v6e-8 --spot=yes", [], "--spot takes no value"),
        ("tpu_vm", f"create {TPU} --type=v6e-8 --valid-until-duration=6h", [], "add --queued"),
        ("tpu_vm", f"stop {TPU} --grace=long", [], "--grace=long is not a whole number"),
        ("tpu_vm", f"run {POD}", [], "nothing to run"),
        ("tpu_vm", f"run {POD} --config=x.py", TRAIN, "unknown flag --config"),
        ("tpu_vm", f"run {POD}", ["--", "--config=x.py"], "--workdir is missing"),
        ("tpu_vm", f"run {POD}", ["--", "--workdir=runs/x"], "the hosts of a v5litepod-64 share none"),
        ("tpu_vm", f"run {POD}", ["--", "--workdir", "runs/x"], "the hosts of a v5litepod-64 share none"),
        ("tpu_vm", f"run {POD}", ["--", "--workdir=gs://b/x", "a\nb"], "a line break"),
        ("tpu_vm", f"watch {TPU} --type=v6e-8", ["--", "--workdir=runs/x"], "goes with the TPU"),
        ("tpu_vm", f"run {POD} --env=HF_TOKEN={SECRET.split()[0]}", TRAIN, "--env takes the name"),
        ("tpu_vm", f"run {POD} --env=NOT_THERE", TRAIN, "--env=NOT_THERE is not set here"),
        ("gke_xpk", f"run {WORKLOAD}", TRAIN, "one of --docker-image and --base-docker-image"),
        ("gke_xpk", f"delete {GKE} --workload=W_1", [], "--workload=W_1 is no name"),
        ("gke_xpk", f"run {WORKLOAD} --docker-image=i", ["--", "--workdir=/x"], "goes with it"),
        ("slurm", f"run {SLURM} --gpus-per-node=8 --processes-per-node=3", TRAIN, "--processes-per-node=3 is neither"),
        ("slurm", f"run {SLURM} --container=i", TRAIN, "--venv has its own"),
        ("slurm", "stop --job=x", [], "--job=x is not the number"),
        ("gpus", "run --dir=d --gpus=all", TRAIN, "--gpus=all is not a list"),
        ("gpus", "stop", [], "--dir is missing"),
        ("local", "--processes=0", TRAIN, "--processes=0 is not a whole number"),
        ("worker", "logs --dir=nowhere", [], "nothing has been started in nowhere"),
        ("worker", "start --dir=d", [], "nothing to run"),
    ],
)
def test_errors_are_one_line(
    launcher: str, flags: str, extra: list[str], part: str, checkout: Path, fakes: Path
) -> None:
    """With the way out in it, exit code 2, and before anything is called."""
    done = launch(
        checkout, launcher, shlex.quote(flags) if not flags else flags.replace("it's", "its"), extra, environment(fakes)
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and part in done.stderr, done.stderr
    assert "hf_" not in done.stderr and recorded(fakes) == []


# What is printed is what is run.


def scrubbed(calls: list[dict], fakes: Path) -> list[dict]:
    """The calls without the random names of scratch directories."""
    return json.loads(re.sub(re.escape(str(fakes)) + r"/tmp\.\w+", "/scratch", json.dumps(calls)))


ONCE = [(name, *command) for name in ("tpu_vm", "gke_xpk", "slurm") for command in COMMANDS[name]]


@pytest.mark.parametrize(
    ("launcher", "flags", "trains"), [c for c in ONCE if c[1].split()[0] not in ("resume", "watch", "logs")]
)
def test_pasting_a_dry_run_does_the_same(launcher: str, flags: str, trains: bool, checkout: Path, fakes: Path) -> None:
    variables = environment(fakes, FAKE_PASSIVE="1")
    extra = [*TRAIN, *TRICKY] if trains else []
    done = launch(checkout, launcher, flags, extra, variables)
    assert done.returncode == 0, done.stderr
    calls = scrubbed(recorded(fakes), fakes)
    printed = launch(checkout, launcher, f"{flags} --dry-run", extra, variables).stdout
    (fakes / "calls.jsonl").unlink()
    subprocess.run(["bash", "-c", printed], cwd=fakes, env=variables, check=True, capture_output=True)
    asked = [call for call in calls if "describe" in call["arguments"]]
    assert calls and scrubbed(recorded(fakes), fakes) == [
        c for n, c in enumerate(calls) if c not in asked or c not in calls[:n]
    ]
    assert "secret" not in json.dumps(calls) + printed
    assert not list(fakes.glob("tmp.*"))


@pytest.mark.parametrize("failure", ["scp", "ssh"])
def test_a_failure_ends_the_launcher_and_leaves_no_secret_behind(failure: str, checkout: Path, fakes: Path) -> None:
    variables = environment(fakes, FAKE_PASSIVE="1", FAKE_FAILURE=failure)
    done = launch(checkout, "tpu_vm", f"run {POD} --env=HF_TOKEN", TRAIN, variables)
    assert done.returncode == 1
    assert [call["arguments"][3] for call in recorded(fakes)] == ["scp", "ssh"][: 1 + (failure == "ssh")]
    assert not list(fakes.glob("tmp.*"))


# TPU workers.


def test_a_pod_from_create_to_delete(checkout: Path, fakes: Path) -> None:
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
    again = launch(checkout, "tpu_vm", f"run {pod}", TRAIN, variables)
    assert again.returncode != 0 and "has a run already" in again.stderr
    assert launch(checkout, "tpu_vm", f"status {TPU}", [], variables).stdout.count("running pid") == 2
    assert launch(checkout, "tpu_vm", f"stop {TPU}", [], variables).stdout == 2 * "here: stopped\n"
    logs = launch(checkout, "tpu_vm", f"logs {TPU} --worker=1 --no-follow", [], variables).stdout.splitlines()
    assert logs[0].startswith("--- ") and logs[1:] == ["training", "saved"]
    assert launch(checkout, "tpu_vm", f"status {TPU}", [], variables).stdout == "READY\n" + 2 * "stopped\n"
    assert launch(checkout, "tpu_vm", f"delete {TPU}", [], variables).returncode == 0
    assert list(fakes.glob("worker-*")) == []


@pytest.mark.parametrize("queued", ["", " --queued"])
def test_watch_goes_on_after_a_preemption(queued: str, checkout: Path, fakes: Path) -> None:
    """Started once, preempted once, started anew with the same arguments, finished; the TPU is left for the user."""
    variables = environment(fakes)
    (fakes / "states").write_text("READY READY PREEMPTED")
    (fakes / "trainer").write_text("wait")
    command = [
        "bash",
        str(checkout / "launch/tpu_vm.sh"),
        *f"watch {POD} --spot --poll=1 --env=HF_TOKEN{queued}".split(),
        *TRAIN,
    ]
    with subprocess.Popen(
        command, env=variables, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as watch:
        until(lambda: len(recorded(fakes, "trainings")) == 2)
        (fakes / "trainer").write_text("0")
        _, said = watch.communicate(timeout=20)
    assert watch.returncode == 0, said
    assert "PREEMPTED" in said and "the run is finished" in said and "costs money" in said
    trainings = recorded(fakes, "trainings")
    assert len(trainings) == 4 and all(training == trainings[0] for training in trainings)
    verbs = [call["arguments"][3] for call in recorded(fakes) if call["name"] == "gcloud"]
    assert [v for v in verbs if v in ("create", "delete")] == ["create", "delete", "create"]
    assert "secret" not in json.dumps(recorded(fakes)) + said


@pytest.mark.parametrize(("code", "starts"), [("75", 2), ("3", 1)])
def test_watch_starts_again_only_what_was_interrupted(code: str, starts: int, checkout: Path, fakes: Path) -> None:
    (fakes / "trainer").write_text(code)
    command = ["bash", str(checkout / "launch/tpu_vm.sh"), *f"watch {POD} --poll=1".split(), *TRAIN]
    with subprocess.Popen(
        command, env=environment(fakes), stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    ) as watch:
        if starts == 2:
            until(lambda: len(recorded(fakes, "trainings")) == 2)
            (fakes / "trainer").write_text("0")
        _, said = watch.communicate(timeout=20)
    assert (watch.returncode, len(recorded(fakes, "trainings"))) == (0 if starts == 2 else 2, 2 * starts), said


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
    pod = f"({fake_cluster.flag(calls[2], 'command')}) & PID=$!; trap 'kill -TERM $PID' TERM; wait; wait $PID; exit $?"
    with subprocess.Popen(["bash", "-c", pod], cwd=checkout, env=variables, stdout=subprocess.DEVNULL) as process:
        until(lambda: recorded(fakes, "trainings"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143
    assert recorded(fakes, "trainings") == [
        {"arguments": [*TRAIN[1:], *TRICKY], "environment": {"COTMI_COORDINATOR": "auto", "HF_TOKEN": SECRET}}
    ]


@pytest.mark.parametrize(
    ("trainer", "number", "requeued"), [("wait", signal.SIGUSR1, True), ("75", None, True), ("3", None, False)]
)
def test_a_slurm_job_is_queued_again_when_its_time_is_up(
    trainer: str, number: int | None, requeued: bool, checkout: Path, fakes: Path
) -> None:
    variables = environment(fakes)
    (fakes / "trainer").write_text(trainer)
    flags = "run --name=n --time=1:00 --gpus-per-node=4 --processes-per-node=1 --nodes=2 --env=HF_TOKEN"
    assert launch(checkout, "slurm", flags, [*TRAIN, *TRICKY], variables).returncode == 0
    (submitted,) = recorded(fakes)
    assert "--requeue" in submitted["arguments"] and "--export=HOME,PATH,USER,HF_TOKEN" in submitted["arguments"]
    (fakes / "job.sh").write_text(submitted["input"])
    shellcheck = [Path(sys.executable).with_name("shellcheck"), "-S", "warning", fakes / "job.sh"]
    assert subprocess.run(shellcheck, stdout=subprocess.DEVNULL).returncode == 0
    job = ["bash", str(fakes / "job.sh")]  # not -l: this machine's profile is not the cluster's
    with subprocess.Popen(job, env=variables | {"SLURM_JOB_ID": "17"}, stdout=subprocess.DEVNULL) as process:
        until(lambda: recorded(fakes, "trainings"))
        if number:
            process.send_signal(number)
        assert process.wait(10) == (0 if number else int(trainer))
    (training,) = recorded(fakes, "trainings")
    assert training["arguments"] == [*TRAIN[1:], *TRICKY]
    assert training["environment"]["COTMI_COORDINATOR"] == "auto"
    assert training["environment"]["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3"
    asked = [call["arguments"] for call in recorded(fakes) if call["name"] == "scontrol"]
    assert asked == ([["requeue", "17"]] if requeued else [])


def test_gpus_outlive_the_shell_and_stop(checkout: Path, fakes: Path) -> None:
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


def test_local_processes_are_told_apart_and_end_together(checkout: Path, fakes: Path) -> None:
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


def test_local_trains(tmp_path: Path) -> None:
    """The real trainer on two devices."""
    variables = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    quick = ["--config.objective.name=standard", "--config.eval.every=0", "--config.steps=2"]
    command = [f"--config={REPOSITORY}/configs/quickstart.py:smoke", f"--workdir={tmp_path}/a run", *quick]
    done = launch(REPOSITORY, "local", f"--devices=2 --python={sys.executable}", ["--", *command], variables)
    assert done.returncode == 0, done.stderr
    assert "'data': 2" in done.stderr and (tmp_path / "a run" / "run.json").is_file()


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        fake_cluster.install(Path(scratch) / "bin")
        root = make_checkout(Path(scratch) / "checkout")
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for launcher in COMMANDS:
            (GOLDEN / f"{launcher}.txt").write_text(dry_runs(launcher, root, Path(scratch)))
