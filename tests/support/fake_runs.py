"""Fakes of `train` and `evaluate` for tests of studies: they take milliseconds, and keep the same files and locks.

As a script it is either command, with the flags that a worker gives. {FAKE_RUNS}/config.json is base(); the file `acts`
there says, by a part of the workdir's name, what goes wrong:

    {"dss-seed0": {"command": "train", "at": 3, "exit": 2, "say": "error: no", "times": 1}}

`at` is a step; "kill" is a signal that the command sends itself instead of exiting. Every step and every evaluation
adds a line to {FAKE_RUNS}/done.jsonl.
"""

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path

STEP_SECONDS = "FAKE_STEP_SECONDS"


def parse(flags: list[str]) -> tuple[dict, Path, str]:
    """Config, workdir and split."""
    config = json.loads(Path(os.environ["FAKE_RUNS"], "config.json").read_text())
    workdir, split = "", "test"
    for flag in flags:
        key, _, value = flag.removeprefix("--").partition("=")
        if key == "workdir":
            workdir = value
        elif key == "split":
            split = value
        elif key.startswith("config."):
            *sections, last = key.split(".")[1:]
            place = config
            for section in sections:
                place = place[section]
            kind = type(place[last])
            place[last] = value == "True" if kind is bool else kind(value)
    return config, Path(workdir), split


def note(**fields: object) -> None:
    """Record what was done."""
    with open(Path(os.environ["FAKE_RUNS"], "done.jsonl"), "a") as file:
        file.write(json.dumps(fields | {"pid": os.getpid()}) + "\n")


def act(command: str, workdir: Path, step: int) -> None:
    """Go wrong, if the test asks for it."""
    place = Path(os.environ["FAKE_RUNS"], "acts")
    for name, what in (json.loads(place.read_text()) if place.exists() else {}).items():
        mark = Path(os.environ["FAKE_RUNS"], f"acted-{name}")
        acted = len(mark.read_text()) if mark.exists() else 0
        if name in workdir.name and what["command"] == command and what.get("at", step) == step:
            if acted >= what.get("times", 10**6):
                continue
            mark.write_text("x" * (acted + 1))
            if what.get("say"):
                print(what["say"], file=sys.stderr, flush=True)
            if what.get("kill"):
                os.kill(os.getpid(), what["kill"])
            os._exit(what.get("exit", 0))


def train(config: dict, workdir: Path) -> int:
    """Steps, each with a checkpoint every checkpoint.every; resumes; saves on SIGTERM."""
    workdir.mkdir(parents=True, exist_ok=True)
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    with open(workdir / "owner.json", "a+") as owner:
        try:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"error: another run is training in {workdir} (there): wait for it", file=sys.stderr)
            return 2
        (workdir / "run.json").write_text(json.dumps({"config": config, "student": {}}))
        saved = workdir / "checkpoints"
        saved.mkdir(exist_ok=True)
        start = max((int(path.name) for path in saved.iterdir()), default=0)
        note(command="start", workdir=workdir.name, step=start)
        for step in range(start + 1, config["steps"] + 1):
            time.sleep(float(os.environ.get(STEP_SECONDS, "0.002")))
            act("train", workdir, step)
            note(command="step", workdir=workdir.name, step=step)
            with open(workdir / "metrics.jsonl", "a") as metrics:
                metrics.write(json.dumps({"step": step}) + "\n")
            if asked or step % config["checkpoint"]["every"] == 0 or step == config["steps"]:
                (saved / str(step)).mkdir(exist_ok=True)
            if asked:
                return 0
    return 0


def evaluate(config: dict, workdir: Path, split: str) -> int:
    """Answers that depend on the config alone."""
    act("evaluate", workdir, 0)
    config = json.loads((workdir / "run.json").read_text())["config"]
    note(command="evaluate", workdir=workdir.name, step=0)
    folder = workdir / "evaluation" / split
    folder.mkdir(parents=True, exist_ok=True)
    correct = [bool((number + config["seed"]) % 3) for number in range(6)]
    lines = [{"id": str(number), "correct": each, "label": "a"} for number, each in enumerate(correct)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "metrics.json").write_text(json.dumps({"n": 6, "accuracy": sum(correct) / 6}))
    return 0


def install(folder: Path, config: dict) -> None:
    """Prepare the folder; the caller sets FAKE_RUNS to it."""
    (folder / "config.json").write_text(json.dumps(config))


def use(poll: float = 0.02) -> None:
    """Have the workers of this process start the fakes instead of the real commands, and look often."""
    from cotmi_jax.study import commands, launchers, worker

    script = [sys.executable, "-SE", str(Path(__file__).resolve())]
    for module in (worker, launchers):
        module.train_command = lambda *given: [*script, "train", *commands.train_command(*given)[3:]]
        module.evaluate_command = lambda *given: [*script, "evaluate", *commands.evaluate_command(*given)[3:]]
    worker.Options.__init__.__defaults__ = (False, False, "error", poll, worker.Periods(), False)


def done(folder: Path) -> list[dict]:
    """What the fakes did, in order."""
    file = folder / "done.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        command, *rest = sys.argv[1:]
        given = parse(rest)
        sys.exit(train(given[0], given[1]) if command == "train" else evaluate(*given))
