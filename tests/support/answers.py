"""Batches whose rationales state their answer, and the consistency term of them in float64 numpy."""

import dataclasses
from typing import Any

import numpy as np
from mi_helpers import mi_config
from splits import random_split, sequence

from cotmi_jax.data.rationale_answer import OTHER_ANSWER
from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.data.tokens import Ragged, TokenizedSplit
from cotmi_jax.objectives.mi_term import MITermConfig


def consistency(**changes: Any) -> MITermConfig:
    """The term without warm-up."""
    return mi_config("consistency", **changes)


def answer_split(num: int, *, seed: int = 0, rationales: int = 1) -> TokenizedSplit:
    """A random split in whose rationales the label stands at a random place, in a third of them without a span."""
    split, draw = random_split(num, seed=seed, rationales=rationales, labels=(2, 5)), np.random.default_rng(seed)
    labels, explanations = split.tasks[PREDICT].targets, split.tasks[EXPLAIN].targets
    targets, starts = [], []
    for row, example in enumerate(np.repeat(np.arange(num), split.rationale_counts)):
        text, label = sequence(explanations, row)[:-1], sequence(labels, int(example))[:-1]
        place = int(draw.integers(0, len(text) + 1))
        targets.append([*text[:place], *label, *text[place:], 1])
        starts.append(OTHER_ANSWER if draw.random() < 1 / 3 else place)
    explained = dataclasses.replace(split.tasks[EXPLAIN], targets=Ragged.of(targets))
    tasks = split.tasks | {EXPLAIN: explained}
    return dataclasses.replace(split, tasks=tasks, answer_starts=np.array(starts, np.int32))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def distances(distance: str, target: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distance of the distributions of two logits [..., V] in float64; cross_entropy of `other` under `target`."""
    log_p, log_q = _log_softmax(np.float64(target)), _log_softmax(np.float64(other))
    p, q = np.exp(log_p), np.exp(log_q)
    if distance == "cross_entropy":
        return -(p * log_q).sum(axis=-1)
    if distance == "symmetric_kl":
        return 0.5 * ((p - q) * (log_p - log_q)).sum(axis=-1)
    log_m = np.log(0.5 * (p + q))
    return 0.5 * (p * (log_p - log_m) + q * (log_q - log_m)).sum(axis=-1)
