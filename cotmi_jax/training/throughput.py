"""How fast a run trains, and how much of the time its device waits for input."""

import math
import time
from collections.abc import Iterator, Mapping

import jax

from cotmi_jax.data.tokens import Batch

TIMINGS = ("seconds_per_step", "examples_per_second", "input_wait")  # what read gives: no two runs have the same


class Throughput:
    """Speed of training alone: the first step, which compiles, evaluation and saving are not counted."""

    def __init__(self) -> None:
        self._steps, self._spent, self._waited, self._since = 0, 0.0, 0.0, math.nan
        self.running: Mapping[str, jax.Array] = {}  # what the device was last given to compute

    def feed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, with the time that each was waited for counted where the device had run out of work meanwhile.

        That is an upper bound: the device may have been busy for a part of it.
        """
        while True:
            begun = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if not math.isnan(self._since) and self._idle():
                self._waited += time.perf_counter() - begun
            yield batch

    def _idle(self) -> bool:
        return all(value.is_ready() for value in self.running.values())  # type: ignore[attr-defined]

    def step(self) -> None:
        """One more step is done; the first starts the clock."""
        if math.isnan(self._since):
            self.start()
        else:
            self._steps += 1

    def stop(self) -> None:
        """Stop the clock."""
        self._spent += time.perf_counter() - self._since

    def start(self) -> None:
        """Let the clock run again."""
        self._since = time.perf_counter()

    def read(self, batch_size: int) -> dict[str, float]:
        """Seconds a step, examples a second and the share of the time that the device waited for input, since the last
        reading; nothing where no step was counted."""
        if not self._steps:
            return {}
        self.stop()
        seconds, waited = self._spent / self._steps, self._waited / self._spent
        self._steps, self._spent, self._waited = 0, 0.0, 0.0
        self.start()
        return {"seconds_per_step": seconds, "examples_per_second": batch_size / seconds, "input_wait": waited}
