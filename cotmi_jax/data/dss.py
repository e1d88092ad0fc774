"""Reads data sets in the layout of the Distilling Step-by-Step release (arXiv 2305.02301): svamp, cqa, esnli, anli1.

    {root}/{name}/{name}_{split}.json         gold rows, JSON Lines (or one JSON list)
    {root}/{name}/llm/{split}_CoT_{i}.json    completions of the first teacher, JSON lists to be read in order of i
    {root}/gpt-neox/{name}/{split}.json       completions of the second teacher, one JSON list

Completion k belongs to gold row k. ASDiv is laid out the same way and can extend SVAMP's train split.
"""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cotmi_jax.data import teacher_format
from cotmi_jax.data.example import SPLITS, Corpus, Example
from cotmi_jax.data.vocabulary import EOS_TEXT
from cotmi_jax.errors import UserError

SETS = ("anli1", "cqa", "esnli", "svamp")
TEACHERS = ("palm", "gpt-neox")
ALIGNMENTS = ("strict", "prefix")
NLI_LABELS = ("entailment", "neutral", "contradiction")
NUM_CHOICES = 5

Row = dict[str, object]


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
    return Corpus(name=name, label_kind="equation" if name == "svamp" else "text", splits=splits)


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


def _read_split(folder: Path, name: str, split: str, teacher: str, align: str) -> tuple[Example, ...]:
    gold_path = gold_file(folder, name, split)
    golds = [_gold(name, row, place) for place, row in _read_rows(gold_path)]
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
    for i, ((text, label), completion) in enumerate(zip(golds, completions, strict=False)):
        rationale, teacher_label = parse(completion)
        examples.append(Example(f"{name}/{split}/{i}", text, label, rationale, teacher_label))
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
    return _text(row, "input", place), _text(row, "label", place)


def _asdiv_gold(row: Row, place: str) -> tuple[str, str]:
    """SVAMP's fields, or the original ones, where the release takes the first word of the answer ("9 (apples)")."""
    if "Body" not in row:
        return _svamp_gold(row, place)
    text = f"{_text(row, 'Body', place)}\n{_text(row, 'Question', place)}"
    return text, _text(row, "Answer", place).strip().split(" ")[0]


def _cqa_gold(row: Row, place: str) -> tuple[str, str]:
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) != NUM_CHOICES or not all(isinstance(c, str) for c in choices):
        raise UserError(f"{place}: choices = {choices!r:.80}; give a list of {NUM_CHOICES} texts")
    listed = "\n".join(f"({letter}) {choice}" for letter, choice in zip("abcde", choices, strict=True))
    return f"{_text(row, 'question', place)}\nAnswer Choices:\n{listed}", _text(row, "answer", place)


def _nli_gold(row: Row, place: str) -> tuple[str, str]:
    """Premise and hypothesis stand on either side of the end-of-sequence text, as in the release."""
    label = row.get("label")
    if type(label) is not int or not 0 <= label < len(NLI_LABELS):
        named = ", ".join(f"{i} ({text})" for i, text in enumerate(NLI_LABELS))
        raise UserError(f"{place}: label = {label!r}; give one of {named}")
    return f"{_text(row, 'premise', place)}{EOS_TEXT}{_text(row, 'hypothesis', place)}", NLI_LABELS[label]


def _text(row: Row, field: str, place: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise UserError(f"{place}: field {field!r} holds no text; the row has {', '.join(sorted(row)) or 'no fields'}")
    return value


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
    completions = _parse_json(_read_text(path), path)
    if not isinstance(completions, list):
        raise UserError(f"{path}:1: holds no JSON list; write the completions as one list of texts")
    for i, completion in enumerate(completions):
        if not isinstance(completion, str):
            raise UserError(f"{path}: item {i} of the list is no text but {completion!r:.50}; correct it")
    return completions


def _read_rows(path: Path) -> Iterator[tuple[str, Row]]:
    """Rows with their place, "file:line", or "file: item i" where the file is one JSON list."""
    text = _read_text(path)
    items: Iterator[tuple[str, object]]
    if text.lstrip().startswith("["):
        listed = _parse_json(text, path)
        assert isinstance(listed, list)  # JSON that starts with "[" is one.
        items = ((f"{path}: item {i}", row) for i, row in enumerate(listed))
    else:  # Not splitlines(): JSON texts may hold its other line ends, such as U+2028.
        lines = enumerate(text.split("\n"), start=1)
        items = ((f"{path}:{i}", _parse_json(line, path, i)) for i, line in lines if line.strip())
    for place, row in items:
        if not isinstance(row, dict):
            raise UserError(f"{place}: not a JSON object but {row!r:.50}; give one object per row")
        yield place, row


def _parse_json(text: str, path: Path, first_line: int = 1) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        raise UserError(f"{path}:{line}: broken JSON ({error.msg}); restore the file from its source") from error


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; restore the file from the release") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
