"""Every published size on common TPU slices: mesh, batch, memory, bytes and communication, from compiling the step.

    python -m benchmarks.scaling --json=scaling.json --markdown=docs/scaling.md

Runs on any machine that has libtpu (pip install -e '.[tpu]'). Every cell is written to the JSON file as soon as it is
done, and cells that are in the file are not compiled again, so that the command can be interrupted and repeated. Rows
of the page whose cells are not in the file remain, with the date on which they were compiled.
Compiled with XLA's full effort by default; --quick takes a third of the time and gives programs that need a few per
cent more memory.
"""

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from cotmi_jax.aot.hlo import KINDS
from cotmi_jax.aot.programs import abstract_student, default_shape, programs
from cotmi_jax.aot.report import QUICK, RESERVE, ProgramReport, compile_program
from cotmi_jax.aot.topology import topology_devices
from cotmi_jax.aot.traffic import least_traffic, total_bytes
from cotmi_jax.config import base
from cotmi_jax.errors import UserError
from cotmi_jax.files import replace_file
from cotmi_jax.models.config import preset
from cotmi_jax.models.meshes import MeshShape, recommended_mesh
from cotmi_jax.parallel.accelerators import GIB, Accelerator, find_accelerator
from cotmi_jax.parallel.mesh import make_mesh

PRESETS = ("small", "base", "large", "xl", "xxl")
TOPOLOGIES = ("v5e-1", "v4-8", "v5e-8", "v5e-64", "v5e-256", "v6e-8")
INPUTS, TARGETS = 1024, 256  # tokens of a row
EXAMPLES = 4  # per row, two tasks each
# Large sizes recompute whole layers, of which auto saves the matmuls: more rows fit.
REMAT = {"small": "auto", "base": "auto", "large": "full", "xl": "full", "xxl": "full"}
# With whole layers recomputed, the scores of one layer are the largest arrays.
ATTENTION = {"small": "auto", "base": "auto", "large": "blocked", "xl": "blocked", "xxl": "blocked"}
MOST_ROWS = 64  # per device
BEGIN, END = "<!-- scaling: begin -->", "<!-- scaling: end -->"


def recipe(name: str, mesh: MeshShape, rows: int) -> ConfigDict:
    """The configuration of the MI paper for a size on a mesh, in bfloat16, with `rows` per step."""
    config = base()
    config.objective.name = "cotmi"
    config.model.preset, config.model.dtype = name, "bfloat16"
    config.model.remat, config.model.attention = REMAT[name], ATTENTION[name]
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
    config.batch_size, config.eval.batch_size = EXAMPLES * rows, rows
    config.data.max_input_tokens, config.data.max_target_tokens = INPUTS, TARGETS
    return config


def compile_step(name: str, topology: str, shape: MeshShape, rows: int, quick: bool) -> ProgramReport:
    """The training step with `rows` on each batch shard."""
    devices = topology_devices(topology)
    accelerator = find_accelerator(devices[0].device_kind)
    assert accelerator is not None
    config = recipe(name, shape, rows * shape.data * shape.fsdp)
    mesh = make_mesh(*shape, devices=devices)
    with jax.set_mesh(mesh):
        step = programs(config, mesh, default_shape(config, mesh, rows=rows * shape.data * shape.fsdp))["train"]
        return compile_program(step, accelerator, QUICK if quick else None)


