"""CSV, TSV and Parquet: the same rows give the same examples in every format; errors name line or row and column."""

import csv
import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.example import Corpus, Example
from cotmi_jax.data.grammar import parse_dataset, with_absolute_paths
from cotmi_jax.data.sources.own_files import FileSource
from cotmi_jax.data.sources.row_format import RowFormat, parse_fields
from cotmi_jax.errors import UserError

FORMATS = ("jsonl", "csv", "tsv", "parquet")
ROWS = [
    {"input": "Is ice cold?", "label": "yes", "rationale": 'Ice is frozen,\n\nso "cold".', "weight": 0.5, "id": "a"},
    {"input": "Does ice\tburn?", "label": "no", "rationale": " Line\u2028one\x0bmore\x85. ", "weight": 1.0, "id": "7"},
    {"input": "Is it wet,\r\nat 1 °C?", "label": "12", "rationale": None, "weight": None, "id": None},
]


def write(path: Path, rows: list[dict] = ROWS, bom: bytes = b"", end: str = "\n") -> Path:
    """A file in the format of its suffix."""
    names = list(rows[0])
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_bytes(bom + "".join(json.dumps(row, ensure_ascii=False) + end for row in rows).encode())
    else:
        with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
            writer = csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t", lineterminator=end)
            writer.writerow(names)
            writer.writerows([row[name] for name in names] for row in rows)
    return path


def read(path: Path, **settings) -> Corpus:
    return FileSource(path.suffix[1:], path, RowFormat(**settings)).read()


def fields(example: Example) -> tuple:
    return example.input, example.label, example.rationales, example.id.rpartition("/")[2]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("bom", "end"), [(b"", "\n"), (b"\xef\xbb\xbf", "\r\n")])
def test_the_same_rows_give_the_same_examples_in_every_format(tmp_path, kind, bom, end):
    rows = ROWS if kind != "jsonl" else [{k: v for k, v in row.items() if v is not None} for row in ROWS]
    corpus = read(write(tmp_path / f"mine.{kind}", rows, bom, end))
    assert corpus.name == f"{kind}:mine" and corpus.skipped == {}
    first, second, third = corpus.splits["train"]
    assert fields(first) == ("Is ice cold?", "yes", (('Ice is frozen,\n\nso "cold".', 0.5),), "a")
    assert fields(second) == ("Does ice\tburn?", "no", (("Line\u2028one\x0bmore\x85.", 1.0),), "7")
    assert fields(third) == ("Is it wet,\r\nat 1 °C?", "12", (("", 0.0),), "2")


