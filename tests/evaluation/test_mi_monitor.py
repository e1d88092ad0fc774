"""Held-out mutual information in a run, in its results and in a plot; a run whose term is not finite."""

import json
import re
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import runs

from cotmi_jax.data.tokens import Ragged, TokenizedSplit, TokenizedTask
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import job as scoring
from cotmi_jax.evaluation import mi_monitor as mi_monitor
from cotmi_jax.evaluation.job import score
from cotmi_jax.evaluation.mi_monitor import MIMonitor, label_features
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
    "mi.monitor.examples": 256,
    "mi.monitor.steps": 100,
    "eval.every": 0,
    "eval.examples": 64,
}


@pytest.fixture(scope="module")
def measured() -> Path:
    """The workdir of a run with held-out estimates at steps 3 and 6."""
    workdir = runs.scratch() / "measured"
    train(runs.tiny_config(MEASURED), str(workdir))
    return workdir


@pytest.mark.slow
def test_a_run_logs_held_out_estimates(measured: Path) -> None:
    lines = read_measurements(measured)
    assert [line["step"] for line in lines] == [3, 6]
    for line in lines:
        assert {name for name in line if name.startswith("mi/")} == {
            f"mi/{name}{suffix}" for name in ("infonce", "plane_x_z", "plane_z_y") for suffix in ("", "_error")
        } | {"mi/infonce_control"}
        assert line["mi/infonce"] > 0.2  # both tasks read the same problem
        assert line["mi/infonce_control"] <= 0.05
    assert runs.read_tensorboard(measured)["mi/infonce"][0][0] == 3


@pytest.mark.slow
def test_evaluate_estimates_and_plots(measured: Path, tmp_path: Path) -> None:
    result = score(str(measured), "test", checkpoint="latest", output=str(tmp_path / "out"))
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())["information"]
    estimate = found["between"]["infonce"]
    assert estimate["direction"] == "lower" and estimate["cap"] == pytest.approx(np.log(estimate["contrasted"]))
    assert estimate["pairs"] > 0.8 * runs.HELD_OUT  # pairs that do not make a whole block are left out
    assert estimate["saturation"] == pytest.approx(estimate["value"] / estimate["cap"])
    assert estimate["control"]["value"] <= 0.05 < estimate["value"]
    assert draw_information(result.workdir, result.output / "information.png")
    assert (tmp_path / "out" / "information.png").read_bytes().startswith(b"\x89PNG")
    assert log_evaluation(result, result.output / "information.png")
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
    assert "I(Z;V)" in name and text.startswith("≥ ") and "permuted" in text
    without = score(str(measured), "test", checkpoint="latest", output=str(tmp_path / "bare"), information=False)
    assert without.information is None and "information" not in without.metrics
    with mock.patch.object(scoring, "MIN_PAIRS", runs.HELD_OUT + 1):
        few = score(str(measured), "test", checkpoint="latest", output=str(tmp_path / "few"))
    assert few.information is None and few.metrics["information"] is None
    assert "held-out I(Z;V)            not measured" in format_scores(few.metrics, few.information)


@pytest.mark.slow
def test_a_single_measurement_is_not_plotted(measured: Path, tmp_path: Path) -> None:
    lines = (measured / "metrics.jsonl").read_text().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if "plane_x_z" in line)
    cut = lines[first][:-10]  # as a kill leaves the next one
    (tmp_path / "metrics.jsonl").write_text("".join(lines[: first + 1]) + cut)
    assert not draw_information(tmp_path, tmp_path / "picture.png") and not (tmp_path / "picture.png").exists()


@pytest.mark.slow
def test_too_few_examples_for_the_monitor_are_reported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train(runs.tiny_config(MEASURED | {"eval.examples": 4}), str(tmp_path / "few"))
    assert "mutual information is not measured: 4 examples, at least 8 are needed" in capfd.readouterr().err
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
    config = runs.tiny_config({"mi.monitor.estimators": "infonce", "mi.monitor.pairs": 8} | changes)
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
def test_held_out_pairs_do_not_change_the_fit() -> None:
    """With other held-out examples the curve of the fit is the same and the estimate is not."""
    monitor, params = monitor_of()
    known = split_of(128, 0)
    with jax.set_mesh(make_mesh()):
        found = [monitor.measure(params, known, np.arange(128), split_of(32, seed)) for seed in (1, 2)]
    (one, control), (other, _) = (each.between["infonce"] for each in found)
    assert one.curve == other.curve and one.value != other.value
    assert one.curve != control.curve
    assert one.pairs == 32 and one.contrasted == 8
    with pytest.raises(UserError, match="of 7 held-out examples, fitted on 128: at least 8"):
        monitor.measure(params, known, np.arange(128), split_of(7, 1))


def test_different_labels_have_different_codes() -> None:
    targets = np.array([[5, 7, 1, 0], [7, 5, 1, 0], [5, 7, 1, 0], [0, 0, 0, 0]])
    codes = label_features(targets, 32)
    np.testing.assert_array_equal(codes[0], codes[2])
    assert np.abs(codes[0] - codes[1]).max() > 0.1  # the same tokens in another order
    assert not codes[3].any()
    np.testing.assert_array_equal(label_features(np.pad(targets, ((0, 0), (0, 2))), 32)[0].shape, codes[0].shape)


def test_controls_are_permuted_within_each_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pair of the fit is among the test pairs, nor is a permuted one."""
    seen = []
    monkeypatch.setattr(mi_monitor, "estimate_splits", lambda *sets, **_: seen.append(sets))
    monitor, _ = monitor_of()
    fitting, test = ({"z": x, "v": x + 0.5} for x in (np.arange(20.0)[:, None], 100.0 + np.arange(12.0)[:, None]))
    monitor._estimate("infonce", fitting=fitting, test=test, sides=("z", "v"), permute=True)
    ((train_pairs, validation_pairs, test_pairs),) = seen
    for z, v in (train_pairs, validation_pairs, test_pairs):
        np.testing.assert_array_equal(np.sort(v, axis=0), z + 0.5)
        assert (v != z + 0.5).any()
    assert not set(validation_pairs[0].ravel()) & set(train_pairs[0].ravel()) and test_pairs[0].min() == 100.0


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
