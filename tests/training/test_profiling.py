"""Traces contain exactly the requested steps, are always closed, and do not change the run; reports of a run's time."""

import contextlib
import io
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from cotmi_jax.training import profiling as profile
from cotmi_jax.training.job import train
from cotmi_jax.training.profiling import Profile
from cotmi_jax.training.throughput import Throughput
from cotmi_jax.workdir.metrics import MetricWriter

quick_compilation = runs.quick_compilation


def traced_steps(folder: Path) -> list[list[int]]:
    """The numbers of the steps that each trace below a folder has marks of."""
    found = []
    for file in sorted(folder.glob("plugins/profile/*/*.xplane.pb")):
        assert file.with_name(file.name.replace("xplane.pb", "trace.json.gz")).exists()
        events = [
            event
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        ]
        found.append(sorted(int(dict(event.stats)["step_num"]) for event in events))
    return found


def run(folder: Path, wanted: range, starts: range, said: list[str], fail: int = 0, stop: int = 0) -> None:
    """A loop over small steps, which fails or is interrupted in one of them."""
    speed = Throughput()
    step_function = jax.jit(lambda x: {"loss": jnp.sin(x).sum()})
    with Profile(wanted, starts, folder, speed, said.append) as trace:
        batches = speed.feed(iter([{"x": jnp.arange(9.0)} for _ in starts]))
        for step, batch in enumerate(trace.feed(batches, starts.start), starts.start):
            trace.end(step, step_function(batch["x"]))
            if step == fail:
                raise ArithmeticError
            if step == stop:
                break


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wanted", "starts", "steps", "said"),
    [
        (range(2, 4), range(1, 9), [2, 3], None),
        (range(1, 2), range(1, 9), [1], None),
        (range(8, 9), range(1, 9), [8], None),
        (range(0), range(1, 9), None, None),
        (
            range(3, 8),
            range(5, 7),
            [5, 6],
            "asks for steps 3 to 7, this start runs steps 5 to 6: only steps 5 to 6 will",
        ),
        (range(3, 5), range(5, 7), None, "asks for steps 3 to 4, this start runs steps 5 to 6: nothing will be traced"),
        (range(9, 10), range(5, 7), None, "asks for step 9, this start runs steps 5 to 6: nothing will be traced"),
    ],
)
def test_requested_steps_of_this_start_are_traced_and_others_reported(
    wanted: range, starts: range, steps: list[int] | None, said: str | None, tmp_path: Path
) -> None:
    lines: list[str] = []
    run(tmp_path, wanted, starts, lines)
    assert traced_steps(tmp_path) == ([steps] if steps else [])
    assert len(lines) == bool(said) + bool(steps)
    assert said is None or said in lines[0]
    assert steps is None or f"traced: tensorboard --logdir={tmp_path}" in lines[-1]


def test_an_interrupt_or_error_closes_the_trace(tmp_path: Path) -> None:
    said: list[str] = []
    run(tmp_path / "interrupted", range(2, 6), range(1, 9), said, stop=3)
    with pytest.raises(ArithmeticError):
        run(tmp_path / "failed", range(2, 6), range(1, 9), said, fail=4)
    assert traced_steps(tmp_path / "interrupted") == [[2, 3]] and said[0].startswith("steps 2 to 3 traced")
    assert traced_steps(tmp_path / "failed") == [[2, 3, 4]] and said[1].startswith("steps 2 to 4 traced")


def test_the_device_is_idle_at_the_start_and_end_of_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[Any] = []

    class Watched:
        profiler = jax.profiler
        block_until_ready = staticmethod(lambda result: happened.append(result))

    monkeypatch.setattr(profile, "jax", Watched)
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *args, **kwargs: happened.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: happened.append("stop"))
    with Profile(range(3, 5), range(1, 9), tmp_path, Throughput(), happened.append) as trace:
        for step, _ in enumerate(trace.feed(iter([{}] * 8), 1), 1):
            trace.end(step, {"of step": step})  # type: ignore[dict-item]
    assert happened[:-1] == [{"of step": 2}, "start", {"of step": 4}, "stop"]


class Observed(NamedTuple):
    """A traced run: its workdir, its standard error, and when it began to write each line of training metrics."""

    workdir: Path
    said: str
    written: list[float]


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, quick_compilation: None) -> Observed:
    """Like runs.trained(), but traced, and with fewer lines of metrics."""
    workdir, written, write = tmp_path_factory.mktemp("run"), [], MetricWriter.write

    def timed(writer: MetricWriter, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" in metrics:
            written.append(time.perf_counter())
        write(writer, step, metrics)

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(MetricWriter, "write", timed)
        assert train(runs.tiny_config({"profile": "2-4", "log.every": 2}), str(workdir)) == 6
    return Observed(workdir, said.getvalue(), written)


@pytest.mark.slow
def test_tracing_writes_to_the_tensorboard_folder_and_does_not_change_the_run(observed: Observed) -> None:
    folder = observed.workdir / "tensorboard"
    assert traced_steps(folder) == [[2, 3, 4]]  # with an evaluation and a checkpoint between them
    assert f"steps 2 to 4 traced: tensorboard --logdir={folder}" in observed.said
    runs.assert_same(runs.read_state(observed.workdir), runs.read_state(runs.trained()))


@pytest.mark.slow
def test_the_phases_in_metrics_sum_to_the_wall_clock_time(observed: Observed) -> None:
    lines = [line for line in runs.read_metrics(observed.workdir, timings=True) if "train/loss" in line]
    phases = [
        {name: value for name, value in line.items() if "seconds_" in name and "per_step" not in name} for line in lines
    ]
    assert [line["step"] for line in lines] == [2, 4, 6]
    for found, passed in zip(phases[1:], np.diff(observed.written), strict=True):
        assert sum(found.values()) == pytest.approx(passed, rel=0.03, abs=0.02)
    names = [{name.removeprefix("train/seconds_") for name, value in found.items() if value} for found in phases]
    assert names[0] >= {"first_step", "step", "profile"} and names[1] >= {"step", "evaluation", "checkpoint", "profile"}
    assert "first_step" not in names[1] | names[2]


@pytest.mark.slow
def test_an_unknown_peak_is_reported_once_and_the_phases_at_the_end(observed: Observed) -> None:
    assert observed.said.count("train/mfu") == 1
    assert "no train/mfu: the peak speed of device cpu is not known" in observed.said
    assert re.search(r"^steps 1 to 6 in \d+\.\d s: .*evaluation \d", observed.said, flags=re.MULTILINE)
