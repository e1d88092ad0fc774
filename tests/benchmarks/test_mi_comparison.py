"""The paired comparison of objectives: its statistics, its table, and that complete runs are not repeated."""

import json
from pathlib import Path

import numpy as np
import pytest
from evaluated import write_evaluated
from scipy import stats

from benchmarks import mi_comparison
from benchmarks.mi_comparison import ARMS, OUTCOMES, Study, compare, markdown, paired_difference
from cotmi_jax.config import base
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.measures import parse_measures
from cotmi_jax.evaluation.methods import group, read_evaluated
from cotmi_jax.evaluation.metrics import measure
from cotmi_jax.evaluation.verdicts import compare_all


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


LINE = {"cluster": "", "input": "4 and 5", "label": "9", "teacher_label": None, "teacher_rationale": ""}


def evaluated_run(study: Study, arm: str, seed: int) -> None:
    """A workdir as training and evaluation leave it, with metrics.json as evaluate computes it from predictions."""
    draw, workdir = np.random.default_rng([seed, len(arm)]), study.result(arm, seed).with_suffix("")
    lines: list = []
    for number in range(40):
        said, step = (str(9 + int(each)) for each in draw.random(2) < 0.4)
        tokens = {"predict": 2 + number % 2, "explain": 7 + number % 3}
        loss = {task: float(draw.gamma(1.0) * count) for task, count in tokens.items()}
        text = {"predicted_label": said, "predicted_rationale": f"4 + 5 = {step}", "correct": said == "9"}
        lines.append(LINE | text | {"id": str(number), "loss": loss, "tokens": tokens})
    changes = {"objective__name": "cotmi", "objective__beta": 0.01} if arm != "dss" else {}
    write_evaluated(workdir, lines, seed=seed, steps=10, data__dataset="arithmetic", **changes)
    (workdir / "checkpoints").mkdir()
    losses = {
        task: sum(each["loss"][task] for each in lines) / sum(each["tokens"][task] for each in lines)
        for task in ("predict", "explain")
    }
    file = workdir / "evaluation/test/metrics.json"
    scores = measure(["agreement", "steps"], lines).scores
    more = {"checkpoint": {"step": 10}, "metrics": scores, "loss": losses}
    file.write_text(json.dumps(json.loads(file.read_text()) | more))


def test_compare_gives_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of workdirs that a complete study leaves behind, without checkpoints."""
    study = Study(tmp_path, seeds=3, steps=10, smoke=True)
    monkeypatch.setattr(Study, "commands", lambda *_: [["true"]])
    monkeypatch.setattr(mi_comparison, "ARMS", {name: ARMS[name] for name in ("dss", "infonce, β .01")})
    for arm in mi_comparison.ARMS:
        for seed in range(3):
            evaluated_run(study, arm, seed)
            study.run(arm, seed, [0])
    workdirs = [folder for folder in sorted(tmp_path.iterdir()) if folder.is_dir()]
    assert len(workdirs) == 6 and not any((folder / "checkpoints").exists() for folder in workdirs)
    methods = group([read_evaluated(str(folder), "test") for folder in workdirs], "test")
    measures = parse_measures("accuracy,agreement,true_steps,label_loss,rationale_loss")
    found = compare_all(methods, methods.find("dss"), measures)
    for outcome, each in zip(OUTCOMES, found, strict=True):
        rows = {row.method.name.split()[0]: row for row in each.rows}
        for row, name in zip(compare(study), ("dss", "cotmi"), strict=True):
            values = [each.measure.factor * value for value in rows[name].by_seed or ()]
            assert values == pytest.approx(row[outcome.name]["values"]), outcome.name
        contrast = rows["cotmi"].contrast
        assert contrast is not None and each.measure.factor * contrast.interval.value == pytest.approx(
            row[outcome.name]["difference"]["mean"]
        )
