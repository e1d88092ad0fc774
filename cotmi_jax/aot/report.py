"""Compiles programs and reports what each needs of a device: memory, operations, bytes moved, communication volume."""

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from cotmi_jax.aot.gpu import GPU_OPTIONS
from cotmi_jax.aot.hlo import KINDS, Collectives, Module
from cotmi_jax.aot.programs import Program
from cotmi_jax.aot.roofline import Roofline, read_roofline
from cotmi_jax.parallel.accelerators import GIB, Accelerator

RESERVE = GIB  # of a device's memory, for the runtime, prefetched batches and fragmentation
# The two messages of the TPU compiler when a program does not fit. Both figures include all that it allocates,
# arguments and outputs too, although the first speaks of temporaries.
_EXHAUSTED = (
    r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    r"Used ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm",
)
# Compiler options for the shortest compilation; JAX 0.11 replaced the first by the second.
QUICK: dict[str, float | str] = (
    {"exec_time_optimization_effort": -1.0}
    if hasattr(jax.config, "jax_exec_time_optimization_effort")
    else {"optimization_level": "O1"}
)


def compiler_options(accelerator: Accelerator, *, quick: bool) -> Mapping[str, Any]:
    """Options of compile_program; `quick` has no effect on GPUs."""
    if accelerator.name.startswith("NVIDIA"):
        return GPU_OPTIONS
    return QUICK if quick else {}


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device. `arguments` includes outputs that alias (donated) arguments; `resident` is training state
    that stays on the device meanwhile without being an argument."""

    arguments: float
    outputs: float
    temporaries: float
    code: float
    resident: float

    @property
    def total(self) -> float:
        """Sum of all."""
        return self.arguments + self.outputs + self.temporaries + self.code + self.resident


@dataclasses.dataclass(frozen=True)
class ProgramReport:
    """A program compiled for a device. If it does not fit, collectives and roofline are None, and temporaries include
    outputs and code. flops_counted: XLA's count, with loop bodies once; None too for a GPU."""

    program: Program
    seconds: float  # of compilation
    memory: Memory
    capacity: float  # bytes of a device
    flops_counted: float | None
    collectives: Collectives | None
    roofline: Roofline | None = None

    @property
    def fits(self) -> bool:
        """Whether the program was compiled and leaves RESERVE free."""
        return self.collectives is not None and self.memory.total + RESERVE <= self.capacity

    def to_json(self) -> dict[str, object]:
        """For a results file; bytes and operations of one device, `flops_model` of all devices."""
        memory = dataclasses.asdict(self.memory)
        memory["beside"] = memory.pop("resident")
        traffic = {}
        for kind in KINDS if self.collectives else ():
            assert self.collectives is not None
            times, size, sent = self.collectives.total(kind)
            traffic[kind] = {"times": times, "bytes": size, "sent": sent}
        return {
            "batch": self.program.batch,
            "fits": self.fits,
            "memory": memory | {"total": self.memory.total, "capacity": self.capacity},
            "flops_model": self.program.flops,
            "flops_counted": self.flops_counted,
            "roofline": dataclasses.asdict(self.roofline) if self.roofline else None,
            "collectives": traffic,
            "unbounded_loops": list(self.collectives.unbounded) if self.collectives else [],
            "sent_each_turn": self.collectives.sent_per_iteration() if self.collectives else 0.0,
            "compile_seconds": round(self.seconds, 1),
        }


def compile_program(
    program: Program, accelerator: Accelerator, options: Mapping[str, Any] | None = None
) -> ProgramReport:
    """Lower and compile a program; call inside jax.set_mesh. options: of the compiler."""
    start = time.perf_counter()
    lowered = program.lower()
    try:
        compiled = lowered.compile({**options} if options else None)
    except jax.errors.JaxRuntimeError as error:
        needed = needed_memory(str(error))
        if needed is None:
            raise
        memory = Memory(program.arguments, 0.0, max(0.0, needed - program.arguments), 0.0, program.resident)
        return ProgramReport(program, time.perf_counter() - start, memory, accelerator.memory, None, None)
    stats, cost, text = compiled.memory_analysis(), compiled.cost_analysis(), compiled.as_text()
    assert stats is not None and text is not None, "the compilers of TPU and GPU give both"
    memory = Memory(
        stats.argument_size_in_bytes,
        stats.output_size_in_bytes - stats.alias_size_in_bytes,
        stats.temp_size_in_bytes,
        stats.generated_code_size_in_bytes,
        program.resident,
    )
    seconds, module = time.perf_counter() - start, Module(text)
    roofline = read_roofline(module, bandwidth=accelerator.bandwidth, peak=accelerator.flops)
    return ProgramReport(
        program,
        seconds,
        memory,
        accelerator.memory,
        float(cost["flops"]) if cost else None,
        module.collectives(),
        roofline,
    )


def needed_memory(message: str) -> float | None:
    """Bytes that the compiler would have allocated, from its error message; None for another kind of error."""
    for pattern in _EXHAUSTED:
        if found := re.search(pattern, message):
            return float(found.group(1)) * _UNITS[found.group(2)]
    return None


_MEMORY = {
    "arguments": "  arguments",
    "resident": "  training state, not an argument",
    "temporaries": "  temporaries",
    "outputs": "  outputs",
    "code": "  code",
    "total": "  total",
}


