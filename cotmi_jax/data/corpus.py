"""Loads the corpus of a run: reads the components of config.data.dataset, subsamples, splits and joins them."""

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Collection, Mapping

from cotmi_jax.data.example import SPLITS, Corpus, Example, LabelKind, merge_rationales
from cotmi_jax.data.grammar import OWN_KINDS, ComponentSpec, SourceKind, parse_dataset
from cotmi_jax.data.origins import RELEASE, T5_VOCABULARY
from cotmi_jax.data.rationale_weights import UNIFORM, check_rationale_weights, identity, weigh
from cotmi_jax.data.sources.base import Source, digest
from cotmi_jax.data.sources.generated import GeneratedSource
from cotmi_jax.data.sources.hf_datasets import HfSource
from cotmi_jax.data.sources.own_files import FileSource
from cotmi_jax.data.sources.registered import SOURCES
from cotmi_jax.data.sources.released import ReleasedSource
from cotmi_jax.data.sources.row_format import RowFormat, parse_fields
from cotmi_jax.data.sources.rows import BAD_ROWS, NUM_NOTES, check_choice
from cotmi_jax.data.sources.tfds import TfdsSource
from cotmi_jax.data.splits import SPLIT_BY, with_valid_split
from cotmi_jax.data.splits import subsample as subsample_examples
from cotmi_jax.data.token_weights import parse_token_weights
from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, as_path

DATA_ROOT_VARIABLE = "COTMI_DATA_ROOT"
EMPTY_RATIONALES = ("error", "drop", "keep")
DUPLICATE_RATIONALES = ("keep", "weight")
LABEL_KINDS: tuple[LabelKind, ...] = ("text", "equation")
_VERSION = 1  # Raise it when the same files and settings give other examples.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loading:
    """What to load: the keys of config.data that determine which examples a run sees, with their defaults.

    dataset: one component or several with rates, in the form of `grammar.parse_dataset`.
    data_root: folder of the release; None: $COTMI_DATA_ROOT.
    tfds_dir: folder or URL of data sets prepared by TensorFlow Datasets; None: its default.
    teacher, align, augment_asdiv: as for `released.ReleasedSource`; other components ignore them.
    subsample: fraction of train to keep, in (0, 1], drawn with seed.
    bad_rows: "error", or "skip" to leave rows out that cannot be used, and count them.
    empty_rationale: for examples with a blank rationale: "error" refuses them, in any split; "drop" removes them from
      train; "keep" gives the rationale weight 0, so that only the label is trained.
    needs_rationales: whether the objective trains on rationales; if not, "error" refuses nothing.
    duplicate_rationales: identical rationales of a train example: "keep" uses each in turn; "weight" merges them into
      one, by `example.merge_rationales`.
    rationale_weights: factors of the weights of train rationales, as for `rationale_weights.weigh`.
    token_weights: rules in the form of `token_weights.parse_token_weights`; with "given" rows' spans are read.
    size: number of train examples of a generated set, before subsampling.
    version: of a generated set, as for `arithmetic.make_arithmetic` and `deduction.make_deduction`.
    split_by: what a valid split made from train is drawn of, as for `splits.with_valid_split`.
    labels: the labels that rows of a user's own data may have, separated by commas; "" for any.
    label_kind: how labels of such rows are compared.
    fields: the columns of such rows that hold the fields, in the form of `row_format.parse_fields`.
    """

    dataset: str
    data_root: str | None = None
    tfds_dir: str | None = None
    teacher: str = "palm"
    align: str = "strict"
    augment_asdiv: bool = False
    subsample: float = 1.0
    seed: int = 0
    bad_rows: str = "error"
    empty_rationale: str = "error"
    needs_rationales: bool = True
    duplicate_rationales: str = "keep"
    split_by: str = "example"
    rationale_weights: str = UNIFORM
    token_weights: str = ""
    size: int = 16_000
    version: int = 1
    labels: str = ""
    label_kind: str = "text"
    fields: str = ""

    def __post_init__(self) -> None:
        check_choice("bad_rows", self.bad_rows, BAD_ROWS)
        check_choice("empty_rationale", self.empty_rationale, EMPTY_RATIONALES)
        check_choice("duplicate_rationales", self.duplicate_rationales, DUPLICATE_RATIONALES)
        check_choice("split_by", self.split_by, SPLIT_BY)
        check_choice("label_kind", self.label_kind, LABEL_KINDS)
        check_rationale_weights(self.rationale_weights)
        parse_token_weights(self.token_weights)
        components = parse_dataset(self.dataset)
        given = {"fields": parse_fields(self.fields), "labels": self.labels, "label_kind": self.label_kind != "text"}
        for key, is_set in given.items():
            if is_set and all(spec.kind not in OWN_KINDS for spec in components):
                raise UserError(
                    f"config.data.{key} describes rows of {', '.join(OWN_KINDS)}, not {self.dataset!r}: unset it"
                )
        if self.augment_asdiv and all(spec[:2] != ("released", "svamp") for spec in components):
            raise UserError(f"augment_asdiv goes with dataset 'svamp' only, not {self.dataset!r}: leave it off")


