"""The training loop: feeds the step, reads its metrics one step late, evaluates, saves, and goes on where it was."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.accelerators import find_accelerator
from cotmi_jax.config import check_batches, profiled_steps, validate
from cotmi_jax.data.packing import PackShape
from cotmi_jax.data.tasks import EXPLAIN
from cotmi_jax.distributed import EndingTogether, is_first, wait_for_all
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.evaluation.information import MIN_PAIRS, InformationMonitor, fitting_rows
from cotmi_jax.files import Path, ended_by
from cotmi_jax.models.student import StudentDef, count_parameters
from cotmi_jax.sharding import batch_shards, make_feed, make_mesh, put_batch
from cotmi_jax.training.checkpoint import Checkpoints, Saved, restore_json, restore_state, saved
from cotmi_jax.training.experiment import Experiment, eval_decoding, with_data_root
from cotmi_jax.training.interrupt import Interrupt
from cotmi_jax.training.lock import Owner, workdir_lock
from cotmi_jax.training.optimizer import make_optimizers, make_schedule
from cotmi_jax.training.profile import Profile
from cotmi_jax.training.recovery import choose, set_aside
from cotmi_jax.training.rng import stream_key, train_streams
from cotmi_jax.training.state import StateDef, TrainState
from cotmi_jax.training.step import make_train_step
from cotmi_jax.training.throughput import CHECKPOINT, EVALUATION, SHOWN, Throughput, Work
from cotmi_jax.training.workdir import (
    check_same_config,
    check_shared,
    read_run,
    record_start,
    run_directory,
    run_record,
)
from cotmi_jax.training.writers import MetricWriter, Progress, SilentWriter


@dataclasses.dataclass
class Run:
    """A training run between two steps. Lives inside jax.set_mesh."""

    config: ConfigDict
    experiment: Experiment
    mesh: Mesh
    shape: PackShape | None
    state_def: StateDef
    state: TrainState
    evaluator: Evaluator
    information: InformationMonitor | None
    checkpoints: Checkpoints
    writer: MetricWriter | SilentWriter
    progress: Progress
    owner: Owner
    record: dict
    best: tuple[float, float]  # accuracy, then minus the label loss: what a better student has more of
    throughput: Throughput = dataclasses.field(default_factory=Throughput)  # of the last call of steps

    def check(self, step: int, metrics: Mapping[str, Array]) -> dict[str, float]:
        """Read a step's metrics. Raises UserError where one is not finite, with the parts of a broken term."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if bad:
            self.checkpoints.wait()  # the last one may still be on its way to disk
            last = saved(self.checkpoints.workdir, "latest")
            parts = [name for name in values if name.startswith("mi_") and name not in bad]
            cure = ", mi.learning_rate or mi.critic.clamp" if parts else ""
            raise UserError(
                f"step {step}: {', '.join(f'{name} is {values[name]:g}' for name in bad + parts)}; "
                f"the last checkpoint, {last or 'none yet'}, is from before: lower optimizer.learning_rate{cure} in "
                "another --workdir"
            )
        return values

    def save(self, step: int) -> None:
        """Checkpoint the state after `step`."""
        self.owner.check()
        self.writer.flush()
        self.checkpoints.save(self.state, step, self.experiment.data.position(step), self.record)

    def monitor(self, step: int) -> None:
        """Measure held-out mutual information of the student."""
        assert self.information is not None
        data, limit = self.experiment.data, self.config.eval.examples
        rows = fitting_rows(data.train.size, self.config)
        found = self.information.measure(self.state.params["student"], data.train, rows, data.valid, limit)
        self.writer.write(step, found.metrics())
        for what, reading in found.lines():
            self.progress.say(f"step {step}: {what} {reading}")

    def evaluate(self, step: int) -> None:
        """Score the valid split; keep the student if it is the best so far."""
        config, experiment = self.config.eval, self.experiment
        params, limit = self.state.params["student"], config.examples
        data, decoding = experiment.data.prepared, eval_decoding(self.config)
        losses = self.evaluator.losses(params, data.valid, limit=limit)
        scores = self.evaluator.accuracy(params, data.valid, data.valid_examples, decoding, limit=limit)
        metrics = {f"valid/{name}": value for name, value in losses.items()} | {"valid/accuracy": scores["accuracy"]}
        self.writer.write(step, metrics)
        low, high = scores["interval"]
        self.progress.say(
            f"step {step}: valid accuracy {scores['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {scores['n']}, "
            + ", ".join(f"{name} {losses[name]:.3f}" for name in experiment.objective.coefficients if name in losses)
        )
        quality = (scores["accuracy"], -losses["predict"])
        if quality > self.best:
            self.best = quality
            with self.throughput.during(CHECKPOINT):
                self.checkpoints.save_best({"student": params}, step, metrics, self.record)

    def steps(self, start: int, interrupt: Interrupt) -> int:
        """Train from step `start` to the end or to an interrupt; returns the step reached, which is saved."""
        kind = self.mesh.devices.flat[0].device_kind
        accelerator = find_accelerator(kind)
        if accelerator is None:
            self.progress.say(f"no train/mfu: the peak speed of device {kind} is not known (cotmi_jax/accelerators.py)")
        self.throughput = Throughput(accelerator.flops * self.mesh.size if accelerator else None)
        wanted, starts = profiled_steps(self.config), range(start + 1, self.config.steps + 1)
        folder = self.checkpoints.workdir / "tensorboard"
        with Profile(wanted, starts, folder, self.throughput, self.progress.say) as profile:
            reached = self._train(start, interrupt, profile)
        with self.throughput.during(CHECKPOINT):
            self.checkpoints.wait()
        self.progress.say(f"steps {start + 1} to {reached} in {self.throughput.summary()}")
        return reached

    def _train(self, start: int, interrupt: Interrupt, profile: Profile) -> int:
        config, throughput = self.config, self.throughput
        step_function = make_train_step(
            self.state_def,
            self.experiment.objective,
            make_schedule(config.optimizer, config.steps),
            micro_batches=config.micro_batches,
        )
        streams = train_streams(config.seed)
        batches = throughput.feed(self.experiment.data.batches(start, self.shape))
        pending = None
        step = start
        for step, batch in enumerate(profile.feed(batches, start + 1), start + 1):
            self.state, metrics = step_function(self.state, put_batch(batch, self.mesh), streams)
            throughput.running = metrics
            profile.end(step, metrics)
            # Reading the step before while this one runs keeps the device busy.
            if pending is not None:
                self._finish(*pending)
            pending = (step, metrics)
            evaluates = self._due(step, config.eval.every)
            measures = self.information is not None and self._due(step, config.mi.monitor.every)
            stops = interrupt.stops(step)  # asked once: a signal that comes while saving ends the next step
            saves = step % config.checkpoint.every == 0 or step == config.steps or stops
            if evaluates or measures or saves:
                self._finish(*pending)  # never save or score what is not finite
                pending = None
            if evaluates:
                with throughput.during(EVALUATION):
                    self.evaluate(step)
            if measures:
                with throughput.during(EVALUATION):
                    self.monitor(step)
            if saves:
                with throughput.during(CHECKPOINT):
                    self.save(step)
            if stops:
                break
        return step

    def _due(self, step: int, every: int) -> bool:
        return bool(every) and (step % every == 0 or step == self.config.steps)

    def _finish(self, step: int, metrics: Mapping[str, Array]) -> None:
        self.owner.check()
        self.checkpoints.check()
        values = self.check(step, metrics)
        experiment = self.experiment
        self.throughput.step(Work.of(experiment.student, self.config.batch_size, experiment.data.lengths(step)))
        self.progress.step()
        if step % self.config.log.every == 0 or step == self.config.steps:
            speed = self.throughput.read()
            self.writer.write(step, {f"train/{name}": value for name, value in (values | speed).items()})
            shown = ("loss", *experiment.objective.coefficients)
            known = {name: speed[name] for name in SHOWN if name in speed}
            self.progress.report(step, {name: values[name] for name in shown} | known)


