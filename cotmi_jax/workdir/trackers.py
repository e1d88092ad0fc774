"""Trackers of a run's metrics, texts and pictures besides metrics.jsonl: TensorBoard, and services behind an extra."""

import dataclasses
import functools
import importlib
import io
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any, Protocol

from cotmi_jax.errors import UserError, unknown_name
from cotmi_jax.files import Path, is_remote, make_folder, read_json, replace_file, user_error_on_write
from cotmi_jax.workdir.event_file import EventFile, image, scalar, text

RUN_IDS_FILE = "trackers.json"  # name of a tracker → the id that it gave the run, with which a resumed run continues


@dataclasses.dataclass(frozen=True)
class TrackedRun:
    """The properties of a run that a tracker receives at its start.

    workdir: the run's folder, may be in a bucket; its last part is the name of the run.
    folder: a local folder for files, copied to the workdir; the workdir itself if that is local.
    start: steps done before this start; later ones that an interrupted run wrote are repeated.
    project: name of the project or experiment that groups runs.
    config: every config key with its value.
    say: prints a line to the user; may be called from any thread.
    """

    workdir: Path
    folder: Path
    start: int
    project: str
    config: Mapping[str, Any]
    say: Callable[[str], None]


class Tracker(Protocol):
    """Receives what a run logs, in the order of the steps; called by the first process only."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step; a step can have several calls."""

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts in Markdown by name."""

    def images(self, step: int, images: Mapping[str, bytes]) -> None:
        """PNG files by name."""

    def close(self) -> None:
        """Return once everything is written or sent."""


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {}


def register_tracker(name: str) -> Callable[[Callable[[TrackedRun], Tracker]], Callable[[TrackedRun], Tracker]]:
    """Decorator that adds a tracker, which config.log.trackers can then name.

    Raises:
      ValueError: the name is taken.
    """

    def register(make: Callable[[TrackedRun], Tracker]) -> Callable[[TrackedRun], Tracker]:
        if name in TRACKERS:
            raise ValueError(f"tracker {name!r} is registered already")
        TRACKERS[name] = make
        return make

    return register


def parse_trackers(names: str) -> list[str]:
    """The names in config.log.trackers, separated by commas. Raises UserError for one that is not registered."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    for name in chosen:
        if name not in TRACKERS:
            raise unknown_name(f"unknown tracker {name!r} in config.log.trackers", TRACKERS)
    return list(dict.fromkeys(chosen))


