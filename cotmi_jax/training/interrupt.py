"""Stopping between two steps, at the same one in all processes, when a signal asks for it."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """Turns SIGTERM and SIGINT into an answer that the loop asks for after every step, so that it saves before it ends.

    Where there are several processes, SIGTERM in any of them is for JAX's runtime, which has a handler of its own since
    distributed.together: it finds a step that none of them is past. SIGINT is passed on to it.
    """

    def __init__(self) -> None:
        self._signalled, self._together = False, jax.distributed.is_initialized()
        numbers = [signal.SIGINT] if self._together else [signal.SIGINT, signal.SIGTERM]
        self._old = {number: signal.signal(number, self._note) for number in numbers}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        self._signalled = True

    def stops(self, step: int) -> bool:
        """Whether to end after `step`; to be asked once after every step, in every process."""
        return multihost_utils.reached_preemption_sync_point(step) if self._together else self._signalled

    def restore(self) -> None:
        """Give the signals back to their former handlers."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
