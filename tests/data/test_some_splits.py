"""Loading some splits only: what is scored needs no train split, and holds the same examples as in training."""

import json
from pathlib import Path

import pytest
from releases import nli_row, write_release

from cotmi_jax.config import base
from cotmi_jax.data.corpus import LoadedCorpus, Loading, load_corpus
from cotmi_jax.data.example import Example
from cotmi_jax.data.run_data import load_data
from cotmi_jax.data.sources.registered import SOURCES, register_source
from cotmi_jax.errors import UserError

# Not test alone, for which a single file is the test split.
SPLIT_SETS = [("train",), ("valid",), ("train", "valid"), ("valid", "test"), ("train", "test")]


def write_rows(path: Path, count: int, **changes: object) -> Path:
    rows = [{"input": f"{path.stem} {n}?", "label": "yes", "rationale": "Why."} | changes for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def sizes(loaded: LoadedCorpus) -> dict[str, int]:
    return {split: len(examples) for split, examples in loaded.corpus.splits.items()}


@pytest.mark.parametrize("own_valid", [False, True])
def test_a_split_holds_the_same_examples_whichever_others_are_loaded(tmp_path, own_valid):
    write_rows(tmp_path / "train.jsonl", 30)
    write_rows(tmp_path / "test.jsonl", 4)
    if own_valid:
        write_rows(tmp_path / "valid.jsonl", 3)
    single = write_rows(tmp_path / "single.jsonl", 12)
    loading = Loading(dataset=f"jsonl:{tmp_path},jsonl:{single}", subsample=0.5, seed=3)
    everything = load_corpus(loading)
    for splits in SPLIT_SETS:
        some = load_corpus(loading, splits)
        assert some.corpus.splits == {split: everything.corpus.splits[split] for split in splits}
        for one, other in zip(some.components, everything.components, strict=True):
            assert one.sizes == {split: other.sizes[split] for split in splits if split in other.sizes}


def test_what_is_scored_needs_no_train_file(tmp_path):
    write_release(tmp_path, "anli1", [nli_row(0), nli_row(1)], ["A. So the answer is neutral."] * 2, split="valid")
    write_release(tmp_path, "anli1", [nli_row(2)], ["B. So the answer is neutral."], split="test")
    loading = Loading(dataset="anli1", data_root=str(tmp_path))
    with pytest.raises(UserError, match="anli1_train.json: No such file"):
        load_corpus(loading)
    assert sizes(load_corpus(loading, ("valid", "test"))) == {"valid": 2, "test": 1}
    assert [example.rationale for example in load_corpus(loading, ("test",)).corpus.splits["test"]] == ["B."]
    config = base()
    config.data.dataset, config.data.root, config.data.label_type = "anli1", str(tmp_path), "llm"
    assert sizes(load_data(config, ("valid",))) == {"valid": 2}


def test_a_file_that_is_broken_is_not_read_if_it_is_not_asked_for(tmp_path):
    (tmp_path / "train.jsonl").write_text("{")
    write_rows(tmp_path / "test.jsonl", 2)
    assert sizes(load_corpus(Loading(dataset=f"jsonl:{tmp_path}"), ("test",))) == {"test": 2}


def test_a_single_file_is_the_test_split_if_only_test_is_asked_for(tmp_path):
    loading = Loading(dataset=f"jsonl:{write_rows(tmp_path / 'new.jsonl', 20)}")
    loaded = load_corpus(loading, ("test",))
    assert sizes(loaded) == {"test": 20} and loaded.components[0].size == 0
    assert loaded.corpus.splits["test"][3].id == "jsonl:new/test/3"
    assert sizes(load_corpus(loading, ("valid",))) == {"valid": 2}  # as in training on the file


def test_rationales_are_needed_for_training_only(tmp_path):
    write_rows(tmp_path / "train.jsonl", 20)
    write_rows(tmp_path / "test.jsonl", 1, rationale="")
    loading = Loading(dataset=f"jsonl:{tmp_path}")
    with pytest.raises(UserError, match="no rationale for example"):
        load_corpus(loading)
    (example,) = load_corpus(loading, ("test",)).corpus.splits["test"]
    assert (example.rationale, example.weight) == ("", 0.0)


def test_a_split_that_no_component_has_is_an_error(tmp_path):
    write_rows(tmp_path / "train.jsonl", 20)
    loading = Loading(dataset=f"jsonl:{tmp_path}")
    with pytest.raises(UserError, match=r"^dataset = 'jsonl:.*' has no test split$"):
        load_corpus(loading, ("test",))
    mixed = load_corpus(Loading(dataset=f"jsonl:{tmp_path},arithmetic"), ("test",))
    assert sizes(mixed) == {"test": 500} and [one.sizes for one in mixed.components] == [{}, {"test": 500}]


def test_a_registered_source_may_have_a_test_split_only():
    register_source("probe", lambda: {"test": [Example("probe/test/0", "A?", "b", "")]})
    try:
        assert sizes(load_corpus(Loading(dataset="probe"), ("test",))) == {"test": 1}
        with pytest.raises(UserError, match="it needs a train split"):
            load_corpus(Loading(dataset="probe"))
    finally:
        del SOURCES["probe"]


def test_valid_without_train_is_an_error_that_names_the_file(tmp_path):
    write_rows(tmp_path / "test.jsonl", 2)
    with pytest.raises(UserError, match=r"train.jsonl: No such file"):
        load_corpus(Loading(dataset=f"jsonl:{tmp_path}"), ("valid",))
