"""Stops a run after a step, the same in all processes, on SIGTERM or SIGINT."""

import os
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Interrupt:
    """Records SIGTERM and SIGINT; the loop calls `stops` after every step, so that it saves before it ends.

    With several processes, SIGTERM in any of them is handled by JAX's runtime, whose handler
    distributed.process_group installs: it determines a step that no process has passed. SIGINT is forwarded to it.
    """

    def __init__(self) -> None:
        self._signalled, self._together, self._asked = False, jax.distributed.is_initialized(), 0
        numbers = [signal.SIGINT] if self._together else [signal.SIGINT, signal.SIGTERM]
        self._old = {number: signal.signal(number, self._note) for number in numbers}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        self._signalled = True

    def stops(self) -> bool:
        """Whether to end after this step; must be called exactly once per step in every process."""
        if not self._together:
            return self._signalled
        # The runtime stops all processes at the number after the highest that any of them has passed to it, or at 1
        # before the first call. So calls are numbered from 1: the first step number of a resumed run exceeds 1.
        self._asked += 1
        return multihost_utils.reached_preemption_sync_point(self._asked)

    def restore(self) -> None:
        """Restore the former signal handlers."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
