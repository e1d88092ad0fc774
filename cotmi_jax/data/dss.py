"""Reads data sets in the layout of the Distilling Step-by-Step release (arXiv 2305.02301): svamp, cqa, esnli, anli1.

    {root}/{name}/{name}_{split}.json         gold rows, JSON Lines (or one JSON list)
    {root}/{name}/llm/{split}_CoT_{i}.json    completions of the first teacher, JSON lists to be read in order of i
    {root}/gpt-neox/{name}/{split}.json       completions of the second teacher, one JSON list

Completion k belongs to gold row k. ASDiv is laid out the same way and can extend SVAMP's train split.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cotmi_jax.data import teacher_format
from cotmi_jax.data.example import SPLITS, Corpus, Example, LabelKind
from cotmi_jax.data.rows import Row, parse_json, read_rows, read_text, text_field
from cotmi_jax.data.vocabulary import EOS_TEXT
from cotmi_jax.errors import UserError

SETS = ("anli1", "cqa", "esnli", "svamp")
TEACHERS = ("palm", "gpt-neox")
ALIGNMENTS = ("strict", "prefix")
NLI_LABELS = ("entailment", "neutral", "contradiction")
NUM_CHOICES = 5


class Gold(NamedTuple):
    """A gold row without the teacher's completion: fields as in `Example`."""

    id: str
    input: str
    label: str
    kind: LabelKind
    place: str


def read_dss(
    root: Path, name: str, *, teacher: str = "palm", align: str = "strict", augment_asdiv: bool = False
) -> Corpus:
    """Reads every split of a set that has a gold file; train has to have one.

    Args:
      root: the folder that holds the set's folder, or holds it in `dss/`.
      name: one of SETS.
      teacher: one of TEACHERS, whose completions to read.
      align: what to do when gold rows and completions differ in number: "strict" refuses, "prefix" keeps the rows that
        have both.
      augment_asdiv: append ASDiv's train split to the train split of svamp.

    Raises:
      UserError: an unknown value of an argument, or a file that is missing, unreadable or not as laid out above.
    """
    check_choice("dataset", name, SETS)
    check_choice("teacher", teacher, TEACHERS)
    check_choice("align", align, ALIGNMENTS)
    if augment_asdiv and name != "svamp":
        raise UserError(f"augment_asdiv goes with dataset 'svamp' only, not {name!r}: leave it off")
    folder = find_release(root, name)
    present = [split for split in SPLITS if split == "train" or gold_file(folder, name, split).exists()]
    splits = {split: _read_split(folder, name, split, teacher, align) for split in present}
    if augment_asdiv:
        splits["train"] += _read_split(folder, "asdiv", "train", teacher, align)
    return Corpus(name, splits)


def check_choice(key: str, value: str, known: Sequence[str]) -> None:
    """Raises UserError, listing the known values, unless `value` is one of them."""
    if value not in known:
        raise UserError(f"{key} = {value!r}: choose one of {', '.join(known)}")


def find_release(root: Path, name: str) -> Path:
    """The folder that holds the set folders: `root`, or `dss/` in it. UserError where neither holds `name`/."""
    for folder in (root, root / "dss"):
        if (folder / name).is_dir():
            return folder
    raise UserError(f"{root}: holds neither {name}/ nor dss/{name}/; point data_root at the unpacked release")


def gold_file(folder: Path, name: str, split: str) -> Path:
    """Where the gold rows of a split lie in a release folder."""
    return folder / name / f"{name}_{split}.json"


def read_gold(root: Path, name: str, split: str) -> tuple[Gold, ...]:
    """The gold rows of one split of a set, or of "asdiv", in the order of the file.

    Raises:
      UserError: an unknown name, or a file that is missing, unreadable or not as laid out above.
    """
    check_choice("dataset", name, (*SETS, "asdiv"))
    check_choice("split", split, SPLITS)
    return _read_gold(find_release(root, name), name, split)


def _read_gold(folder: Path, name: str, split: str) -> tuple[Gold, ...]:
    kind: LabelKind = "equation" if name in ("asdiv", "svamp") else "text"
    rows = enumerate(read_rows(gold_file(folder, name, split)))
    return tuple(Gold(f"{name}/{split}/{i}", *_gold(name, row, place), kind, place) for i, (place, row) in rows)