def largest(
    name: str, topology: str, shape: MeshShape, quick: bool, rows: int = MOST_ROWS
) -> tuple[int, ProgramReport | None]:
    """The largest power of two of rows per device that fits, and its report; 0 and None if one row does not fit.

    rows: the power of two to try first. The compiler refuses a step that is far too large quickly and reports the
    memory it needs, from which the next number of rows is estimated.
    """
    reports: dict[int, ProgramReport] = {}

    def attempt(rows: int) -> ProgramReport:
        if rows not in reports:
            report = reports[rows] = compile_step(name, topology, shape, rows, quick)
            print(f"  {rows} rows per device: {report.memory.total / GIB:.1f} GiB, {report.seconds:.0f} s", flush=True)
        return reports[rows]

    while rows and not (report := attempt(rows)).fits:
        fraction = _room(report) / max(report.memory.temporaries, 1.0)
        rows = min(rows // 2, 1 << max(int(rows * fraction * 1.15), 1).bit_length() - 1)
    while 0 < rows < MOST_ROWS and 1.6 * reports[rows].memory.temporaries < _room(reports[rows]):
        if not attempt(2 * rows).fits:
            break
        rows *= 2
    return rows, reports.get(rows)


def _room(report: ProgramReport) -> float:
    """Bytes available for temporaries."""
    return report.capacity - RESERVE - report.memory.arguments


def measure(name: str, topology: str, quick: bool, first: int) -> dict[str, Any]:
    """A cell of the table; `first`: rows per device to try first."""
    devices = topology_devices(topology)
    accelerator = find_accelerator(devices[0].device_kind)
    assert accelerator is not None
    student, today = preset(name), datetime.date.today().isoformat()
    try:
        shape = recommended_mesh(student, len(devices), accelerator.memory)
    except UserError:
        return {"fits": False, "why": "the state alone does not fit", "compiled": today}
    rows, report = largest(name, topology, shape, quick, first)
    if report is None:
        return {"fits": False, "mesh": list(shape), "why": "no size fits", "compiled": today}
    config = recipe(name, shape, rows * shape.data * shape.fsdp)
    least = least_traffic(
        abstract_student(config),
        shape,
        rows=rows * shape.data * shape.fsdp,
        input_length=INPUTS,
        target_length=TARGETS,
        recompute=REMAT[name] == "full",
    )
    return report.to_json() | {
        "mesh": list(shape),
        "rows": rows,
        "compiled": today,
        "least": least,
        "quick": quick,
        "seconds": _seconds(report, accelerator, len(devices)),
        "sources": _sources(report),
    }


def _seconds(report: ProgramReport, accelerator: Accelerator, devices: int) -> dict[str, float]:
    """Seconds of a step at peak speed: for the operations of the model, and for its communication."""
    assert report.collectives is not None
    sent = report.collectives.total()[2]
    return {
        "operations": report.program.flops / devices / accelerator.flops,
        "links": sent / accelerator.link_bandwidth,
    }


def _sources(report: ProgramReport) -> dict[str, float]:
    """Bytes sent by the ten operations of the program that send most."""
    assert report.collectives is not None
    sums: dict[str, float] = {}
    for each in report.collectives.found:
        label = f"{each.kind} {each.source}"
        sums[label] = sums.get(label, 0.0) + each.times * each.sent
    return dict(sorted(sums.items(), key=lambda item: -item[1])[:10])


HEADER = (
    "| student | slice | mesh data × fsdp × tensor | remat, attention | rows a step (a device) | GiB of a device "
    "| GB moved | gather | scatter | reduce | permute, swap | sent MiB | least MiB | ratio "
    "| ms at peak | ms roofline | ms on links | compiled |"
)


def table(cells: dict[str, Any], kept: dict[str, str]) -> str:
    """The cells as a Markdown table in the order of PRESETS and TOPOLOGIES. kept: rows of other cells, as text."""
    lines = kept | {key: _row(key, cell) for key, cell in cells.items()}
    ordered = [lines[key] for name in PRESETS for topology in TOPOLOGIES if (key := f"{name} {topology}") in lines]
    return "\n".join([HEADER, "|---|---|---|---|" + "--:|" * 13 + "---|", *ordered])


def _row(key: str, cell: dict[str, Any]) -> str:
    name, topology = key.split(" ")
    mesh = " × ".join(str(size) for size in cell.get("mesh", ["–"]))
    head = [name, topology, mesh, f"{REMAT[name]}, {ATTENTION[name]}"]
    if "rows" not in cell:
        return "| " + " | ".join([*head, cell["why"]]) + " |" * 13 + f" {cell['compiled']} |"
    sent = {kind: cell["collectives"][kind]["sent"] / 2**20 for kind in KINDS}
    least, everything = total_bytes(cell["least"]) / 2**20, sum(sent.values())
    memory, seconds, roofline = cell["memory"], cell["seconds"], cell["roofline"]["total"]
    columns = [
        *head,
        f"{cell['rows'] * cell['mesh'][0] * cell['mesh'][1]:,} ({cell['rows']})",
        f"{memory['total'] / GIB:.1f} / {memory['capacity'] / GIB:.0f}",
        f"{roofline['bytes'] / 1e9:,.0f}",
        *(f"{sent[kind]:,.0f}" for kind in ("all-gather", "reduce-scatter", "all-reduce")),
        f"{sent['collective-permute'] + sent['all-to-all']:,.0f}",
        f"{everything:,.0f}",
        f"{least:,.0f}",
        f"{everything / least:.2f}" if least else "–",
        *(f"{each * 1e3:,.0f}" for each in (seconds["operations"], roofline["seconds"], seconds["links"])),
        cell["compiled"],
    ]
    return "| " + " | ".join(columns) + " |"


def rows_of(text: str) -> dict[str, str]:
    """The rows of a table in this form, by student and slice."""
    rows = [line for line in text.splitlines() if line.count("|") == HEADER.count("|")]
    return {" ".join(cell.strip() for cell in row.split("|")[1:3]): row for row in rows}


def write_markdown(path: Path, cells: dict[str, Any]) -> None:
    """Write the table between the markers of a page; rows of other cells remain."""
    before, rest = path.read_text().split(BEGIN)
    old, after = rest.split(END)
    replace_file(path, f"{before}{BEGIN}\n\n{table(cells, rows_of(old))}\n\n{END}{after}")


def main() -> None:
    """Compile the missing cells, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS)
    parser.add_argument("--topologies", nargs="+", default=TOPOLOGIES)
    parser.add_argument(
        "--json", type=Path, default=Path("scaling.json"), help="results; cells in it are not compiled again"
    )
    parser.add_argument("--markdown", type=Path, help="page with the markers, to write the table to")
    parser.add_argument(
        "--rows",
        type=int,
        default=MOST_ROWS,
        help="rows per device to try first, a power of two (default: %(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="with XLA's least effort")
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    cells = json.loads(arguments.json.read_text()) if arguments.json.exists() else {}
    for name in arguments.presets:
        for topology in arguments.topologies:
            if f"{name} {topology}" not in cells:
                print(f"{name} on {topology}", flush=True)
                cells[f"{name} {topology}"] = measure(name, topology, arguments.quick, arguments.rows)
                replace_file(arguments.json, json.dumps(cells, indent=1) + "\n")
    if arguments.markdown:
        write_markdown(arguments.markdown, cells)
    else:
        print(table(cells, {}))


if __name__ == "__main__":
    main()
