"""Confidence of generated labels, and log-probabilities of candidate labels. Imports no tensorflow.

Every candidate is a decoder row, under teacher forcing, over the encoder states of its input, which are computed once.
The rows of all candidates fill batches of the size of the input batch, whatever their number for each input. Legend of
shape suffixes in models/t5.py; R is the number of decoder rows.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from cotmi_jax.data.example import Example
from cotmi_jax.data.lost_labels import find_lost_labels
from cotmi_jax.data.tasks import PREDICT, ObjectiveName, find_objective
from cotmi_jax.data.tokens import Ragged
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.errors import UserError, shown
from cotmi_jax.models.student import Params, Student, StudentDef
from cotmi_jax.objectives.token_scan import scan_tokens
from cotmi_jax.parallel.batch import constrain_batch, make_process_rows, put_batch
from cotmi_jax.parallel.sharding import replicated

_LONGEST_SHARED = 32  # shorter decoder rows all have the length of the longest, so that few programs are compiled


class Target(NamedTuple):
    """Tokens with eos, and the row of their input in its batch. Tokens before `start` are given, not scored."""

    row: int
    ids: Sequence[int]
    start: int = 0


def log_probabilities(
    student: Student, inputs_BxS: Array, encoded_BxSxD: Array, row_R: Array, targets_RxT: Array, span_Rx2: Array
) -> Array:
    """log p(targets[r, start:stop] | targets[r, :start], inputs[row_R[r]]) in nats, float32 [R].

    encoded_BxSxD: the encoder states of the inputs. span_Rx2: start and stop of each row; 0 for an empty row.
    """
    encoded_RxSxD, inputs_RxS = (constrain_batch(x[row_R]) for x in (encoded_BxSxD, inputs_BxS))
    states_RxTxD = student.decode(encoded_RxSxD, inputs_RxS, targets_RxT)
    position_1xT = jnp.arange(targets_RxT.shape[1])[None]
    mask_RxT = (position_1xT >= span_Rx2[:, :1]) & (position_1xT < span_Rx2[:, 1:])
    scanned = scan_tokens(states_RxTxD, targets_RxT, student.make_logits(), mask_BxT=mask_RxT)
    return -jnp.where(mask_RxT, scanned.loss_BxT, 0.0).sum(axis=1)


class TargetScorer:
    """The jitted `log_probabilities` of one student on a mesh."""

    def __init__(self, student: StudentDef, mesh: Mesh):
        self._mesh, self._length = mesh, 1
        self._score = jax.jit(
            lambda params, *arrays: log_probabilities(student.bind(params), *arrays), out_shardings=replicated(mesh)
        )

    def __call__(
        self, params: Params, inputs_BxS: Array, encoded_BxSxD: Array, targets: Sequence[Target]
    ) -> np.ndarray:
        """log p of every target, float64 [len(targets)]: any number of them, over the rows of a batch on the mesh.

        Every process gives all targets.
        """
        size, log_p_N = inputs_BxS.shape[0], np.zeros(len(targets))
        order = sorted(range(len(targets)), key=lambda index: -len(targets[index].ids))
        local = make_process_rows(self._mesh).indices(size)
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            tokens = Ragged.of([targets[index].ids for index in chosen])
            row_R, span_Rx2 = np.zeros(size, np.int32), np.zeros((size, 2), np.int32)
            row_R[: len(chosen)] = [targets[index].row for index in chosen]
            span_Rx2[: len(chosen)] = [(targets[index].start, len(targets[index].ids)) for index in chosen]
            number_R = np.where(np.arange(size) < len(chosen), np.arange(size), -1)
            rows = {"row": row_R, "targets": tokens.padded(number_R, self._padded(tokens.longest)), "span": span_Rx2}
            placed = put_batch({name: x[local] for name, x in rows.items()}, self._mesh)
            found_R = self._score(params, inputs_BxS, encoded_BxSxD, *(placed[name] for name in rows))
            log_p_N[chosen] = np.asarray(jax.device_get(found_R), np.float64)[: len(chosen)]
        return log_p_N

    def _padded(self, longest: int) -> int:
        """The length of decoder rows: a power of two, and up to _LONGEST_SHARED the highest so far."""
        length = max(8, 1 << (longest - 1).bit_length())
        if length <= _LONGEST_SHARED:
            length = self._length = max(length, self._length)
        return length


@dataclasses.dataclass(frozen=True)
class LabelOutput:
    """An output of the label task: row of its input in its batch, generated ids, and their text.

    log_p: of all its tokens, if generation gave it. choices: the candidate labels, if there are any.
    """

    row: int
    ids_T: np.ndarray
    text: str
    log_p: float | None = None
    choices: Sequence[str] = ()


class LabelScores(NamedTuple):
    """confidence: the probability of the generated label, the product of those of its tokens with eos; None: no label.

    log_p: of each choice in nats, in their order.
    """

    confidence: float | None
    log_p: tuple[float, ...]


class LabelScorer:
    """Confidence of generated labels, and log-probabilities of candidate labels, of a student with an objective.

    Where the target holds a rationale before the label (single_task), both are conditional on the rationale that the
    student generated: its tokens are given, and only those of the label and the eos count. A generated text in which no
    label is found counts as the rationale.
    """

    def __init__(self, student: StudentDef, vocabulary: Vocabulary, objective: ObjectiveName, mesh: Mesh):
        self._spec, self._vocabulary = find_objective(objective), vocabulary
        self._scorer, self._encoded = TargetScorer(student, mesh), dict[str, list[int]]()

    @property
    def follows_rationale(self) -> bool:
        """Whether a label follows a rationale in one output; else the log-probability of the output is the label's."""
        return PREDICT in self._spec.rationale_tasks

    def __call__(
        self, params: Params, inputs_BxS: Array, encoded_BxSxD: Array, outputs: Sequence[LabelOutput]
    ) -> list[LabelScores]:
        """The scores of outputs for a batch of inputs, from its encoder states."""
        asked = [(self._candidates(output), self._label(output)) for output in outputs]
        targets = [target for candidates, label in asked for target in (*candidates, *label)]
        log_p = iter(self._scorer(params, inputs_BxS, encoded_BxSxD, targets).tolist())
        found = []
        for output, (candidates, label) in zip(outputs, asked, strict=True):
            of_choices = tuple(next(log_p) for _ in candidates)
            own = next(log_p) if label else (None if self.follows_rationale else output.log_p)
            found.append(LabelScores(None if own is None else math.exp(min(own, 0.0)), of_choices))
        return found

    def _candidates(self, output: LabelOutput) -> list[Target]:
        """The targets of the output's choices."""
        if not output.choices:
            return []
        rationale = ""
        if self.follows_rationale and self._spec.read_rationale is not None:
            rationale = self._spec.read_rationale(output.text)
            if not rationale and not self._spec.read_label(output.text):
                rationale = output.text.strip()
        example = Example("", "", "", rationale)
        given, *texts = [self._spec.target(example, PREDICT, label) for label in ("", *output.choices)]
        given_ids, *sequences = self._encode([given, *texts])
        return [Target(output.row, [*ids, EOS_ID], _common_prefix(given_ids, ids)) for ids in sequences]

    def _label(self, output: LabelOutput) -> list[Target]:
        """The target of the label in an output that holds a rationale before it; [] for other outputs."""
        label = self._spec.read_label(output.text)
        if not self.follows_rationale or not label:
            return []
        ends = np.flatnonzero(output.ids_T == EOS_ID)
        ids = output.ids_T[: int(ends[0]) + 1 if len(ends) else None].tolist()
        start = len(ids) - 1
        while start and (found := self._spec.read_label(self._vocabulary.decode(ids[:start]))):
            if not label.startswith(found):
                break
            start -= 1
        return [Target(output.row, ids, start)]

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without eos. Those of labels alone are kept: most examples have the same choices."""
        if self.follows_rationale:
            return self._vocabulary.encode(texts)
        if unknown := [text for text in dict.fromkeys(texts) if text not in self._encoded]:
            self._encoded |= dict(zip(unknown, self._vocabulary.encode(unknown), strict=True))
        return [self._encoded[text] for text in texts]


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share."""
    shared = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        shared += 1
    return shared


def check_candidates(candidates: Sequence[str], vocabulary: Vocabulary, objective: ObjectiveName, where: str) -> None:
    """Raises UserError unless they are at least two, different, not blank, and in the vocabulary."""
    if len(candidates) < 2 or not all(each.strip() for each in candidates):
        raise UserError(f"{where} {shown(list(candidates))}: give at least 2 candidates, none of them blank")
    if len({each.strip() for each in candidates}) < len(candidates):
        raise UserError(f"{where} {shown(list(candidates))}: a candidate is there twice; give each once")
    examples = [Example(where, "", each, "") for each in candidates]
    for message in find_lost_labels(examples, vocabulary, objective).values():
        raise UserError(f"{message}, which lacks a character of it: write the candidate otherwise, or leave it out")


def ranked(choices: Iterable[str], log_p: Iterable[float]) -> list[tuple[str, float]]:
    """Choices with their log-probabilities, by decreasing log-probability; ties in the order of the choices."""
    return sorted(zip(choices, log_p, strict=True), key=lambda pair: -pair[1])