def format_reports(reports: Mapping[str, ProgramReport], devices: int, accelerator: Accelerator) -> str:
    """A table with a column for each program."""
    columns = list(reports.values())
    rows: list[tuple[str, Sequence[str]]] = [("", list(reports)), ("batch", [each.program.batch for each in columns])]
    rows.append(("memory per device, GiB", [""] * len(columns)))
    for name, label in _MEMORY.items():
        rows.append((label, [_gib(getattr(each.memory, name)) for each in columns]))
    rows.append((f"  fits in {_gib(accelerator.memory)}", ["yes" if each.fits else "NO" for each in columns]))
    rows.append(("TFLOP per device", [""] * len(columns)))
    rows.append(("  of the model", [f"{each.program.flops / devices / 1e12:.3f}" for each in columns]))
    rows.append(("  executed", [_of_roofline(each, "flops", 1e12, ".3f") for each in columns]))
    at_peak = [_milliseconds(each.program.flops / devices / accelerator.flops) for each in columns]
    rows.append((f"  ms at the peak of {accelerator.flops / 1e12:.0f} TFLOP/s", at_peak))
    rows.append(("GB moved per device", [_of_roofline(each, "bytes", 1e9, ".2f") for each in columns]))
    rows.append(("  of random bits", [_of_roofline(each, "random_bits", 1e9, ".2f") for each in columns]))
    label = f"  ms at that peak and {accelerator.bandwidth / 1e9:,.0f} GB/s *"
    rows.append((label, [_of_roofline(each, "seconds", 1e-3, ",.2f") for each in columns]))
    rows.append(("  MFU in that time *", [_utilization(each, devices, accelerator) for each in columns]))
    unbounded = [each for each in columns if each.collectives and each.collectives.unbounded]
    if unbounded:
        repeated = (_of_roofline(each, "seconds", 1e-3, ",.3f", iteration=True) for each in columns)
        cells = [cell if each in unbounded else "" for each, cell in zip(columns, repeated, strict=True)]
        rows.append(("    ms per loop iteration ≥", cells))
    rows.append(("MiB sent per device", [""] * len(columns)))
    for kind in KINDS:
        rows.append((f"  {kind}", [_sent(each, kind) for each in columns]))
    rows.append(("  total", [_sent(each, None) for each in columns]))
    if unbounded:
        rows.append(
            ("    per loop iteration ≥", [_sent_per_iteration(each) if each in unbounded else "" for each in columns])
        )
    if accelerator.link_bandwidth:
        label = f"  ms at {accelerator.link_bandwidth / 1e9:.0f} GB/s, all links"
        rows.append((label, [_on_links(each, accelerator) for each in columns]))
    rows.append(("compilation, s", [f"{each.seconds:.0f}" for each in columns]))
    table = _align(rows)
    notes = [
        "* Roofline: Σ max(FLOPs / peak, bytes / bandwidth) over the instructions, without communication;",
        "  MFU: TFLOP of the model per device / (that time · peak).",
    ]
    if unbounded:
        notes.append(
            "≥ at least: a loop whose length depends on data counts as one iteration, which in generation is a token."
        )
    return "\n".join([*table, *notes])


def _align(rows: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    first = max(len(label) for label, _ in rows)
    widths = [max(len(cells[i]) for _, cells in rows) for i in range(len(rows[0][1]))]
    lines = []
    for label, cells in rows:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join([label.ljust(first), *padded]).rstrip())
    return lines


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _of_roofline(report: ProgramReport, name: str, unit: float, form: str, *, iteration: bool = False) -> str:
    if report.roofline is None:
        return "–"
    cost = report.roofline.iteration if iteration else report.roofline.total
    bound = "≥ " if report.collectives and report.collectives.unbounded and not iteration else ""
    return f"{bound}{getattr(cost, name) / unit:{form}}"


def _utilization(report: ProgramReport, devices: int, accelerator: Accelerator) -> str:
    """Model FLOP utilization if a step took the time of the roofline; of a loop of unknown length it is unknown."""
    if report.roofline is None or report.collectives is None or report.collectives.unbounded:
        return "–"
    return f"{report.program.flops / devices / accelerator.flops / report.roofline.total.seconds:.1%}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f}"


def _sent(report: ProgramReport, kind: str | None) -> str:
    if report.collectives is None:
        return "–"
    bound = "≥ " if report.collectives.unbounded else ""
    return f"{bound}{report.collectives.total(kind)[2] / (1 << 20):.1f}"


def _sent_per_iteration(report: ProgramReport) -> str:
    assert report.collectives is not None
    return f"{report.collectives.sent_per_iteration() / (1 << 20):.1f}"


def _on_links(report: ProgramReport, accelerator: Accelerator) -> str:
    if report.collectives is None:
        return "–"
    bound = "≥ " if report.collectives.unbounded else ""
    return bound + _milliseconds(report.collectives.total()[2] / accelerator.link_bandwidth)


def shortage(name: str, report: ProgramReport) -> str:
    """One-line message for a program that does not fit."""
    return (
        f"{name} does not fit: it needs {_gib(report.memory.total)} of {_gib(report.capacity)} GiB per device, "
        f"of which {_gib(RESERVE)} must stay free: see 'If it does not fit' in docs/scaling.md"
    )
