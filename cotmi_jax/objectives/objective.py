"""The four objectives: `standard`, `single_task`, `dss` (Hsieh et al. 2023, eq. 3) and `cotmi` (MI paper, eq. 8)."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.data.tasks import EXPLAIN, OBJECTIVES, PREDICT, tasks_of
from cotmi_jax.data.tasks import Objective as Name
from cotmi_jax.errors import UserError
from cotmi_jax.mi import vocabulary
from cotmi_jax.models.t5 import T5
from cotmi_jax.objectives.terms import Term, Terms, token_accuracy, token_cross_entropy, token_mask

Estimator = Literal["released", "barber_agakov"]
ESTIMATORS = ("released", "barber_agakov")


class TaskOutput(NamedTuple):
    """What the student computed for one task under teacher forcing."""

    encoded_BxSxD: Array
    states_BxTxD: Array
    logits_BxTxV: Array
    targets_BxT: Array
    mask_BxT: Array


def forward(student: T5, batch: Mapping, tasks: tuple[str, ...], key: Array | None) -> dict[str, TaskOutput]:
    """Run the student on every task of a batch. The encoder reads all tasks' inputs in one call."""
    encoder_key, *decoder_keys = [None] * (1 + len(tasks)) if key is None else jax.random.split(key, 1 + len(tasks))
    # Tasks side by side, not one batch behind the other: so the rows of an example stay on its device.
    inputs = jnp.stack([batch[task]["inputs"] for task in tasks], axis=1)
    encoded = student.encode(inputs.reshape(-1, inputs.shape[-1]), encoder_key).reshape(*inputs.shape, -1)
    outputs = {}
    for index, (task, decoder_key) in enumerate(zip(tasks, decoder_keys, strict=True)):
        encoded_BxSxD, targets_BxT = encoded[:, index], batch[task]["targets"]
        states_BxTxD = student.decode(encoded_BxSxD, batch[task]["inputs"], targets_BxT, decoder_key)
        mask_BxT = token_mask(targets_BxT, batch["valid"], student.config.pad_id)
        outputs[task] = TaskOutput(encoded_BxSxD, states_BxTxD, student.logits(states_BxTxD), targets_BxT, mask_BxT)
    return outputs


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective with its coefficients.

    The loss is Σ_name coefficient · sum / weight over the terms that carry a coefficient:
    `standard`, `single_task`: 1·predict; `dss`: α·predict + (1−α)·explain; `cotmi`: `dss` + β·mi.
    """

    name: Name
    alpha: float = 0.5
    beta: float = 0.1
    estimator: Estimator = "barber_agakov"

    def __post_init__(self) -> None:
        if self.name not in OBJECTIVES:
            raise UserError(f"unknown objective {self.name!r}: choose one of {', '.join(OBJECTIVES)}")
        if self.estimator not in ESTIMATORS:
            raise UserError(f"unknown mi.estimator {self.estimator!r}: choose one of {', '.join(ESTIMATORS)}")
        if not 0.0 <= self.alpha <= 1.0:
            raise UserError(f"objective.alpha is {self.alpha}: it weighs the label task and lies in [0, 1]")
        if self.beta < 0.0:
            raise UserError(f"objective.beta is {self.beta}: a negative weight would minimize mutual information")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it trains."""
        return tasks_of(self.name)

    @property
    def coefficients(self) -> dict[str, float]:
        """Coefficient of each term in the loss."""
        if self.name in ("standard", "single_task"):
            return {PREDICT: 1.0}
        both = {PREDICT: self.alpha, EXPLAIN: 1.0 - self.alpha}
        return both | {"mi": self.beta} if self.name == "cotmi" else both

    def weights(self, batch: Mapping, pad_id: int) -> dict[str, Array]:
        """The weight of each loss term, a function of the batch alone: micro-batches divide by the whole one's."""
        weights = {
            task: token_mask(batch[task]["targets"], batch["valid"], pad_id).sum(dtype=jnp.float32)
            for task in self.tasks
        }
        return weights | {"mi": batch["valid"].sum(dtype=jnp.float32)} if self.name == "cotmi" else weights

    def terms(self, student: T5, batch: Mapping, key: Array | None) -> Terms:
        """Every loss term, and the token accuracy of each task as a metric; dropout is on where a key is given."""
        outputs = forward(student, batch, self.tasks, key)
        terms: Terms = {}
        for task, output in outputs.items():
            operands = (output.logits_BxTxV, output.targets_BxT, output.mask_BxT)
            terms[task] = token_cross_entropy(*operands)
            terms[f"{task}_token_accuracy"] = token_accuracy(*operands)
        if self.name == "cotmi":
            terms["mi"] = self._mutual_information(outputs, batch["valid"])
        return terms

    def _mutual_information(self, outputs: Mapping[str, TaskOutput], valid_B: Array) -> Term:
        label, rationale = outputs[PREDICT], outputs[EXPLAIN]
        if self.estimator == "released":
            # Its defect is part of it: padding up to the longest example of the batch enters the maximum.
            loss_B = vocabulary.released_loss(
                vocabulary.vocab_max(label.logits_BxTxV, _up_to_longest(label.mask_BxT)),
                vocabulary.vocab_max(rationale.logits_BxTxV, _up_to_longest(rationale.mask_BxT)),
            )
        else:
            loss_B = vocabulary.barber_agakov_loss(
                vocabulary.vocab_max(label.logits_BxTxV, label.mask_BxT),
                vocabulary.vocab_max(rationale.logits_BxTxV, rationale.mask_BxT),
            )
        return Term(jnp.where(valid_B, loss_B, 0.0).sum(), valid_B.sum(dtype=jnp.float32))


def _up_to_longest(mask_BxT: Array) -> Array:
    """True for every example at each position where at least one example of the batch has a token."""
    return jnp.broadcast_to(mask_BxT.any(axis=0, keepdims=True), mask_BxT.shape)
