"""Files that were made to break a reader: each ends as one line with the file; no read waits or fills the memory."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from releases import json_lines, nli_row, write_release

from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.files import as_path

GOOD = '{"input": "Is ice cold?", "label": "yes", "rationale": "W."}'


def message(dataset: str, **settings: object) -> str:
    """The error of loading, which is one line, and short."""
    with pytest.raises(UserError) as error:
        load_corpus(Loading(dataset=dataset, **settings))
    text = str(error.value)
    assert text.isprintable() and len(text) < 1000
    return text


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "directory": (Path.mkdir, "Is a directory"),
    "loop": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "No such file or directory"),
    "fifo": (os.mkfifo, "not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("split", ["train", "valid"])
def test_what_is_no_file_is_refused_at_once(tmp_path, kind, suffix, split):
    make, reason = KINDS[kind]
    (tmp_path / "train.jsonl").write_text(GOOD)
    (tmp_path / "train.csv").write_text("input,label,rationale\nA,b,c\n")
    path = tmp_path / f"{split}.{suffix}"
    path.unlink(missing_ok=True)
    make(path)
    for where in (tmp_path, path):
        if where == path and kind == "directory":
            continue  # a folder with splits
        if suffix == "parquet" and split == "valid" and where == tmp_path:
            continue  # train.parquet is missing
        loading = Loading(dataset=f"{suffix}:{where}")
        with pytest.raises(UserError, match=reason):
            corpus_fingerprint(loading)
        assert message(loading.dataset).startswith(f"{path}: {reason}")


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_in_the_release_and_as_vocabulary(tmp_path, kind):
    make, reason = KINDS[kind]
    gold = write_release(tmp_path, "esnli", [nli_row(0)] * 3, ["A. Answer: neutral"] * 3)
    completions = tmp_path / "esnli" / "llm" / "train_CoT_0.json"
    for path in (gold, tmp_path / "esnli" / "esnli_valid.json", completions):
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        make(path)
        assert message("esnli", data_root=str(tmp_path)).startswith(f"{path}: {reason}")
        path.rmdir() if path.is_dir() else path.unlink()
        if kept is not None:
            path.write_bytes(kept)
    vocabulary = tmp_path / "spiece.model"
    make(vocabulary)
    with pytest.raises(UserError, match=f"^(no vocabulary at )?{vocabulary}: "):
        Vocabulary(as_path(str(vocabulary)))


@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet", "hf"])
@pytest.mark.parametrize("name", ["n" * 5000, "/n" * 2500, "nul\0l", "\ud83d"], ids=["name", "path", "null", "half"])
def test_names_that_no_file_can_have_are_refused_in_a_short_line(kind, name):
    if kind == "hf":
        pytest.importorskip("datasets", reason="extra hf")
        name = f"/{name}"
    assert len(message(f"{kind}:{name}", fields="input=a")) < 800
    assert len(message(f"svamp{name}")) < 800


ROWS = [
    ("[" * 200_000, "JSON beyond the parser's limits"),
    ('{"input": ' * 200_000, "JSON beyond the parser's limits"),
    ('{"input": "A", "label": "no", "rationale": ' + "[" * 400 + "]" * 400 + "}", "rationale = [[["),
    ('{"input": ' + "1" * 5000 + "}", "JSON beyond the parser's limits"),
    ('{"' + "k\\n" * 5000 + '": 1}', "field 'input' holds no text; the row has k\\nk\\n"),
    ('{"input": "A", "label": "' + "l\\n" * 5000 + '"}', "label = 'l\\nl\\n"),
    ('{"input": "A", "label": "yes", "id": "' + "i\\n" * 5000 + '"}', "id i\\ni\\n"),
    ('{"input": "A\\u0000", "label": "yes"}', "field 'input' holds the null character U+0000"),
    ('{"input": "A", "label": "yes", "rationale": ["W", "\\udc80"]}', "field 'rationale' holds \\udc80, half a charac"),
    ("\0", "broken JSON"),
]


@pytest.mark.parametrize(("row", "start"), ROWS, ids=range(len(ROWS)))
def test_a_hostile_row_is_one_short_line_or_a_counted_skip(tmp_path, row, start):
    path = tmp_path / "mine.jsonl"
    first = {"input": "F", "label": "yes", "rationale": "W.", "id": "i\n" * 5000}
    path.write_text(f"{json.dumps(first)}\r\n{row}\r\n{GOOD}\r\n", "utf-8")
    assert message(f"jsonl:{path}", labels="yes,no").startswith(f"{path}:2: {start}")
    loaded = load_corpus(Loading(dataset=f"jsonl:{path}", labels="yes,no", bad_rows="skip", empty_rationale="keep"))
    assert loaded.skipped["train"] == 1 and len(loaded.skip_notes[0]) < 800
    assert sum(map(len, loaded.corpus.splits.values())) == 2


@pytest.mark.parametrize(
    "content", ["[" * 200_000, '["' + "1" * 10, "[" + "1" * 5000 + "]", "[[1]]", '["a", "\\ud83d"]']
)
def test_hostile_completions_are_one_line(tmp_path, content):
    write_release(tmp_path, "svamp", [{"input": "Why?", "label": "( 1 )"}] * 2, ["Thought."])
    path = tmp_path / "svamp" / "llm" / "train_CoT_0.json"
    path.write_text(content)
    assert message("svamp", data_root=str(tmp_path)).startswith(f"{path}:")


def test_half_of_a_character_in_a_choice_is_a_bad_row(tmp_path):
    row = {"question": "Why?", "choices": ["a", "b", "c", "d", "\ud83d"], "answer": "a"}
    gold = write_release(tmp_path, "cqa", [row], ["So the answer is (a) a."])
    assert message("cqa", data_root=str(tmp_path)).startswith(
        f"{gold}:1: field 'choices' holds \\ud83d, half a charact"
    )


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_at_line_feeds_only(tmp_path, end):
    text = "A\u2028B\x0bC\x85D\x0cE\u2029F\x1cG"
    row = {"input": text, "label": text, "rationale": text}
    path = tmp_path / "mine.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(row, ensure_ascii=False).encode() + end.encode())
    (example,) = load_corpus(Loading(dataset=f"jsonl:{path}"), ("test",)).corpus.splits["test"]
    assert (example.input, example.label, example.rationale) == (text, text, text)
    gold = write_release(tmp_path, "svamp", [], ["Thought. The answer is (1)."])
    gold.write_bytes(b"\xef\xbb\xbf" + json_lines([{"input": "Why?", "label": "( 1 )"}]).replace("\n", end).encode())
    (tmp_path / "svamp" / "llm" / "train_CoT_0.json").write_bytes(b"\xef\xbb\xbf" + b'["Thought. The answer is (1)."]')
    gold.rename(gold.with_name("svamp_test.json"))
    (tmp_path / "svamp" / "llm" / "train_CoT_0.json").rename(tmp_path / "svamp" / "llm" / "test_CoT_0.json")
    loaded = load_corpus(Loading(dataset="svamp", data_root=str(tmp_path)), ("test",))
    assert [example.rationale for example in loaded.corpus.splits["test"]] == ["Thought."]
