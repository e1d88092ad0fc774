"""From the name of a data set to the corpus a run uses: read, subsampled, split, and cleared of empty rationales."""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from cotmi_jax.data import dss
from cotmi_jax.data.arithmetic import make_arithmetic
from cotmi_jax.data.example import Corpus, Example
from cotmi_jax.data.splits import subsample as subsample_examples
from cotmi_jax.data.splits import with_valid_split
from cotmi_jax.errors import UserError

DATASETS = tuple(sorted((*dss.SETS, "arithmetic")))
DATA_ROOT_VARIABLE = "COTMI_DATA_ROOT"
DEFAULT_DATA_ROOT = Path("../shared/data")
EMPTY_RATIONALES = ("error", "drop")


@dataclasses.dataclass(frozen=True)
class LoadedCorpus:
    """A corpus as a run uses it, and what became of the teacher's completions, by split.

    dropped counts the examples taken out of train because their rationale is empty; unparsed counts the examples (of
    those in corpus) whose completion held no readable label.
    """

    corpus: Corpus
    dropped: Mapping[str, int]
    unparsed: Mapping[str, int]


def load_corpus(
    dataset: str,
    *,
    data_root: str | None,
    teacher: str,
    align: str,
    augment_asdiv: bool,
    subsample: float,
    seed: int,
    empty_rationale: str,
    size: int,
) -> LoadedCorpus:
    """Loads a data set with train, valid and (where there is one) test split.

    The order is that of the release: train is subsampled, then a missing valid split is made from it. Last, train loses
    its examples without rationale if so chosen; valid and test keep every example. Unlike in the release, problems of
    ASDiv never go into valid: it stays of one kind with test and, where subsample is 1, the same with and without them.

    Args:
      dataset: one of DATASETS.
      data_root: folder of the data sets; None takes $COTMI_DATA_ROOT, else ../shared/data if it exists.
      teacher, align, augment_asdiv: as for `dss.read_dss`; "arithmetic" has its own teacher and ignores the first two.
      subsample: fraction of train to keep, in (0, 1].
      seed: chooses the subsample.
      empty_rationale: "error" refuses examples whose rationale is blank, in any split; "drop" takes them out of train.
      size: number of train examples of "arithmetic", before subsampling.

    Raises:
      UserError: an unknown value of an argument, no data root, or whatever `dss.read_dss` finds wrong.
    """
    dss.check_choice("dataset", dataset, DATASETS)
    dss.check_choice("empty_rationale", empty_rationale, EMPTY_RATIONALES)
    if dataset == "arithmetic":
        corpus = _make_arithmetic(size, augment_asdiv)
    else:
        root = find_data_root(data_root)
        corpus = dss.read_dss(root, dataset, teacher=teacher, align=align, augment_asdiv=augment_asdiv)
        if empty_rationale == "error":
            _refuse_empty_rationales(corpus, dss.find_release(root, dataset))
    splits = _split(corpus, subsample, seed)
    kept = splits | {"train": tuple(example for example in splits["train"] if example.rationale.strip())}
    if not kept["train"]:
        raise UserError(f"dataset = {dataset!r}: none of the {len(splits['train'])} train examples has a rationale")
    return LoadedCorpus(
        corpus=dataclasses.replace(corpus, splits=kept),
        dropped={split: len(splits[split]) - len(kept[split]) for split in splits},
        unparsed={split: sum(example.teacher_label is None for example in kept[split]) for split in kept},
    )


def find_data_root(data_root: str | None) -> Path:
    """The argument, else $COTMI_DATA_ROOT, else ../shared/data if it exists; UserError where none of them is given."""
    given = data_root or os.environ.get(DATA_ROOT_VARIABLE)
    if given:
        return Path(given).expanduser()
    if DEFAULT_DATA_ROOT.is_dir():
        return DEFAULT_DATA_ROOT
    raise UserError(
        f"no data root: pass data_root, set {DATA_ROOT_VARIABLE}, or use dataset 'arithmetic', which needs no files"
    )


def _make_arithmetic(size: int, augment_asdiv: bool) -> Corpus:
    if augment_asdiv:
        raise UserError("augment_asdiv goes with dataset 'svamp' only, not 'arithmetic': leave it off")
    if size < 1:
        raise UserError(f"size = {size}: give the number of train examples, at least 1")
    return make_arithmetic(seed=0, num_train=size)


def _refuse_empty_rationales(corpus: Corpus, folder: Path) -> None:
    for examples in corpus.splits.values():
        for example in examples:
            if not example.rationale.strip():
                name, split, _ = example.id.split("/")
                raise UserError(
                    f"{dss.gold_file(folder, name, split)}: the teacher gave no rationale for example {example.id}; "
                    "pass empty_rationale=drop to leave such examples out of train"
                )


def _split(corpus: Corpus, subsample: float, seed: int) -> dict[str, tuple[Example, ...]]:
    train = subsample_examples(corpus.splits["train"], subsample, seed)
    own = tuple(example for example in train if example.id.startswith(f"{corpus.name}/"))
    added = tuple(example for example in train if not example.id.startswith(f"{corpus.name}/"))
    splits = with_valid_split({**corpus.splits, "train": own})
    return splits | {"train": splits["train"] + added}
