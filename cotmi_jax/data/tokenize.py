"""Tokenizes examples, chunk by chunk, so that processes can divide a split and progress can be shown."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from cotmi_jax.data.example import Example
from cotmi_jax.data.rationale_answer import RationaleAnswer, Stated, find_spans, state_answer
from cotmi_jax.data.tasks import EXPLAIN, PREDICT, LabelType, ObjectiveName, find_objective, task_texts, training_label
from cotmi_jax.data.token_weights import TokenWeights, weigh_tokens
from cotmi_jax.data.tokens import Ragged, TokenizedSplit, TokenizedTask, offsets_of
from cotmi_jax.data.vocabulary import EOS_ID, Vocabulary
from cotmi_jax.errors import UserError

TooLong = Literal["cut", "skip", "error"]
TOO_LONG = ("cut", "skip", "error")
CHUNK = 8192  # examples tokenized at a time


@dataclasses.dataclass(frozen=True)
class TokenLimits:
    """Maximum number of tokens of a sequence, including its eos, and the policy for longer ones.

    too_long: "cut" truncates the sequence, keeping its eos, and counts it; "skip" leaves its example out and counts it;
      "error" raises a UserError.
    """

    max_input_tokens: int
    max_target_tokens: int
    too_long: TooLong = "cut"

    def check(self, example: Example, what: str, length: int) -> None:
        """Raises UserError, with the place, if the sequence exceeds the limit and too_long is "error"."""
        key = "max_input_tokens" if what == "input" else "max_target_tokens"
        if self.too_long == "error" and length > getattr(self, key):
            raise UserError(
                f"{example.place or example.id}: the {what} has {length} tokens, more than config.data.{key} "
                f"{getattr(self, key)}: raise it, or set config.data.too_long to cut or skip"
            )


def tokenize_split(
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    *,
    objective: ObjectiveName,
    label_type: LabelType,
    limits: TokenLimits,
    rationale_answer: RationaleAnswer = "cut",
    token_weights: TokenWeights | None = None,
    progress: Callable[[int], object] | None = None,
) -> TokenizedSplit:
    """Tokens of every task of `objective`, each sequence with a final eos. The result can be empty: see check_split.

    rationale_answer: the answer in the targets of the rationale task (state_answer), whose span is found.
    token_weights: rules for the weights of the tokens of rationales; None: all 1.
    SentencePiece encodes the texts of a chunk on all cores. progress is called with the size of each chunk.

    Raises:
      UserError: an unknown objective or label type, or, if limits.too_long is "error", a sequence beyond the limits.
    """
    chunks = []
    for start in range(0, max(len(examples), 1), CHUNK):
        chunk = examples[start : start + CHUNK]
        settings = objective, label_type, limits, rationale_answer, token_weights
        chunks.append(_tokenize_chunk(chunk, vocabulary, *settings))
        if progress:
            progress(len(chunk))
    return TokenizedSplit.join(chunks)


def check_split(name: str, kept: np.ndarray, limits: TokenLimits) -> None:
    """Raises UserError if no example of a split, or of a component in it, was kept."""
    if not len(kept):
        raise UserError(f"{name} has no examples: check config.data.subsample and the data files")
    if not kept.any():
        raise UserError(
            f"{name}: all {len(kept)} examples are longer than config.data.max_input_tokens {limits.max_input_tokens} "
            f"or max_target_tokens {limits.max_target_tokens}: raise them, or set config.data.too_long to cut"
        )


def _tokenize_chunk(
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    objective: ObjectiveName,
    label_type: LabelType,
    limits: TokenLimits,
    rationale_answer: RationaleAnswer,
    token_weights: TokenWeights | None,
) -> TokenizedSplit:
    spec = find_objective(objective)
    has_rationales = bool(spec.rationale_tasks)
    counts = np.array([len(example.rationales) if has_rationales else 1 for example in examples], np.int64)
    owner = np.repeat(np.arange(len(examples)), counts)
    weights = np.array([weight for example in examples for _, weight in example.rationales] if has_rationales else 1.0)
    expanded = [each for example in examples for each in one_per_rationale(example)]
    states_answers = rationale_answer != "cut" and EXPLAIN in spec.tasks
    stated = [Stated(each.rationale, 0, 0) for each in expanded]
    if states_answers:
        stated = [state_answer(each, rationale_answer, training_label(each, label_type)) for each in expanded]
        expanded = [dataclasses.replace(each, rationale=new.text) for each, new in zip(expanded, stated, strict=True)]
    kept = np.ones(len(examples), bool)
    encoded: dict[str, tuple[_Encoded, _Encoded]] = {}
    target_texts: dict[str, list[str]] = {}
    for task in spec.tasks:
        per_rationale = task in spec.rationale_tasks
        texts = task_texts(examples, objective, task, label_type)
        inputs = _Encoded(vocabulary.encode([text.input for text in texts]), np.arange(len(examples)))
        if per_rationale:
            texts = task_texts(expanded, objective, task, label_type)
        target_texts[task] = [text.target for text in texts]
        targets = _Encoded(vocabulary.encode(target_texts[task]), owner if per_rationale else inputs.owner)
        encoded[task] = (inputs, targets)
        for sequences, what, limit in (
            (inputs, "input", limits.max_input_tokens),
            (targets, "rationale" if per_rationale else "label", limits.max_target_tokens),
        ):
            for row in np.flatnonzero(sequences.lengths > limit):
                limits.check(examples[sequences.owner[row]], what, int(sequences.lengths[row]))
                kept[sequences.owner[row]] &= limits.too_long != "skip"
    tasks = {}
    for task, (inputs, targets) in encoded.items():
        kept_inputs, cut_inputs = inputs.cut(kept, limits.max_input_tokens)
        kept_targets, cut_targets = targets.cut(kept, limits.max_target_tokens)
        weights_of_tokens = None
        if token_weights is not None and targets.owner is owner:
            answers = [(each.start, each.end) for each in stated]
            found = weigh_tokens(token_weights, expanded, answers, target_texts[task], vocabulary)
            weights_of_tokens = targets.cut_weights(found, kept, limits.max_target_tokens)
        per_rationale = targets.owner is owner
        tasks[task] = TokenizedTask(
            kept_inputs, kept_targets, per_rationale, cut_inputs, cut_targets, weights_of_tokens
        )
    weights = np.broadcast_to(weights, owner.shape).astype(np.float32)[kept[owner]]
    answer_starts = None
    if states_answers:
        labels, rationales = (encoded[task][1].ids for task in (PREDICT, EXPLAIN))
        spans = [labels[row] for row in owner], limits.max_target_tokens
        answer_starts = find_spans(vocabulary, stated, target_texts[EXPLAIN], rationales, *spans)[kept[owner]]
    return TokenizedSplit(tasks, offsets_of(counts[kept]), weights, kept, answer_starts)


def one_per_rationale(example: Example) -> list[Example]:
    """Copies of the example with one of its rationales each."""
    if not example.more:
        return [example]
    first, *more = example.rationales
    spans = [(each,) if each else () for each in example.spans]
    others = [
        dataclasses.replace(example, rationale=text, more=(), answer_text="", token_weights=of_text)
        for (text, _), of_text in zip(more, spans[1:], strict=True)
    ]
    return [dataclasses.replace(example, rationale=first[0], more=(), token_weights=spans[0]), *others]


@dataclasses.dataclass(frozen=True)
class _Encoded:
    """Token ids without eos, and the example that each sequence belongs to."""

    ids: list[list[int]]
    owner: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each sequence, including its eos."""
        return np.fromiter(map(len, self.ids), np.int64, len(self.ids)) + 1

    def cut(self, kept: np.ndarray, limit: int) -> tuple[Ragged, int]:
        """The sequences of kept examples, of at most `limit` tokens including eos; and how many were cut."""
        ids = [self.ids[row] for row in np.flatnonzero(kept[self.owner])]
        return Ragged.of([[*tokens[: limit - 1], EOS_ID] for tokens in ids]), sum(len(each) >= limit for each in ids)

    def cut_weights(self, weights: Sequence[np.ndarray], kept: np.ndarray, limit: int) -> np.ndarray:
        """The weights of the tokens of those sequences, concatenated, float32; 1 of each eos."""
        rows, eos = np.flatnonzero(kept[self.owner]).tolist(), np.ones(1, np.float32)
        return np.concatenate([eos[:0], *(part for row in rows for part in (weights[row][: limit - 1], eos))])
