"""Tiny runs that several test files share, and the commands as users start them.

Compiling is nearly all the cost of a tiny run. So XLA compiles with few optimizations, and runs in this process and
commands share one cache of compiled programs.
"""

import atexit
import fcntl
import functools
import gc
import json
import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict
from paths import REPOSITORY
from shared_programs import shared_programs

from cotmi_jax.config import base, flatten, smoke
from cotmi_jax.data.sources import arithmetic
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.experiment import make_objective, with_data_root
from cotmi_jax.inference.load import load_workdir
from cotmi_jax.models import config as model_config
from cotmi_jax.models.config import preset
from cotmi_jax.models.student import StudentDef
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.training import throughput
from cotmi_jax.training.job import train
from cotmi_jax.training.optimizer import make_optimizers
from cotmi_jax.training.state import StateDef, TrainState
from cotmi_jax.workdir.checkpoint import Checkpoints, find, restore_items
from cotmi_jax.workdir.metrics import MetricWriter
from cotmi_jax.workdir.record import read_run, record_start, run_record

RECIPE = REPOSITORY / "configs" / "quickstart.py"
SEED_RECIPE = {
    "objective.name": "cotmi",  # it has every part of a run
    "steps": 6,
    "data.dataset": "arithmetic",
    "data.size": 20,  # so that epochs end within batches
    "data.cache": "none",
    "model.scan_layers": False,
    "optimizer.learning_rate": 1e-2,
    "eval.every": 3,
    "eval.examples": 12,  # so that the last batch is padded
    "eval.rationales": 0,
    "checkpoint.every": 2,
    "mi.monitor.every": 0,  # it takes longer than the run; test_mi_monitor.py has runs that measure
}
# The preset tiny in these runs: d_model, d_kv, d_ff, layers of each stack, heads. They test the loop, the files and the
# commands, not the network (tests/models), and the package's own tiny takes twice the time to compile and to run.
STUDENT = (32, 8, 64, 1, 4)
HELD_OUT = 64  # examples of valid and of test in these runs: evaluation scores all
# Compiled programs, which the processes of the suite share.
EXECUTABLES = Path(os.environ["COTMI_TEST_EXECUTABLES"])
TIMINGS = tuple(f"train/{name}" for name in throughput.TIMINGS)
COMMAND_SECONDS = 900.0  # soaking starts a trainer several times, on a busy machine


def tiny_config(changes: Mapping[str, Any] | None = None) -> ConfigDict:
    """A run of seconds on the generated set, with dropout, evaluations and checkpoints; changes by dotted key."""
    config = smoke(base())
    config.update_from_flattened_dict(SEED_RECIPE | dict(changes or {}))
    return config


