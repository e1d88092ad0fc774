"""The benchmark of calibration errors and of intervals, at its smallest size."""

import json
from pathlib import Path
from unittest import mock

import pytest

from benchmarks import calibration_coverage as benchmark


def test_an_overconfident_student_has_its_true_error_and_a_calibrated_one_none() -> None:
    with mock.patch.object(benchmark, "_TRUTH_SIZE", 40_000):
        over = benchmark.measure_student(3, "overconfident", 1000, 12)
        calibrated = benchmark.measure_student(3, "calibrated", 1000, 12)
    for name in ("debiased", "sweep", "smooth"):
        assert over["mean"][name] == pytest.approx(over["true"][name], abs=0.015), name
    assert over["true"]["overconfidence"] == pytest.approx(0.085, abs=0.005) and over["beyond_floor"] == 1.0
    assert calibrated["true"]["overconfidence"] == pytest.approx(0, abs=1e-9)
    assert calibrated["mean"]["ECE 100"] > 0.08 > calibrated["mean"]["debiased"]
    assert calibrated["beyond_floor"] <= 0.25 and min(over["coverage"], calibrated["coverage"]) >= 0.75


def test_intervals_cover_where_pooled_answers_do_not() -> None:
    study = benchmark.measure_study(5, 200, 3, 0.03, 200)
    assert study["coverage"] >= 0.91 and study["pooled"] <= 0.82
    accuracy = benchmark.measure_accuracy(100, 10, 200)
    assert accuracy["coverage"] >= 0.91 and accuracy["ignored"] <= 0.87


def test_the_tables_are_written_into_a_page(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- calibration_coverage: begin -->\n<!-- calibration_coverage: end -->\nb\n")
    small = {"SIZES": (50,), "CLASSES": (3,), "_TRUTH_SIZE": 2000, "STUDIES": ((2, 20, 2, 0.01),)}
    with mock.patch.multiple(benchmark, **small):
        assert benchmark.main(["--rounds=2", f"--markdown={page}", f"--json={tmp_path / 'it.json'}"]) == 0
    text = page.read_text()
    assert "| calibrated, 3 classes | *true* | *0.000* |" in text and "| 2, 20 × 2, 0.01 |" in text
    assert len(json.loads((tmp_path / "it.json").read_text())["students"]) == 2 and capsys.readouterr().out
