"""Starts a training run, fresh or resumed, from a config and a workdir, in each of its processes."""

import functools
import json
import math
import sys
from typing import Any, TextIO

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.config import check_batches, flatten, validate
from cotmi_jax.data.tasks import EXPLAIN
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.evaluation.metrics import parse_metrics
from cotmi_jax.evaluation.mi_monitor import check_monitor
from cotmi_jax.evaluation.monitor import SplitMonitor
from cotmi_jax.experiment import Experiment, initial_params, term_notes, with_data_root
from cotmi_jax.extensions import load_extensions
from cotmi_jax.files import Path, run_all
from cotmi_jax.models.rng import stream_key
from cotmi_jax.models.student import StudentDef, count_parameters
from cotmi_jax.parallel.agreement import check_agreement
from cotmi_jax.parallel.batch import make_process_rows
from cotmi_jax.parallel.distributed import AbortAllOnError, all_gather_text, barrier, is_main_process, is_shared
from cotmi_jax.parallel.mesh import batch_shards, make_mesh
from cotmi_jax.training.loop import Run, check_selection, quality
from cotmi_jax.training.optimizer import make_optimizers
from cotmi_jax.training.preemption import Interrupt
from cotmi_jax.training.state import StateDef, TrainState, check_finite
from cotmi_jax.workdir.checkpoint import (
    BEST,
    LATEST,
    Checkpoints,
    Saved,
    restore_items,
    restore_json,
    restore_params,
    steps_saved,
)
from cotmi_jax.workdir.lock import Owner, workdir_lock
from cotmi_jax.workdir.metrics import MetricWriter, Progress, SilentWriter
from cotmi_jax.workdir.provenance import start_facts
from cotmi_jax.workdir.record import (
    check_resumable,
    read_run,
    record_start,
    recorded_initial,
    run_directory,
    run_record,
)
from cotmi_jax.workdir.recovery import Choice, choose, set_aside
from cotmi_jax.workdir.trackers import parse_trackers


def train(config: ConfigDict, workdir_path: str) -> int:
    """Train a fresh run, or resume the one in the workdir; returns the step reached. Raises UserError."""
    load_extensions(config.extensions)
    validate(config)
    if jax.process_count() > 1:
        check_agreement("give all the same command, code and packages", start_facts(config))
    config = with_data_root(config)
    workdir = run_directory(workdir_path)
    with workdir_lock(workdir) as owner:
        barrier("lock")  # no process reads the workdir before the run owns it
        return _train(config, workdir, owner)


def _train(config: ConfigDict, workdir: Path, owner: Owner) -> int:
    for note in check_resumable(workdir, config):
        _print_once(note, sys.stderr)
    mesh = make_mesh(**config.mesh.to_dict())
    check_batches(config, batch_shards(mesh))
    check_monitor(config)
    parse_metrics(config.eval.metrics)
    parse_trackers(config.log.trackers)
    _check_shared(workdir)
    resumed = read_run(workdir, extensions=config.extensions)[1:] if steps_saved(workdir / LATEST) else None
    experiment = Experiment.of(
        config, resumed, make_process_rows(mesh), process=jax.process_index(), processes=jax.process_count()
    )
    barrier("data")
    student = StudentDef.of(experiment.student)
    state_def = StateDef.of(student, make_optimizers(config), mesh, experiment.objective)
    choice = choose(workdir, state_def.abstract.items())
    start = _start(choice.latest, experiment)
    barrier("read")  # no process writes to the workdir before all have read the checkpoint that they resume from
    if start >= config.steps:
        if is_main_process():
            set_aside(workdir, choice, functools.partial(print, file=sys.stderr))
        _print_once(f"{workdir} is complete: {start} of {config.steps} steps")
        return start
    with jax.set_mesh(mesh):
        run = _make_run(workdir, experiment, mesh, state_def, choice, start, owner)
        interrupt = Interrupt()
        ends = (interrupt.restore, run.progress.close, run.checkpoints.close, run.writer.close)
        with run_all(*ends), AbortAllOnError():
            reached = run.steps(start, interrupt)
    if reached < config.steps:
        _print_once(f"interrupted after step {reached} of {config.steps}: the same command resumes from there")
    return reached


def _check_shared(workdir: Path) -> None:
    """Raises UserError in all processes if they do not see the same folder, or not the same checkpoints in it."""
    if jax.process_count() == 1:
        return
    if not is_shared(workdir):
        raise UserError(
            f"--workdir {workdir}: the processes of this run see different folders: use a shared file system or gs://"
        )
    seen = all_gather_text(json.dumps({name: steps_saved(workdir / name) for name in (LATEST, BEST)}))
    if len(set(seen)) > 1:
        raise UserError(f"--workdir {workdir}: processes see different checkpoints ({'; '.join(seen)}): start again")


def _print_once(text: str, file: TextIO | None = None) -> None:
    if is_main_process():
        print(text, file=file)


