"""Memory, bytes moved, operations and roofline of the training step, compiled for accelerators that need not be there.

    python -m benchmarks.compile --presets base --baseline=REVISION

The step of `cotmi` on a batch of 64 examples of CommonsenseQA, packed into 26 rows of 256 → 96 tokens, with bfloat16
activations, by `python -m cotmi_jax.aot` (pip install -e '.[tpu]'). The roofline is Σ max(FLOPs / peak, bytes /
bandwidth) over the instructions: the least time of this program on the device. MFU: FLOPs of the model (matrix products
of all positions, three times the forward pass) / (that time · peak). With --baseline, the memory of an earlier revision
is compiled too. The result is printed as JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.revisions import revisions
from benchmarks.table import Options, Row, print_json, run_json, shown_command
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.accelerators import ACCELERATORS, GIB

SHAPE = ("--rows=26", "--input_length=256", "--target_length=96")


def compile_step(code: Path, preset: str, topology: str, changes: list[str]) -> dict[str, Any]:
    """The report of the training step by the code in a folder, as `aot --json` writes it."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "aot.json"
        command = [sys.executable, "-m", "cotmi_jax.aot", "--config=configs/cqa.py", f"--topology={topology}", *SHAPE]
        command += [f"--config.model.preset={preset}", "--config.model.dtype=bfloat16", "--config.model.init=random"]
        command += ["--programs=train", "--quick", f"--json={results}", *changes]
        done = subprocess.run(command, cwd=code, stdout=sys.stderr, check=False)
        if done.returncode not in (0, 1):  # 1: it does not fit
            raise UserError(f"{' '.join(command)}: exit code {done.returncode}, see its message above")
        found = json.loads(results.read_text())
    return found["programs"]["train"] | {"device": found["device"]}


def compare(arguments: argparse.Namespace, changes: list[str]) -> dict[str, Any]:
    """Reports by preset and side."""
    with revisions(arguments.baseline) as folders:
        return {
            preset: {
                side: compile_step(code, preset, arguments.topology, changes if side == "ours" else [])
                for side, code in folders.items()
            }
            for preset in arguments.presets
        }


def _rows_of(preset: str, sides: dict[str, Any], baseline: str, command: str) -> list[Row]:
    ours = sides["ours"]
    accelerator = next(each for each in ACCELERATORS if each.name == ours["device"])
    what = f"compiled step, {preset}, cqa, {ours['device']}"
    memory = [[report["memory"]["total"] / GIB] for report in sides.values()]
    name = f"revision {baseline}" if baseline else ""
    found = [Row.of(f"{what}: memory", "GiB", *memory, command=command, peer_name=name)]
    if ours["roofline"] is None:
        return found
    cost = ours["roofline"]["total"]
    utilization = ours["flops_model"] / accelerator.flops / cost["seconds"]
    for label, unit, value, note in (
        ("bytes moved", "GB", cost["bytes"] / 1e9, f"{cost['random_bits'] / 1e9:.1f} of them random bits"),
        ("operations", "TFLOP", cost["flops"] / 1e12, f"of the model {ours['flops_model'] / 1e12:.3f}"),
        ("roofline", "ms", cost["seconds"] * 1e3, f"MFU {utilization:.0%} if it is reached"),
    ):
        found.append(Row.of(f"{what}: {label}", unit, [value], command=command, note=note))
    return found


def rows(options: Options) -> list[Row]:
    """Memory, bytes, operations and roofline of small and base."""
    given = ["--presets", *(["tiny"] if options.quick else ["small", "base"])]
    given += [f"--baseline={options.baseline}"] * bool(options.baseline)
    report = run_json("benchmarks.compile", *given)
    command = shown_command("benchmarks.compile", *given)
    return [row for preset, sides in report.items() for row in _rows_of(preset, sides, options.baseline, command)]


def main() -> int:
    """Parse the command line and compile; 2 for a user error."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Further options are those of cotmi_jax.aot, for ours alone: --config.model.remat=full, …",
    )
    parser.add_argument("--presets", nargs="+", default=["small", "base"])
    parser.add_argument("--topology", default="v5e-1", help="as for cotmi_jax.aot")
    parser.add_argument("--baseline", default="", help="revision to compare with; default: none")
    arguments, changes = parser.parse_known_args()
    return print_json(lambda: compare(arguments, changes))


if __name__ == "__main__":
    sys.exit(main())
