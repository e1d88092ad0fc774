"""What a metric of the second kind gets: the student itself, asked again about other inputs or after other rationales.

Metrics of the first kind are functions of predictions, cheap and computable again from predictions.jsonl alone.
"""

import dataclasses
from collections.abc import Callable, Sequence

from ml_collections import ConfigDict

from cotmi_jax.data.example import Example
from cotmi_jax.data.tasks import ObjectiveSpec, find_objective
from cotmi_jax.evaluation.scores import Prediction


@dataclasses.dataclass(frozen=True)
class Probe:
    """A student and the split it is scored on.

    predictions: its answers to `examples`, in order.
    answer: examples → its answers to their inputs, decoded as the predictions were.
    """

    config: ConfigDict
    examples: Sequence[Example]
    predictions: Sequence[Prediction]
    answer: Callable[[Sequence[Example]], list[Prediction]]

    @property
    def spec(self) -> ObjectiveSpec:
        """The student's objective."""
        return find_objective(self.config.objective.name)
