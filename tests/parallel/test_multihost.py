"""Several processes: they train one model, write once, stop at the same step, and all end if one does."""

import functools
import json
import os
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hosts
import jax
import numpy as np
import pytest
import runs
from jax.experimental import mesh_utils

from cotmi_jax.data import run_data as inputs
from cotmi_jax.errors import UserError
from cotmi_jax.parallel import distributed
from cotmi_jax.parallel.distributed import EXIT_PEER_LOST, ProcessConfig
from cotmi_jax.training.job import train
from cotmi_jax.training.loop import Run
from cotmi_jax.training.preemption import Interrupt

quick_compilation = runs.quick_compilation

STEPS, HEARTBEAT = 6, 20
GRACE = 20.0  # seconds between a lost heartbeat and the end of a process, on a busy machine
CONFIG = runs.tiny_config(
    {
        "steps": STEPS,
        "objective.name": "standard",
        "model.dropout": 0.0,  # its masks depend on the row, and the number of processes changes the order of rows
        "eval.every": 0,
    }
)


def flags(workdir: Path) -> list[str]:
    return [*runs.config_flags(CONFIG), f"--workdir={workdir}"]


def starts(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "starts.jsonl").read_text().splitlines()]


def losses(workdir: Path) -> dict[int, float]:
    return {int(line["step"]): line["train/loss"] for line in runs.read_metrics(workdir)}


def assert_same_losses(workdir: Path, reference: Path) -> None:
    """Equal up to the rounding of float32: examples are summed in another order."""
    actual, expected = losses(workdir), losses(reference)
    assert list(actual) == list(expected) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(list(actual.values()), list(expected.values()), rtol=2e-5)


@pytest.fixture(scope="module")
def straight() -> Path:
    """A run of one process with 8 devices."""
    workdir = runs.scratch() / "straight"
    assert train(CONFIG, str(workdir)) == STEPS
    return workdir


def _save_rows(path: Path) -> None:
    """Make a process save the inputs of every batch that it supplies."""
    batches = inputs.RunData.batches

    def saved(self: inputs.RunData, start: int, shape: object) -> object:
        for batch in batches(self, start, shape):  # type: ignore[arg-type]
            leaves = jax.tree_util.tree_leaves_with_path(batch)
            (tokens,) = [leaf for place, leaf in leaves if jax.tree_util.keystr(place).endswith("['inputs']")]
            np.save(path / f"{start}.npy", tokens)
            start += 1
            yield batch

    inputs.RunData.batches = saved  # type: ignore[method-assign, assignment]


@pytest.fixture(scope="module")
def supplied() -> tuple[Path, Path]:
    """Folders in which the processes of `pair` save the inputs of their batches."""
    folders = runs.scratch() / "supplied0", runs.scratch() / "supplied1"
    for folder in folders:
        folder.mkdir()
    return folders


@pytest.fixture(scope="module")
def pair(supplied: tuple[Path, Path]) -> Path:
    """The same run by two processes with 4 devices each."""
    workdir = runs.scratch() / "pair"
    hooks = [functools.partial(_save_rows, folder) for folder in supplied]
    first, second = hosts.run("train", *flags(workdir), processes=2, hooks=hooks)
    assert first.code == second.code == 0, (first, second)
    assert (second.out, second.err) == ("", "")
    assert f"step {STEPS}/{STEPS} loss" in first.err
    return workdir


@pytest.mark.slow
def test_two_processes_train_as_one_process_does(straight: Path, pair: Path) -> None:
    assert_same_losses(pair, straight)
    assert starts(pair) == [0]
    assert runs.steps_in(pair / "checkpoints") == runs.steps_in(straight / "checkpoints")
    assert [step for step, _ in runs.read_tensorboard(pair)["train/loss"]] == list(range(1, STEPS + 1))
    assert len(list((pair / "tensorboard").iterdir())) == 1
    assert json.loads((pair / "run.json").read_text()) == json.loads((straight / "run.json").read_text())


@pytest.mark.slow
def test_processes_supply_different_rows(pair: Path, supplied: tuple[Path, Path]) -> None:
    for step in range(STEPS):
        first, second = ({row.tobytes() for row in np.load(folder / f"{step}.npy") if row.any()} for folder in supplied)
        assert first and second and not first & second


def _signal_at(number: int, step: int, pause: float) -> None:
    """Make a process send itself a signal after a step; that step and later ones take `pause` seconds."""
    stops = Interrupt.stops

    def signalling(self: Interrupt) -> bool:
        at = self._asked + 1
        if at == step:
            os.kill(os.getpid(), number)
        if at >= step:
            time.sleep(pause)
        return stops(self)

    Interrupt.stops = signalling  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "processes"), [(signal.SIGTERM, 4), (signal.SIGINT, 1)])