def _import_extra(module: str, extra: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        remedy = f"pip install -e '.[{extra}]' (in the repository)"
        raise UserError(f"config.log.trackers needs {module}: {remedy}") from error


def _read_ids(workdir: Path) -> dict[str, str]:
    path = workdir / RUN_IDS_FILE
    if not path.exists():
        return {}
    remedy = "remove it, and trackers start a new run"
    ids = read_json(path, remedy)
    if not all(isinstance(value, str) for value in ids.values()):
        raise UserError(f"{path} does not hold the ids of trackers; {remedy}")
    return ids


def run_id(workdir: Path, tracker: str, make: Callable[[], str]) -> str:
    """The id of the run with a tracker, from the workdir, or made and recorded there at the first start."""
    with user_error_on_write(workdir / RUN_IDS_FILE):
        ids = _read_ids(workdir)
        if tracker not in ids:
            ids[tracker] = make()
            replace_file(workdir / RUN_IDS_FILE, json.dumps(ids, indent=1) + "\n")
    return ids[tracker]


@register_tracker("tensorboard")
class TensorBoard:
    """Event files in {folder}/tensorboard, one per start; imports neither tensorflow nor torch.

    Written synchronously: a thread that writes would end when the disk is full, and the run would wait for it forever.
    """

    def __init__(self, run: TrackedRun):
        self._folder = run.folder / "tensorboard"
        with user_error_on_write(self._folder):
            make_folder(self._folder)
            self._events = EventFile(self._folder)
            self._events.start(run.start + 1)
            self._events.flush()

    def _summaries(self, step: int, summaries: Iterable[bytes]) -> None:
        with user_error_on_write(self._folder):
            for summary in summaries:
                self._events.summary(step, summary)
            self._events.flush()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Scalars, of which TensorBoard draws a curve each."""
        self._summaries(step, (scalar(name, value) for name, value in values.items()))

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts, which TensorBoard renders as Markdown."""
        self._summaries(step, (text(name, content) for name, content in texts.items()))

    def images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Images in the form of their files."""
        self._summaries(step, (image(name, png) for name, png in images.items()))

    def close(self) -> None:
        """Close the event file."""
        with user_error_on_write(self._folder):
            self._events.close()


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _refused(service: str, error: Exception, remedy: str) -> UserError:
    return UserError(f"config.log.trackers: {service} does not start the run: {_in_one_line(error)}; {remedy}")


class _Ending:
    """Whether a run has logged its last step."""

    def __init__(self, run: TrackedRun):
        self._steps, self.is_complete = run.config["steps"], False

    def reached(self, step: int) -> None:
        """Metrics of a step were logged."""
        self.is_complete = self.is_complete or step == self._steps


@register_tracker("wandb")
class Wandb:
    """A run of Weights & Biases, which resumed starts continue; offline (WANDB_MODE=offline) its files are in
    {workdir}/wandb.

    Steps that are repeated after a kill are dropped by the client, since a run's steps only increase: the first values
    are kept. A network failure during the run neither stops nor delays it, since the client sends in the background.
    """

    def __init__(self, run: TrackedRun):
        self._wandb = wandb = _import_extra("wandb", "wandb")
        self._say, self._ending = run.say, _Ending(run)
        try:
            self._run = wandb.init(
                project=run.project,
                name=run.workdir.name,
                id=run_id(run.workdir, "wandb", lambda: secrets.token_hex(8)),
                resume="allow",
                config=dict(run.config),
                dir=None if is_remote(run.workdir) else str(run.folder),
            )
        except wandb.errors.Error as error:
            raise _refused("W&B", error, "run wandb login, or set WANDB_MODE=offline") from error

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics at their step."""
        self._ending.reached(step)
        self._run.log(dict(values), step=step)

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts, as tables with one cell."""
        tables = {name: self._wandb.Table(columns=["text"], data=[[content]]) for name, content in texts.items()}
        self._run.log(tables, step=step)

    def images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Images."""
        self._run.log({name: self._wandb.Image(_decode(png)) for name, png in images.items()}, step=step)

    def close(self) -> None:
        """Wait until everything is sent, or written if offline. It also ends other W&B runs of this process."""
        self._run.finish(exit_code=0 if self._ending.is_complete else 1)
        try:
            # finish does not wait for the service process, which writes the last 32 KiB of an offline run after it.
            self._wandb.teardown()
        except SystemExit as error:
            self._say(f"W&B's service process ended with code {error.code}: the end of the run may be missing there")


@register_tracker("mlflow")
class MLflow:
    """A run in the experiment config.log.project of MLflow's tracking server ($MLFLOW_TRACKING_URI).

    A thread of its own sends, so that a slow server does not delay the run. If a request fails, after the repetitions
    of MLflow's client, this is reported and nothing more is sent. Steps repeated after a kill are logged twice.
    """

    def __init__(self, run: TrackedRun):
        self._mlflow = mlflow = _import_extra("mlflow", "mlflow")
        self._say, self._failed, self._ending = run.say, False, _Ending(run)
        try:
            self._client = mlflow.MlflowClient()
            self._id = run_id(run.workdir, "mlflow", lambda: self._create(run))
            self._client.update_run(self._id, status="RUNNING")
        except mlflow.exceptions.MlflowException as error:
            raise _refused("MLflow", error, "check MLFLOW_TRACKING_URI") from error
        self._thread, self._sent = ThreadPoolExecutor(1, "mlflow"), list[Future[None]]()

    def _create(self, run: TrackedRun) -> str:
        experiment = self._client.get_experiment_by_name(run.project)
        group = experiment.experiment_id if experiment else self._client.create_experiment(run.project)
        created: str = self._client.create_run(group, run_name=run.workdir.name).info.run_id
        params = [self._mlflow.entities.Param(key, str(value)) for key, value in run.config.items()]
        for first in range(0, len(params), 100):  # the most that a request may hold
            self._client.log_batch(created, params=params[first : first + 100])
        return created

    def _send(self, what: str, send: Callable[[], object]) -> None:
        def attempt() -> None:
            if self._failed:
                return
            try:
                send()
            except self._mlflow.exceptions.MlflowException as error:
                self._failed = True
                self._say(f"MLflow did not take {what}: {_in_one_line(error)}; nothing more is sent to it")

        self._sent.append(self._thread.submit(attempt))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics at their step."""
        self._ending.reached(step)
        now = int(time.time() * 1000)
        metrics = [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        self._send(f"the metrics of step {step}", lambda: self._client.log_batch(self._id, metrics=metrics))

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Texts, as artifacts with the step in their names."""
        for name, content in texts.items():
            self._send(name, functools.partial(self._client.log_text, self._id, content, f"{name}-{step}.md"))

    def images(self, step: int, images: Mapping[str, bytes]) -> None:
        """Images, as artifacts with the step in their names."""
        for name, png in images.items():
            self._send(name, functools.partial(self._client.log_image, self._id, _decode(png), f"{name}-{step}.png"))

    def close(self) -> None:
        """Wait until everything is sent. A run that was interrupted, or failed, is shown as killed until it resumes."""
        status = "FINISHED" if self._ending.is_complete else "KILLED"
        self._send("the end of the run", lambda: self._client.set_terminated(self._id, status=status))
        self._thread.shutdown()
        for each in self._sent:
            each.result()  # raises what is no failure of the server


def _decode(png: bytes) -> Any:
    from PIL import Image  # required by matplotlib

    return Image.open(io.BytesIO(png))
