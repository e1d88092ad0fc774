"""A user's own JSON Lines: the fields of rows, and place and reason of every row that cannot be used."""

import json
import re
from pathlib import Path

import pytest

from cotmi_jax.data.corpus import Loading, load_corpus
from cotmi_jax.data.counterfactuals import counterfactuals
from cotmi_jax.data.example import Corpus, Pair
from cotmi_jax.data.sources.own_files import FileSource
from cotmi_jax.data.sources.row_format import RowFormat
from cotmi_jax.errors import UserError

GOOD = {"input": "Is ice cold?", "label": "yes", "rationale": "Ice is frozen."}


def write(path: Path, *rows: dict | str | bytes) -> Path:
    """A file with one line per row; text and bytes are written unchanged."""
    lines = [json.dumps(row) if isinstance(row, dict) else row for row in rows]
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def read(path: Path, **settings) -> Corpus:
    return FileSource("jsonl", path, RowFormat(**settings)).read()


def test_a_row_becomes_an_example_with_its_place(tmp_path):
    rows = [GOOD, {**GOOD, "id": 7, "teacher_label": "no", "source": "unknown fields do not matter"}]
    path = write(tmp_path / "mine.jsonl", *rows, "", {**GOOD, "id": "a/b", "teacher_label": None, "label": "oui é"})
    corpus = read(path)
    assert (corpus.name, list(corpus.splits), corpus.skipped) == ("jsonl:mine", ["train"], {})
    first, second, third = corpus.splits["train"]
    assert [example.id for example in (first, second, third)] == [f"jsonl:mine/train/{own}" for own in ("0", 7, "a/b")]
    assert [example.place for example in (first, second, third)] == [f"{path}:{line}" for line in (1, 2, 4)]
    assert (first.input, first.label, first.rationale) == ("Is ice cold?", "yes", "Ice is frozen.")
    assert (first.teacher_label, second.teacher_label, third.teacher_label) == (None, "no", None)
    assert (first.weight, first.more, first.kind, third.label) == (1.0, (), "text", "oui é")


@pytest.mark.parametrize(
    ("rationale", "weight", "kept"),
    [
        ("Why.", None, [("Why.", 1.0)]),
        (" Why.\n", 2, [("Why.", 2.0)]),
        (["One.", "Two."], None, [("One.", 1.0), ("Two.", 1.0)]),
        (["One.", "Two.", "Three."], [0.5, 0, 2], [("One.", 0.5), ("Three.", 2.0)]),
        (["One.", "Two."], 0.25, [("One.", 0.25), ("Two.", 0.25)]),
        (["", "Two."], [1, 3], [("Two.", 3.0)]),
        (["One."], [0], [("", 0.0)]),
        ("Why.", 0, [("", 0.0)]),
        ([], None, [("", 0.0)]),
        ([], [], [("", 0.0)]),
        (None, None, [("", 0.0)]),
        (None, 2, [("", 0.0)]),
        (" ", None, [("", 0.0)]),
    ],
)
def test_rationales_that_are_blank_or_have_weight_zero_are_removed(tmp_path, rationale, weight, kept):
    row = {**GOOD, "rationale": rationale} | ({} if weight is None else {"weight": weight})
    (example,) = read(write(tmp_path / "mine.jsonl", row)).splits["train"]
    assert list(example.rationales) == kept


def test_a_folder_has_a_file_per_split_and_labels_can_be_equations(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / f"{split}.jsonl", {**GOOD, "input": split, "label": "( 1 + 2 )"})
    corpus = read(tmp_path, kind="equation")
    assert list(corpus.splits) == ["train", "test"] and corpus.label_kind == "equation"
    assert corpus.splits["test"][0].id == f"jsonl:{tmp_path.name}/test/0"
    assert corpus.splits["test"][0].input == "test"