def _start(latest: Saved | None, experiment: Experiment) -> int:
    """The step to go on from, 0 without a checkpoint. Raises UserError where the data is not the run's."""
    if latest is None:
        return 0
    position, expected = restore_json(latest, "data"), experiment.data.position(latest.step)
    if position != expected:
        raise UserError(
            f"the data is not what {latest} was trained on ({position['fingerprint']}, now "
            f"{expected['fingerprint']}): restore the data, or take another --workdir"
        )
    return latest.step


def make_monitor(
    experiment: Experiment, student: StudentDef, mesh: Mesh, progress: Progress
) -> InformationMonitor | None:
    """What measures mutual information during the run; None where it is off or there is nothing to measure it on."""
    config, held_out = experiment.config, experiment.data.valid.size
    if not config.mi.monitor.every or EXPLAIN not in experiment.objective.tasks:
        return None
    pairs = min(held_out, config.eval.examples or held_out, experiment.data.train.size, config.mi.monitor.examples)
    if pairs < MIN_PAIRS:
        progress.say(f"mutual information is not measured: {pairs} examples, at least {MIN_PAIRS} are needed")
        return None
    return InformationMonitor(student, experiment.objective, config, mesh, batch_size=config.eval.batch_size)


def _best_so_far(best: Saved | None) -> tuple[float, float]:
    if best is None:
        return (-1.0, 0.0)
    metrics = restore_json(best, "metrics")
    return (metrics["valid/accuracy"], -metrics["valid/predict"])