@dataclasses.dataclass(frozen=True)
class Component:
    """One data set of a mixture, whose examples are contiguous in every split.

    size: number of its examples in train, 0 if train is not loaded.
    rate: relative frequency of its examples in training.
    sizes: number of its examples in each split.
    """

    name: str
    size: int
    rate: float = 1.0
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LoadedCorpus:
    """A corpus as a run uses it, with counts by split.

    dropped: examples removed from train because their rationale is blank.
    unparsed: examples of the corpus without a teacher's label, because it was unreadable or there is no teacher.
    components: the components of the corpus in order, one if it is not a mixture.
    skipped: rows that could not be used; skip_notes holds place and reason of the first few.
    weight_note: what Loading.rationale_weights made of the weights; "" if they are uniform.
    """

    corpus: Corpus
    dropped: Mapping[str, int]
    unparsed: Mapping[str, int]
    components: tuple[Component, ...] = ()
    skipped: Mapping[str, int] = dataclasses.field(default_factory=dict)
    skip_notes: tuple[str, ...] = ()
    weight_note: str = ""


def load_corpus(loading: Loading, splits: Collection[str] = SPLITS) -> LoadedCorpus:
    """Loads train, valid and, if there is one, the test split of one data set, or of several, concatenated.

    `splits` limits what is loaded: without train in it, a data set needs no train split (but to make valid from, where
    it has no valid split of its own), a single file is test if only test is asked for, and examples without a rationale
    are kept, since none is trained on. A split holds the same examples whichever others are loaded.

    For each component, as in the release, train is subsampled, then a missing valid split is made from it. Then, if so
    configured, examples without a rationale are removed from train; valid and test keep every example. Unlike in the
    release, problems of ASDiv never go into valid: it stays comparable with test and, if subsample is 1, is the same
    with and without them.

    Raises:
      UserError: an unknown value of a setting, no data root, data that a source cannot read or use, or no component
        that has one of `splits`.
    """
    loaded = [_load(source, spec.rate, loading, splits) for spec, source in _sources(loading)]
    if not any(one.corpus.splits for one in loaded):
        raise UserError(f"dataset = {loading.dataset!r} has no {' or '.join(s for s in SPLITS if s in splits)} split")
    if len(loaded) == 1:
        return _weighed(loaded[0], loading)
    present = [split for split in SPLITS if any(split in one.corpus.splits for one in loaded)]
    joined = {split: sum((one.corpus.splits.get(split, ()) for one in loaded), ()) for split in present}
    whole = LoadedCorpus(
        corpus=Corpus(loading.dataset, joined),
        dropped=_sum([one.dropped for one in loaded]),
        unparsed=_sum([one.unparsed for one in loaded]),
        components=tuple(component for one in loaded for component in one.components),
        skipped=_sum([one.skipped for one in loaded]),
        skip_notes=tuple(note for one in loaded for note in one.skip_notes)[:NUM_NOTES],
    )
    return _weighed(whole, loading)


def _weighed(loaded: LoadedCorpus, loading: Loading) -> LoadedCorpus:
    """With the weights of Loading.rationale_weights in train, where rationales are trained on."""
    splits = loaded.corpus.splits
    if "train" not in splits or loading.rationale_weights == UNIFORM or not loading.needs_rationales:
        return loaded
    found = weigh(loading.rationale_weights, splits["train"])
    corpus = dataclasses.replace(loaded.corpus, splits=splits | {"train": found.examples})
    return dataclasses.replace(loaded, corpus=corpus, weight_note=found.note)


def corpus_fingerprint(loading: Loading) -> str:
    """Hexadecimal digest of everything that `load_corpus` depends on, computed without parsing any file.

    It does not depend on the folder of the files, nor on rates, which do not change what is loaded, nor on
    needs_rationales, unless rationales have weights.
    """
    fingerprints = [source.fingerprint() for _, source in _sources(loading)]
    drawn = (loading.subsample, loading.seed) if loading.subsample < 1 else ()
    merged = ("merged",) if loading.duplicate_rationales == "weight" else ()
    divided = ("by cluster",) if loading.split_by == "cluster" else ()
    weighed = identity(loading.rationale_weights) if loading.needs_rationales else ()
    return digest(_VERSION, *drawn, loading.empty_rationale, *merged, *divided, *weighed, *fingerprints)


def find_data_root(data_root: str | None) -> Path:
    """The argument, else $COTMI_DATA_ROOT. UserError, with the layout of the folder, if neither is given."""
    given = data_root or os.environ.get(DATA_ROOT_VARIABLE)
    if given:
        return as_path(given)
    raise UserError(
        f"no data root: set config.data.root (--config.data.root, --data_root) or {DATA_ROOT_VARIABLE} to the folder "
        f"that holds dss/{{set}}/{{set}}_{{split}}.json ({RELEASE}, unpacked) and t5/spiece.model ({T5_VOCABULARY}); "
        "the generated sets (arithmetic, deduction) need no files, and data of your own only config.data.vocabulary"
    )