def _make_run(
    workdir: Path,
    experiment: Experiment,
    mesh: Mesh,
    state_def: StateDef,
    choice: Choice,
    start: int,
    owner: Owner,
) -> Run:
    """The run, ready for its next step. The first process writes the record of this start into the workdir."""
    config = experiment.config
    shape = experiment.data.shape(batch_shards(mesh), mesh.devices.flat[0].platform)
    student = state_def.student
    check_selection(config.eval.select_by, experiment.data.prepared.valid_examples[: config.eval.examples or None])
    state = _make_state(state_def, experiment, choice)
    # A start from step 0 may have other data at the same paths, so that an earlier best student is none of this run.
    best = _best_so_far(choice.best if choice.latest else None, experiment)
    initial = recorded_initial(workdir) if choice.latest else _initial_record(experiment)
    record = run_record(config, experiment.student, experiment.vocabulary, initial)
    progress = Progress(start=start, stop=config.steps, silent=not is_main_process())
    if is_main_process():
        record_start(workdir, record | {"data": experiment.data.summary()}, experiment.vocabulary, start)
        set_aside(workdir, choice, progress.say)
    barrier("start")  # no process opens the folder of checkpoints before damaged ones are moved
    for note in (*term_notes(config), *experiment.data.notes(shape)):
        progress.say(note)
    progress.say(
        f"student: {count_parameters(student.shapes):,} parameters; mesh {dict(mesh.shape)}; "
        + (f"resuming after step {start}" if start else "starting")
    )
    return Run(
        config=config,
        experiment=experiment,
        mesh=mesh,
        shape=shape,
        state_def=state_def,
        state=state,
        evaluator=Evaluator(
            student, experiment.objective, experiment.vocabulary, mesh, batch_size=config.eval.batch_size
        ),
        mi_monitor=make_monitor(experiment, student, mesh, progress),
        checkpoints=Checkpoints(workdir, keep=config.checkpoint.keep),
        writer=_make_writer(workdir, config, start, progress) if is_main_process() else SilentWriter(),
        progress=progress,
        owner=owner,
        record=record,
        best=best,
    )


def _initial_record(experiment: Experiment) -> dict[str, Any] | None:
    if not isinstance(experiment.initial, Saved):
        return None
    return {"workdir": str(experiment.initial.directory.parent), "checkpoint": "best", "step": experiment.initial.step}


def _make_writer(workdir: Path, config: ConfigDict, start: int, progress: Progress) -> MetricWriter:
    keys = flatten(config)
    writer = MetricWriter(
        workdir,
        start=start,
        trackers=parse_trackers(config.log.trackers),
        project=config.log.project,
        config=keys,
        say=progress.say,
    )
    # Markdown shows indented lines as they are.
    writer.write_texts(start, {"config": "\n".join(f"    {key} = {value}" for key, value in keys.items())})
    return writer


def _make_state(state_def: StateDef, experiment: Experiment, choice: Choice) -> TrainState:
    """The initial state: restored, or with the parameters of the initial checkpoint, or random."""
    key = stream_key(experiment.config.seed, "init")
    if choice.latest is not None:
        items = choice.items or restore_items(choice.latest, state_def.abstract.items(), verified=True)
        return state_def.restored(items, choice.latest.step)
    if experiment.initial is None:
        return state_def.init(key)
    params = experiment.initial
    if isinstance(params, Saved):
        params = restore_params(params, {"student": state_def.abstract.params["student"]})["student"]
    state = state_def.from_student(params, key)
    check_finite(state.params["student"], f"config.model.init {experiment.config.model.init}")
    return state


def _start(latest: Saved | None, experiment: Experiment) -> int:
    """The step to resume from, 0 without a checkpoint. Raises UserError where the data has changed."""
    if latest is None:
        return 0
    position, expected = restore_json(latest, "data"), experiment.data.position(latest.step)
    if position != expected:
        raise UserError(
            f"the data is not what {latest} was trained on ({position['fingerprint']}, now "
            f"{expected['fingerprint']}): restore the data, or take another --workdir"
        )
    return latest.step


def _best_so_far(best: Saved | None, experiment: Experiment) -> tuple[float, float]:
    """Run.best of the best checkpoint; without one, a value below that of any evaluation."""
    if best is None:
        return (-math.inf, 0.0)
    valid = {name.removeprefix("valid/"): value for name, value in restore_json(best, "metrics").items()}
    return quality(valid, experiment.config.eval.select_by, experiment.objective)


def make_monitor(experiment: Experiment, student: StudentDef, mesh: Mesh, progress: Progress) -> SplitMonitor | None:
    """The monitor of mutual information on valid; None where it is off or there are too few examples."""
    config, data = experiment.config, experiment.data
    if not config.mi.monitor.every or EXPLAIN not in experiment.objective.tasks:
        return None
    vocabulary, examples = experiment.vocabulary, data.prepared.valid_examples
    initial = functools.partial(initial_params, config, student, vocabulary, mesh)
    try:
        return SplitMonitor.of(
            student, config, vocabulary, mesh, data.valid, examples, initial, batch_size=config.eval.batch_size
        )
    except UserError as error:
        progress.say(f"mutual information is not measured: {error}")
        return None
