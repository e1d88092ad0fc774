"""The programs of a run, compiled for TPU slices that this machine does not have.

`PYTHONPATH=tests/support:. python tests/aot/test_aot.py` regenerates golden/aot.json for the installed JAX. Review its
diff: each line is, for a device and a step, its memory, the bytes that it moves, its operations, or its communication
volume.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import runs
from paths import GOLDEN, REPOSITORY

from cotmi_jax.aot.programs import Program
from cotmi_jax.aot.report import QUICK, compile_program, needed_memory
from cotmi_jax.aot.topology import grid, topology_devices
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.accelerators import GIB, find_accelerator

pytest.importorskip("libtpu", reason="compiling for TPUs needs libtpu: pip install -e .[tpu]")

GOLDEN_FILE = GOLDEN / "aot.json"
# Factors by which a figure may grow without a new golden. Operations follow from the model and what is recomputed;
# memory and bytes also from the compiler's choices.
MARGINS = {"flops": 1.02, "moved": 1.05}
MARGIN = 1.1  # of memory and communication volume
RANDOM_BITS = 0.003  # of the bytes of a step: counters of dropout's generator; its words are not written to memory
RECIPE = [
    *(
        f"--config={REPOSITORY}/configs/svamp.py",
        "--config.objective.name=cotmi",
        "--config.model.preset=small",
        "--config.model.dtype=bfloat16",
    ),
    *("--rows=16", "--input_length=64", "--target_length=32", "--quick"),
    *("--config.batch_size=32", "--config.eval.batch_size=8", "--config.eval.max_decode_tokens=8"),
]


# One layer of xl on a device: the compiler's cost model of its dropout needs more than libtpu's default stack.
LAYER_OF_XL = """
import dataclasses, jax
jax.config.update("jax_platforms", "cpu")
from cotmi_jax.aot.report import QUICK
from cotmi_jax.aot.topology import topology_devices
from cotmi_jax.models.config import preset
from cotmi_jax.models.student import StudentDef
from cotmi_jax.parallel.batch import batch_sharding
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import abstract_arrays, param_shardings

