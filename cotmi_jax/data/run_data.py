"""The data of a run: the tokens of config.data, from the cache or prepared now, and the batches of every step."""

import dataclasses
import functools
import os
from collections.abc import Callable, Collection, Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from cotmi_jax.data.cache import Prepared, Recipe, key_of, prepare
from cotmi_jax.data.corpus import LoadedCorpus, Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.counterfactual_targets import with_counterfactuals
from cotmi_jax.data.counterfactuals import counterfactuals, rules_identity
from cotmi_jax.data.example import SPLITS, Example
from cotmi_jax.data.grammar import parse_dataset
from cotmi_jax.data.lost_labels import check_labels
from cotmi_jax.data.order import TrainOrder, make_quotas
from cotmi_jax.data.packing import PackShape, make_shape
from cotmi_jax.data.rationale_answer import SpanCount, count_spans
from cotmi_jax.data.rationale_weights import UNIFORM
from cotmi_jax.data.run_checks import (
    answer_error,
    counterfactual_error,
    has_rationales,
    rationale_error,
    token_weight_error,
)
from cotmi_jax.data.run_notes import corpus_notes, counterfactual_note, token_notes, token_weight_notes
from cotmi_jax.data.tasks import ANSWER_MARK, DEFAULT_OBJECTIVE, EXPLAIN, LabelType, find_objective
from cotmi_jax.data.token_weights import parse_token_weights
from cotmi_jax.data.tokenize import CHUNK, TokenLimits, TooLong, check_split, tokenize_split
from cotmi_jax.data.tokens import Batch, TokenizedSplit
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.files import CACHE_VARIABLE, DEFAULT_CACHE, is_remote
from cotmi_jax.parallel.distributed import AllGather, all_gather_text, is_shared
from cotmi_jax.parallel.process_rows import ALL_ROWS, ProcessRows

_SEED = 0  # of counterfactuals: those of all runs, so that they share the cache
_SETTINGS = ("label_type", "bad_rows", "max_input_tokens", "max_target_tokens", "too_long")


def loading_of(config: ConfigDict) -> Loading:
    """The arguments of load_corpus, from a config."""
    data = config.data
    return Loading(
        dataset=data.dataset,
        data_root=data.root or None,
        tfds_dir=data.tfds_dir or None,
        teacher=data.teacher,
        align=data.align,
        augment_asdiv=data.augment_asdiv,
        subsample=data.subsample,
        seed=config.seed,
        bad_rows=data.bad_rows,
        empty_rationale=data.empty_rationale,
        needs_rationales=bool(find_objective(config.objective.name).rationale_tasks),
        duplicate_rationales=data.duplicate_rationales,
        split_by=data.split_by,
        rationale_weights=data.rationale_weights,
        token_weights=data.token_weights,
        size=data.size,
        version=data.version,
        labels=data.labels,
        label_kind=data.label_kind,
        fields=data.fields,
    )


def load_data(config: ConfigDict, splits: Collection[str] = SPLITS) -> LoadedCorpus:
    """The corpus of config.data, or those of its splits that `splits` names, as load_corpus.

    UserError if label_type is llm and no train example has a teacher's label.
    """
    loaded = load_corpus(loading_of(config), splits)
    if (
        "train" in splits
        and config.data.label_type == "llm"
        and loaded.unparsed["train"] == len(loaded.corpus.splits["train"])
    ):
        raise UserError(
            f"config.data.label_type is llm, but no train example of {loaded.corpus.name} has a teacher's label: use gt"
        )
    return loaded