@functools.cache
def scratch() -> Path:
    """A folder for files that tests share, removed at the end of the process."""
    folder = Path(tempfile.mkdtemp(prefix="cotmi_jax_tests_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def trained() -> Path:
    """The workdir of a complete run of tiny_config(). Tests that write into it copy it first.

    One worker of the suite trains, the others copy its workdir.
    """
    workdir = scratch() / "trained"
    suite = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    shared = EXECUTABLES / f"trained-{suite}"
    with (EXECUTABLES / f"lock-{suite}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            assert train(tiny_config(), str(workdir)) == 6
            shutil.copytree(workdir, shared)
            return workdir
    return shutil.copytree(shared, workdir)


def make_record(workdir: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A workdir as a start of a run of tiny_config(changes) leaves it before its first step."""
    config, vocabulary = with_data_root(tiny_config(changes)), Vocabulary(VOCABULARY_PATH)
    student = preset("tiny", vocab_size=512)
    record_start(workdir, run_record(config, student, vocabulary), vocabulary, 0)
    return workdir


def _compile_quickly(folder: Path | None) -> None:
    """Compile with few optimizations, as conftest.py sets it, and store executables in the folder; None: do not."""
    jax.config.update("jax_disable_most_optimizations", True)  # processes of commands do not read conftest.py
    jax.config.update("jax_compilation_cache_dir", folder and str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0 if folder else 1.0)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def quick_compilation() -> Iterator[None]:
    """For test files that assign it: quick_compilation = runs.quick_compilation."""
    _compile_quickly(EXECUTABLES)
    # All share trained(), so they share its student and its data.
    with (
        mock.patch.dict(model_config._SHAPES["v1.1"], tiny=STUDENT),
        mock.patch.object(arithmetic, "HELD_OUT", HELD_OUT),
        shared_programs(),
    ):
        yield
    _compile_quickly(None)


@pytest.fixture(scope="module", autouse=True)
def full_held_out(quick_compilation: None) -> Iterator[None]:
    """The full number of valid and test examples, for test files that assign this fixture."""
    with mock.patch.object(arithmetic, "HELD_OUT", 500):
        yield


@functools.cache
def _startup_folder() -> Path:
    """A folder whose sitecustomize.py, which Python executes when it starts, sets the sizes of these runs."""
    folder = scratch() / "startup"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "from cotmi_jax.data.sources import arithmetic\n"
        "from cotmi_jax.models import config\n"
        f"arithmetic.HELD_OUT, config._SHAPES['v1.1']['tiny'] = {HELD_OUT}, {STUDENT}\n"
    )
    return folder


def quick_environment() -> dict[str, str]:
    """Environment for commands that a test starts as a user does: as quick_compilation, for a process of its own."""
    return os.environ | {
        "PYTHONPATH": f"{_startup_folder()}{os.pathsep}{REPOSITORY}",
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(EXECUTABLES),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def read_metrics(workdir: Path, *, timings: bool = False) -> list[dict[str, float]]:
    """The lines of metrics.jsonl, by default without timings."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if timings or not name.startswith(TIMINGS)} for line in lines]


def read_tensorboard(workdir: Path) -> dict[str, list[tuple[int, np.float32]]]:
    """The scalars that TensorBoard shows of a run: name → (step, value), in order of the steps.

    The START event of a start removes the earlier events from its step on.
    """
    shown: dict[str, dict[int, list[np.float32]]] = {}
    for file in sorted((workdir / "tensorboard").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            if event.session_log.status == event.session_log.START:
                shown = {
                    name: {step: values for step, values in steps.items() if step < event.step}
                    for name, steps in shown.items()
                }
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    shown.setdefault(value.tag, {}).setdefault(event.step, []).append(np.float32(value.simple_value))
    return {
        name: [(step, value) for step, values in sorted(steps.items()) for value in values]
        for name, steps in shown.items()
    }


def steps_in(folder: Path) -> list[int]:
    """The checkpoints that a folder holds."""
    return sorted(int(path.name) for path in folder.iterdir())


def truncate(path: Path) -> None:
    """Cut a file to its first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def largest(folder: Path) -> Path:
    """The largest file under a folder."""
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def write_svamp(root: Path, name: str = "svamp") -> Path:
    """A made-up set in the release's layout: 20 problems to train on and 5 to test with."""
    folder = root / name
    (folder / "llm").mkdir(parents=True)
    for split, numbers in (("train", range(10, 30)), ("test", range(40, 45))):
        rows = [
            {"input": f"Ida has {n} pens.\nHow many pens are left after 3?", "label": f"( {n}.0 - 3.0 )"}
            for n in numbers
        ]
        said = [f"She had {n} and lost 3. The answer is ({n} - 3).\n\nQ: Next?" for n in numbers]
        (folder / f"{name}_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "llm" / f"{split}_CoT_0.json").write_text(json.dumps(said))
    return root


def read_params(workdir: Path, which: str | int = "best") -> Any:
    """The parameters of a checkpoint alone, as evaluation reads them."""
    return {"student": jax.device_get(load_workdir(workdir, which, make_mesh()).params)}


def read_definition(workdir: Path, **mesh_sizes: int) -> StateDef:
    """The definition of a run's state on a mesh."""
    config, student, _ = read_run(workdir)
    mesh = make_mesh(**mesh_sizes)
    return StateDef.of(StudentDef.of(student), make_optimizers(config), mesh, make_objective(config))


def read_state(workdir: Path, which: str | int = "latest", **mesh_sizes: int) -> TrainState:
    """A checkpoint of a run, restored onto a mesh and read back: leaves are numpy arrays."""
    definition = read_definition(workdir, **mesh_sizes)
    found = find(workdir, which)
    return jax.device_get(definition.restored(restore_items(found, definition.abstract.items()), found.step))


def small_state(value: float) -> TrainState:
    """A state that no student has, to save quickly."""
    params = {"student": {"w": value * jnp.arange(1000)}}
    return TrainState(jnp.int32(0), params, (jnp.float32(value), {"m": jnp.ones((3, 4))}), None)


def save_states(workdir: Path, *steps: int, keep: int = 5) -> None:
    """Save a small state as the checkpoint of each step."""
    checkpoints = Checkpoints(workdir, keep=keep)
    for step in steps:
        checkpoints.save(small_state(step).items(), step, {"position": step}, {"seed": 0})
    checkpoints.close()


def remove_checksums(checkpoint: Path) -> None:
    """Make a checkpoint one of a version that wrote no checksums."""
    (checkpoint / "checksums.json").unlink()
    metadata = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
    (checkpoint / "_CHECKPOINT_METADATA").write_text(json.dumps(metadata | {"custom_metadata": {}}))


def assert_same(actual: Any, expected: Any) -> None:
    """Bit-equal, leaf by leaf."""
    leaves = jax.tree_util.tree_leaves_with_path(actual)
    others = jax.tree_util.tree_leaves_with_path(expected)
    assert [path for path, _ in leaves] == [path for path, _ in others]
    for (path, leaf), (_, other) in zip(leaves, others, strict=True):
        np.testing.assert_array_equal(leaf, other, err_msg=jax.tree_util.keystr(path))


class Result(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def config_flags(config: ConfigDict) -> list[str]:
    """The flags that make `config` of a recipe."""
    return [f"--config={RECIPE}", *(f"--config.{key}={value}" for key, value in flatten(config).items())]


def signalling_write(step: int, number: int) -> Callable[[MetricWriter, int, Mapping[str, float]], None]:
    """MetricWriter.write that has this process send itself a signal once the metrics of a step are written."""
    write = MetricWriter.write

    def write_and_signal(writer: MetricWriter, at: int, metrics: Mapping[str, float]) -> None:
        write(writer, at, metrics)
        if at == step:
            os.kill(os.getpid(), number)

    return write_and_signal


def signal_after(step: int, number: int) -> None:
    """Have a command's process send itself a signal once the metrics of a step are written."""
    MetricWriter.write = signalling_write(step, number)  # type: ignore[method-assign]


Sizes = tuple[int, tuple[int, int, int, int, int]]  # HELD_OUT and the shape of tiny, which a command shares


def _child(
    module: str, arguments: list[str], folder: Path, devices: int, sizes: Sizes, before: Callable[[], None] | None
) -> None:
    gc.set_threshold(100_000, 20, 20)  # as conftest.py
    gc.freeze()
    arithmetic.HELD_OUT, model_config._SHAPES["v1.1"]["tiny"] = sizes
    for descriptor, name in enumerate(("in", "out", "err")):
        os.dup2(os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600), descriptor)
    sys.stdin = open(0)  # multiprocessing has put another in its place
    os.chdir(folder)
    os.environ.pop("COTMI_DATA_ROOT", None)
    sys.argv = [module, *arguments]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    _compile_quickly(EXECUTABLES)
    if before is not None:
        before()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


@functools.cache
def _server() -> multiprocessing.context.ForkServerContext:
    """Commands are forked off a process that has imported, but not used, the libraries: seconds saved each time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["cotmi_jax.cli", "runs", "cotmi_jax.inference.predictor", "transformers"])
    paths = os.pathsep.join(str(folder) for folder in (REPOSITORY, REPOSITORY / "tests" / "support"))
    with mock.patch.dict(os.environ, {"PYTHONPATH": paths}):  # before Python 3.13 it has no other way to learn of them
        forkserver.ensure_running()
    return context


def start_command(
    name: str, arguments: Sequence[str], folder: Path, devices: int, before: Callable[[], None] | None
) -> BaseProcess:
    """Start `python -m cotmi_jax.{name} {arguments}`, with its standard streams as files of the folder."""
    sizes = arithmetic.HELD_OUT, model_config._SHAPES["v1.1"]["tiny"]
    process = _server().Process(target=_child, args=(f"cotmi_jax.{name}", [*arguments], folder, devices, sizes, before))
    process.start()
    return process


def command(
    name: str, *arguments: str, stdin: str = "", devices: int = 1, before: Callable[[], None] | None = None
) -> Result:
    """Run `python -m cotmi_jax.{name} {arguments}` in a folder of its own, after `before` if given.

    A signal that ends it gives its negative number as code, as in subprocess.
    """
    folder = Path(tempfile.mkdtemp(dir=scratch()))
    (folder / "in").write_text(stdin)
    process = start_command(name, arguments, folder, devices, before)
    process.join(COMMAND_SECONDS)
    if process.is_alive():
        process.kill()
        raise TimeoutError(f"{name} {arguments}: {(folder / 'err').read_text()}")
    return Result(process.exitcode, (folder / "out").read_text(), (folder / "err").read_text())


def assert_refused(result: Result, *parts: str) -> None:
    """Exit code 2 and one line on standard error that contains the parts, without a traceback."""
    assert result.code == 2, result
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and result.err.endswith("\n"), result.err
    for part in parts:
        assert part in result.err, result.err
