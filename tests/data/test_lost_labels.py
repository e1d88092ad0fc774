"""Labels that a vocabulary cannot represent are refused with their place, left out, or counted."""

import json
from pathlib import Path
from typing import Any

import pytest
import runs

from cotmi_jax.data.corpus import Loading, load_corpus
from cotmi_jax.data.example import Example, LabelKind
from cotmi_jax.data.lost_labels import find_lost_labels
from cotmi_jax.data.run_data import RunData
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError

REFUSED = r"{}\.jsonl:{}: label '東' becomes '⁇' in the vocabulary: correct it, .* set config.data.bad_rows to skip"


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(VOCABULARY_PATH)


@pytest.mark.parametrize(
    ("label", "kind", "becomes"),
    [
        ("seven", "text", None),
        (" seven  ", "text", None),  # the comparison ignores whitespace at the ends
        ("東", "text", "⁇"),
        ("a東b", "text", "a ⁇ b"),
        ("two  pens", "text", "two pens"),
        ("two\npens", "text", "two ⁇ pens"),
        ("yes</s>no", "text", "yes"),  # decoding ends at eos
        ("( 1  + 2 )", "equation", None),  # its value is the same
        ("1 ~ 2", "equation", None),  # it has no value, with or without the vocabulary
        ("( 1 +\t2 )", "equation", "( 1 + ⁇ 2 )"),
    ],
)
def test_a_label_survives_if_its_own_tokens_count_as_correct(
    vocabulary: Vocabulary, label: str, kind: LabelKind, becomes: str | None
) -> None:
    examples = [Example("a", "How many?", text, "So 東.", kind=kind, place="a.jsonl:7") for text in ("1", label)]
    for objective in ("dss", "standard", "single_task"):
        lost = find_lost_labels(examples, vocabulary, objective)
        expected = f"a.jsonl:7: label {label!r} becomes {becomes!r} in the vocabulary"
        assert lost == ({} if becomes is None else {1: expected})


def test_each_distinct_label_is_encoded_once(vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    encode = vocabulary.encode
    monkeypatch.setattr(vocabulary, "encode", lambda texts: seen.extend(texts) or encode(texts))
    examples = [Example("a", str(n), ("yes", "no", "東")[n % 3], f"It is {n}.") for n in range(60)]
    assert list(find_lost_labels(examples, vocabulary, "single_task")) == list(range(2, 60, 3)) and len(seen) == 3


def test_the_generated_set_loses_no_label(vocabulary: Vocabulary) -> None:
    splits = make_arithmetic(seed=3, num_train=200, num_valid=50, num_test=50).splits
    assert not any(find_lost_labels(examples, vocabulary) for examples in splits.values())


def test_of_the_papers_sets_one_label_is_lost(data_root: Path) -> None:
    vocabulary = Vocabulary(data_root / "t5" / "spiece.model")
    for name, lost in (("svamp", []), ("cqa", ["label 'tromsø' becomes 'troms ⁇' in the vocabulary"])):
        loaded = load_corpus(Loading(dataset=name, data_root=str(data_root)))
        found = [find_lost_labels(examples, vocabulary) for examples in loaded.corpus.splits.values()]
        assert [message.partition(": ")[2] for each in found for message in each.values()] == lost


# Training.


def write(folder: Path, *, bad: int | None = 5, bad_in_valid: int | None = None) -> Path:
    """A folder with 12 rows of train and 4 of valid, each with at most one label that is not in the vocabulary."""
    folder.mkdir(exist_ok=True)
    for split, size, lost in (("train", 12, bad), ("valid", 4, bad_in_valid)):
        rows = [
            {"input": f"Is {n} even?", "label": "東" if n == lost else "no", "rationale": "So.", "teacher_label": "yes"}
            for n in range(size)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run_data(dataset: str, cache: Path | str = "none", *, fresh: bool = True, **changes: Any) -> RunData:
    config = runs.tiny_config({"data.dataset": dataset, "data.cache": str(cache), "objective.name": "dss"} | changes)
    return RunData.of(config, Vocabulary(VOCABULARY_PATH), fresh=fresh)


def test_training_refuses_a_lost_label_of_own_rows(tmp_path: Path) -> None:
    dataset = f"jsonl:{write(tmp_path / 'mine')}"
    with pytest.raises(UserError, match=REFUSED.format("train", 6)):
        run_data(dataset)
    teacher = run_data(dataset, **{"data.label_type": "llm"})  # gold labels of train are not used
    assert teacher.train.size == 12 and teacher.summary()["train"]["lost_labels"] is None
    write(tmp_path / "mine", bad=None, bad_in_valid=2)
    with pytest.raises(UserError, match=REFUSED.format("valid", 3)):
        run_data(dataset, **{"data.label_type": "llm"})


def test_lost_labels_are_left_out_of_train_if_bad_rows_are_skipped(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, bad=bad) for name, bad in (("first", None), ("second", 3)))
    write(second, bad=3, bad_in_valid=0)
    data = run_data(f"jsonl:{first},jsonl:{second}", tmp_path / "cache", **{"data.bad_rows": "skip"})
    assert (data.train.size, data.valid.size) == (23, 8)
    assert data.prepared.facts["components"] == [["jsonl:first", 12], ["jsonl:second", 11]]
    notes = "\n".join(data.notes(None))
    assert "bad rows skipped: 1 of train\n" in notes and f"{second}/train.jsonl:4: label '東'" in notes
    assert "valid: the vocabulary cannot represent 1 of 8 labels, such as\n" in notes
    assert f"  {second}/valid.jsonl:1: label '東' becomes '⁇' in the vocabulary" in notes
    assert [split["lost_labels"] for split in data.summary().values()] == [0, 1]
    with pytest.raises(UserError, match=REFUSED.format("train", 4)):
        run_data(f"jsonl:{first},jsonl:{second}", tmp_path / "cache")


def test_a_resumed_run_keeps_its_data_and_reports_lost_labels(tmp_path: Path) -> None:
    """An earlier version may have started it; its cache is not one for fresh runs."""
    dataset, cache = f"jsonl:{write(tmp_path / 'mine')}", tmp_path / "cache"
    resumed = run_data(dataset, cache, fresh=False)
    assert resumed.train.size == 12 and not resumed.found
    assert "train: the vocabulary cannot represent 1 of 12 labels, such as" in resumed.notes(None)
    with pytest.raises(UserError, match=REFUSED.format("train", 6)):
        run_data(dataset, cache)


def test_published_rows_are_counted(tmp_path: Path) -> None:
    root = runs.write_svamp(tmp_path)
    gold = root / "svamp" / "svamp_train.json"
    gold.write_text(gold.read_text().replace("( 10.0 - 3.0 )", "10   -  3"))  # equal in value
    gold.write_text(gold.read_text().replace("( 11.0 - 3.0 )", "11 - \\t3"))
    data = run_data("svamp", **{"data.root": str(root), "data.vocabulary": str(VOCABULARY_PATH)})
    assert sum(split["lost_labels"] for split in data.summary().values()) == 1
    assert sum(split["examples"] for split in data.summary().values()) == 20
    assert any("svamp_train.json:2: label '11 - \\t3' becomes '11 -  ⁇ 3'" in note for note in data.notes(None))