def _sources(loading: Loading) -> list[tuple[ComponentSpec, Source]]:
    sources = [(spec, _SOURCE_OF_KIND[spec.kind](spec, loading)) for spec in parse_dataset(loading.dataset)]
    names = [source.name for _, source in sources]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"dataset = {loading.dataset!r}: two components have the name {name}: leave one out")
    return sources


def _own(spec: ComponentSpec, loading: Loading) -> Source:
    labels = tuple(label.strip() for label in loading.labels.split(",") if label.strip())
    kind: LabelKind = "equation" if loading.label_kind == "equation" else "text"
    rules = parse_token_weights(loading.token_weights)
    read = rules is not None and rules.given
    rows = RowFormat(labels, kind, loading.bad_rows, parse_fields(loading.fields), token_weights=read)
    return HfSource(spec.argument, rows) if spec.kind == "hf" else FileSource(spec.kind, as_path(spec.argument), rows)


def _released(spec: ComponentSpec, loading: Loading) -> Source:
    return ReleasedSource(
        find_data_root(loading.data_root),
        spec.argument,
        teacher=loading.teacher,
        align=loading.align,
        augment_asdiv=loading.augment_asdiv and spec.argument == "svamp",
        bad_rows=loading.bad_rows,
    )


_SOURCE_OF_KIND: dict[SourceKind, Callable[[ComponentSpec, Loading], Source]] = {
    **dict.fromkeys(OWN_KINDS, _own),
    "generated": lambda spec, loading: GeneratedSource(spec.argument, loading.size, loading.version),
    "released": _released,
    "registered": lambda spec, loading: SOURCES[spec.argument],
    "tfds": lambda spec, loading: TfdsSource(spec.argument, loading.tfds_dir, loading.teacher, loading.bad_rows),
}


def _load(source: Source, rate: float, loading: Loading, asked: Collection[str]) -> LoadedCorpus:
    corpus = _read(source, asked)
    policy = loading.empty_rationale if "train" in asked else "keep"
    if policy == "error" and not loading.needs_rationales:
        policy = "keep"
    if policy == "error":
        _refuse_empty_rationales(corpus)
    made = _split(corpus, loading) if "train" in corpus.splits else corpus.splits
    splits = {split: examples for split, examples in made.items() if split in asked}
    if policy == "keep":
        kept = {split: tuple(map(_without_weight, examples)) for split, examples in splits.items()}
    else:
        kept = splits | {"train": tuple(example for example in splits["train"] if example.rationale.strip())}
    if "train" in kept and loading.duplicate_rationales == "weight":
        kept["train"] = tuple(map(merge_rationales, kept["train"]))
    if "train" in kept and not kept["train"]:
        raise UserError(f"dataset = {corpus.name!r}: none of the {len(splits['train'])} train examples has a rationale")
    sizes = {split: len(examples) for split, examples in kept.items()}
    return LoadedCorpus(
        corpus=Corpus(corpus.name, kept),
        dropped={split: len(splits[split]) - sizes[split] for split in splits},
        unparsed={split: sum(example.teacher_label is None for example in kept[split]) for split in kept},
        components=(Component(corpus.name, sizes.get("train", 0), rate, sizes),),
        skipped={split: corpus.skipped.get(split, 0) for split in splits},
        skip_notes=corpus.skip_notes,
    )


def _read(source: Source, asked: Collection[str]) -> Corpus:
    """The splits that those of `asked` are made from: without a valid split, a part of train becomes it."""
    if "train" in asked:
        return source.read({"valid", *asked})
    corpus = source.read(asked)
    if "valid" in asked and "valid" not in corpus.splits:
        return source.read({"train", *asked})
    return corpus


def _refuse_empty_rationales(corpus: Corpus) -> None:
    for examples in corpus.splits.values():
        for example in examples:
            if not example.rationale.strip():
                raise UserError(
                    f"{example.place}: no rationale for example {example.id}; pass empty_rationale=drop to remove such "
                    "examples from train, or keep to train on their label alone"
                )


def _without_weight(example: Example) -> Example:
    return example if example.rationale.strip() else dataclasses.replace(example, weight=0.0)


def _split(corpus: Corpus, loading: Loading) -> dict[str, tuple[Example, ...]]:
    train = subsample_examples(corpus.splits["train"], loading.subsample, loading.seed)
    own = tuple(example for example in train if example.id.startswith(f"{corpus.name}/"))
    added = tuple(example for example in train if not example.id.startswith(f"{corpus.name}/"))
    splits = with_valid_split({**corpus.splits, "train": own}, f"train of {corpus.name}", loading.split_by)
    return splits | {"train": splits["train"] + added}


def _sum(counts: list[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(total)