def train(config: ConfigDict, workdir_path: str) -> int:
    """Train, or go on training, in a workdir; returns the step reached. Raises UserError."""
    validate(config)
    config = with_data_root(config)
    workdir = run_directory(workdir_path)
    with workdir_lock(workdir) as owner:
        return _train(config, workdir, owner)


def _train(config: ConfigDict, workdir: Path, owner: Owner) -> int:
    check_same_config(workdir, config)
    mesh = make_mesh(**config.mesh.to_dict())
    check_batches(config, batch_shards(mesh))
    choice = choose(workdir)
    begun = read_run(workdir)[1:] if choice.latest else None
    place = {"process": jax.process_index(), "processes": jax.process_count()}
    experiment = Experiment.of(config, begun, make_feed(mesh), **place)
    wait_for_all("data")
    start = _start(choice.latest, experiment)
    check_shared(workdir, start)  # no process writes there before all have read what they go on from
    first = is_first()
    if start >= config.steps:
        if first:
            print(f"{workdir} is complete: {start} of {config.steps} steps")
        return start
    shape = experiment.data.shape(batch_shards(mesh))
    with jax.set_mesh(mesh):
        student = StudentDef.of(experiment.student)
        state_def = StateDef.of(student, make_optimizers(config), mesh, experiment.objective)
        if choice.latest is not None:
            state = restore_state(choice.latest, state_def.abstract)
        elif experiment.initial_params is not None:
            state = state_def.from_student(experiment.initial_params, stream_key(config.seed, "init"))
        else:
            state = state_def.init(stream_key(config.seed, "init"))
        best = _best_so_far(choice.best)
        record = run_record(config, experiment.student)
        progress = Progress(start=start, stop=config.steps, silent=not first)
        if first:
            record_start(workdir, record, experiment.vocabulary.path, start)
            set_aside(workdir, choice, progress.say)
        wait_for_all("start")  # before any of them opens the folder of checkpoints
        for note in experiment.data.notes(shape):
            progress.say(note)
        progress.say(
            f"student: {count_parameters(student.shapes):,} parameters; mesh {dict(mesh.shape)}; "
            + (f"going on after step {start}" if start else "starting")
        )
        evaluator = Evaluator(
            student, experiment.objective, experiment.vocabulary, mesh, batch_size=config.eval.batch_size
        )
        information = make_monitor(experiment, student, mesh, progress)
        checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep)
        writer = MetricWriter(workdir, start=start) if first else SilentWriter()
        run = Run(
            config, experiment, mesh, shape, state_def, state, evaluator, information, checkpoints, writer, progress,
            owner, record, best,
        )  # fmt: skip
        interrupt = Interrupt()
        with ended_by(interrupt.restore, progress.close, checkpoints.close, writer.close), EndingTogether():
            reached = run.steps(start, interrupt)
    if reached < config.steps and first:
        print(f"interrupted after step {reached} of {config.steps}: the same command goes on from there")
    return reached
