"""The loss of an objective: `standard`, `single_task`, `dss` (Hsieh et al. 2023, eq. 3), `cotmi` (MI paper, eq. 8),
or one that a user registers (data/tasks.py).
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.data.tasks import EXPLAIN, PREDICT, find_objective, tasks_of, writes_rationale
from cotmi_jax.data.tasks import ObjectiveName as Name
from cotmi_jax.errors import UserError
from cotmi_jax.mi.bounds import MineState
from cotmi_jax.models.config import StudentConfig
from cotmi_jax.models.module import ModuleDef
from cotmi_jax.models.student import Student
from cotmi_jax.objectives.alpha_schedule import AlphaSchedule
from cotmi_jax.objectives.consistency import answer_lengths, consistency_loss, gather_answers
from cotmi_jax.objectives.forward import Heads, TaskOutput, forward
from cotmi_jax.objectives.gather import gather_features
from cotmi_jax.objectives.mi_term import (
    VOCABULARY_POOLS,
    Features,
    MITermConfig,
    Networks,
    losses,
    networks_def,
)
from cotmi_jax.objectives.placebo import derange, shuffle_pairs
from cotmi_jax.objectives.terms import Term, Terms, counterfactual_mask, is_packed, packed_weights, slots_of, token_mask
from cotmi_jax.objectives.token_loss import CROSS_ENTROPY, find_token_loss
from cotmi_jax.objectives.token_scan import Pool


class BatchOutputs(NamedTuple):
    """Token terms of a batch, the features of its mutual-information term, and what the student computed by task."""

    terms: Terms
    features: Features | None
    by_task: dict[str, TaskOutput]


class Evaluated(NamedTuple):
    """Terms of a batch; by task the encoder states of its inputs, and the loss of each example's target.

    by_example: sum [B] in nats over the target's tokens with eos, without the weight of its rationale, and their number
    as weight [B]; 0 of padding.
    """

    terms: Terms
    encoded_BxSxD: dict[str, Array]
    by_example: Terms


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective with its coefficients.

    The loss is Σ_name coefficient · sum / weight over the terms that carry a coefficient:
    `standard`, `single_task`: 1·predict; `dss`: α·predict + (1−α)·explain; `cotmi`: `dss` + β·mi + λ·compression.

    alpha_schedule: α of training by step; what compares states of different steps takes `alpha`.
    """

    name: Name
    alpha: float = 0.5
    beta: float = 0.1
    mi_term: MITermConfig | None = None  # where the objective's spec has_mi_term, and only there
    token_loss: str = CROSS_ENTROPY  # of training
    alpha_schedule: AlphaSchedule | None = None

    def __post_init__(self) -> None:
        if find_objective(self.name).has_mi_term != (self.mi_term is not None):
            raise ValueError(f"{self.name} {'lacks its' if self.mi_term is None else 'has no'} mutual-information term")
        find_token_loss(self.token_loss)
        if not 0.0 <= self.alpha <= 1.0:
            raise UserError(f"objective.alpha is {self.alpha}: it weighs the label task and lies in [0, 1]")
        if self.alpha_schedule is not None and EXPLAIN not in self.tasks:
            raise UserError(f"objective.alpha_schedule weighs two tasks, and {self.name} has one: leave it empty")
        if self.beta < 0.0:
            raise UserError(f"objective.beta is {self.beta}: a negative weight would minimize mutual information")
        if self.mi_term is not None and self.mi_term.compression == "variational" and self.beta == 0.0:
            raise UserError("objective.beta is 0: mi.compression.name variational shares its networks with the term")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it trains."""
        return tasks_of(self.name)

    @property
    def couples_examples(self) -> bool:
        """Whether an example's loss depends on other examples of its batch."""
        return self.mi_term is not None and self.mi_term.couples_examples

    @property
    def depends_on_padding(self) -> bool:
        """Whether an example's loss depends on how long the other examples of its padded batch are."""
        return self.mi_term is not None and self.mi_term.estimator == "released"

    @property
    def counterfactuals(self) -> int:
        """Counterfactuals that it contrasts with each example's own pair, at most; 0 for most objectives."""
        return self.mi_term.counterfactuals if self.mi_term is not None and self.mi_term.conditional else 0

    @property
    def coefficients(self) -> dict[str, float]:
        """Coefficient of each term in the loss, without a schedule or ramp."""
        if EXPLAIN not in self.tasks:
            return {PREDICT: 1.0}
        coefficients = {PREDICT: self.alpha, EXPLAIN: 1.0 - self.alpha}
        if self.mi_term is not None:
            coefficients["mi"] = self.beta
            if self.mi_term.compression != "none":
                coefficients["compression"] = self.mi_term.compression_weight
        return coefficients

    def coefficients_at(self, step: Array) -> Mapping[str, Array | float]:
        """Coefficient of each term in the loss of a training step, without the ramp."""
        if self.alpha_schedule is None:
            return self.coefficients
        alpha = self.alpha_schedule(step)
        return self.coefficients | {PREDICT: alpha, EXPLAIN: 1.0 - alpha}

    def networks(self, student: StudentConfig) -> ModuleDef[Networks] | None:
        """The networks of the mutual-information term for a student; None if it has none."""
        return networks_def(self.mi_term, student) if self.mi_term is not None and self.mi_term.learns else None

    def weights(self, batch: Mapping, pad_id: int) -> dict[str, Array]:
        """The weight of each loss term, a function of the batch only: micro-batches divide by that of the batch."""
        weights = {task: self._token_weights(batch, task, pad_id).sum() for task in self.tasks}
        others = [name for name in self.coefficients if name not in weights]
        if others:
            pairs_B = self.contrasted(batch, pad_id)[0]
            units_B = answer_lengths(batch, pairs_B) if self.mi_term and self.mi_term.consistent else pairs_B
            weights |= dict.fromkeys(others, units_B.sum(dtype=jnp.float32))
        return weights

    def ramp(self, step: Array) -> Array:
        """Factor of the mutual-information term's coefficients at a step: 0 where a schedule trains one task alone.

        The term pulls on the states of both tasks: in a phase without rationales it would train the rationale task.
        """
        factor = jnp.float32(1.0) if self.mi_term is None else self.mi_term.ramp(step)
        if self.alpha_schedule is None:
            return factor
        alpha = self.alpha_schedule(step)
        return jnp.where((alpha > 0.0) & (alpha < 1.0), factor, 0.0)

    def pairs(self, batch: Mapping, pad_id: int) -> Array:
        """Which examples have a label and a rationale of positive weight, and for consistency an answer, bool [B]."""
        examples = batch["examples"] if is_packed(batch) else batch
        valid_B = examples["valid"] & (examples["weight"] > 0)
        if self.mi_term is not None and self.mi_term.consistent:
            valid_B = valid_B & (examples["answer_length"] > 0)
        if not is_packed(batch):
            for task in self.tasks:
                valid_B = valid_B & (batch[task]["targets"] != pad_id).any(axis=1)
        return valid_B

    def contrasted(self, batch: Mapping, pad_id: int) -> tuple[Array, Array | None]:
        """Which examples take part in the mutual-information term, bool [B], and which counterfactuals there are."""
        pairs_B = self.pairs(batch, pad_id)
        if not self.counterfactuals:
            return pairs_B, None
        found_BxM = counterfactual_mask(batch, self.tasks, pad_id)
        return pairs_B & found_BxM.any(axis=1), found_BxM

    def _token_weights(self, batch: Mapping, task: str, pad_id: int) -> Array:
        """Weight in the loss of every target token, float32 [R, T]; 0 for padding and for tokens of other tasks."""
        if is_packed(batch):
            rows = batch["rows"]
            return packed_weights(rows, self.tasks.index(task)) * rows.get("target_weights", 1.0)
        mask_BxT = token_mask(batch[task]["targets"], batch["valid"], pad_id)
        if not writes_rationale(self.name, task):
            return mask_BxT.astype(jnp.float32)
        return jnp.where(mask_BxT, batch["weight"][:, None] * batch[task].get("target_weights", 1.0), 0.0)

    def compute(
        self,
        student: Student,
        networks: Networks | None,
        batch: Mapping,
        key: Array | None,
        *,
        ramp: Array | float = 1.0,
        trains: bool = True,
    ) -> BatchOutputs:
        """Run the student: terms of its tasks with their token accuracies as metrics, and features.

        Dropout is on where a key is given. The gradient of the features reaches the student times beta · ramp. In
        evaluation (trains=False) token terms are cross-entropies and a term with networks of its own is left out.
        """
        outputs = self.forward(student, batch, key, trains=trains)
        terms = self._token_terms(outputs, batch, student.config.pad_id)
        if self.mi_term is None or (self.mi_term.learns and not trains):
            return BatchOutputs(terms, None, outputs)
        label, rationale = (outputs[task].states for task in (PREDICT, EXPLAIN))
        if self.mi_term.consistent:
            return BatchOutputs(terms, gather_answers(batch, label, rationale), outputs)
        further = [output.counterfactuals for output in (outputs[PREDICT], outputs[EXPLAIN])]
        counterfactuals = None if further[0] is None or further[1] is None else (further[0], further[1])
        features = gather_features(self.mi_term, networks, label, rationale, self.beta, ramp, counterfactuals)
        return BatchOutputs(terms, features, outputs)

    def evaluate(self, student: Student, batch: Mapping) -> Evaluated:
        """Every term that evaluation reports, all but those with networks of their own, of a padded batch."""
        terms, features, outputs = self.compute(student, None, batch, None, trains=False)
        if features is not None:
            weight = self.weights(batch, student.config.pad_id)["mi"]
            terms |= self.mi_loss(student, None, None, features, batch, weight, None, None)[1]
        by_example: Terms = {}
        for task, output in outputs.items():
            mask_BxT = token_mask(batch[task]["targets"], batch["valid"], student.config.pad_id)
            loss_B = jnp.where(mask_BxT, output.loss_RxT, 0.0).sum(axis=1)
            by_example[task] = Term(loss_B, mask_BxT.sum(axis=1, dtype=jnp.float32))
        encoded = {task: output.states.encoded_RxSxD for task, output in outputs.items()}
        return Evaluated(terms, encoded, by_example)

    def mi_loss(
        self,
        student: Student,
        networks: Networks | None,
        frozen: Networks | None,
        features: Features,
        batch: Mapping,
        weight: Array,
        key: Array | None,
        state: MineState | None,
        ramp: Array | float = 1.0,
    ) -> tuple[Array, Terms, MineState | None]:
        """The mutual-information loss of a batch's features: the scalar to differentiate, its terms, and the
        estimator's state.

        `weight` is that of the full batch (`weights`), of which this may be a micro-batch. With mi.placebo and a key
        the pairs are exchanged (placebo.py). Of the student, consistency uses the head, and its gradient is scaled here
        by beta · ramp; that of other estimators was where features were computed.
        """
        assert self.mi_term is not None
        mi_term, (valid_B, counterfactual_BxM) = self.mi_term, self.contrasted(batch, student.config.pad_id)
        features, others_B = features.by_example(slots_of(batch)), None
        if mi_term.placebo and key is not None:
            key, pairs_key = jax.random.split(key)
            if counterfactual_BxM is not None:
                features = features._replace(v=shuffle_pairs(pairs_key, features.v, counterfactual_BxM))
            else:
                others_B, valid_B = derange(pairs_key, valid_B)
        if mi_term.consistent:
            length_B = answer_lengths(batch, valid_B)
            terms = consistency_loss(mi_term.distance, mi_term.detach, student, features, length_B, others_B)
            examples = batch["examples"] if is_packed(batch) else batch
            terms["mi_share"] = Term(*(x.sum(dtype=jnp.float32) for x in (valid_B, examples["valid"])))
            return self.beta * ramp * Term(terms["mi"].sum, weight).mean, terms, state
        if others_B is not None:
            features = features._replace(v=features.v[others_B])
        result = losses(mi_term, networks, frozen, features, valid_B, weight, self.beta, key, state, counterfactual_BxM)
        count = valid_B.sum(dtype=jnp.float32)
        terms = {
            name: Term(jnp.where(valid_B, value, 0.0).sum() if value.ndim else value * count, count)
            for name, value in result.reported.items()
        }
        if self.mi_term.conditional:
            terms["mi_share"] = Term(count, self.pairs(batch, student.config.pad_id).sum(dtype=jnp.float32))
        return result.total, terms, result.state

    def forward(self, student: Student, batch: Mapping, key: Array | None, *, trains: bool) -> dict[str, TaskOutput]:
        """Run the student on every task of a batch, with training's token loss or, to evaluate, cross-entropy."""
        pools: dict[str, Pool] = {}
        released = self.depends_on_padding
        if released and is_packed(batch):
            raise UserError("mi.estimator released reads the padding of a padded batch: set data.packing to False")
        if self.mi_term is not None:
            features = {PREDICT: self.mi_term.z_feature, EXPLAIN: self.mi_term.v_feature}
            pools = {task: VOCABULARY_POOLS[name] for task, name in features.items() if name in VOCABULARY_POOLS}
        token_loss = find_token_loss(self.token_loss) if trains else None
        counterfactuals = self.counterfactuals if trains else 0
        return forward(student, batch, key, self.tasks, Heads(pools, released, token_loss, counterfactuals))

    def _token_terms(self, outputs: Mapping[str, TaskOutput], batch: Mapping, pad_id: int) -> Terms:
        """Loss in nats and token accuracy of each task."""
        terms: Terms = {}
        for task, output in outputs.items():
            weight_RxT = self._token_weights(batch, task, pad_id)
            weight = weight_RxT.sum()
            terms[task] = Term(jnp.where(weight_RxT > 0, weight_RxT * output.loss_RxT, 0.0).sum(), weight)
            hits = jnp.where(weight_RxT > 0, weight_RxT * output.hit_RxT, 0.0).sum()
            terms[f"{task}_token_accuracy"] = Term(hits, weight)
        return terms
