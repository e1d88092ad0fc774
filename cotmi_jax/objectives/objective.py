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
from cotmi_jax.objectives.forward import TaskOutput, TaskStates, _up_to_longest
from cotmi_jax.objectives.mi_term import Features, MITermConfig, Networks, gather_features, losses, networks_def
from cotmi_jax.objectives.pooling import members
from cotmi_jax.objectives.terms import Term, Terms, is_packed, packed_weights, slots_of, token_mask
from cotmi_jax.objectives.token_scan import Pool, scan_tokens


class BatchOutputs(NamedTuple):
    """What the rows of a batch give before examples are compared: terms by token, and the features of cotmi."""

    terms: Terms
    features: Features | None


@dataclasses.dataclass(frozen=True)
class Objective:
    """An objective with its coefficients.

    The loss is Σ_name coefficient · sum / weight over the terms that carry a coefficient:
    `standard`, `single_task`: 1·predict; `dss`: α·predict + (1−α)·explain; `cotmi`: `dss` + β·mi + λ·compression.
    """

    name: Name
    alpha: float = 0.5
    beta: float = 0.1
    mi_term: MITermConfig = MITermConfig()  # where the spec has_mi_term

    def __post_init__(self) -> None:
        find_objective(self.name)
        if not 0.0 <= self.alpha <= 1.0:
            raise UserError(f"objective.alpha is {self.alpha}: it weighs the label task and lies in [0, 1]")
        if self.beta < 0.0:
            raise UserError(f"objective.beta is {self.beta}: a negative weight would minimize mutual information")
        if self.mi_term.compression == "variational" and self.beta == 0.0:
            raise UserError("objective.beta is 0: mi.compression.name variational shares its networks with the term")

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks it trains."""
        return tasks_of(self.name)

    @property
    def has_mi_term(self) -> bool:
        """Whether there is a mutual-information term."""
        return find_objective(self.name).has_mi_term

    @property
    def couples_examples(self) -> bool:
        """Whether an example's loss depends on the others of its batch."""
        return self.has_mi_term and self.mi_term.couples_examples

    @property
    def coefficients(self) -> dict[str, float]:
        """Coefficient of each term in the loss."""
        if EXPLAIN not in self.tasks:
            return {PREDICT: 1.0}
        coefficients = {PREDICT: self.alpha, EXPLAIN: 1.0 - self.alpha}
        if self.has_mi_term:
            coefficients["mi"] = self.beta
            if self.mi_term.compression != "none":
                coefficients["compression"] = self.mi_term.compression_weight
        return coefficients

    def networks(self, student: StudentConfig) -> ModuleDef[Networks] | None:
        """What the mutual-information term learns beside a student; None where that is nothing."""
        learns = self.has_mi_term and self.mi_term.learns
        return networks_def(self.mi_term, student) if learns else None

    def weights(self, batch: Mapping, pad_id: int) -> dict[str, Array]:
        """The weight of each loss term, a function of the batch alone: micro-batches divide by the whole one's."""
        weights = {task: self._token_weights(batch, task, pad_id).sum() for task in self.tasks}
        others = [name for name in self.coefficients if name not in weights]
        if others:
            weights |= dict.fromkeys(others, self.pairs(batch, pad_id).sum(dtype=jnp.float32))
        return weights

    def ramp(self, step: Array) -> Array:
        """Share of the mutual-information term's coefficients at a step."""
        return self.mi_term.ramp(step) if self.has_mi_term else jnp.float32(1.0)

    def pairs(self, batch: Mapping, pad_id: int) -> Array:
        """Which examples have both a label and a rationale to tie together, bool [B]; one of weight 0 is none."""
        examples = batch["examples"] if is_packed(batch) else batch
        valid_B = examples["valid"] & (examples["weight"] > 0)
        if not is_packed(batch):
            for task in self.tasks:
                valid_B = valid_B & (batch[task]["targets"] != pad_id).any(axis=1)
        return valid_B

    def _token_weights(self, batch: Mapping, task: str, pad_id: int) -> Array:
        """Weight in the loss of every target token, float32 [R, T]; 0 but at the real ones of a task."""
        if is_packed(batch):
            return packed_weights(batch["rows"], self.tasks.index(task))
        mask_BxT = token_mask(batch[task]["targets"], batch["valid"], pad_id)
        if not writes_rationale(self.name, task):
            return mask_BxT.astype(jnp.float32)
        return jnp.where(mask_BxT, batch["weight"][:, None], 0.0)

    def compute(
        self,
        student: Student,
        networks: Networks | None,
        batch: Mapping,
        key: Array | None,
        *,
        beta: float = 1.0,
        ramp: Array | float = 1.0,
    ) -> BatchOutputs:
        """Run the student: terms of both tasks with their token accuracies as metrics, and features.

        Dropout is on where a key is given. The gradient of the features reaches the student times beta · ramp.
        """
        outputs = self.forward(student, batch, key)
        if not self.has_mi_term:
            return BatchOutputs(_token_terms(outputs), None)
        label, rationale = (outputs[task].states for task in (PREDICT, EXPLAIN))
        features = gather_features(self.mi_term, networks, label, rationale, beta, ramp)
        return BatchOutputs(_token_terms(outputs), features)

    def terms(self, student: Student, batch: Mapping, key: Array | None) -> Terms:
        """Every term that needs nothing but the student: all but those with networks of their own."""
        if self.has_mi_term and self.mi_term.learns:
            return _token_terms(self.forward(student, batch, key))
        terms, features = self.compute(student, None, batch, key)
        if features is not None:
            pairs_B = self.pairs(batch, student.config.pad_id)
            weight = pairs_B.sum(dtype=jnp.float32)
            terms |= self.mi_loss(None, None, features.by_example(slots_of(batch)), pairs_B, weight, None, None)[1]
        return terms

    def mi_loss(
        self,
        networks: Networks | None,
        frozen: Networks | None,
        features: Features,
        valid_B: Array,
        weight: Array,
        key: Array | None,
        state: MineState | None,
    ) -> tuple[Array, Terms, MineState | None]:
        """The mutual-information side of features by example: the scalar to differentiate, its terms, and the
        estimator's state.

        `weight` is the number of valid examples of the whole batch, of which these may be a part.
        """
        result = losses(self.mi_term, networks, frozen, features, valid_B, weight, self.beta, key, state)
        count = valid_B.sum(dtype=jnp.float32)
        terms = {
            name: Term(jnp.where(valid_B, value, 0.0).sum() if value.ndim else value * count, count)
            for name, value in result.reported.items()
        }
        return result.total, terms, result.state

    def forward(self, student: Student, batch: Mapping, key: Array | None) -> dict[str, TaskOutput]:
        """Run the student on every task of a batch, padded or packed."""
        return (self._forward_packed if is_packed(batch) else self._forward_padded)(student, batch, key)

    def _forward_packed(self, student: Student, batch: Mapping, key: Array | None) -> dict[str, TaskOutput]:
        """One call of encoder and decoder for the rows, which hold both tasks."""
        rows, keys = batch["rows"], (None, None) if key is None else jax.random.split(key)
        if self.has_mi_term and self.mi_term.estimator == "released":
            raise UserError("mi.estimator released reads the padding of a padded batch: set data.packing to False")
        segments = rows["input_segments"], rows["target_segments"]
        encoded_RxSxD = student.encode(rows["inputs"], keys[0], segments[0])
        states_RxTxD = student.decode(encoded_RxSxD, rows["inputs"], rows["targets"], keys[1], segments)
        input_RxNxS, target_RxNxT = (members(each, rows["task"].shape[1]) for each in segments)
        # A row's segments are pooled all in one way: the two sides differ in it for no estimator that reads them here.
        pools = {self._pool(task) for task in self.tasks} - {None}
        pool = pools.pop() if pools else None
        scanned = scan_tokens(
            states_RxTxD,
            rows["targets"],
            student.make_logits(),
            mask_BxT=segments[1] > 0,
            member_BxNxT=target_RxNxT if pool else None,
            pool=pool,
        )
        task_states = TaskStates(encoded_RxSxD, input_RxNxS, states_RxTxD, target_RxNxT, scanned.log_pooled_BxNxV)
        return {
            task: TaskOutput(task_states, packed_weights(rows, index), scanned.loss_BxT, scanned.hit_BxT)
            for index, task in enumerate(self.tasks)
        }

    def _forward_padded(self, student: Student, batch: Mapping, key: Array | None) -> dict[str, TaskOutput]:
        """The encoder reads all tasks' inputs in one call; each task is decoded by itself."""
        tasks, pad_id = self.tasks, student.config.pad_id
        encoder_key, *decoder_keys = [None] * (1 + len(tasks)) if key is None else jax.random.split(key, 1 + len(tasks))
        # Tasks side by side, not one batch behind the other: so the rows of an example stay on its device.
        inputs = jnp.stack([batch[task]["inputs"] for task in tasks], axis=1)
        encoded = student.encode(inputs.reshape(-1, inputs.shape[-1]), encoder_key).reshape(*inputs.shape, -1)
        outputs = {}
        for index, (task, decoder_key) in enumerate(zip(tasks, decoder_keys, strict=True)):
            encoded_BxSxD, inputs_BxS, targets_BxT = encoded[:, index], batch[task]["inputs"], batch[task]["targets"]
            states_BxTxD = student.decode(encoded_BxSxD, inputs_BxS, targets_BxT, decoder_key)
            mask_BxT = token_mask(targets_BxT, batch["valid"], pad_id)
            # The defect of `released` is part of it: padding up to the batch's longest example enters the maximum.
            released = self.has_mi_term and self.mi_term.estimator == "released"
            pooled_BxT = _up_to_longest(mask_BxT) if released else mask_BxT
            pool = self._pool(task)
            scanned = scan_tokens(
                states_BxTxD,
                targets_BxT,
                student.make_logits(),
                mask_BxT=mask_BxT | pooled_BxT,
                member_BxNxT=pooled_BxT[:, None, :] if pool else None,
                pool=pool,
            )
            input_mask_BxS = token_mask(inputs_BxS, batch["valid"], pad_id)
            pooled = scanned.log_pooled_BxNxV
            task_states = TaskStates(encoded_BxSxD, input_mask_BxS[:, None], states_BxTxD, mask_BxT[:, None], pooled)
            weight_BxT = self._token_weights(batch, task, pad_id)
            outputs[task] = TaskOutput(task_states, weight_BxT, scanned.loss_BxT, scanned.hit_BxT)
        return outputs

    def _pool(self, task: str) -> Pool | None:
        """How a task's probabilities are pooled into a vocabulary feature, if they are one."""
        if not self.has_mi_term:
            return None
        feature = self.mi_term.z_feature if task == PREDICT else self.mi_term.v_feature
        return {"vocab_max": "max", "vocab_mean": "mean"}.get(feature)  # type: ignore[return-value]


def _token_terms(outputs: Mapping[str, TaskOutput]) -> Terms:
    """Cross-entropy in nats and token accuracy of each task."""
    terms: Terms = {}
    for task, output in outputs.items():
        weight = output.weight_RxT.sum()
        counts_RxT = output.weight_RxT > 0
        terms[task] = Term(jnp.where(counts_RxT, output.weight_RxT * output.loss_RxT, 0.0).sum(), weight)
        hits = jnp.where(output.hit_RxT, output.weight_RxT, 0.0).sum()
        terms[f"{task}_token_accuracy"] = Term(hits, weight)
    return terms
