"""Reads data sets in the layout of the Distilling Step-by-Step release (arXiv 2305.02301).

    {root}/{name}/{name}_{split}.json         gold rows, JSON Lines (or one JSON list)
    {root}/{name}/llm/{split}_CoT_{i}.json    completions of the first teacher, JSON lists, joined in order of i
    {root}/gpt-neox/{name}/{split}.json       completions of the second teacher, one JSON list

Completion k belongs to gold row k. ASDiv has the same layout and can extend SVAMP's train split.
"""

import dataclasses
from collections.abc import Collection
from typing import NamedTuple

from cotmi_jax.data.example import SPLITS, Corpus, Example
from cotmi_jax.data.origins import RELEASE
from cotmi_jax.data.sources.base import digest, digest_files
from cotmi_jax.data.sources.released_sets import RELEASED, RELEASED_NAMES, TEACHERS, answer_sentence
from cotmi_jax.data.sources.rows import (
    BadRows,
    check_choice,
    check_text,
    is_present,
    parse_json,
    read_raw_rows,
    read_text,
    shown_path,
)
from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.files import Path

ALIGNMENTS = ("strict", "prefix")
_RESTORE = f"restore the file from the release, {RELEASE}"


class _Gold(NamedTuple):
    text: str
    label: str
    place: str


@dataclasses.dataclass(frozen=True)
class ReleasedSource:
    """A data set of the release.

    root: the folder that holds {name}/ or dss/{name}/.
    name: one of RELEASED_NAMES.
    teacher: one of TEACHERS, whose completions are read.
    align: if gold rows and completions differ in number, "strict" raises an error and "prefix" keeps the rows that have
      both.
    augment_asdiv: append ASDiv's train split to the train split of svamp.
    bad_rows: "error", or "skip" to leave gold rows out that cannot be used, with their completions, and count them.
    """

    root: Path
    name: str
    teacher: str = "palm"
    align: str = "strict"
    augment_asdiv: bool = False
    bad_rows: str = "error"

    def __post_init__(self) -> None:
        check_choice("dataset", self.name, RELEASED_NAMES)
        check_choice("teacher", self.teacher, TEACHERS)
        check_choice("align", self.align, ALIGNMENTS)
        if self.augment_asdiv and RELEASED["asdiv"].extends != self.name:
            raise UserError(f"augment_asdiv goes with dataset 'svamp' only, not {self.name!r}: leave it off")

    def read(self, splits: Collection[str] = SPLITS) -> Corpus:
        """Every one of `splits` that has a gold file; train must have one.

        Raises:
          UserError: a file is missing, unreadable or not in the layout above.
        """
        folder, bad = find_release(self.root, self.name), BadRows(self.bad_rows)
        read: dict[str, tuple[Example, ...]] = {}
        for name, split in self._pieces(folder):
            if split in splits:
                piece = _read_split(folder, name, split, self.teacher, self.align, bad)
                read[split] = read.get(split, ()) + piece
        return Corpus(self.name, read, bad.skipped, tuple(bad.notes))

    def fingerprint(self) -> str:
        folder = find_release(self.root, self.name)
        files = [
            (str(path.relative_to(folder)), path)
            for name, split in self._pieces(folder)
            for path in (gold_file(folder, name, split), *_completion_files(folder, name, split, self.teacher))
        ]
        settings = (self.name, self.teacher, self.align, self.augment_asdiv, self.bad_rows)
        return digest(settings, digest_files(files))

    def _pieces(self, folder: Path) -> list[tuple[str, str]]:
        """The data sets and splits that are read, in order."""
        present = [split for split in SPLITS if split == "train" or is_present(gold_file(folder, self.name, split))]
        return [(self.name, split) for split in present] + [("asdiv", "train")] * self.augment_asdiv


def find_release(root: Path, name: str) -> Path:
    """The folder that holds {name}/: `root`, or `dss/` in it. UserError if neither does."""
    for folder in (root, root / "dss"):
        if (folder / name).is_dir():
            return folder
    raise UserError(
        f"{shown_path(root)}: holds neither {name}/ nor dss/{name}/; point data_root at the unpacked release, {RELEASE}"
    )


def gold_file(folder: Path, name: str, split: str) -> Path:
    """The file with the gold rows of a split."""
    return folder / name / f"{name}_{split}.json"


def _read_split(folder: Path, name: str, split: str, teacher: str, align: str, bad: BadRows) -> tuple[Example, ...]:
    gold_path = gold_file(folder, name, split)
    golds = _read_golds(gold_path, name, split, bad)
    paths = _completion_files(folder, name, split, teacher)
    completions = [completion for path in paths for completion in _read_completions(path)]
    if not golds or not completions:
        raise UserError(f"{paths[0] if golds else gold_path}: holds nothing; {_RESTORE}")
    if align == "strict" and len(golds) != len(completions):
        raise UserError(
            f"{gold_path}: {len(golds)} rows but {len(completions)} completions in {paths[0].parent}; "
            f"complete the files, or pass align=prefix to use the first {min(len(golds), len(completions))}"
        )
    parse, kind = RELEASED[name].parser(teacher), RELEASED[name].kind
    examples = []
    for i, (gold, completion) in enumerate(zip(golds, completions, strict=False)):
        if gold is not None:
            rationale, teacher_label = parse(completion)
            where = f"{name}/{split}/{i}"
            stated = answer_sentence(completion, rationale, teacher_label)
            example = Example(where, gold.text, gold.label, rationale, teacher_label, kind=kind, answer_text=stated)
            examples.append(dataclasses.replace(RELEASED[name].related(example, name), place=gold.place))
    bad.check_usable(len(examples), min(len(golds), len(completions)), str(gold_path))
    return tuple(examples)


def _read_golds(path: Path, name: str, split: str, bad: BadRows) -> list[_Gold | None]:
    """Gold rows in order, with None for a skipped one, so that completions stay aligned."""
    golds: list[_Gold | None] = []
    for raw in read_raw_rows(path, _RESTORE):
        golds.append(None)
        with bad.guard(split):
            golds[-1] = _Gold(*RELEASED[name].read_gold(raw.parse(), raw.place), raw.place)
    return golds


def _completion_files(folder: Path, name: str, split: str, teacher: str) -> list[Path]:
    """Files in the order in which their lists are joined; at least one, which may not exist."""
    if teacher == "gpt-neox":
        return [folder / "gpt-neox" / name / f"{split}.json"]
    found = {path.name for path in (folder / name / "llm").glob(f"{split}_CoT_*.json")}
    files = [folder / name / "llm" / f"{split}_CoT_{i}.json" for i in range(max(1, len(found)))]
    missing = [path for path in files if path.name not in found]
    if found and missing:
        beyond = one_line(", ".join(sorted(found - {path.name for path in files})))
        raise UserError(f"{missing[0]}: missing, but there is {beyond}; the files are numbered from 0 without a gap")
    return files


def _read_completions(path: Path) -> list[str]:
    completions = parse_json(read_text(path, _RESTORE), path)
    if not isinstance(completions, list):
        raise UserError(f"{path}:1: not a JSON list; write the completions as one list of texts")
    for i, completion in enumerate(completions):
        if not isinstance(completion, str):
            raise UserError(f"{path}: item {i} of the list is not a text but {shown(completion)}; correct it")
        check_text(completion, "completion", f"{path}: item {i}")
    return completions
