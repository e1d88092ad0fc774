"""Soaking: runs that are killed repeatedly are compared with an undisturbed one."""

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from absl import flags
from absl.testing import flagsaver

from benchmarks import soak as soaking
from benchmarks.soak import Kill, SoakReport, _hit, differences, soak
from cotmi_jax.errors import UserError
from cotmi_jax.workdir.checkpoint import Checkpoints

quick_compilation = runs.quick_compilation


class ForkedTrainer:
    """The trainer that soaking starts, forked off a process that has imported what it needs; killed as any process."""

    def __init__(self, command: Sequence[str], **_: object):
        assert command[:3] == [sys.executable, "-m", "cotmi_jax.train"]
        folder = Path(tempfile.mkdtemp(dir=runs.scratch()))
        (folder / "in").touch()
        self.process = runs.start_command("train", command[3:], folder, 1, None)

    def wait(self, seconds: float | None = None) -> int | None:
        self.process.join(seconds)
        if self.process.is_alive():
            raise subprocess.TimeoutExpired("train", seconds or 0.0)
        return self.process.exitcode

    def kill(self) -> None:
        self.process.kill()


@pytest.mark.slow
def test_killed_runs_end_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = f"--config={runs.RECIPE}:smoke"
    arguments = [
        recipe,
        "--config.objective.name=cotmi",
        "--config.mi.monitor.every=0",
        f"--workdir={tmp_path / 'soak'}",
        "--kills=2",
        "--seed=5",
    ]
    monkeypatch.setattr(soaking.subprocess, "Popen", ForkedTrainer)
    monkeypatch.setattr(sys, "argv", ["soak", *arguments])  # where --config looks for its overrides
    with flagsaver.flagsaver():
        flags.FLAGS(sys.argv)
        assert soaking.main() == 0
    out, err = capsys.readouterr()
    first, verdict = out.splitlines()
    assert first.startswith("2 kills in ") and verdict.startswith("every one ended in the same bits")
    assert [line[:9] for line in err.splitlines() if line.startswith("kill ")] == ["kill 1/2:", "kill 2/2:"]
    assert (tmp_path / "soak" / "reference" / "metrics.jsonl").exists()
    assert not list((tmp_path / "soak").glob("killed-*/"))


# Differences between runs.


def next_float(leaf: np.ndarray) -> np.ndarray:
    changed = leaf.copy()
    changed.flat[0] = np.nextafter(changed.flat[0], np.float32(np.inf))
    return changed


def change_optimizer(workdir: Path) -> None:
    state = runs.read_state(workdir)
    leaves, tree = jax.tree.flatten(state.opt_state)
    last = max(index for index, leaf in enumerate(leaves) if leaf.dtype == np.float32)
    leaves[last] = next_float(leaves[last])
    place = workdir / "checkpoints" / "6"
    data, config = (json.loads((place / item / "metadata").read_text()) for item in ("data", "config"))
    shutil.rmtree(place)
    checkpoints = Checkpoints(workdir, keep=2)
    checkpoints.save(dataclasses.replace(state, opt_state=tree.unflatten(leaves)).items(), 6, data, config)
    checkpoints.close()


def change_metrics(workdir: Path) -> None:
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    lines[1]["train/loss"] += 1e-12
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def change_timings(workdir: Path) -> None:
    text = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(text.replace('"train/seconds_per_step": ', '"train/seconds_per_step": 1'))


CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "nothing": (lambda workdir: None, ""),
    "clock": (change_timings, ""),
    "optimizer by one bit": (change_optimizer, "/checkpoints/6: optimizer"),
    "metrics": (change_metrics, "/metrics.jsonl, line 2: "),
    "a line twice": (lambda workdir: repeat_last_line(workdir), "/metrics.jsonl, line "),
    "last checkpoint": (lambda workdir: shutil.rmtree(workdir / "checkpoints" / "6"), "/checkpoints/4 is not of "),
    "best checkpoint": (lambda workdir: shutil.rmtree(workdir / "best"), "None is not of the step of "),
    "data position": (lambda workdir: change_position(workdir), "/checkpoints/6: data differs"),
}


