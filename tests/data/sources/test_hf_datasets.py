"""Data sets that the library datasets of Hugging Face reads, from folders that the tests write: no network."""

import json
import logging
from pathlib import Path

import pytest

from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.grammar import parse_dataset, with_absolute_paths
from cotmi_jax.data.sources.hf_datasets import HfSource
from cotmi_jax.data.sources.row_format import RowFormat, parse_fields
from cotmi_jax.errors import UserError

datasets = pytest.importorskip("datasets", reason="extra hf")


@pytest.fixture(scope="module", autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("hf"))
        patch.setattr("datasets.config.HF_HUB_OFFLINE", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that save_to_disk wrote, with classes as labels and lists of rationales."""
    features = datasets.Features(
        question=datasets.Value("string"),
        answer=datasets.ClassLabel(names=["no", "yes"]),
        why=datasets.List(datasets.Value("string")),
        number=datasets.Value("int64"),
    )
    rows = {
        "question": ["A?", "B?", "C?"],
        "answer": [1, 0, -1],
        "why": [["W.", "X."], [], ["Y."]],
        "number": [5, 6, 7],
    }
    train = datasets.Dataset.from_dict(rows, features)
    folder = tmp_path_factory.mktemp("saved") / "mine"
    datasets.DatasetDict(train=train, validation=train.select([0]), test=train.select([1])).save_to_disk(str(folder))
    return folder


FIELDS = "input=question,label=answer,rationale=why,id=number"


def test_a_saved_data_set_has_names_of_classes_as_labels(saved):
    rows = RowFormat(fields=parse_fields(FIELDS), bad_rows="skip")
    corpus = HfSource(str(saved), rows).read()
    assert {split: [example.id for example in examples] for split, examples in corpus.splits.items()} == {
        "train": ["hf:mine/train/5", "hf:mine/train/6"],
        "valid": ["hf:mine/valid/5"],
        "test": ["hf:mine/test/6"],
    }
    first, second = corpus.splits["train"]
    assert (first.input, first.label, first.rationales) == ("A?", "yes", (("W.", 1.0), ("X.", 1.0)))
    assert (second.label, second.rationales) == ("no", (("", 0.0),))
    assert first.place == "hf:mine train: row 0"
    assert corpus.skip_notes[0].startswith(
        "hf:mine train: row 2: field 'answer' holds no text; the row has number, quest"
    )


def test_a_folder_of_files_is_read_and_identified_by_content(tmp_path):
    def write(answer: str) -> None:
        lines = [json.dumps({"input": f"{n}?", "label": answer, "rationale": "W."}) for n in range(20)]
        for name in ("train", "test"):
            (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))

    write("a")
    loading = Loading(dataset=f"hf:{tmp_path},arithmetic", size=10)
    loaded = load_corpus(loading, ("train", "valid"))
    assert [component.sizes for component in loaded.components] == [
        {"train": 18, "valid": 2},
        {"train": 10, "valid": 500},
    ]
    assert [e.label for e in load_corpus(Loading(dataset=f"hf:{tmp_path}"), ("test",)).corpus.splits["test"]] == [
        "a"
    ] * 20
    before = corpus_fingerprint(loading)
    assert corpus_fingerprint(loading) == before
    write("b")
    assert corpus_fingerprint(loading) != before


def test_a_single_split_is_train_or_the_test_that_is_asked_for(tmp_path):
    datasets.Dataset.from_dict({"input": ["A?"], "label": ["b"]}).save_to_disk(str(tmp_path / "one"))
    source = HfSource(str(tmp_path / "one"))
    assert [list(source.read(splits).splits) for splits in (("train", "valid"), ("test",))] == [["train"], ["test"]]


def test_errors_name_the_data_set_and_what_it_has(saved, tmp_path, monkeypatch):
    def message(argument: str, **settings) -> str:
        with pytest.raises(UserError) as error:
            HfSource(argument, RowFormat(**settings)).read()
        assert "\n" not in str(error.value)
        return str(error.value)

    assert message(str(saved)).startswith(
        "hf:mine train: no column 'input' for the input; the columns are question, answer, why, number; name that"
    )
    table = datasets.Dataset.from_dict({"input": ["A?"]})
    datasets.DatasetDict(dev=table, validation=table).save_to_disk(str(tmp_path / "two"))
    assert "has the splits validation and dev, which would both be valid" in message(str(tmp_path / "two"))
    datasets.DatasetDict(train_r1=table).save_to_disk(str(tmp_path / "other"))
    assert message(str(tmp_path / "other")).startswith("hf:other: has no train split, but train_r1; ")
    assert message(str(tmp_path / "absent")).startswith("hf:absent cannot be loaded (")
    assert message("no-such-data-set-of-anybody").startswith("hf:no-such-data-set-of-anybody cannot be loaded (")
    assert message("gs://bucket/data") == "hf:data: give a name on the hub, or a folder on disk"
    (tmp_path / "other" / "dataset_dict.json").write_text("[" * 200_000)
    assert message(str(tmp_path / "other")).startswith("hf:other cannot be loaded (")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "needs the package datasets: pip install -e '.[hf]'" in message("squad")


def test_notices_of_the_hub_s_client_are_hidden_with_those_of_other_libraries(monkeypatch):
    client = logging.getLogger("huggingface_hub.utils._http")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "level", logging.WARNING)
    monkeypatch.setattr(logging.getLogger(), "level", logging.ERROR)  # as the commands set it
    with pytest.raises(UserError, match="cannot be loaded"):
        HfSource("no-such-data-set-of-anybody").read()
    client._cache.clear()
    assert not client.isEnabledFor(logging.WARNING)


def test_names_on_the_hub_and_folders_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    dataset = "hf:mine=2,hf:org/name:config,hf:./absent,hf:name"
    assert [spec.argument for spec in parse_dataset(dataset)] == ["mine", "org/name:config", "./absent", "name"]
    assert with_absolute_paths(dataset) == f"hf:{tmp_path}/mine=2,hf:org/name:config,hf:{tmp_path}/absent,hf:name"
