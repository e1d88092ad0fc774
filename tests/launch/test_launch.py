"""Help and errors of the launchers, and that a dry run prints what a run does.

`python tests/launch/test_launch.py` regenerates golden/launch. Read its diff: users pay for what these
commands start.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import fake_cluster
import launching
import pytest
from launching import GKE, POD, SECRET, SLURM, TPU, TRAIN, TRICKY, WORKLOAD, environment, launch, recorded
from paths import GOLDEN, REPOSITORY

FOLDER = GOLDEN / "launch"

checkout, fakes = launching.checkout, launching.fakes

LAUNCHERS = ("tpu_vm", "gke_xpk", "slurm", "gpus", "local", "worker")

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


def test_commands_of_the_readme(checkout: Path, fakes: Path) -> None:
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
    assert found == (FOLDER / f"{launcher}.txt").read_text(), f"python {Path(__file__).name} regenerates it"
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
        ("tpu_vm", f"run {POD} --python=python3.12", TRAIN, "unknown flag --python"),
        ("tpu_vm", f"resume {POD} --retries=3", TRAIN, "unknown flag --retries"),
        ("tpu_vm", f"run {POD} --config=x.py", TRAIN, "unknown flag --config"),
        ("tpu_vm", f"run {POD}", ["--", "--config=x.py"], "--workdir is missing"),
        ("tpu_vm", f"run {POD}", ["--", "--workdir=runs/x"], "the hosts of a v5litepod-64 share no file system"),
        ("tpu_vm", f"run {POD}", ["--", "--workdir", "runs/x"], "the hosts of a v5litepod-64 share no file system"),
        ("tpu_vm", f"run {POD}", ["--", "--workdir=gs://b/x", "a\nb"], "a line break"),
        ("tpu_vm", f"watch {TPU} --type=v6e-8", ["--", "--workdir=runs/x"], "is lost with the TPU"),
        ("tpu_vm", f"run {POD} --env=HF_TOKEN={SECRET.split()[0]}", TRAIN, "--env takes the name"),
        ("tpu_vm", f"run {POD} --env=NOT_THERE", TRAIN, "--env=NOT_THERE is not set here"),
        ("gke_xpk", f"run {WORKLOAD}", TRAIN, "one of --docker-image and --base-docker-image"),
        ("gke_xpk", f"run {GKE} --workload=w --tpu-type=v6e --docker-image=i", TRAIN, "v6e is not an XPK type"),
        ("gke_xpk", f"delete {GKE} --workload=W_1", [], "--workload=W_1 is not a valid XPK name"),
        ("gke_xpk", f"run {WORKLOAD} --docker-image=i --num-slices=0", TRAIN, "--num-slices=0 is not a whole number"),
        ("gke_xpk", f"run {WORKLOAD} --docker-image=i", ["--", "--workdir=/x"], "is lost with it"),
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
    """The message states the remedy; exit code 2; no command has been called."""
    done = launch(
        checkout, launcher, shlex.quote(flags) if not flags else flags.replace("it's", "its"), extra, environment(fakes)
    )
    assert (done.returncode, done.stdout) == (2, ""), done
    assert re.fullmatch(r"error: [^\n]+\n", done.stderr) and part in done.stderr, done.stderr
    assert "hf_" not in done.stderr and recorded(fakes) == []


# A dry run prints what a run does.


def scrubbed(calls: list[dict], fakes: Path) -> list[dict]:
    """The calls without the random names of scratch directories."""
    return json.loads(re.sub(re.escape(str(fakes)) + r"/tmp\.\w+", "/scratch", json.dumps(calls)))


ONCE = [(name, *command) for name in ("tpu_vm", "gke_xpk", "slurm") for command in COMMANDS[name]]


@pytest.mark.parametrize(
    ("launcher", "flags", "trains"), [c for c in ONCE if c[1].split()[0] not in ("resume", "watch", "logs")]
)
def test_commands_of_a_dry_run_have_the_same_effect_as_the_run(
    launcher: str, flags: str, trains: bool, checkout: Path, fakes: Path
) -> None:
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
def test_a_failure_ends_the_launcher_and_leaves_no_secret_on_disk(failure: str, checkout: Path, fakes: Path) -> None:
    variables = environment(fakes, FAKE_PASSIVE="1", FAKE_FAILURE=failure)
    done = launch(checkout, "tpu_vm", f"run {POD} --env=HF_TOKEN", TRAIN, variables)
    assert done.returncode == 1
    assert [call["arguments"][3] for call in recorded(fakes)] == ["scp", "ssh"][: 1 + (failure == "ssh")]
    assert not list(fakes.glob("tmp.*"))


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        fake_cluster.install(Path(scratch) / "bin")
        root = launching.make_checkout(Path(scratch) / "checkout")
        FOLDER.mkdir(parents=True, exist_ok=True)
        for launcher in COMMANDS:
            (FOLDER / f"{launcher}.txt").write_text(dry_runs(launcher, root, Path(scratch)))