def test_an_interrupted_run_is_saved_and_resumed_by_any_number_of_processes(
    straight: Path, tmp_path: Path, number: int, processes: int
) -> None:
    hooks = [None, functools.partial(_signal_at, number, 2, 1.0)]
    first, second = hosts.run("train", *flags(tmp_path), processes=2, hooks=hooks)
    assert first.code == second.code == 0, (first, second)
    reached = runs.steps_in(tmp_path / "checkpoints")[-1]
    # Process 1 has passed step 1 to the runtime; while it pauses, process 0 gets at most two steps further.
    assert 2 <= reached < STEPS
    assert first.out == f"interrupted after step {reached} of {STEPS}: the same command resumes from there\n"
    assert second.out == ""
    assert list(losses(tmp_path)) == list(range(1, reached + 1))
    for result in hosts.run("train", *flags(tmp_path), processes=processes):
        assert result.code == 0, result
    assert starts(tmp_path) == [0, reached]
    assert_same_losses(tmp_path, straight)


def assert_killing_one_ends_the_other(workdir: Path, *, killed: int, step: int) -> None:
    hooks: list[hosts.Hook | None] = [None, None]
    hooks[killed] = functools.partial(_signal_at, signal.SIGKILL, step, 0.0)
    started = hosts.start("train", *flags(workdir), processes=2, hooks=hooks, heartbeat=HEARTBEAT)
    assert started[killed].result().code == -signal.SIGKILL
    since = time.monotonic()
    other = started[1 - killed].result(HEARTBEAT + GRACE)
    print(f"process {1 - killed} ended {time.monotonic() - since:.1f} s after process {killed}")
    assert other.code == EXIT_PEER_LOST, other
    last = other.err.splitlines()[-1]
    assert last.startswith(f"error: process {1 - killed} of 2: another process is lost")
    assert last.endswith("start the job again; training resumes from its last checkpoint")


@pytest.mark.slow
def test_a_killed_process_ends_the_other_and_the_run_resumes_exactly(pair: Path, tmp_path: Path) -> None:
    assert_killing_one_ends_the_other(tmp_path, killed=1, step=3)
    assert_killing_one_ends_the_other(tmp_path, killed=0, step=5)
    for result in hosts.run("train", *flags(tmp_path), processes=2):
        assert result.code == 0, result
    assert len(starts(tmp_path)) == 3
    assert runs.read_metrics(tmp_path) == runs.read_metrics(pair)
    runs.assert_same(runs.read_state(tmp_path), runs.read_state(pair))


def _stop_heartbeat() -> None:
    """Make a process stop after a step, as if its host were lost."""
    Run.save = lambda self, step: os.kill(os.getpid(), signal.SIGSTOP)  # type: ignore[method-assign, assignment]


@pytest.mark.slow
def test_a_process_without_heartbeat_ends_the_other(tmp_path: Path) -> None:
    started = hosts.start("train", *flags(tmp_path), processes=2, hooks=[None, _stop_heartbeat], heartbeat=5)
    try:
        other = started[0].result()
    finally:
        started[1].process.kill()
    assert other.code == EXIT_PEER_LOST, other
    assert other.err.splitlines()[-1] == (
        "error: process 0 of 2: another process is lost or cannot be reached, or this one crashed: "
        "start the job again; training resumes from its last checkpoint"
    )


def _fail_to_load_data() -> None:
    def load(_: object) -> None:
        raise UserError("no such file")

    inputs.load_data = load  # type: ignore[assignment]


def _fail_and_lose_the_confirmation() -> None:
    """The notice of the error reaches the store, which then answers half a second longer, but not this process."""
    connect = distributed._client

    class Client:
        def __getattr__(self, name: str) -> Any:
            return getattr(connect(), name)

        def key_value_set(self, key: str, value: str, **options: Any) -> None:
            connect().key_value_set(key, value, **options)
            if "no such file" in value:
                time.sleep(0.5)
                try:
                    connect().key_value_set("is the store still there", "yes")
                except jax.errors.JaxRuntimeError as error:
                    raise AssertionError("process 0 has ended before the other one") from error
                raise jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed")

    distributed._client = Client  # type: ignore[assignment]
    _fail_to_load_data()


@pytest.mark.parametrize(
    ("failing", "fail"), [(0, _fail_to_load_data), (1, _fail_to_load_data), (1, _fail_and_lose_the_confirmation)]
)
def test_an_error_in_one_process_ends_all(tmp_path: Path, failing: int, fail: hosts.Hook) -> None:
    hooks: list[hosts.Hook | None] = [None, None]
    hooks[failing] = fail
    results = hosts.run("train", *flags(tmp_path), processes=2, hooks=hooks)
    assert (results[failing].code, results[failing].err) == (2, f"error: process {failing} of 2: no such file\n")
    other = results[1 - failing]
    assert (other.code, other.err) == (
        EXIT_PEER_LOST,
        f"error: process {1 - failing} of 2: process {failing} failed: no such file\n",
    )


def test_processes_that_do_not_share_a_workdir_are_refused(tmp_path: Path) -> None:
    started = [
        hosts.start("train", *flags(tmp_path / str(number)), processes=2, only=number, address=address)[0]
        for address in [hosts.free_address()]
        for number in range(2)
    ]
    results = [host.result() for host in started]
    assert {result.code for result in results} <= {2, EXIT_PEER_LOST}
    assert any(
        "the processes of this run see different folders: use a shared file system" in result.err for result in results
    )
    assert not any((tmp_path / str(number) / "run.json").exists() for number in range(2))