def tokenize(
    config: ConfigDict,
    vocabulary: Vocabulary,
    examples: Sequence[Example],
    *,
    train: bool,
    progress: Callable[[int], object] | None = None,
) -> TokenizedSplit:
    """Tokens of a split.

    config.data.label_type and token_weights apply to train only, and only train can lose examples: the losses on
    held-out splits use gold labels and weigh tokens alike, and scores are over all examples.
    """
    label_type: LabelType = config.data.label_type if train else "gt"
    tokens_of = functools.partial(
        tokenize_split,
        vocabulary=vocabulary,
        objective=config.objective.name,
        label_type=label_type,
        limits=_limits(config, train=train),
        rationale_answer=config.data.rationale_answer,
        token_weights=parse_token_weights(config.data.token_weights) if train else None,
    )
    most = counterfactuals_of(config) if train else 0
    if not most:
        return tokens_of(examples, progress=progress)
    pieces = []
    for start in range(0, max(len(examples), 1), CHUNK):
        piece = examples[start : start + CHUNK]
        further = with_counterfactuals(
            tokens_of(piece),
            piece,
            vocabulary,
            lambda example: counterfactuals(example, most, _SEED, label_type=label_type),
            objective=config.objective.name,
            label_type=label_type,
            rationale_answer=config.data.rationale_answer,
            max_target_tokens=config.data.max_target_tokens,
            most=most,
        )
        pieces.append(further)
        if progress:
            progress(len(piece))
    return TokenizedSplit.join(pieces)


def counterfactuals_of(config: ConfigDict) -> int:
    """The maximal number of counterfactuals of a rationale that the objective trains with; 0 for most objectives."""
    uses = find_objective(config.objective.name).has_mi_term and config.mi.estimator == "conditional"
    return config.mi.counterfactuals if uses else 0


def count_answers(config: ConfigDict, vocabulary: Vocabulary, loaded: LoadedCorpus) -> dict[str, SpanCount]:
    """By split, which rationales state their label as the answer; empty if config.data.rationale_answer is cut."""
    if config.data.rationale_answer == "cut":
        return {}
    config = config.copy_and_resolve_references()
    config.objective.name = DEFAULT_OBJECTIVE  # the recipe's may have no rationales
    found = {
        split: tokenize(config, vocabulary, examples, train=split == "train").answer_starts
        for split, examples in loaded.corpus.splits.items()
    }
    return {split: count_spans(starts) for split, starts in found.items() if starts is not None}


def _limits(config: ConfigDict, *, train: bool) -> TokenLimits:
    too_long: TooLong = config.data.too_long if train or config.data.too_long == "error" else "cut"
    return TokenLimits(config.data.max_input_tokens, config.data.max_target_tokens, too_long)


def find_cache(config: ConfigDict) -> Path | None:
    """The folder of config.data.cache; None if tokens are kept in memory only. UserError for one in a bucket."""
    if config.data.cache == "none":
        return None
    named, folder = "config.data.cache", config.data.cache
    if not folder:
        named, folder = f"${CACHE_VARIABLE}", os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE
    if is_remote(folder):
        raise UserError(
            f"{named} {folder}: tokens are mapped into memory from local files: leave it empty; hosts that "
            "share no folder then prepare all data each"
        )
    return Path(folder).expanduser().absolute()


def _identity(config: ConfigDict, vocabulary: Vocabulary) -> dict[str, Any]:
    """Everything that tokens depend on. Objectives with the same sequences share their tokens."""
    data, objective, most = config.data, find_objective(config.objective.name), counterfactuals_of(config)
    states_answers = EXPLAIN in objective.tasks and data.rationale_answer != "cut"
    optional: dict[str, Any] = {"rationale_answer": data.rationale_answer} if states_answers else {}
    if data.token_weights and objective.rationale_tasks:
        optional["token_weights"] = data.token_weights
    if most:
        optional["counterfactuals"] = [most, _SEED, *rules_identity()]
    return optional | {
        "corpus": corpus_fingerprint(loading_of(config)),
        "vocabulary": vocabulary.fingerprint,
        "sequences": list(objective.cache_key),
        "mark": ANSWER_MARK,
        "settings": {name: data[name] for name in _SETTINGS},
    }


def _by_component(train: TokenizedSplit, facts: dict[str, Any]) -> list[tuple[str, np.ndarray]]:
    """The name of each component, and which of its train examples were kept."""
    names, sizes = zip(*facts["components"], strict=True)
    return list(zip(names, np.split(train.kept, np.cumsum(sizes)[:-1]), strict=True))


