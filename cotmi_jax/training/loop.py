"""The training loop: runs the step, fetches its metrics one step later, evaluates and saves."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.config import profiled_steps
from cotmi_jax.data.example import Example
from cotmi_jax.data.packing import PackShape
from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.data.tokens import Batch
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.evaluation.examples import markdown_examples
from cotmi_jax.evaluation.metrics import OF_RATIONALES, Prediction, find_metric, measure, parse_metrics
from cotmi_jax.evaluation.monitor import SplitMonitor
from cotmi_jax.experiment import Experiment, eval_decoding
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.rng import train_streams
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.accelerators import find_accelerator
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.training.optimizer import make_schedule
from cotmi_jax.training.preemption import Interrupt
from cotmi_jax.training.profiling import Profile
from cotmi_jax.training.state import StateDef, TrainState
from cotmi_jax.training.step import make_gradient_share, make_train_step
from cotmi_jax.training.throughput import CHECKPOINT, EVALUATION, SHOWN, Throughput, Work
from cotmi_jax.workdir.checkpoint import Checkpoints, saved
from cotmi_jax.workdir.lock import Owner
from cotmi_jax.workdir.metrics import MetricWriter, Progress, SilentWriter


def quality(valid: Mapping[str, float], select_by: str, objective: Objective) -> tuple[float, float]:
    """What the best student is the best by, of scores and losses on the valid split; the higher, compared in order.

    The loss weighs the tasks by config.objective.alpha also under a schedule, so that it compares between steps.
    """
    if select_by == "loss":
        return -sum(objective.coefficients[task] * valid[task] for task in objective.tasks), 0.0
    if select_by == "label_loss":
        return -valid[PREDICT], valid["accuracy"]
    if select_by == "log_score":
        return valid["log_score"], valid["accuracy"]
    return valid["accuracy"], -valid[PREDICT]


def check_selection(select_by: str, valid: Sequence[Example]) -> None:
    """Raises UserError where the best student cannot be selected by what the config says."""
    if select_by != "log_score":
        return
    for example in valid:
        found = example.label.strip() in [choice.strip() for choice in example.choices]
        if len(example.choices) < 2 or not found:
            raise UserError(
                f"config.eval.select_by is log_score, and example {example.id} of valid has {len(example.choices)} "
                f"choices, {'among them' if found else 'without'} its label: select by "
                "accuracy or loss, or give choices"
            )


@dataclasses.dataclass
class Run:
    """A training run between two steps. Its methods are called within jax.set_mesh."""

    config: ConfigDict
    experiment: Experiment
    mesh: Mesh
    shape: PackShape | None
    state_def: StateDef
    state: TrainState
    evaluator: Evaluator
    mi_monitor: SplitMonitor | None
    checkpoints: Checkpoints
    writer: MetricWriter | SilentWriter
    progress: Progress
    owner: Owner
    record: dict
    best: tuple[float, float]  # of `quality`
    throughput: Throughput = dataclasses.field(default_factory=Throughput)  # of the last call of steps

    def check(self, step: int, metrics: Mapping[str, Array]) -> dict[str, float]:
        """Fetch a step's metrics. Raises UserError if one is not finite, with the components of the MI term."""
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if bad:
            self.checkpoints.wait()  # the last one may still be being written
            last = saved(self.checkpoints.workdir, "latest")
            finite = [name for name in values if name.startswith("mi_") and name not in bad]
            remedy = ", mi.learning_rate or mi.critic.clamp" if finite else ""
            raise UserError(
                f"step {step}: {', '.join(f'{name} is {values[name]:g}' for name in bad + finite)}; "
                f"the last checkpoint, {last or 'none yet'}, is from before: lower optimizer.learning_rate{remedy} in "
                "another --workdir"
            )
        return values

    def save(self, step: int) -> None:
        """Checkpoint the state after `step`."""
        self.owner.check()
        self.writer.flush()
        self.checkpoints.save(self.state.items(), step, self.experiment.data.position(step), self.record)

    def monitor(self, step: int) -> None:
        """Measure held-out mutual information of the student."""
        assert self.mi_monitor is not None
        found = self.mi_monitor.measure(self.state.params["student"])
        if metrics := found.metrics():
            self.writer.write(step, metrics)
        for quantity, estimate in found.lines():
            self.progress.say(f"step {step}: {quantity} {estimate}")

    def evaluate(self, step: int) -> None:
        """Score the valid split; keep the student if it is the best so far."""
        config, experiment = self.config.eval, self.experiment
        params, limit = self.state.params["student"], config.examples
        data, decoding = experiment.data.prepared, eval_decoding(self.config)
        chosen = parse_metrics(",".join([config.metrics, *["log_score"] * (config.select_by == "log_score")]))
        names = [name for name in chosen if not find_metric(name).asks_student]
        confidences = any(find_metric(name).reads_confidences for name in names)
        losses, predictions = self.evaluator.evaluate(
            params, data.valid, data.valid_examples, decoding, limit=limit, rationales=False, confidences=confidences
        )
        scores = measure([name for name in names if not find_metric(name).reads_rationales], predictions).scores
        if explained := self._explained(predictions):
            read = dict.fromkeys([*OF_RATIONALES, *(name for name in names if find_metric(name).reads_rationales)])
            scores |= measure(list(read), explained).scores
        if taken := losses.keys() & scores.keys():
            raise UserError(f"a metric returns {', '.join(taken)}, which is the name of a loss term: rename it")
        values = losses | {name: score["value"] for name, score in scores.items()}
        metrics = {f"valid/{name}": value for name, value in values.items()}
        self.writer.write(step, metrics)
        if logged := predictions[: self.config.log.examples]:
            self.writer.write_texts(step, {"valid/examples": markdown_examples(logged)})
        accuracy = scores.pop("accuracy")
        assert accuracy["interval"] is not None  # of accuracy there is always one
        low, high = accuracy["interval"]
        shown = [name for name in (*scores, *experiment.objective.coefficients) if name in values]
        self.progress.say(
            f"step {step}: valid accuracy {accuracy['value']:.1%} [{low:.1%}, {high:.1%}] of {accuracy['n']}, "
            + ", ".join(f"{name} {values[name]:.3f}" for name in shown)
        )
        reached = quality(values, config.select_by, experiment.objective)
        if reached > self.best:
            self.best = reached
            with self.throughput.during(CHECKPOINT):
                self.checkpoints.save_best({"student": params}, step, metrics, self.record)

    def _explained(self, predictions: Sequence[Prediction]) -> Sequence[Prediction]:
        """Those of the valid split's first config.eval.rationales predictions that hold a rationale, generated now."""
        first = predictions[: self.config.eval.rationales]
        if first and EXPLAIN in self.experiment.objective.tasks:
            texts = self.evaluator.rationales(
                self.state.params["student"], self.experiment.data.valid, eval_decoding(self.config), len(first)
            )
            for prediction, text in zip(first, texts, strict=True):
                prediction["predicted_rationale"] = text
        return [each for each in first if each["predicted_rationale"] is not None]

    def steps(self, start: int, interrupt: Interrupt) -> int:
        """Train from step `start` to the end or to an interrupt; returns the step reached, which is saved."""
        kind = self.mesh.devices.flat[0].device_kind
        accelerator = find_accelerator(kind)
        if accelerator is None:
            self.progress.say(
                f"no train/mfu: the peak speed of device {kind} is not known (cotmi_jax/parallel/accelerators.py)"
            )
        elif not isinstance(self.experiment.student, T5Config):
            self.progress.say(f"no train/mfu: network {self.config.model.network} has no FLOP formula")
        self.throughput = Throughput(accelerator.flops * self.mesh.size if accelerator else None)
        wanted, starts = profiled_steps(self.config), range(start + 1, self.config.steps + 1)
        folder = self.checkpoints.workdir / "tensorboard"
        with (
            contextlib.closing(self.experiment.data.batches(start, self.shape)) as batches,
            Profile(wanted, starts, folder, self.throughput, self.progress.say) as profile,
        ):
            reached = self._train(start, batches, interrupt, profile)
        with self.throughput.during(CHECKPOINT):
            self.checkpoints.wait()
        self.progress.say(f"steps {start + 1} to {reached} in {self.throughput.summary()}")
        return reached

    def _train(self, start: int, batches: Iterator[Batch], interrupt: Interrupt, profile: Profile) -> int:
        config, throughput = self.config, self.throughput
        step_function = make_train_step(
            self.state_def,
            self.experiment.objective,
            make_schedule(config.optimizer, config.steps),
            micro_batches=config.micro_batches,
        )
        share = None
        if config.mi.log_gradient and self.experiment.objective.mi_term is not None:
            share = make_gradient_share(self.state_def, self.experiment.objective, micro_batches=config.micro_batches)
        streams = train_streams(config.seed)
        pending = None
        step = start
        for step, batch in enumerate(profile.feed(throughput.feed(batches), start + 1), start + 1):
            placed = put_batch(batch, self.mesh)
            shares = {}
            if share is not None and self._logs(step):
                shares = {"mi_grad_share": share(self.state, placed, streams)}  # the step consumes the state
            self.state, metrics = step_function(self.state, placed, streams)
            metrics |= shares
            throughput.running = metrics
            profile.end(step, metrics)
            # Fetching the metrics of the previous step while this one runs keeps the device busy.
            if pending is not None:
                self._finish(*pending)
            pending = (step, metrics)
            evaluates = self._due(step, config.eval.every)
            measures = self.mi_monitor is not None and self._due(step, config.mi.monitor.every)
            stops = interrupt.stops()  # once per step: a signal during saving stops the run after the next step
            saves = step % config.checkpoint.every == 0 or step == config.steps or stops
            if evaluates or measures or saves:
                self._finish(*pending)  # never save or score a state that is not finite
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

    def _logs(self, step: int) -> bool:
        return step % self.config.log.every == 0 or step == self.config.steps

    def _finish(self, step: int, metrics: Mapping[str, Array]) -> None:
        self.owner.check()
        self.checkpoints.check()
        values = self.check(step, metrics)
        experiment = self.experiment
        self.throughput.step(Work.of(experiment.student, self.config.batch_size, experiment.data.lengths(step)))
        self.progress.step()
        if self._logs(step):
            speed = self.throughput.read()
            self.writer.write(step, {f"train/{name}": value for name, value in (values | speed).items()})
            shown = ("loss", *experiment.objective.coefficients, *["alpha"] * ("alpha" in values))
            known = {name: speed[name] for name in SHOWN if name in speed}
            self.progress.report(step, {name: values[name] for name in shown} | known)
