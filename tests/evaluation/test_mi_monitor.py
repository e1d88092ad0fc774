"""Held-out mutual information in a run, in its results and in a plot, beside that of the initial weights."""

import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import runs

from cotmi_jax.data.tokens import Ragged, TokenizedSplit, TokenizedTask
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import counterfactual_monitor, mi_monitor
from cotmi_jax.evaluation import monitor as monitors
from cotmi_jax.evaluation.job import score
from cotmi_jax.evaluation.mi_monitor import MIMonitor, draw_rows, label_features
from cotmi_jax.evaluation.monitor import SplitMonitor
from cotmi_jax.experiment import initial_params
from cotmi_jax.inference.load import load_trained
from cotmi_jax.mi.estimate import Estimate
from cotmi_jax.mi.fitting import FitConfig
from cotmi_jax.models.student import StudentDef
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.report.plots import draw_information, read_measurements
from cotmi_jax.report.tensorboard import log_evaluation
from cotmi_jax.report.terminal import format_scores
from cotmi_jax.training.job import train

quick_compilation = runs.quick_compilation

MEASURED = {
    "data.size": 256,
    "mi.monitor.every": 3,
    "mi.monitor.estimators": "infonce",
    "mi.monitor.examples": 64,
    "mi.monitor.pairs": 8,
    "mi.monitor.steps": 20,
    "eval.every": 6,
    "eval.rationales": 5,
    "eval.max_decode_tokens": 8,
}


WITHIN = (
    *("mi/within", "mi/within_error", "mi/within_initial", "mi/within_control", "mi/within_control_error"),
    *("mi/contradiction_auc", "mi/contradiction_auc_error", "mi/contradiction_auc_initial"),
    *("mi/prefers_label", "mi/prefers_rationale", "mi/same_preference", "mi/same_preference_by_chance"),
)


@pytest.fixture(scope="module", autouse=True)
def short_fits() -> Iterator[None]:
    """Critics of few refits and steps: the laws here are about what is read, not how well."""
    fit = FitConfig(num_pairs=8, steps=20, every=10, patience=1)
    with mock.patch.multiple(counterfactual_monitor, REFITS=2, _FIT=fit), mock.patch.object(mi_monitor, "_REFITS", 1):
        yield


@pytest.fixture(scope="module")
def measured(short_fits: None) -> Path:
    """The workdir of a run with held-out estimates at steps 3 and 6."""
    workdir = runs.scratch() / "measured"
    train(runs.tiny_config(MEASURED), str(workdir))
    return workdir


@pytest.mark.slow
def test_a_run_logs_held_out_estimates_beside_those_of_its_initial_weights(measured: Path) -> None:
    lines = read_measurements(measured)
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        assert {name for name in line if name.startswith("mi/")} == {
            f"mi/{name}{suffix}"
            for name in ("infonce", "x_z", "z_y")
            for suffix in ("", "_error", "_initial", "_change", "_change_error")
        } | set(WITHIN)
        assert 0.0 <= line["mi/contradiction_auc"] <= 1.0 and line["mi/within"] <= np.log(2)
        for name in ("infonce", "x_z", "z_y"):
            assert line[f"mi/{name}_change"] == pytest.approx(line[f"mi/{name}"] - line[f"mi/{name}_initial"])
    assert lines[0]["mi/infonce_initial"] == lines[1]["mi/infonce_initial"]
    assert runs.read_tensorboard(measured)["mi/infonce"][0][0] == 3


@pytest.mark.slow
def test_an_evaluation_in_training_reads_some_rationales(measured: Path) -> None:
    (line,) = [line for line in runs.read_metrics(measured) if "valid/accuracy" in line]
    # The outputs of a student after six steps hold neither an answer nor a step.
    assert line["valid/no_steps"] == line["valid/no_answer"] == 1.0 and "valid/agreement" not in line


