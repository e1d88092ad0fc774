"""What a run says about its data before it starts: rows left out, cut or unreadable, and counterfactuals."""

import numpy as np
from ml_collections import ConfigDict

from cotmi_jax.data.corpus import LoadedCorpus
from cotmi_jax.data.rationale_answer import count_spans
from cotmi_jax.data.tokens import CounterfactualTargets, TokenizedSplit


def corpus_notes(config: ConfigDict, loaded: LoadedCorpus) -> list[str]:
    """Messages about rows of a corpus that were dropped or skipped, and about unreadable teacher labels."""
    notes = [
        f"{split}: {count} examples without a rationale dropped" for split, count in loaded.dropped.items() if count
    ]
    if any(loaded.skipped.values()):
        counts = ", ".join(f"{count} of {split}" for split, count in loaded.skipped.items() if count)
        notes += [f"bad rows skipped: {counts}", *(f"  {note}" for note in loaded.skip_notes)]
    if loaded.weight_note:
        notes.append(loaded.weight_note)
    if config.data.label_type == "llm":
        notes.append(f"train: {loaded.unparsed['train']} teacher labels unreadable, trained as empty")
    return notes


def token_notes(
    name: str, split: TokenizedSplit, unk_id: int | None, *, rationales: bool, weighed: bool = False
) -> list[str]:
    """Messages about examples without a rationale, unknown characters, cut sequences, and skipped examples.

    weighed: whether the config can have given a rationale weight 0.
    """
    notes = []
    if rationales and split.without_rationale:
        share = f"{split.without_rationale} of {split.size} examples ({split.without_rationale / split.size:.1%})"
        notes.append(
            f"{name}: {share} have no rationale{', or one of weight 0' * weighed}: only their label is trained"
        )
    unknown = [
        f"{count.tokens} in the {column} (of {count.sequences} texts)"
        for column, count in split.unknown(unk_id).items()
        if count.tokens
    ]
    if unknown:
        notes.append(f"{name}: unknown tokens, for characters that the vocabulary lacks: {', '.join(unknown)}")
    notes += [
        f"{name}: {count} of {len(ragged.lengths)} {task} {kind} were longer than the limit and were cut"
        for task, tokens in split.tasks.items()
        for kind, ragged, count in (
            ("inputs", tokens.inputs, tokens.truncated_inputs),
            ("targets", tokens.targets, tokens.truncated_targets),
        )
        if count
    ]
    if split.answer_starts is not None:
        notes.append(f"{name}: {count_spans(split.answer_starts)}")
    skipped = len(split.kept) - split.size
    return notes + ([f"{name}: {skipped} of {len(split.kept)} examples longer than the limits skipped"] * bool(skipped))


def token_weight_notes(train: TokenizedSplit, rules: str) -> list[str]:
    """What config.data.token_weights made of the weights of each task's tokens."""
    found = {name: tokens.weights for name, tokens in train.tasks.items() if tokens.weights is not None}
    return [
        f"train: {(weights != 1.0).mean():.1%} of the {len(weights)} {name} target tokens have another weight than 1 "
        f"({rules}), weights {weights.min():.3g} to {weights.max():.3g}"
        for name, weights in found.items()
    ]


def counterfactual_note(train: TokenizedSplit, found: CounterfactualTargets) -> str:
    counts = np.diff(found.offsets)
    share = f"{(counts > 0).sum()} of {len(counts)} rationales ({(counts > 0).mean():.1%})"
    return f"train: {share} have counterfactuals, at most {found.most} each; the others are not contrasted"
