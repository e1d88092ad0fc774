"""The paired comparison of objectives: its statistics, its table, and that complete runs are not repeated."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks import mi_comparison
from benchmarks.mi_comparison import ARMS, OUTCOMES, Study, compare, markdown, paired_difference
from cotmi_jax.config import base
from cotmi_jax.errors import UserError


def test_a_paired_difference_is_the_t_interval_of_scipy() -> None:
    draw = np.random.default_rng(0)
    arm, baseline = draw.normal(size=(2, 6))
    expected = stats.ttest_rel(arm, baseline).confidence_interval(0.95)
    found = paired_difference(arm, baseline)
    np.testing.assert_allclose((found.low, found.high), (expected.low, expected.high), rtol=1e-12)
    assert found.mean == pytest.approx((arm - baseline).mean())


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study whose runs are complete: an arm's label accuracy is that of the baseline plus its number / 100."""
    made = Study(tmp_path, seeds=3, steps=10, smoke=True)
    for number, arm in enumerate(ARMS):
        for seed in range(made.seeds):
            metrics = {"agreement": {"value": 0.5}, "true_steps": {"value": 0.25}}
            accuracy = 0.1 * seed + number / 100
            loss = {"predict": 1.0 + seed, "explain": 2.0}
            made.result(arm, seed).write_text(
                json.dumps({"accuracy": accuracy, "n": 500, "metrics": metrics, "loss": loss})
            )
    return made


def test_differences_are_taken_within_a_seed(study: Study) -> None:
    rows = compare(study)
    assert [row["arm"] for row in rows] == list(ARMS)
    for number, row in enumerate(rows):
        accuracy = row["label accuracy"]
        assert accuracy["mean"] == pytest.approx(10.0 + number) and accuracy["sd"] == pytest.approx(10.0)
        if not row["baseline"]:
            assert row["arm"] == "dss" and "difference" not in accuracy
        else:  # the seeds differ by 10 points, their pairs do not
            gain = number - list(ARMS).index(row["baseline"])
            assert accuracy["difference"] == pytest.approx({"mean": gain, "low": gain, "high": gain})


def test_a_run_without_an_outcome_is_an_error(study: Study) -> None:
    file = study.result("dss", 1)
    file.write_text(file.read_text().replace("true_steps", "no_steps"))
    with pytest.raises(UserError, match="^a run has no true steps: its rationales hold none; give more --steps"):
        compare(study)


def test_a_complete_study_trains_nothing_and_is_shown(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Study, "commands", lambda *_: pytest.fail("a complete run was repeated"))
    table = markdown(mi_comparison.measure(study, workers=2), "COMMAND")
    assert (
        table.count("<br>") == len(OUTCOMES) * (len(ARMS) - 1)
        and "3 seeds an arm, 10 steps, 500 test problems" in table
    )
    assert "| infonce, β .01 | dss | 12.0 (10.0)<br>**+2.0** [+2.0, +2.0] |" in table
    assert all(f"{outcome.name}, {outcome.unit}" in table for outcome in OUTCOMES)


def test_a_failed_run_is_named_and_its_log_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path, seeds=2, steps=10, smoke=True)
    monkeypatch.setattr(Study, "commands", lambda *_: [["false"]])
    with pytest.raises(UserError, match=f"^dss, seed 0: exit code 1, see {tmp_path}/dss-seed0.log"):
        study.run("dss", 0, [0])
    assert not study.result("dss", 0).exists()


def test_a_run_that_a_signal_stopped_is_not_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path, seeds=2, steps=10, smoke=True)
    monkeypatch.setattr(Study, "commands", lambda *_: [["true"]])
    workdir = tmp_path / "dss-seed0"
    (workdir / "evaluation" / "test").mkdir(parents=True)
    (workdir / "evaluation" / "test" / "metrics.json").write_text(json.dumps({"checkpoint": {"step": 3}}))
    config = base()
    config.steps = 10
    (workdir / "run.json").write_text(json.dumps({"config": config.to_dict(), "student": {}}))
    with pytest.raises(UserError, match="^dss, seed 0: stopped by a signal after step 3 of 10: run again"):
        study.run("dss", 0, [0])
    assert workdir.exists() and not study.result("dss", 0).exists()
