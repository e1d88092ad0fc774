"""Traces of chosen steps for TensorBoard's profiler (XProf): host and device activity on one time line."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from cotmi_jax.data.tokens import Batch
from cotmi_jax.training.throughput import PROFILE, Throughput


class Profile:
    """Traces the steps of `wanted` that this start runs, into {folder}/plugins/profile/{time}/{host}.xplane.pb.

    The trace begins when the device has finished all earlier work, includes the wait for the first batch, and ends when
    the device has finished the last step. Each step is annotated as "train" with its number. Evaluations and
    checkpoints between steps are in the trace too, outside these annotations. As a context manager it closes an open
    trace, so that it survives an interrupt or an error.
    """

    def __init__(self, wanted: range, starts: range, folder: Path, throughput: Throughput, say: Callable[[str], None]):
        """`starts`: the steps of this start. Reports which of `wanted` are not among them, and the path of a trace."""
        self._steps = range(max(wanted.start, starts.start), min(wanted.stop, starts.stop))
        self._folder, self._throughput, self._say = folder, throughput, say
        self._mark: jax.profiler.StepTraceAnnotation | None = None
        self._traced: range | None = None  # steps of an open trace that have ended
        self._result: Mapping[str, jax.Array] = {}  # of the latest step
        if self._steps != wanted:
            traced = f"only {_named(self._steps)}" if self._steps else "nothing"
            say(f"config.profile asks for {_named(wanted)}, this start runs {_named(starts)}: {traced} will be traced")

    def feed(self, batches: Iterator[Batch], first: int) -> Iterator[Batch]:
        """The batches of the steps from `first` on; the trace of a step includes the wait for its batch."""
        step = first
        while True:
            self._begin(step)
            batch = next(batches, None)
            if batch is None:
                return
            yield batch
            step += 1

    def _begin(self, step: int) -> None:
        if step not in self._steps:
            return
        if step == self._steps.start:
            jax.block_until_ready(self._result)
            with self._throughput.during(PROFILE):
                jax.profiler.start_trace(self._folder, profiler_options=_options())
            self._traced = range(step, step)
        self._mark = jax.profiler.StepTraceAnnotation("train", step_num=step)
        self._mark.__enter__()

    def end(self, step: int, result: Mapping[str, jax.Array]) -> None:
        """A step was dispatched; `result` is its output."""
        self._result = result
        if self._traced is None:
            return
        last = step + 1 == self._steps.stop
        if last:
            jax.block_until_ready(result)
        self._unmark()
        self._traced = range(self._traced.start, step + 1)
        if last:
            self._stop()

    def _unmark(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None

    def _stop(self) -> None:
        assert self._traced is not None
        traced, self._traced = self._traced, None
        try:
            with self._throughput.during(PROFILE):
                jax.profiler.stop_trace()
        except jax.errors.JaxRuntimeError as error:  # a lost trace must not end the run
            self._say(
                f"warning: {_named(traced)} traced, but not written to {self._folder}: {str(error).splitlines()[0]}"
            )
            return
        self._say(f"{_named(traced)} traced: tensorboard --logdir={self._folder} shows it (pip install xprof)")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._unmark()
        if self._traced is not None:
            self._stop()


def _options() -> jax.profiler.ProfileOptions:
    options = jax.profiler.ProfileOptions()
    # Otherwise every Python call is traced, about a hundred thousand a step, which slows the traced steps.
    options.python_tracer_level = 0
    return options


def _named(steps: range) -> str:
    if not steps:
        return "no step"
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
