"""Self-consistency: of several sampled outputs, one whose label most of them have (Wang et al. 2023)."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from cotmi_jax.data.example import LabelKind
from cotmi_jax.data.labels import equal_values, evaluate_expression
from cotmi_jax.data.tasks import PREDICT, ObjectiveName, find_objective
from cotmi_jax.errors import UserError
from cotmi_jax.models.decoding import Decoding


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Seed of sampled outputs, and how many outputs of the label task vote on the label."""

    seed: int = 0
    votes: int = 1

    def check(self, decoding: Decoding, objective: ObjectiveName) -> None:
        """Raises UserError for votes without samples, or of an objective that writes no rationale before the label."""
        if self.votes > 1 and decoding.method != "sample":
            raise UserError(
                f"--num_samples={self.votes}: --method={decoding.method} gives one answer; use --method=sample"
            )
        if self.votes > 1 and PREDICT not in find_objective(objective).rationale_tasks:
            raise UserError(
                f"--num_samples={self.votes}: samples of rationales vote on the label that follows them, and objective "
                f"{objective} writes the label without one: leave it out"
            )


class Vote(NamedTuple):
    """The first of the samples with the label that most have, and the share of the samples that have it."""

    winner: int
    share: float


def vote(labels: Sequence[str], kind: LabelKind) -> Vote:
    """Of the labels of at least one sample. Labels are equal as they are compared with gold: by text or by value.

    A sample without a label has no vote. Of labels with equally many votes the first wins. Without any label the first
    sample wins with a share of 0.
    """
    first: list[int] = []  # for each sample, the first sample with the same label

    def same(a: str, b: str) -> bool:
        if kind == "equation" and (value := evaluate_expression(a)) is not None:
            return equal_values(value, evaluate_expression(b))
        return a.strip() == b.strip()

    for index, label in enumerate(labels):
        first.append(next((earlier for earlier in first if same(labels[earlier], label)), index))
    counts = Counter(group for group, label in zip(first, labels, strict=True) if label.strip())
    if not counts:
        return Vote(0, 0.0)
    winner, votes = counts.most_common(1)[0]
    return Vote(winner, votes / len(labels))
