"""Trackers: TensorBoard, W&B and MLflow as their own readers see them, and one that a test registers."""

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import matplotlib
import pytest
import runs

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.examples import markdown_examples
from cotmi_jax.evaluation.metrics import Prediction
from cotmi_jax.files import as_path
from cotmi_jax.training.job import train
from cotmi_jax.workdir.metrics import MetricWriter
from cotmi_jax.workdir.trackers import TRACKERS, TensorBoard, TrackedRun, parse_trackers, register_tracker, run_id

PNG = (Path(matplotlib.get_data_path()) / "images" / "home.png").read_bytes()  # 24 × 24


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def tracked(tmp_path: Path, said: list[str]) -> TrackedRun:
    workdir = as_path(str(tmp_path / "run"))
    workdir.mkdir()
    return TrackedRun(workdir, workdir, 0, "distillation", {"seed": 3, "model.preset": "tiny", "steps": 2}, said.append)


def log_two_steps(name: str, run: TrackedRun) -> None:
    tracker = TRACKERS[name](run)
    tracker.scalars(1, {"train/loss": 2.0})
    tracker.scalars(2, {"train/loss": 1.0})
    tracker.texts(2, {"valid/examples": "| a |"})
    tracker.images(2, {"information": PNG})
    tracker.close()


def read_tensorboard(folder: Path) -> Any:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(folder))
    events.Reload()
    return events


def test_tensorboard_shows_scalars_texts_and_images(tracked: TrackedRun) -> None:
    log_two_steps("tensorboard", tracked)
    events = read_tensorboard(Path(tracked.folder) / "tensorboard")
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    (text,) = events.Tensors("valid/examples/text_summary")
    assert (text.step, text.tensor_proto.string_val[0]) == (2, b"| a |")
    (image,) = events.Images("information")
    assert (image.width, image.height, image.encoded_image_string) == (24, 24, PNG)


def test_examples_stay_in_their_table() -> None:
    prediction = Prediction(
        id="1",
        input="a | b\nc",
        label="1\\2",
        predicted_label="",
        correct=False,
        teacher_label=None,
        teacher_rationale=None,
        predicted_rationale=None,
    )
    assert markdown_examples([prediction]).splitlines()[2] == r"| a \| b c | 1\\2 |  | no |"
    explained = markdown_examples([prediction, {**prediction, "predicted_rationale": "since"}]).splitlines()
    assert explained[0].endswith("| student's rationale |") and explained[3].endswith("| no | since |")


def test_wandb_offline_resumes_under_the_same_id(tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for _ in range(2):
        log_two_steps("wandb", tracked)
    written = sorted(Path(tracked.folder).glob("wandb/offline-run-*/*.wandb"))
    identity = json.loads((tracked.workdir / "trackers.json").read_text())["wandb"]
    assert {path.name for path in written} == {f"run-{identity}.wandb"}
    content = written[-1].read_bytes()
    assert all(part in content for part in (b"train/loss", b"distillation", b"model.preset", b"valid/examples"))
    assert "WANDB_SERVICE" not in os.environ  # the process that writes the files has ended


def test_a_failing_service_process_of_wandb_is_reported_and_stops_no_run(
    tracked: TrackedRun, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", mock.Mock())
    monkeypatch.setattr(wandb, "teardown", mock.Mock(side_effect=SystemExit(3)))
    TRACKERS["wandb"](tracked).close()
    wandb.init.return_value.finish.assert_called_once_with(exit_code=1)  # no step was logged
    assert said == ["W&B's service process ended with code 3: the end of the run may be missing there"]


@pytest.fixture
def mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    module = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = module.get_tracking_uri()
    module.set_tracking_uri(f"file:{tmp_path / 'mlruns'}")
    yield module
    module.set_tracking_uri(uri)


def test_mlflow_gets_metrics_params_and_artifacts(mlflow: Any, tracked: TrackedRun, said: list[str]) -> None:
    for _ in range(2):  # the second start resumes the run
        log_two_steps("mlflow", tracked)
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("distillation").experiment_id])
    assert (run.info.run_name, run.info.status, run.data.params) == (
        "run",
        "FINISHED",
        {"seed": "3", "model.preset": "tiny", "steps": "2"},
    )
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 2.0)] * 2 + [(2, 1.0)] * 2
    names = [each.path for each in client.list_artifacts(run.info.run_id)]
    assert names == ["information-2.png", "valid"] and said == []
    interrupted = TRACKERS["mlflow"](tracked)
    interrupted.scalars(1, {"train/loss": 2.0})
    interrupted.close()
    assert client.get_run(run.info.run_id).info.status == "KILLED"