BAD_ROWS = [
    ({"label": "yes", "rationale": ""}, "field 'input' holds no text; the row has label, rationale"),
    ({**GOOD, "label": 3}, "field 'label' holds no text; the row has input, label, rationale"),
    ({**GOOD, "input": " \n"}, "the input is empty; correct or remove the row"),
    ({**GOOD, "label": ""}, "the label is empty; correct or remove the row"),
    ({**GOOD, "label": "perhaps"}, "label = 'perhaps'; data.labels allows yes, no"),
    ({**GOOD, "rationale": 3}, "rationale = 3; give a text or a list of texts"),
    ({"input": "Why?", "label": "yes", "weight": [1]}, "1 weights for 0 rationales; give one number, or as many"),
    ({**GOOD, "rationale": ["One.", 2]}, "rationale = ['One.', 2]; give a text or a list of texts"),
    ({**GOOD, "rationale": {"text": 1}}, "rationale = {'text': 1}; give a text or a list of texts"),
    ({**GOOD, "weight": -1}, "weight = -1; give a number of at least 0"),
    ({**GOOD, "weight": "1"}, "weight = '1'; give a number of at least 0"),
    ({**GOOD, "weight": True}, "weight = True; give a number of at least 0"),
    ('{"input": "A", "label": "yes", "rationale": "B", "weight": NaN}', "weight = nan; give a number of at least 0"),
    ({**GOOD, "weight": 10**400}, "weight = <integer of 1329 bits>; give a number of at least 0"),
    ('{"input": "A", "weight": 1' + "0" * 5000 + "}", "JSON beyond the parser's limits (Exceeds the limit"),
    ("[" * 200_000, "JSON beyond the parser's limits (maximum recursion"),
    ({**GOOD, "weight": [1, 1]}, "2 weights for 1 rationales; give one number, or as many"),
    ({**GOOD, "teacher_label": 4}, "field 'teacher_label' holds no text; the row has input, label, rationale, teacher"),
    ({**GOOD, "id": 1.5}, "id = 1.5; give a text or a whole number, or leave it out"),
    ({**GOOD, "id": True}, "id = True; give a text or a whole number, or leave it out"),
    ({**GOOD, "id": "first"}, "id first is also that of {path}:1; give every row a unique id"),
    ('{"input": "Why?",', "broken JSON (Expecting property name"),
    ("[1, 2]", "not a JSON object but [1, 2]; give one object per row"),
    (b'{"input": "caf\xe9"}', "not UTF-8 (invalid continuation byte); save the file as UTF-8"),
    ('{"input": "\\ud83d!", "label": "yes"}', "field 'input' holds \\ud83d, half a character; correct the text"),
]


@pytest.mark.parametrize(("row", "message"), BAD_ROWS, ids=[message[:30] for _, message in BAD_ROWS])
def test_a_bad_row_is_an_error_with_its_line_or_a_counted_skip(tmp_path, row, message):
    good = {**GOOD, "id": "second", "label": "no"}
    path = write(tmp_path / "mine.jsonl", {**GOOD, "id": "first"}, row, good)
    message = f"{path}:2: {message.replace('{path}', str(path))}"
    with pytest.raises(UserError) as error:
        read(path, labels=("yes", "no"))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    corpus = read(path, labels=("yes", "no"), bad_rows="skip")
    assert [example.id.rpartition("/")[2] for example in corpus.splits["train"]] == ["first", "second"]
    assert corpus.skipped == {"train": 1}
    assert len(corpus.skip_notes) == 1 and corpus.skip_notes[0].startswith(message)


def test_a_row_number_must_not_be_the_id_of_another_row(tmp_path):
    path = write(tmp_path / "mine.jsonl", {**GOOD, "id": 1}, GOOD)
    with pytest.raises(UserError, match=f"^{path}:2: id 1 is also that of {path}:1; "):
        read(path)


def test_a_skipped_row_does_not_take_an_id(tmp_path):
    path = write(tmp_path / "mine.jsonl", {**GOOD, "id": "one", "label": " "}, {**GOOD, "id": "one"})
    assert [example.place for example in read(path, bad_rows="skip").splits["train"]] == [f"{path}:2"]


def test_only_the_first_few_skips_are_described(tmp_path):
    path = write(tmp_path / "mine.jsonl", GOOD, *[{**GOOD, "label": ""}] * 8)
    corpus = read(path, bad_rows="skip")
    assert corpus.skipped == {"train": 8}
    assert [note.split(": ")[0] for note in corpus.skip_notes] == [f"{path}:{line}" for line in range(2, 7)]


