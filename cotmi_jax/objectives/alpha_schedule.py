"""The weight of the label task by step, piecewise constant, as config.objective.alpha_schedule states it.

"1@0.2,0.5@0.8,0@1" is labels alone until 20% of the steps, both tasks until 80%, then rationales alone: the three
phases of task-structured curriculum learning (Ezgi and Onan 2026, TSCL), whose lengths are free.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

from cotmi_jax.errors import UserError, one_line

_EXAMPLE = "give ALPHA@END phases such as 1@0.2,0.5@0.8,0@1, or nothing"


@dataclasses.dataclass(frozen=True)
class AlphaSchedule:
    """alphas: the weight of the label task in each phase, in [0, 1]. ends: optimizer steps before each phase ends."""

    alphas: tuple[float, ...]
    ends: tuple[int, ...]

    def __call__(self, step: Array) -> Array:
        """The weight at a step, float32; the last one after all ends."""
        phase = (step >= np.array(self.ends[:-1], np.int32)).sum()
        return jnp.asarray(self.alphas, jnp.float32)[phase]

    def joint_after(self, step: int) -> bool:
        """Whether a phase that trains both tasks ends after a step."""
        return any(0.0 < alpha < 1.0 and end > step for alpha, end in zip(self.alphas, self.ends, strict=True))


def parse_alpha_schedule(text: str, steps: int) -> AlphaSchedule | None:
    """The schedule of a run of `steps` steps; None of "".

    A phase ends at its fraction of the steps, rounded to a whole step.

    Raises:
      UserError: malformed phases, weights outside [0, 1], ends that do not increase to 1, a phase without a step, or
        a task that no phase trains.
    """
    if not text:
        return None
    named = f"config.objective.alpha_schedule {one_line(text)!r}"
    phases = [_parse_phase(phase, named) for phase in text.split(",")]
    alphas, fractions = (tuple(column) for column in zip(*phases, strict=True))
    if not all(0.0 <= alpha <= 1.0 for alpha in alphas):
        raise UserError(f"{named}: weights of the label task lie in [0, 1]: {_EXAMPLE}")
    if fractions[-1] != 1.0 or any(end <= start for start, end in zip((0.0, *fractions), fractions, strict=False)):
        raise UserError(f"{named}: ends are fractions of the steps that increase from above 0 to 1: {_EXAMPLE}")
    ends = tuple(round(fraction * steps) for fraction in fractions)
    for phase, start, end in zip(text.split(","), (0, *ends), ends, strict=False):
        if start == end:
            raise UserError(
                f"{named}: phase {phase.strip()} has no step of config.steps {steps}: lengthen it, or raise the steps"
            )
    for alpha, task in ((1.0, "rationale"), (0.0, "label")):
        if set(alphas) == {alpha}:
            raise UserError(f"{named} never trains the {task} task: give it a phase with a weight other than {alpha:g}")
    return AlphaSchedule(alphas, ends)


def _parse_phase(phase: str, named: str) -> tuple[float, float]:
    alpha, at, end = phase.partition("@")
    try:
        numbers = float(alpha), float(end)
    except ValueError:
        numbers = math.nan, math.nan
    if not at or not all(map(math.isfinite, numbers)):
        raise UserError(f"{named}: {one_line(phase.strip())!r} is no phase: {_EXAMPLE}")
    return numbers