def _read_split(folder: Path, name: str, split: str, teacher: str, align: str) -> tuple[Example, ...]:
    gold_path = gold_file(folder, name, split)
    golds = _read_gold(folder, name, split)
    paths = _completion_files(folder, name, split, teacher)
    completions = [completion for path in paths for completion in _read_completions(path)]
    if not golds or not completions:
        raise UserError(f"{paths[0] if golds else gold_path}: holds nothing; restore the file from the release")
    if align == "strict" and len(golds) != len(completions):
        raise UserError(
            f"{gold_path}: {len(golds)} rows but {len(completions)} completions in {paths[0].parent}; "
            f"complete the files, or pass align=prefix to use the first {min(len(golds), len(completions))}"
        )
    parse = _parser(name, teacher)
    examples = []
    for gold, completion in zip(golds, completions, strict=False):
        rationale, teacher_label = parse(completion)
        examples.append(
            Example(gold.id, gold.input, gold.label, rationale, teacher_label, kind=gold.kind, place=gold.place)
        )
    return tuple(examples)


def _parser(name: str, teacher: str) -> Callable[[str], tuple[str, str | None]]:
    if name == "anli1":
        return functools.partial(teacher_format.parse_anli, teacher=teacher)
    if name == "cqa":
        return teacher_format.parse_cqa
    return teacher_format.parse_esnli if name == "esnli" else teacher_format.parse_equation


def _gold(name: str, row: Row, place: str) -> tuple[str, str]:
    """Input and gold label of a row; place is "file:line" for messages."""
    builders = {"anli1": _nli_gold, "asdiv": _asdiv_gold, "cqa": _cqa_gold, "esnli": _nli_gold, "svamp": _svamp_gold}
    text, label = builders[name](row, place)
    for what, value in (("input", text.replace(EOS_TEXT, "")), ("label", label)):
        if not value.strip():
            raise UserError(f"{place}: the {what} is empty; correct or remove the row and its completion")
    return text, label


def _svamp_gold(row: Row, place: str) -> tuple[str, str]:
    return text_field(row, "input", place), text_field(row, "label", place)


def _asdiv_gold(row: Row, place: str) -> tuple[str, str]:
    """SVAMP's fields, or the original ones, where the release takes the first word of the answer ("9 (apples)")."""
    if "Body" not in row:
        return _svamp_gold(row, place)
    text = f"{text_field(row, 'Body', place)}\n{text_field(row, 'Question', place)}"
    return text, text_field(row, "Answer", place).strip().split(" ")[0]


def _cqa_gold(row: Row, place: str) -> tuple[str, str]:
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) != NUM_CHOICES or not all(isinstance(c, str) for c in choices):
        raise UserError(f"{place}: choices = {choices!r:.80}; give a list of {NUM_CHOICES} texts")
    listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip("abcde", choices, strict=True))
    return f"{text_field(row, 'question', place)}\nAnswer Choices:\n{listed}", text_field(row, "answer", place)


def _nli_gold(row: Row, place: str) -> tuple[str, str]:
    """Premise and hypothesis stand on either side of the end-of-sequence text, as in the release."""
    label = row.get("label")
    if type(label) is not int or not 0 <= label < len(NLI_LABELS):
        named = ", ".join(f"{i} ({text})" for i, text in enumerate(NLI_LABELS))
        raise UserError(f"{place}: label = {label!r}; give one of {named}")
    return f"{text_field(row, 'premise', place)}{EOS_TEXT}{text_field(row, 'hypothesis', place)}", NLI_LABELS[label]


def _completion_files(folder: Path, name: str, split: str, teacher: str) -> list[Path]:
    """Files in the order in which their lists are to be joined; at least one, which may not exist."""
    if teacher == "gpt-neox":
        return [folder / "gpt-neox" / name / f"{split}.json"]
    found = {path.name for path in (folder / name / "llm").glob(f"{split}_CoT_*.json")}
    files = [folder / name / "llm" / f"{split}_CoT_{i}.json" for i in range(max(1, len(found)))]
    missing = [path for path in files if path.name not in found]
    if found and missing:
        beyond = ", ".join(sorted(found - {path.name for path in files}))
        raise UserError(f"{missing[0]}: missing, but there is {beyond}; parts are numbered from 0 without a gap")
    return files


def _read_completions(path: Path) -> list[str]:
    completions = parse_json(read_text(path), path)
    if not isinstance(completions, list):
        raise UserError(f"{path}:1: holds no JSON list; write the completions as one list of texts")
    for i, completion in enumerate(completions):
        if not isinstance(completion, str):
            raise UserError(f"{path}: item {i} of the list is no text but {completion!r:.50}; correct it")
    return completions