@pytest.mark.parametrize("bad_rows", ["error", "skip"])
def test_a_file_without_a_usable_row_is_always_an_error(tmp_path, bad_rows):
    path = write(tmp_path / "train.jsonl", GOOD)
    empty = write(tmp_path / "test.jsonl", "", "  ")
    with pytest.raises(UserError, match=f"^{empty}: holds nothing; restore it, or leave it out$"):
        read(tmp_path, bad_rows=bad_rows)
    write(empty, {**GOOD, "label": ""}, {**GOOD, "input": ""})
    unusable = (
        ":1: the label is empty" if bad_rows == "error" else ": none of its 2 rows is usable; bad_rows=error says"
    )
    with pytest.raises(UserError, match=f"^{empty}{unusable}"):
        read(tmp_path, bad_rows=bad_rows)
    empty.unlink()
    path.unlink()
    with pytest.raises(UserError, match=f"^{path}: No such file or directory; restore the file, or correct the path"):
        read(tmp_path, bad_rows=bad_rows)


def test_loading_counts_skips_by_split_and_keeps_labels_without_a_rationale(tmp_path):
    rows = [{**GOOD, "input": f"{n}?"} for n in range(10)]
    write(tmp_path / "train.jsonl", *rows, {**GOOD, "rationale": []}, {**GOOD, "label": "perhaps"})
    write(tmp_path / "valid.jsonl", {**GOOD, "label": "no"}, "{")
    settings = {"dataset": f"jsonl:{tmp_path}", "labels": "yes, no", "bad_rows": "skip"}
    with pytest.raises(UserError, match=rf"train.jsonl:11: no rationale for example jsonl:{tmp_path.name}/train/10; "):
        load_corpus(Loading(**settings))
    dropped, kept = (load_corpus(Loading(**settings, empty_rationale=policy)) for policy in ("drop", "keep"))
    for loaded in (dropped, kept):
        assert loaded.skipped == {"train": 1, "valid": 1}
        assert [note.split(": ")[0][len(str(tmp_path)) :] for note in loaded.skip_notes] == [
            "/train.jsonl:12",
            "/valid.jsonl:2",
        ]
    assert (dropped.dropped, kept.dropped) == ({"train": 1, "valid": 0}, {"train": 0, "valid": 0})
    assert [len(loaded.corpus.splits["train"]) for loaded in (dropped, kept)] == [10, 11]
    last = kept.corpus.splits["train"][-1]
    assert (last.rationale, last.weight, last.label) == ("", 0.0, "yes")


def test_counterfactuals_of_a_row_are_pairs_under_the_name_that_fields_gives(tmp_path):
    pairs = [{"label": "no", "rationale": " Ice is hot. "}, {"label": "unclear", "rationale": "Which ice?", "by": "me"}]
    path = write(tmp_path / "mine.jsonl", {**GOOD, "others": pairs}, {**GOOD, "others": None}, GOOD)
    first, *rest = read(path, fields={"counterfactuals": "others"}).splits["train"]
    assert first.counterfactuals == (Pair("no", "Ice is hot."), Pair("unclear", "Which ice?"))
    assert counterfactuals(first, 2, 0, rules=False) in (first.counterfactuals, first.counterfactuals[::-1])
    assert all(example.counterfactuals == () for example in (*rest, *read(path).splits["train"]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label": "no", "rationale": "Hot."}, "give a list of objects"),
        (["no"], "give a list of objects"),
        ([{"label": "no"}], "counterfactuals 0: field 'rationale' holds no text"),
        (
            [{"label": "no", "rationale": "Hot."}, {"label": "yes", "rationale": "Cold."}],
            "counterfactuals 1: label = 'yes'",
        ),
        ([{"label": "no", "rationale": " "}], "give a rationale, and another answer"),
        ([{"label": "maybe", "rationale": "Hot."}], "data.labels allows yes, no"),
    ],
)
def test_a_counterfactual_that_cannot_be_used_is_an_error_or_a_skip(tmp_path, given, message):
    path = write(tmp_path / "mine.jsonl", GOOD, {**GOOD, "counterfactuals": given})
    with pytest.raises(UserError, match=rf"mine.jsonl:2.*{re.escape(message)}"):
        read(path, labels=("yes", "no"))
    corpus = read(path, labels=("yes", "no"), bad_rows="skip")
    assert (len(corpus.splits["train"]), corpus.skipped) == (1, {"train": 1})