mesh = make_mesh(fsdp=8, devices=topology_devices("v5e-8"))
student = StudentDef.of(dataclasses.replace(preset("xl"), num_encoder_layers=1, num_decoder_layers=1, dtype="bfloat16"))
params = abstract_arrays(student.shapes, param_shardings(student.shapes, student.axes, mesh))
inputs = jax.ShapeDtypeStruct((16, 1024), "int32", sharding=batch_sharding(mesh))
with jax.set_mesh(mesh):
    encode = jax.jit(lambda params, inputs: student.bind(params).encode(inputs, jax.random.key(0)))
    encode.lower(params, inputs).compile(QUICK)
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository, without the settings of this process for JAX, XLA and libtpu."""
    kept = {n: value for n, value in os.environ.items() if not n.startswith(("JAX_", "TPU_", "XLA_", "LIBTPU_"))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=REPOSITORY, env=kept, capture_output=True, text=True, check=False)


def aot(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python("-m", "cotmi_jax.aot", *RECIPE, *arguments)


def measure(path: Path) -> tuple[subprocess.CompletedProcess[str], dict[str, dict[str, float]]]:
    """The command on eight chips; for each program memory, bytes moved, FLOPs, and bytes sent by kind of collective."""
    done = aot("--topology=v5e:2x4", "--config.mesh.fsdp=4", "--config.mesh.tensor=2", f"--json={path}")
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text())["programs"]
    sent = {name: {kind: each["sent"] for kind, each in of["collectives"].items()} for name, of in found.items()}
    figures = {}
    for name, of in found.items():
        moved, flops = of["roofline"]["total"]["bytes"], of["roofline"]["total"]["flops"]
        figures[name] = {"memory": of["memory"]["total"], "moved": moved, "flops": flops} | sent[name]
    return done, figures


@pytest.mark.slow
def test_memory_bytes_operations_and_communication_do_not_exceed_the_golden(tmp_path: Path) -> None:
    done, found = measure(tmp_path / "aot.json")
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0] == "v5e:2x4: 8 × TPU v5e, mesh {'data': 1, 'fsdp': 4, 'tensor': 2}"
    assert lines[-1] == "everything fits"
    assert list(found) == ["train", "evaluate", "generate"]
    golden = json.loads(GOLDEN_FILE.read_text()).get(jax.__version__)
    if golden is None:
        pytest.skip(f"compiled, but there is no golden for jax {jax.__version__}")
    for name, expected in golden.items():
        grown = {
            what: size
            for what, size in found[name].items()
            if what in expected and size > MARGINS.get(what, MARGIN) * expected[what] + 1024
        }
        assert not grown, f"{name}: grown beyond {expected}"
    step = json.loads((tmp_path / "aot.json").read_text())["programs"]["train"]["roofline"]["total"]
    assert step["random_bits"] < RANDOM_BITS * step["bytes"]


@pytest.mark.slow
def test_layers_of_xl_do_not_crash_the_compiler() -> None:
    done = python("-c", LAYER_OF_XL)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_program_that_does_not_fit_is_one_line_and_exit_code_1() -> None:
    big = ["--config.model.preset=tiny", "--config.eval.batch_size=1048576", "--programs=generate"]
    done = aot("--topology=v5e-8", *big)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1].startswith("generate does not fit: it needs ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--topology=v5e-7"], "unknown topology 'v5e-7'"),
        (["--topology=v5e-8", "--config.mesh.fsdp=3"], "mesh {'data': -1, 'fsdp': 3, 'tensor': 1} does not cover 8"),
        (["--topology=v5e-8", "--rows=12"], "--rows=12 does not divide over 8 devices"),
        (["--topology=v5e-8", "--programs=fly"], "unknown program 'fly'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = runs.command("aot", *RECIPE, *arguments)
    runs.assert_refused(done, message)
    assert done.out == ""


def test_names_of_slices() -> None:
    for name, chips in {
        "v4-8": "v4:2x2x1",
        "v4-64": "v4:2x4x4",
        "v5p-128": "v5p:4x4x4",
        "v5e-1": "v5e:1x1",
        "v5e-8": "v5e:2x4",
        "v5litepod-64": "v5e:8x8",
        "v6e-256": "v6e:16x16",
        "v3-32": "v3:4x4",
        "v5e:4x8": "v5e:4x8",
    }.items():
        assert grid(name) == chips
    assert [len(topology_devices(name)) for name in ("v4-8", "v5e-1", "v6e-8")] == [4, 1, 8]


@pytest.mark.parametrize(
    "name, message",
    {
        "v5e-2": "v5e has v5e-1, v5e-4, v5e-8, v5e-16, v5e-32, v5e-64, v5e-128, v5e-256",
        "v5litepod-512": "v5e has v5e-1, v5e-4, v5e-8, v5e-16, v5e-32, v5e-64, v5e-128, v5e-256",
        "v4-4": "v4 has v4-2, v4-8, v4-16,",
        "v4-12": "v4 has v4-2, v4-8, v4-16,",
        "v5e:1x2": "a grid of v5e has 2 sides, all 1 or the first two even, as v5e:2x2",
        "v5e:0x4": "a grid of v5e has 2 sides",
        "v5e:4x4x4": "a grid of v5e has 2 sides",
        "v4:2x2": "a grid of v4 has 3 sides, all 1 or the first two even, as v4:2x2x1",
        "v4litepod-8": "use a name like v4-8, v5e-64",
        "v7-8": "use a name like v4-8, v5e-64",
    }.items(),
)
def test_slices_that_do_not_exist_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=f"unknown topology '{name}': {message}"):
        grid(name)


def test_a_missing_compiler_is_reported_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]'"):
        topology_devices("v5e-8")
    with pytest.raises(UserError, match=r"pip install -e '.\[cuda\]'"):
        topology_devices("h100")


def test_needed_memory_is_read_from_the_error_message() -> None:
    message = "the total memory required for HLO temporaries (50.04G) exceeds available HBM (15.75G)."
    assert needed_memory("RESOURCE_EXHAUSTED: Ran out of memory on HBM, " + message) == 50.04 * GIB
    assert needed_memory("Ran out of memory in memory space hbm. Used 16.50G of 15.75G hbm.") == 16.5 * GIB
    assert needed_memory("INTERNAL: something else") is None


def test_arguments_of_a_program_that_does_not_fit_count_once() -> None:
    device = topology_devices("v5e:1x1")[0]
    x = jax.ShapeDtypeStruct((16, 1 << 28), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(device))
    accelerator = find_accelerator(device.device_kind)
    assert accelerator is not None
    program = Program("add", "", 0.0, 16.0 * GIB, GIB, lambda: jax.jit(lambda x: x + 1).lower(x))
    report = compile_program(program, accelerator, QUICK)
    assert (report.fits, report.memory.arguments, report.memory.resident) == (False, 16 * GIB, GIB)
    assert report.memory.total == pytest.approx(33 * GIB, rel=0.05)  # with the result


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        goldens = json.loads(GOLDEN_FILE.read_text()) if GOLDEN_FILE.exists() else {}
        goldens[jax.__version__] = measure(Path(folder) / "aot.json")[1]
        GOLDEN_FILE.write_text(json.dumps(goldens, indent=1, sort_keys=True) + "\n")