def test_the_picture_has_a_panel_of_rationales_where_they_were_read(tmp_path: Path) -> None:
    change = {f"mi/{name}_{key}": 0.1 for name in ("infonce", "x_z", "z_y") for key in ("change", "change_error")}
    lines: list[dict] = [{"step": step} | change for step in (1, 2)]
    for extra, width in (({}, 1200), ({"step": 2, "valid/agreement": 0.5, "valid/true_steps": 0.25}, 1800)):
        text = "".join(json.dumps(line) + "\n" for line in [*lines, extra])
        (tmp_path / "metrics.jsonl").write_text(text)
        assert draw_information(tmp_path, tmp_path / "picture.png")
        header = (tmp_path / "picture.png").read_bytes()[16:24]  # of PNG: width and height
        assert (int.from_bytes(header[:4], "big"), int.from_bytes(header[4:], "big")) == (width, 480)


@pytest.mark.slow
def test_evaluate_estimates_and_plots(measured: Path, tmp_path: Path) -> None:
    result = score(str(measured), "test", checkpoint="latest", output=str(tmp_path / "out"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    found, sequence = metrics["information"], metrics["calibration"]["sequence"]
    assert sequence["n"] == runs.HELD_OUT and 0 <= sequence["errors"]["smooth_ece"]["value"] <= 1
    # The labels of valid, to which recalibration is fitted, are generated: after six steps all are wrong.
    reason = sequence["recalibrated"]["not_available"]
    assert reason == "valid: all 64 answers are wrong: no recalibration fits them"
    assert "compared by value" in metrics["labels"]["not_available"]
    now, initial = found["infonce"]["now"], found["infonce"]["initial"]
    assert now["direction"] == "lower" and now["cap"] == pytest.approx(np.log(now["contrasted"]))
    assert now["pairs"] == 16 and now["saturation"] == pytest.approx(now["value"] / now["cap"])  # a quarter of 64
    assert found["infonce"]["change"] == pytest.approx(now["value"] - initial["value"])
    assert found["infonce"]["change_error"] == pytest.approx(np.hypot(now["standard_error"], initial["standard_error"]))
    assert draw_information(result.workdir, result.output / "information.png")
    assert (tmp_path / "out" / "information.png").read_bytes().startswith(b"\x89PNG")
    assert log_evaluation(result, [result.output / "information.png"])
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    ((step, accuracy),) = [(event.step, event.value) for event in events.Scalars("accuracy")]
    assert (step, accuracy) == (6, pytest.approx(result.metrics["accuracy"]))
    (image,) = events.Images("information")
    assert (image.width, image.height) == (1200, 480)
    (examples,) = events.Tensors("examples/text_summary")
    assert result.predictions[0]["label"].encode() in examples.tensor_proto.string_val[0]
    ((name, text), *_) = result.information.lines() if result.information else []
    assert "I(Z;V)" in name and re.match(r"[+-]0\.\d{3} ± 0\.\d{3} nats since the initial weights: -?\d", text)
    without = score(str(measured), "test", checkpoint="latest", output=str(tmp_path / "bare"), information=False)
    assert without.information is None and "information" not in without.metrics
    with mock.patch.object(monitors, "MIN_PAIRS", 65):
        few = score(str(measured), "test", checkpoint="latest", output=str(tmp_path / "few"))
    assert few.metrics["information"] == {"not_available": "64 examples, at least 65 are needed"}
    shown = format_scores(few.metrics, few.information)
    assert re.search(r"^held-out I\(Z;V\) +not available: 64 examples, at least 65 are needed$", shown, re.MULTILINE)


@pytest.mark.slow
def test_initial_weights_are_those_that_a_run_started_from(measured: Path) -> None:
    """A run of no step but the first, with a learning rate of 0, keeps them."""
    config = runs.tiny_config(
        MEASURED | {"steps": 1, "optimizer.learning_rate": 0.0, "mi.monitor.every": 0, "eval.every": 0}
    )
    with tempfile.TemporaryDirectory() as folder:
        train(config, folder)
        trained = load_trained(folder, "latest")
    with jax.set_mesh(trained.mesh):
        initial = initial_params(trained.config, trained.student, trained.vocabulary, trained.mesh)
    runs.assert_same(jax.device_get(initial), jax.device_get(trained.params))


def test_estimators_that_changed_at_a_resume_are_plotted_where_they_were_measured(tmp_path: Path) -> None:
    lines = [
        {"step": step}
        | {f"mi/{each}_{key}": 0.1 for each in (name, "x_z", "z_y") for key in ("change", "change_error")}
        for step, name in ((1, "infonce"), (2, "nwj"), (3, "nwj"))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert draw_information(tmp_path, tmp_path / "picture.png")


@pytest.mark.slow
def test_a_single_measurement_is_not_plotted(measured: Path, tmp_path: Path) -> None:
    lines = (measured / "metrics.jsonl").read_text().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if "mi/x_z_change" in line)
    cut = lines[first][:-10]  # as a kill leaves the next one
    (tmp_path / "metrics.jsonl").write_text("".join(lines[: first + 1]) + cut)
    assert not draw_information(tmp_path, tmp_path / "picture.png") and not (tmp_path / "picture.png").exists()


@pytest.mark.slow
def test_too_few_examples_for_the_monitor_are_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(runs.tiny_config(MEASURED | {"mi.monitor.examples": 4, "eval.every": 0}), str(tmp_path / "few"))
    assert "mutual information is not measured: 4 examples, at least 32 are needed" in capfd.readouterr().err
    with pytest.raises(UserError, match="config.mi.monitor.estimators 'infonce,guess': unknown estimator 'guess'"):
        train(runs.tiny_config({"mi.monitor.estimators": "infonce,guess"}), str(tmp_path / "unknown"))
    assert not list((tmp_path / "unknown").iterdir())


# Features and sets of a monitor.


def split_of(size: int, seed: int) -> TokenizedSplit:
    """Labels of one token out of eight, and rationales that repeat it."""
    labels = np.random.default_rng(seed).integers(2, 10, size).tolist()

    def task(repeats: int) -> TokenizedTask:
        rows = Ragged.of([[label] * repeats + [1] for label in labels])
        return TokenizedTask(rows, rows, False, 0, 0)

    tasks = {"predict": task(1), "explain": task(5)}
    return TokenizedSplit(tasks, np.arange(size + 1), np.ones(size, np.float32), np.ones(size, bool))


def monitor_of(**changes: Any) -> tuple[MIMonitor, dict]:
    from helpers import numpy_params, small_config

    student = StudentDef.of(small_config())
    config = runs.tiny_config(
        {"mi.monitor.estimators": "infonce", "mi.monitor.pairs": 8, "mi.monitor.steps": 20} | changes
    )
    return MIMonitor(student, config, make_mesh(), batch_size=16), numpy_params(student)


def test_features_are_those_of_the_given_rows_in_order() -> None:
    monitor, params = monitor_of()
    split = split_of(24, 0)
    with jax.set_mesh(make_mesh()):
        whole = monitor.features(params, split, np.arange(24))
        some = monitor.features(params, split, np.array([7, 3, 20]))
    assert set(whole) == {"z", "v", "x", "first", "y"}
    for name, feature in whole.items():
        assert feature.shape[0] == 24 and np.isfinite(feature).all()
        np.testing.assert_allclose(some[name], feature[[7, 3, 20]], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_estimates_are_of_the_split() -> None:
    monitor, params = monitor_of()
    split, rows = split_of(64, 0), np.arange(64)
    with jax.set_mesh(make_mesh()):
        estimates = monitor.read(params, split, rows)
        with pytest.raises(UserError, match="^mutual information of 7 held-out examples: at least 32 are needed"):
            monitor.read(params, split, rows[:7])
    assert set(estimates) == {"infonce", "x_z", "z_y"} and estimates["infonce"].pairs == 16


def split_monitor(initial: Any) -> SplitMonitor:
    """Of a monitor whose estimate of a student is the number that stands for its weights."""

    def read(params: float, split: Any, rows_N: Any) -> dict[str, Estimate]:
        return {"infonce": Estimate("infonce", params, 0.3, "lower", np.inf, 8, 8, ())}

    monitor: Any = mock.Mock(read=mock.Mock(side_effect=read))
    return SplitMonitor(monitor, mock.Mock(), split_of(32, 0), np.arange(32), lambda: None, initial, 0)


def test_initial_weights_are_read_once_and_subtracted() -> None:
    monitor = split_monitor(lambda: 4.0)
    for weights in (4.5, 4.1):
        metrics = monitor.measure(weights).metrics()  # type: ignore[arg-type]
        assert metrics["mi/infonce_change"] == pytest.approx(weights - 4.0)
        assert metrics["mi/infonce_change_error"] == pytest.approx(0.3 * 2**0.5)
    assert monitor.monitor.read.call_count == 3  # type: ignore[attr-defined]
    assert monitor.measure(4.5).lines()[-1] == (  # type: ignore[arg-type]
        "held-out I(Z;V|X)",
        "not available: fewer than 40 counterfactuals",
    )


def test_initial_weights_that_cannot_be_read_are_said() -> None:
    def gone() -> Any:
        raise UserError("hub/model is gone")

    found = split_monitor(gone).measure(4.0)  # type: ignore[arg-type]
    assert found.metrics() == {}
    assert found.lines() == [
        ("held-out I(Z;V)", "not available: the initial weights cannot be read: hub/model is gone")
    ]


def test_rows_are_drawn_by_seed_with_the_share_of_each_component() -> None:
    ids = [f"svamp/valid/{n}" for n in range(300)] + [f"jsonl:mine/valid/{n}" for n in range(100)]
    rows = draw_rows(ids, 40, seed=0)
    assert len(set(rows.tolist())) == 40 and sum(rows >= 300) in (9, 10, 11)
    np.testing.assert_array_equal(rows, draw_rows(ids, 40, seed=0))
    assert set(rows.tolist()) != set(draw_rows(ids, 40, seed=1).tolist())
    np.testing.assert_array_equal(rows, draw_rows(ids, 400, seed=0)[:40])
    assert sorted(draw_rows(ids, 1000, seed=3).tolist()) == list(range(400))


def test_different_labels_have_different_codes() -> None:
    targets = np.array([[5, 7, 1, 0], [7, 5, 1, 0], [5, 7, 1, 0], [0, 0, 0, 0]])
    codes = label_features(targets, 32)
    np.testing.assert_array_equal(codes[0], codes[2])
    assert np.abs(codes[0] - codes[1]).max() > 0.1  # the same tokens in another order
    assert not codes[3].any()
    np.testing.assert_array_equal(label_features(np.pad(targets, ((0, 0), (0, 2))), 32)[0].shape, codes[0].shape)


# A term that is not finite.


@pytest.mark.slow
def test_a_term_that_is_not_finite_ends_the_run_and_names_its_components(tmp_path: Path) -> None:
    """The last good checkpoint remains."""
    changes = {"mi.estimator": "nwj", "mi.learning_rate": 1e3, "mi.critic.clamp": 0.0, "checkpoint.every": 1}
    with pytest.raises(UserError) as caught:
        train(runs.tiny_config(changes), str(tmp_path / "run"))
    message = str(caught.value)
    assert "\n" not in message and re.search(r"\bmi is (inf|nan)\b", message), message
    assert "mi_positive is " in message and "mi_negative is " in message
    assert "mi.learning_rate" in message and "another --workdir" in message
    steps = runs.steps_in(tmp_path / "run" / "checkpoints")
    assert steps and f"step {steps[-1] + 1}:" in message
    state = runs.read_state(tmp_path / "run", steps[-1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params["student"]))