def _interleave_hosts() -> None:
    """Make a mesh take devices from two processes alternately, as on a pod whose links cross hosts."""

    def interleaved(shape: Sequence[int], devices: Sequence[jax.Device], **_: object) -> np.ndarray:
        by_process = sorted(devices, key=lambda device: device.process_index)
        return np.array(by_process).reshape(2, -1).T.reshape(shape)

    mesh_utils.create_device_mesh = interleaved


@pytest.mark.slow
def test_evaluation_by_two_processes_equals_evaluation_by_one(tmp_path: Path) -> None:
    """Also where neither process holds adjacent rows: each puts its own rows on each of its devices.

    With all that is measured of rationales, losses and choices, and a metric that asks the student again.
    """
    rows = tmp_path / "rows.jsonl"
    facts = [{"input": f"{n} pens and {n % 3}", "label": ("even", "odd")[n % 2], "cluster": n // 2} for n in range(24)]
    more = [{"rationale": f"{n} + 1 = {n + 1}. So the answer is odd.", "choices": ["even", "odd"]} for n in range(24)]
    rows.write_text("".join(json.dumps(fact | rest) + "\n" for fact, rest in zip(facts, more, strict=True)))
    changes = {"steps": 1, "objective.name": "dss", "data.dataset": f"jsonl:{rows}", "eval.every": 0}
    config = runs.tiny_config(changes | {"data.vocabulary": "bytes", "model.dropout": 0.0})
    assert train(config, str(tmp_path / "run")) == 1
    scores = []
    for processes in (1, 2):
        output = tmp_path / str(processes)
        arguments = [f"--workdir={tmp_path / 'run'}", "--split=train", "--checkpoint=latest", f"--output={output}"]
        metrics = "label_scores,calibration,ranked_accuracy,log_score,agreement,steps,rationale_overlap,covariation"
        hooks = [_interleave_hosts] * processes if processes > 1 else []
        first, *others = hosts.run("evaluate", *arguments, f"--metrics={metrics}", processes=processes, hooks=hooks)
        assert first.code == 0 and "metrics.json" in first.out, first
        assert all(result == (0, "", "") for result in others)
        scores.append([json.loads((output / "metrics.json").read_text()), (output / "predictions.jsonl").read_text()])
    assert scores[1] == scores[0]
    assert {"predict", "explain"} == json.loads(scores[0][1].splitlines()[0])["loss"].keys()


# Environment variables


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"COTMI_COORDINATOR": ""}, None),
        ({"COTMI_COORDINATOR": "auto"}, ProcessConfig(None, None, None, 30)),
        (
            {"COTMI_COORDINATOR": "a:1", "COTMI_PROCESSES": "2", "COTMI_PROCESS_ID": "1", "COTMI_HEARTBEAT": "9"},
            ProcessConfig("a:1", 2, 1, 9),
        ),
    ],
)
def test_the_configuration_of_a_process(variables: Mapping[str, str], expected: ProcessConfig | None) -> None:
    assert ProcessConfig.from_environment(variables) == expected


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"COTMI_COORDINATOR": "a:1"}, "COTMI_COORDINATOR=a:1: set COTMI_COORDINATOR=HOST:PORT, "),
        ({"COTMI_PROCESSES": "2", "COTMI_PROCESS_ID": "0"}, "COTMI_PROCESSES=2 COTMI_PROCESS_ID=0: set "),
        ({"COTMI_COORDINATOR": "auto", "COTMI_PROCESS_ID": "0"}, "or COTMI_COORDINATOR=auto alone"),
        (
            {"COTMI_COORDINATOR": "a", "COTMI_PROCESSES": "2", "COTMI_PROCESS_ID": "0"},
            "COTMI_COORDINATOR=a: must be HOST",
        ),
        ({"COTMI_COORDINATOR": "a:1", "COTMI_PROCESSES": "2", "COTMI_PROCESS_ID": "2"}, "PROCESS_ID=2: .* from 0 to 1"),
        (
            {"COTMI_COORDINATOR": "a:1", "COTMI_PROCESSES": "x", "COTMI_PROCESS_ID": "0"},
            "COTMI_PROCESSES=x: must be a whole",
        ),
        ({"COTMI_HEARTBEAT": "0"}, "COTMI_HEARTBEAT=0: must be a whole number from 1 to 3600"),
    ],
)
def test_incomplete_or_wrong_variables_are_refused(variables: Mapping[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ProcessConfig.from_environment(variables)


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for name, value in {"COORDINATOR": address, "PROCESSES": "2", "PROCESS_ID": "0"}.items():
            monkeypatch.setenv(f"COTMI_{name}", value)
        with pytest.raises(UserError, match=f"COTMI_COORDINATOR={address}: cannot listen on this port .*in use"):
            with distributed.process_group(preemption=False):
                pass


def test_processes_without_the_variables_of_their_job_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="2 processes share these devices: set COTMI_COORDINATOR=auto"):
        distributed.barrier("test")