def _check_same(fingerprints: list[str]) -> None:
    """Raises UserError if the data of a process differs from that of process 0."""
    for process, fingerprint in enumerate(fingerprints):
        if fingerprint != fingerprints[0]:
            raise UserError(
                f"process {process} has other data ({fingerprint}) than process 0 ({fingerprints[0]}): give all hosts "
                "the same files"
            )


@dataclasses.dataclass(frozen=True)
class RunData:
    """The data of a run: tokens of train and valid, the examples of valid, and the order of training."""

    config: ConfigDict
    prepared: Prepared
    found: bool  # in the cache
    unk_id: int | None  # of the vocabulary
    order: TrainOrder
    process_rows: ProcessRows

    @classmethod
    def of(
        cls,
        config: ConfigDict,
        vocabulary: Vocabulary,
        process_rows: ProcessRows = ALL_ROWS,
        *,
        process: int = 0,
        processes: int = 1,
        fresh: bool = True,
        all_gather: AllGather = all_gather_text,
    ) -> "RunData":
        """From the cache, or read, tokenized and cached now. Raises UserError if the data cannot be used.

        A fresh run refuses labels that the vocabulary cannot represent, and a train split without any rationale where
        the objective trains on them. A run that an earlier version started on such data can be resumed.

        Processes that share the folder of the cache divide the work; otherwise each of them does all of it.
        """

        def refuse(error: str) -> None:
            if error and fresh:
                raise UserError(error)

        def read() -> tuple[Sequence[Example], Sequence[Example], dict[str, Any]]:
            loaded, labels = check_labels(
                load_data(config),
                vocabulary,
                dataset=config.data.dataset,
                objective=config.objective.name,
                label_type=config.data.label_type,
                bad_rows=config.data.bad_rows,
            )
            refuse(labels.error)
            components = [[component.name, component.size] for component in loaded.components]
            notes = [*corpus_notes(config, loaded), *labels.notes]
            facts = {"components": components, "notes": notes, "lost": labels.counts, "refused": labels.error}
            return loaded.corpus.splits["train"], loaded.corpus.splits["valid"], facts

        def tokens(examples: Sequence[Example], split: str) -> TokenizedSplit:
            with tqdm(total=len(examples), desc=f"tokenizing {split}", unit="ex", leave=False, disable=None) as bar:
                return tokenize(config, vocabulary, examples, train=split == "train", progress=bar.update)

        def check(split: TokenizedSplit, name: str, facts: dict[str, Any]) -> None:
            if name == "train":
                for component, kept in _by_component(split, facts):
                    check_split(f"train of {component}", kept, _limits(config, train=True))
            check_split(name, split.kept, _limits(config, train=name == "train"))

        identity, recipe = _identity(config, vocabulary), Recipe(read, tokens, check)
        if processes > 1:  # before the processes wait for each other's shards in the cache
            _check_same(all_gather(key_of(identity)))
        folder = find_cache(config)
        divided = processes > 1 and folder is not None and is_shared(folder, all_gather)
        workers = {"process": process, "processes": processes} if divided else {}
        prepared, found = prepare(folder, identity, recipe, **workers)
        refuse(prepared.facts["refused"])  # the cache may be that of a resumed run
        refuse(rationale_error(config, prepared.train))
        refuse(answer_error(config, prepared.train))
        refuse(counterfactual_error(prepared.train))
        refuse(token_weight_error(config, prepared.train))
        if processes > 1:
            _check_same(all_gather(prepared.fingerprint))
        sizes = [int(kept.sum()) for _, kept in _by_component(prepared.train, prepared.facts)]
        components = make_quotas(sizes, [spec.rate for spec in parse_dataset(config.data.dataset)])
        order = TrainOrder(components, config.batch_size, config.seed, prepared.train if config.data.packing else None)
        return cls(config, prepared, found, vocabulary.unk_id, order, process_rows)

    @property
    def train(self) -> TokenizedSplit:
        """Tokens of the train split."""
        return self.prepared.train

    @property
    def valid(self) -> TokenizedSplit:
        """Tokens of the valid split."""
        return self.prepared.valid

    def shape(self, shards: int, platform: str = "cpu") -> PackShape | None:
        """Shape of packed batches whose rows divide into `shards` batch shards; None if batches are padded.

        It is a function of the data, the batch size, the shards and the platform of the devices, and no part of a run's
        record: a run that resumes on other devices packs the same examples into other rows.
        """
        if not self.config.data.packing:
            return None
        multiple = shards * self.config.micro_batches
        groups = self.process_rows.groups
        return make_shape(self.train, self.order, multiple=multiple, groups=groups, platform=platform)

    def batches(self, start: int, shape: PackShape | None) -> Generator[Batch, None, None]:
        """The rows that this process supplies of the batches from step `start` to the last; close it."""
        from cotmi_jax.data.pipeline import train_batches  # imports tensorflow

        return train_batches(
            self.train, self.order, start, self.config.steps, shape=shape, process_rows=self.process_rows
        )

    def lengths(self, step: int) -> np.ndarray:
        """Input and target tokens of every sequence pair in the batch of a step, counted from 1: int64 [pairs, 2].

        It covers the batch of all processes.
        """
        return self.train.pair_lengths(self.order.picks(step - 1))

    def position(self, step: int) -> dict[str, int | str]:
        """The position in the data after `step` steps, and the fingerprint of the data."""
        return {"step": step, "examples": step * self.config.batch_size, "fingerprint": self.prepared.fingerprint}

    def notes(self, shape: PackShape | None) -> list[str]:
        """Messages for a user before a long run: sizes, lengths, and what was cut, skipped or dropped."""
        config = self.config.data
        if shape is None:
            lengths = "padded to " + ", ".join(
                f"{task} {self.train.input_length}→{length}" for task, length in self.train.target_lengths.items()
            )
        else:
            size = shape.rows * np.array(shape.lengths)
            padding = 1.0 - self.order.batch_size * self.order.mean / size
            lengths = (
                f"packed into {shape.rows} rows of {shape.input_length}→{shape.target_length} "
                f"({padding[0]:.1%} and {padding[1]:.1%} padding)"
            )
            if shape.counterfactual_length:
                lengths += f", {shape.counterfactual_length} of counterfactuals ({padding[2]:.1%} padding)"
        where = find_cache(self.config)
        source = f"tokens {'from' if self.found else 'now in'} {where}" if where else "tokens in memory"
        notes = [
            f"data {config.dataset}: {self.train.size} train, {self.valid.size} valid; {source}",
            f"batches of {self.config.batch_size} (input→target tokens): {lengths}",
        ]
        components = self.prepared.facts["components"]
        if len(components) > 1:
            drawn = zip(components, self.order.components, strict=True)
            quotas = ", ".join(f"{each.quota} of the {each.size} of {name}" for (name, _), each in drawn)
            notes.append(f"an epoch draws {quotas}")
        notes += self.prepared.facts["notes"]
        if self.train.counterfactuals is not None:
            notes.append(counterfactual_note(self.train, self.train.counterfactuals))
        notes += token_weight_notes(self.train, config.token_weights)
        weighed = "" if config.rationale_weights == UNIFORM else "train"
        for name, split in self._splits.items():
            rationales = has_rationales(self.config)
            notes += token_notes(name, split, self.unk_id, rationales=rationales, weighed=name == weighed)
        return notes

    @property
    def _splits(self) -> dict[str, TokenizedSplit]:
        return {"train": self.train, "valid": self.valid}

    def summary(self) -> dict[str, dict[str, Any]]:
        """Counts of each split for the record of a run, in types of JSON.

        unknown: unknown tokens by column. lost_labels: labels that the vocabulary cannot represent; null if they are
        not trained on. without_rationale: examples that train their label only, and their share; null if the objective
        has no rationales.
        """
        found: dict[str, dict[str, Any]] = {}
        for name, split in self._splits.items():
            without = split.without_rationale if has_rationales(self.config) else None
            found[name] = {
                "examples": split.size,
                "without_rationale": without,
                "share_without_rationale": None if without is None else without / split.size,
                "unknown": {column: count.tokens for column, count in split.unknown(self.unk_id).items()},
                "lost_labels": self.prepared.facts["lost"].get(name),
            }
        return found