def test_places_are_the_lines_where_rows_begin(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('input,label\n"one\ntwo",yes\n\nthree,no\n')
    assert [example.place for example in read(path).splits["train"]] == [f"{path}:2", f"{path}:5"]
    path = write(tmp_path / "mine.parquet")
    assert [example.place for example in read(path).splits["train"]] == [f"{path}: row {n}" for n in range(3)]


@pytest.mark.parametrize("kind", FORMATS)
def test_columns_of_other_names_are_mapped(tmp_path, kind):
    path = write(
        tmp_path / f"mine.{kind}", [{"question": "Why?", "answer": "b", "input": "not this", "why a": "Thus."}]
    )
    mapping = "input=question, label = answer,rationale=why a"
    (example,) = read(path, fields=parse_fields(mapping)).splits["train"]
    assert fields(example) == ("Why?", "b", (("Thus.", 1.0),), "0")
    loading = Loading(dataset=f"{kind}:{path}", fields=mapping)
    assert load_corpus(loading, ("test",)).corpus.splits["test"][0].label == "b"
    assert corpus_fingerprint(loading) != corpus_fingerprint(Loading(dataset=f"{kind}:{path}"))


@pytest.mark.parametrize("text", ["question", "input=", "question=input", "input=a,input=b", "=a", "labels=a"])
def test_a_mapping_that_cannot_be_read_is_an_error(text):
    with pytest.raises(UserError, match="^config.data.fields: '.*' is not FIELD=COLUMN with one of input, label, rat"):
        parse_fields(text)


@pytest.mark.parametrize(
    ("key", "value"), [("fields", "input=question"), ("labels", "a,b"), ("label_kind", "equation")]
)
def test_a_setting_of_rows_needs_rows_that_it_describes(key, value):
    message = f"^config.data.{key} describes rows of jsonl, csv, tsv, parquet, hf, not 'cqa': unset it"
    with pytest.raises(UserError, match=message):
        Loading(dataset="cqa", **{key: value})


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize(
    ("rows", "mapping", "message"),
    [
        (
            [{"question": "Why?", "label": "a"}],
            "",
            "no column 'input' for the input; the columns are question, label; ",
        ),
        (
            [{"input": "Why?", "label": "a"}],
            "label=answer",
            "no column 'answer' for the label; the columns are input, l",
        ),
        (
            [{"input": "Why?", "label": "a"}],
            "rationale=why",
            "no column 'why' for the rationale; the columns are input",
        ),
    ],
)
def test_a_missing_column_is_an_error_that_lists_those_found(tmp_path, kind, rows, mapping, message):
    path = write(tmp_path / f"mine.{kind}", rows)
    line = "" if kind == "parquet" else ":1"
    for policy in ("error", "skip"):
        with pytest.raises(UserError) as error:
            read(path, fields=parse_fields(mapping), bad_rows=policy)
        assert str(error.value).startswith(f"{path}{line}: {message}")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"Why?,yes", "2 cells, but the header has 3; enclose cells that hold separators"),
        (b"Why?,yes,a,b", "4 cells, but the header has 3"),
        (b"Why?,,a", "field 'label' holds no text; the row has input, rationale"),
        (b" ,yes,a", "the input is empty"),
        (b'"Why" not?,yes,a', "broken row (',' expected after '\"'); enclose such a cell in quotes"),
        (b"Why?\rNot?,yes,a", "broken row (new-line character seen in unquoted field)"),
        (b"caf\xe9,yes,a", "not UTF-8; save the file as UTF-8"),
        (b"Why?,yes,\0", "field 'rationale' holds the null character U+0000"),
        (b"Why?,maybe,a", "label = 'maybe'; data.labels allows yes, no"),
    ],
)
def test_a_bad_row_of_csv_is_an_error_with_its_line_or_a_counted_skip(tmp_path, row, message):
    path = tmp_path / "mine.csv"
    path.write_bytes(b'input,label,rationale\n"A\nB",yes,C\n' + row + b"\nD,no,E\n")
    with pytest.raises(UserError) as error:
        read(path, labels=("yes", "no"))
    assert str(error.value).startswith(f"{path}:4: {message}") and str(error.value).isprintable()
    corpus = read(path, labels=("yes", "no"), bad_rows="skip")
    assert [example.input for example in corpus.splits["train"]] == ["A\nB", "D"]
    assert corpus.skipped == {"train": 1} and corpus.skip_notes == (str(error.value),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: no header (the file is empty)"),
        (b"input,label\n", ": holds nothing"),
        (b'input,label\nA,yes\nB,"no\nC,yes\n', ":3: a quote that is not closed, or a cell of more than 131,072 char"),
        (b'input,label\n"' + b"A" * 131_073 + b'",yes\n', ":2: a quote that is not closed, or a cell of more than"),
        (b"input,label,input\nA,yes,B\n", ":1: two columns 'input' for the input; the columns are input, label, input"),
        (b"input;label\nA;yes\n", ":1: no column 'input' for the input; the columns are input;label"),
        ("input,label\nA,yes\n".encode("utf-16"), ":1: no column 'input'"),
    ],
)
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_csv_file_that_cannot_be_divided_into_rows_is_always_an_error(tmp_path, content, message, policy):
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path, bad_rows=policy)
    assert str(error.value).startswith(f"{path}{message}") and str(error.value).isprintable()
    assert len(str(error.value)) < len(str(path)) + 500


def table(**columns: pyarrow.Array) -> pyarrow.Table:
    one = {"input": pyarrow.array(["A"]), "label": pyarrow.array(["b"])} | columns
    return pyarrow.table({name: column for name, column in one.items() if column is not None})


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (pyarrow.array([12]), "12"),
        (pyarrow.array(["b"]).dictionary_encode(), "b"),
        (pyarrow.array(["b"], pyarrow.large_string()), "b"),
        (pyarrow.array(["b"], pyarrow.string_view()), "b"),
        (pyarrow.array([b"b\xc3\xa9"]), "bé"),
    ],
)
def test_columns_of_parquet_hold_texts_of_any_type(tmp_path, label, expected):
    parquet.write_table(table(label=label), tmp_path / "mine.parquet")
    assert read(tmp_path / "mine.parquet").splits["train"][0].label == expected