def test_a_failing_mlflow_server_is_reported_once_and_stops_no_run(
    mlflow: Any, tracked: TrackedRun, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise mlflow.exceptions.MlflowException("503\nService Unavailable")

    writer = MetricWriter(
        tracked.workdir, start=0, trackers=["mlflow"], project="distillation", config=tracked.config, say=said.append
    )
    monkeypatch.setattr(mlflow.MlflowClient, "log_batch", fails)
    for step in (1, 2):
        writer.write(step, {"train/loss": 1.0 / step})
    writer.close()
    assert said == ["MLflow did not take the metrics of step 1: 503 Service Unavailable; nothing more is sent to it"]
    assert [line["step"] for line in runs.read_metrics(Path(tracked.workdir))] == [1, 2]


def test_a_defect_in_the_sending_thread_is_raised(
    mlflow: Any, tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = TRACKERS["mlflow"](tracked)
    monkeypatch.setattr(mlflow.MlflowClient, "log_text", lambda: None)  # takes no arguments
    tracker.texts(1, {"name": "text"})
    with pytest.raises(TypeError):
        tracker.close()


def test_a_service_that_refuses_the_run_is_a_user_error(
    mlflow: Any, tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise mlflow.exceptions.MlflowException("401 Unauthorized")

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", fails)
    with pytest.raises(UserError, match="MLflow does not start the run: 401 Unauthorized; check MLFLOW_TRACKING_URI"):
        TRACKERS["mlflow"](tracked)
    wandb = pytest.importorskip("wandb")
    monkeypatch.setattr(wandb, "init", lambda **_: (_ for _ in ()).throw(wandb.errors.AuthenticationError("no key")))
    with pytest.raises(UserError, match="W&B does not start the run: no key; run wandb login"):
        TRACKERS["wandb"](tracked)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_names_its_extra(name: str, tracked: TrackedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=rf"needs {name}: pip install -e '.\[{name}\]' \(in the repository\)"):
        TRACKERS[name](tracked)


def test_names_of_trackers_are_checked() -> None:
    assert parse_trackers("") == [] and parse_trackers(" mlflow, tensorboard,mlflow") == ["mlflow", "tensorboard"]
    with pytest.raises(UserError, match="unknown tracker 'comet' in config.log.trackers: choose one of tensorboard"):
        train(runs.tiny_config({"log.trackers": "comet"}), "unused")
    with pytest.raises(ValueError, match="tracker 'tensorboard' is registered already"):
        register_tracker("tensorboard")(TensorBoard)


@pytest.mark.parametrize("content", ["[", "[]", 200_000 * "[", '{"wandb": 3}'])
def test_a_damaged_file_of_ids_is_named(content: str, tracked: TrackedRun) -> None:
    (tracked.workdir / "trackers.json").write_text(content)
    with pytest.raises(UserError, match="trackers.json.*; remove it, and trackers start a new run"):
        run_id(tracked.workdir, "wandb", lambda: "new")


def test_a_registered_tracker_gets_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Recorder:
        def __init__(self, run: TrackedRun):
            calls.append(("start", run.start, run.project, dict(run.config)))

        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            calls.append((step, dict(values)))

        def texts(self, step: int, texts: Mapping[str, str]) -> None:
            calls.append((step, dict(texts)))

        def images(self, step: int, images: Mapping[str, bytes]) -> None:
            raise AssertionError("a run logs no images")

        def close(self) -> None:
            calls.append(("end",))

    monkeypatch.setitem(TRACKERS, "recorder", Recorder)
    writer = MetricWriter(as_path(str(tmp_path)), start=4, trackers=["recorder"], project="p", config={"seed": 1})
    writer.write(5, {"loss": 1.0})
    writer.write_texts(5, {"note": "x"})
    writer.close()
    assert calls == [("start", 4, "p", {"seed": 1}), (5, {"loss": 1.0}), (5, {"note": "x"}), ("end",)]
