"""What a metric of the second kind gets: the student itself, asked again about other inputs or after other rationales.

Metrics of the first kind are functions of predictions, cheap and computable again from predictions.jsonl alone.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cotmi_jax.data.example import Example
from cotmi_jax.data.tasks import ObjectiveSpec, find_objective
from cotmi_jax.evaluation.scores import Prediction


class CrossFitted(NamedTuple):
    """Of each example, by a student that was trained on other ones: the log-probability of its label with eos, in nats,
    and whether greedy decoding gives exactly that label."""

    log_p_N: np.ndarray
    exact_N: np.ndarray


# (examples, group of each, steps, batch size) → scores by students that were trained on other groups
CrossFit = Callable[[Sequence[Example], np.ndarray, int, int], CrossFitted]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A student and the split it is scored on.

    predictions: its answers to `examples`, in order.
    answer: examples → its answers to their inputs, decoded as the predictions were.
    cross_fit: trains students of its size from its initial weights; None: these are not known.
    continue_after: examples and prefixes of its outputs for the label task → the outputs, decoded greedily after them.
    """

    config: ConfigDict
    examples: Sequence[Example]
    predictions: Sequence[Prediction]
    answer: Callable[[Sequence[Example]], list[Prediction]]
    cross_fit: CrossFit | None = None
    continue_after: Callable[[Sequence[Example], Sequence[str]], list[str]] | None = None

    @property
    def spec(self) -> ObjectiveSpec:
        """The student's objective."""
        return find_objective(self.config.objective.name)