def test_lists_of_parquet_are_several_rationales(tmp_path):
    lists = {"rationale": pyarrow.array([["C", "", "D"]]), "weight": pyarrow.array([[1, 2, 3]])}
    parquet.write_table(table(**lists), tmp_path / "mine.parquet")
    assert read(tmp_path / "mine.parquet").splits["train"][0].rationales == (("C", 1.0), ("D", 3.0))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"label": pyarrow.array([1.5])},
            ": column 'label' holds double, not texts; convert it, or name another for the",
        ),
        ({"label": pyarrow.array([True])}, ": column 'label' holds bool, not texts"),
        ({"label": pyarrow.array([{"a": 1}])}, ": column 'label' holds struct<a: int64>, not texts"),
        ({"weight": pyarrow.array(["a"]), "rationale": pyarrow.array(["C"])}, ": row 0: weight = 'a'; give a number"),
        ({"label": pyarrow.array([b"caf\xe9"])}, ": row 0, column label: not UTF-8 (unexpected end of data)"),
        ({"label": pyarrow.array([None], pyarrow.string())}, ": row 0: field 'label' holds no text; the row has input"),
    ],
)
def test_bad_columns_of_parquet(tmp_path, columns, message):
    path = tmp_path / "mine.parquet"
    parquet.write_table(table(**columns), path)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}{message}") and "\n" not in str(error.value)


def test_a_row_of_parquet_that_is_not_utf_8_is_skipped_alone(tmp_path):
    labels = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, *pyarrow.array([b"a", b"\xff"], pyarrow.binary()).buffers()[1:]]
    )
    parquet.write_table(table(input=pyarrow.array(["A", "B"]), label=labels), path := tmp_path / "mine.parquet")
    corpus = read(path, bad_rows="skip")
    assert [example.label for example in corpus.splits["train"]] == ["a"] and corpus.skipped == {"train": 1}


def test_a_damaged_parquet_file_is_an_error(tmp_path):
    path = tmp_path / "mine.parquet"
    parquet.write_table(table(input=pyarrow.array(["Is ice cold?"])), path, write_page_checksum=True)
    content = path.read_bytes()
    assert content.count(b"cold")
    for damaged in (
        b"",
        b"PAR1",
        content[:-20],
        content[20:],
        os.urandom(100),
        content.replace(b"cold", b"gold"),
        content.replace(b"input", b"in\xffut"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: not a Parquet file") and "\n" not in str(error.value)


def test_a_parquet_file_that_decodes_to_far_more_than_its_size_is_refused(tmp_path):
    path = tmp_path / "mine.parquet"
    parquet.write_table(table(input=pyarrow.array(["A"] * 1_000_000), label=pyarrow.array(["b"] * 1_000_000)), path)
    assert path.stat().st_size < 10_000
    with pytest.raises(
        UserError, match=r"mine.parquet: its rows need more than 256 MiB of memory, the file has only \d"
    ):
        read(path)


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_folders_mixtures_and_fingerprints_are_those_of_json_lines(tmp_path, kind, monkeypatch):
    rows = [{"input": f"{n}?", "label": "yes", "rationale": "C"} for n in range(20)]
    write(tmp_path / f"train.{kind}", rows)
    write(tmp_path / f"test.{kind}", rows[:2])
    write(tmp_path / "more.jsonl", rows[:10])
    monkeypatch.chdir(tmp_path)
    dataset = f"{kind}:.=2,jsonl:more.jsonl"
    assert with_absolute_paths(dataset) == f"{kind}:{tmp_path}=2,jsonl:{tmp_path}/more.jsonl"
    loading = Loading(dataset=with_absolute_paths(dataset))
    loaded = load_corpus(loading)
    assert {split: len(examples) for split, examples in loaded.corpus.splits.items()} == {
        "train": 27,
        "valid": 3,
        "test": 2,
    }
    assert [component.name for component in loaded.components] == [f"{kind}:{tmp_path.name}", "jsonl:more"]
    before = corpus_fingerprint(loading)
    assert corpus_fingerprint(loading) == before
    write(tmp_path / f"train.{kind}", rows[1:])
    assert corpus_fingerprint(loading) != before
    assert parse_dataset(f"{kind}:a=b=1")[0][:3] == (kind, "a=b", 1.0)