def repeat_last_line(workdir: Path) -> None:
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join([*lines, lines[-1]]))


def change_position(workdir: Path) -> None:
    path = workdir / "checkpoints" / "6" / "data" / "metadata"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fingerprint": "other"}))


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_exactly_the_differences_are_found(tmp_path: Path, change: str) -> None:
    workdir = shutil.copytree(runs.trained(), tmp_path / "run")
    alter, words = CHANGES[change]
    alter(workdir)
    found = differences(runs.trained(), workdir)
    assert len(found) == (1 if words else 0) and all(words in line and "\n" not in line for line in found), found


# Kills, with a fake trainer that starts immediately.


TRAINER = """
    import json, pathlib, sys, time
    workdir = pathlib.Path(sys.argv[-1].partition("=")[2])
    workdir.mkdir(exist_ok=True)
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    kept = lines if "careless" in sys.argv else lines[: len(lines) // 3 * 3]
    path.write_text("".join(line + "\\n" for line in kept))
    start = len(kept) // 3 * 3
    with (workdir / "starts.jsonl").open("a") as starts:
        starts.write(json.dumps({"step": start}) + "\\n")
    for step in range(start + 1, 13):
        time.sleep(0.03)
        with path.open("a") as file:
            file.write(json.dumps({"step": step}) + "\\n")
    if "failing" in sys.argv:
        sys.exit("out of luck")
"""


def soak_trainer(tmp_path: Path, *how: str) -> SoakReport:
    (tmp_path / "trainer.py").write_text(textwrap.dedent(TRAINER))
    command = [sys.executable, "-S", str(tmp_path / "trainer.py"), *how]
    return soak(command, str(tmp_path / "soak"), kills=8, seed=0, eval_every=0)


@pytest.mark.slow
def test_runs_are_killed_at_least_the_given_number_of_times(tmp_path: Path) -> None:
    report = soak_trainer(tmp_path)
    assert len(report.kills) == 8 and report.differences == ()
    assert report.text().startswith(f"8 kills in {report.rounds} runs (")


@pytest.mark.slow
def test_a_trainer_that_resumes_wrongly_is_detected(tmp_path: Path) -> None:
    report = soak_trainer(tmp_path, "careless")
    assert report.differences and "/metrics.jsonl, line " in report.text()
    assert list((tmp_path / "soak").glob("killed-*/metrics.jsonl"))


def test_a_trainer_that_fails_by_itself_ends_the_soak(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"soak/reference failed with exit code 1: out of luck \(.*reference.log\)"):
        soak_trainer(tmp_path, "failing")
    with pytest.raises(UserError, match="is not empty"):
        soak_trainer(tmp_path)
    with pytest.raises(UserError, match="gs://bucket/soak: .* give a local folder"):
        soak(["true"], "gs://bucket/soak", kills=1, seed=0, eval_every=0)


@pytest.mark.parametrize(
    "lines, temporary, expected",
    [
        ([], False, Kill(1.0, "compiling", 4, 4)),
        ([{"step": 5, "train/loss": 1.0}], False, Kill(1.0, "training", 5, 4)),
        ([{"step": 6, "train/loss": 1.0}], False, Kill(1.0, "evaluating", 6, 4)),
        ([{"step": 6, "train/loss": 1.0}, {"step": 6, "valid/loss": 1.0}], False, Kill(1.0, "training", 6, 4)),
        ([{"step": 6, "train/loss": 1.0}, {"step": 6, "valid/loss": 1.0}], True, Kill(1.0, "saving", 6, 4)),
    ],
)
def test_the_phase_of_a_kill_is_derived_from_the_files(
    tmp_path: Path, lines: list, temporary: bool, expected: Kill
) -> None:
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    if temporary:
        (tmp_path / "checkpoints" / "6.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "starts.jsonl").write_text('{"step": 4}\n')
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert _hit(tmp_path, ([], []), 1.0, eval_every=3) == expected
    assert _hit(tmp_path, ([{"step": 4}], []), 1.0, eval_every=3) == Kill(1.0, "starting", 4, 4)
