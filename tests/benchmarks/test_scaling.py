"""The table of students on slices: how the largest batch is found, and the page it is written to."""

from pathlib import Path

import pytest

from benchmarks import scaling
from cotmi_jax.aot.hlo import KINDS, Collectives
from cotmi_jax.aot.programs import Program
from cotmi_jax.aot.report import Memory, ProgramReport
from cotmi_jax.models.meshes import MeshShape
from cotmi_jax.parallel.accelerators import GIB


@pytest.mark.parametrize("per_row, expected", [(0.01, 64), (0.4, 32), (0.8, 16), (7.0, 2), (13.0, 1), (20.0, 0)])
def test_the_largest_batch_takes_few_compilations(
    monkeypatch: pytest.MonkeyPatch, per_row: float, expected: int
) -> None:
    tried = []

    def compile_step(name: str, topology: str, shape: MeshShape, rows: int, quick: bool) -> ProgramReport:
        tried.append(rows)
        memory = Memory(GIB, 0.0, rows * per_row * GIB, 0.0, 0.0)
        fits = memory.total <= 15 * GIB
        program = Program("train", "", 0.0, GIB, 0.0, lambda: None)  # type: ignore[arg-type,return-value]
        return ProgramReport(program, 1.0, memory, 16.0 * GIB, None, Collectives((), ()) if fits else None)

    monkeypatch.setattr(scaling, "compile_step", compile_step)
    monkeypatch.setattr(scaling, "MOST_ROWS", 64)
    rows, report = scaling.largest("small", "v5e-8", MeshShape(8, 1, 1), quick=True)
    assert rows == expected
    assert (report is not None and report.fits) == (expected > 0)
    assert len(tried) <= 4 or expected == 0


def test_the_text_around_the_table_and_rows_of_other_cells_remain(tmp_path: Path) -> None:
    kinds = dict.fromkeys(KINDS, {"times": 1, "bytes": 4.0 * 2**20, "sent": 2.0**20})
    cell = {
        "mesh": [4, 2, 1],
        "rows": 16,
        "memory": {"total": 8.0 * GIB, "capacity": 16.0 * GIB},
        "collectives": kinds,
        "least": {"all-gather": 2.5 * 2**20},
        "seconds": {"operations": 0.5, "links": 0.125},
        "roofline": {"total": {"bytes": 65e9, "seconds": 0.75}},
        "compiled": "2026-11-28",
    }
    failed = {"fits": False, "why": "too large", "compiled": "2026-11-27"}
    kept = "| base | v5e-8 |" + " 1 |" * 15 + " 2026-01-01 |"
    replaced = "| small | v5e-8 |" + " 1 |" * 15 + " 2026-01-01 |"
    page = tmp_path / "scaling.md"
    page.write_text(f"before\n{scaling.BEGIN}\n{replaced}\n{kept}\n{scaling.END}\nafter\n")
    scaling.write_markdown(page, {"small v5e-8": cell, "xxl v5e-8": failed})
    before, header, _, small, base, xxl, after = [
        line for line in page.read_text().splitlines() if line and "<!--" not in line
    ]
    assert (before, after) == ("before", "after")
    assert small == (
        "| small | v5e-8 | 4 × 2 × 1 | auto, auto | 128 (16) | 8.0 / 16 | 65 | 1 | 1 | 1 | 2 | 5 | 2 | 2.00 "
        "| 500 | 750 | 125 | 2026-11-28 |"
    )
    assert base == kept
    assert "too large" in xxl
    assert header.count("|") == small.count("|") == xxl.count("|")


def test_a_state_that_leaves_no_room_for_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    program = Program("train", "", 0.0, 20 * GIB, 0.0, lambda: None)  # type: ignore[arg-type,return-value]
    report = ProgramReport(program, 1.0, Memory(20 * GIB, 0.0, 0.0, 0.0, 0.0), 16.0 * GIB, None, None)
    monkeypatch.setattr(scaling, "compile_step", lambda *arguments: report)
    assert scaling.largest("small", "v5e-8", MeshShape(8, 1, 1), quick=True) == (0, None)
