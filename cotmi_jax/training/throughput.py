"""Wall time of a run by phase, its throughput, and its model FLOP utilization."""

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import jax
import numpy as np

from cotmi_jax.data.tokens import Batch
from cotmi_jax.models.config import StudentConfig, T5Config
from cotmi_jax.models.flops import step_flops

FIRST, STEP, INPUT = "first_step", "step", "input"
EVALUATION, CHECKPOINT, PROFILE = "evaluation", "checkpoint", "profile"
_USUAL = (INPUT, STEP, EVALUATION, CHECKPOINT)  # phases that `read` always reports; others only if they took any time
SHOWN = ("seconds_per_step", "examples_per_second", "tokens_per_second", "mfu", "input_wait")  # shown with the loss
TIMINGS = ("seconds_", *SHOWN)  # prefixes of all names that `read` returns, whose values differ from run to run


class Work(NamedTuple):
    """The work of a step on any hardware, without padding."""

    examples: int
    tokens: int  # of inputs and targets
    flops: float | None  # of the model, forward and backward; None: no formula for its network

    @classmethod
    def of(cls, student: StudentConfig, examples: int, lengths_Px2: np.ndarray) -> "Work":
        """The work of a batch of P sequence pairs with these numbers of input and target tokens, without packing."""
        input_P, target_P = lengths_Px2.astype(np.float64).T
        tokens = int(lengths_Px2.sum())
        if not isinstance(student, T5Config):
            return cls(examples, tokens, None)
        flops = step_flops(student, rows=1, input_length=input_P, target_length=target_P)
        return cls(examples, tokens, float(flops.sum()))


class Throughput:
    """Splits the time of a run, from construction on, into phases without a gap.

    first_step: until the end of the first step, which fills the input pipeline and compiles; it is no counted step.
    input: the loop waited for a batch, at the end of which the device was idle. An upper bound of the device's idle
    time, since the device may have been busy at first. step: the rest of training. Others are those of `during`.
    """

    def __init__(self, peak: float | None = None):
        """`peak`: FLOP/s of all devices of the run together; None where it is not known."""
        self._peak, self._phase, self._since = peak, FIRST, time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)  # by phase, since the last `read`
        self._total: dict[str, float] = defaultdict(float)  # by phase, until the last `read`
        self._done: list[Work] = []  # of the steps since the last `read`
        self.running: Mapping[str, jax.Array] = {}  # results of the step last dispatched

    def _lap(self, phase: str | None = None) -> None:
        """Count the time since the last call for a phase, the current one by default."""
        now = time.perf_counter()
        self._seconds[phase or self._phase] += now - self._since
        self._since = now

    def feed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; the wait for one counts as input if the device is idle at its end."""
        while True:
            self._lap()
            batch = next(batches, None)
            if batch is None:
                return
            if self._phase == STEP and self._idle():
                self._lap(INPUT)
            yield batch

    def _idle(self) -> bool:
        return all(value.is_ready() for value in self.running.values())  # type: ignore[attr-defined]

    @contextlib.contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Count the time of the body for a phase; nested phases are not counted for the outer one."""
        self._lap()
        outer, self._phase = self._phase, phase
        try:
            yield
        finally:
            self._lap()
            self._phase = outer

    def step(self, work: Work) -> None:
        """One more step is done."""
        self._lap()
        if self._phase == FIRST:
            self._phase = STEP
        else:
            self._done.append(work)

    def read(self) -> dict[str, float]:
        """The phases and throughput since the last call.

        seconds_{phase}: wall-clock time; the phases sum to the elapsed time. If steps besides the first were done, over
        the phases input and step: seconds_per_step, examples_per_second, tokens_per_second, input_wait (the fraction of
        input), and mfu if the peak is known: model FLOP utilization (Chowdhery et al. 2022, appendix B) by the FLOPs of
        real tokens, so that padding, masked attention and rematerialization lower it.
        """
        self._lap()
        seconds, done = self._seconds, self._done
        found = {f"seconds_{phase}": seconds[phase] for phase in dict.fromkeys((*_USUAL, *seconds))}
        training = seconds[INPUT] + seconds[STEP]
        if done and training:
            found["seconds_per_step"] = training / len(done)
            found["examples_per_second"] = sum(work.examples for work in done) / training
            found["tokens_per_second"] = sum(work.tokens for work in done) / training
            found["input_wait"] = seconds[INPUT] / training
            flops = [work.flops for work in done if work.flops is not None]
            if self._peak is not None and len(flops) == len(done):
                found["mfu"] = sum(flops) / training / self._peak
        for phase, elapsed in seconds.items():
            self._total[phase] += elapsed
        self._seconds, self._done = defaultdict(float), []
        return found

    def summary(self) -> str:
        """Wall time so far, and the fraction of each phase, largest first. Calls `read`."""
        self.read()
        total = sum(self._total.values())
        phases = sorted(self._total, key=self._total.__getitem__, reverse=True)
        fractions = (f"{phase.replace('_', ' ')} {self._total[phase] / total:.1%}" for phase in phases)
        return f"{total:.1f} s: " + ", ".join(fractions)
