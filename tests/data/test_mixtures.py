"""Data set strings, mixtures, and the fingerprint that identifies a corpus in the cache."""

import dataclasses
import json
from pathlib import Path

import pytest
import runs
from releases import write_release

from cotmi_jax.config import base
from cotmi_jax.data.corpus import Component, Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.grammar import parse_dataset, with_absolute_paths
from cotmi_jax.data.run_data import load_data
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.job import accuracy_by_component
from cotmi_jax.evaluation.metrics import summarize
from cotmi_jax.experiment import Experiment, with_data_root
from cotmi_jax.extensions import with_absolute_files
from cotmi_jax.report.terminal import format_scores


def write_jsonl(path: Path, count: int, label: str = "yes") -> Path:
    rows = [{"input": f"{path.stem} {n}?", "label": label, "rationale": f"Thought {n}."} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("dataset", "components"),
    [
        ("cqa", [("released", "cqa", 1.0)]),
        ("svamp=3,arithmetic=0.5", [("released", "svamp", 3.0), ("generated", "arithmetic", 0.5)]),
        ("svamp, arithmetic = 2 ", [("released", "svamp", 1.0), ("generated", "arithmetic", 2.0)]),
        ("jsonl:/a/b.jsonl=2", [("jsonl", "/a/b.jsonl", 2.0)]),
        ("jsonl:runs/rate=big/b.jsonl", [("jsonl", "runs/rate=big/b.jsonl", 1.0)]),
        ("tfds:anli/r2=1e-1,tfds:dss/cqa", [("tfds", "anli/r2", 0.1), ("tfds", "dss/cqa", 1.0)]),
    ],
)
def test_a_dataset_string_names_components_and_rates(dataset, components):
    assert [spec[:3] for spec in parse_dataset(dataset)] == components


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            "gsm8k",
            "dataset = 'gsm8k': choose one of anli1, arithmetic, cqa, deduction, esnli, svamp, jsonl:PATH, csv:PATH, ",
        ),
        ("cqa,", "dataset = '': choose one of"),
        ("", "dataset = '': choose one of"),
        ("jsonl:", "dataset = 'jsonl:': choose one of"),
        ("svamp=many", "dataset = 'svamp=many': choose one of"),
        ("tfds:gsm8k", "dataset = 'tfds:gsm8k': the data sets of TensorFlow Datasets are anli/r1, anli/r2"),
        ("svamp=0", "dataset: the rate of svamp is 0: give a number above 0"),
        ("svamp=-1", "dataset: the rate of svamp is -1: give a number above 0"),
        ("svamp=nan", "dataset: the rate of svamp is nan: give a number above 0"),
        ("svamp=inf", "dataset: the rate of svamp is inf: give a number above 0"),
        ("cqa=1,svamp,cqa=2", "dataset = 'cqa=1,svamp,cqa=2' names cqa twice: give it once"),
    ],
)
def test_an_invalid_dataset_string_is_refused(dataset, message):
    with pytest.raises(UserError) as error:
        parse_dataset(dataset)
    assert str(error.value).startswith(message)


def test_components_with_the_same_name_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    paths = [write_jsonl(folder / "mine.jsonl", 3) for folder in (tmp_path, tmp_path / "other")]
    for dataset, name in ((f"jsonl:{paths[0]},jsonl:{paths[1]}", "jsonl:mine"), ("svamp,tfds:dss/svamp", "svamp")):
        with pytest.raises(UserError, match=f"two components have the name {name}: leave one out"):
            load_corpus(Loading(dataset=dataset, data_root="."))


def test_a_mixture_is_the_concatenation_of_its_components(tmp_path):
    mine, root = write_jsonl(tmp_path / "mine.jsonl", 20), runs.write_svamp(tmp_path / "release")
    names = (f"jsonl:{mine}", "arithmetic", "svamp")
    settings = {"data_root": str(root), "size": 30, "subsample": 0.5, "seed": 3}
    alone = [load_corpus(Loading(dataset=name, **settings)) for name in names]
    dataset = f"{names[0]}=2,{names[1]},{names[2]}=0.5"
    mixed = load_corpus(Loading(dataset=dataset, **settings))
    assert mixed.corpus.name == dataset
    assert list(mixed.corpus.splits) == ["train", "valid", "test"]
    for split, examples in mixed.corpus.splits.items():
        assert examples == sum((one.corpus.splits.get(split, ()) for one in alone), ())
    sizes = [len(one.corpus.splits["train"]) for one in alone]
    assert sizes[:2] == [9, 15]
    assert [(c.name, c.size, c.rate) for c in mixed.components] == list(
        zip(["jsonl:mine", "arithmetic", "svamp"], sizes, [2.0, 1.0, 0.5], strict=True)
    )
    assert mixed.components[0].sizes == {"train": 9, "valid": 1} and "test" in mixed.components[1].sizes
    ids = [example.id for examples in mixed.corpus.splits.values() for example in examples]
    assert len(set(ids)) == len(ids)
    assert mixed.unparsed["train"] == sum(one.unparsed["train"] for one in alone) >= 9
    assert alone[1].components == (Component("arithmetic", 15, 1.0, {"train": 15, "valid": 500, "test": 500}),)


def test_a_component_too_small_to_split_is_named(tmp_path):
    dataset = f"arithmetic,jsonl:{write_jsonl(tmp_path / 'mine.jsonl', 1)}"
    with pytest.raises(UserError, match=r"^train of jsonl:mine holds 1 example\(s\), too few to make a valid split"):
        load_corpus(Loading(dataset=dataset, size=4))


# Fingerprints.


def test_a_fingerprint_changes_with_the_settings_that_change_the_corpus_and_no_others(tmp_path):
    mine, root = write_jsonl(tmp_path / "mine.jsonl", 4), runs.write_svamp(tmp_path / "release")
    write_release(root, "asdiv", [{"input": "One?", "label": "1"}], ["One. The answer is (1)."])
    (root / "gpt-neox" / "svamp").mkdir(parents=True)
    for split in ("train", "test"):
        completions = (root / "svamp" / "llm" / f"{split}_CoT_0.json").read_text()
        (root / "gpt-neox" / "svamp" / f"{split}.json").write_text(completions)
    dataset = f"svamp,jsonl:{mine},arithmetic"
    plain = Loading(dataset=dataset, data_root=str(root), size=10, subsample=0.9)
    changes = {
        "dataset": f"jsonl:{mine},svamp,arithmetic",
        "teacher": "gpt-neox",
        "align": "prefix",
        "augment_asdiv": True,
        "subsample": 0.5,
        "seed": 1,
        "bad_rows": "skip",
        "empty_rationale": "keep",
        "size": 11,
        "version": 2,
        "labels": "yes",
        "label_kind": "equation",
        "fields": "rationale=why",
        "duplicate_rationales": "weight",
        "split_by": "cluster",
        "rationale_weights": "correct",
        "token_weights": "given",
    }
    assert set(changes) | {"data_root", "tfds_dir", "needs_rationales"} == {
        field.name for field in dataclasses.fields(Loading)
    }
    found = {corpus_fingerprint(dataclasses.replace(plain, **{key: value})) for key, value in changes.items()}
    before = corpus_fingerprint(plain)
    assert len(found | {before}) == len(changes) + 1
    complete = dataclasses.replace(plain, subsample=1.0)
    assert corpus_fingerprint(complete) == corpus_fingerprint(
        dataclasses.replace(complete, seed=1)
    )  # the seed has no effect
    moved = tmp_path / "moved"
    moved.mkdir()
    root.rename(moved / "release")
    mine.rename(moved / "mine.jsonl")
    there = {"data_root": str(moved / "release"), "tfds_dir": "elsewhere", "needs_rationales": False}
    with_rates = f"svamp=3,jsonl:{moved / 'mine.jsonl'},arithmetic=0.5"
    assert corpus_fingerprint(Loading(dataset=with_rates, size=10, subsample=0.9, **there)) == before


@pytest.mark.parametrize("file", ["svamp/svamp_test.json", "svamp/llm/train_CoT_0.json", "mine/valid.jsonl"])
def test_a_fingerprint_changes_with_a_byte_of_any_file_and_needs_no_parsing(tmp_path, file):
    runs.write_svamp(tmp_path)
    (tmp_path / "mine").mkdir()
    for split in ("train", "valid"):
        write_jsonl(tmp_path / "mine" / f"{split}.jsonl", 3)
    loading = Loading(dataset=f"svamp,jsonl:{tmp_path / 'mine'}", data_root=str(tmp_path))
    before = corpus_fingerprint(loading)
    assert corpus_fingerprint(loading) == before
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[:-2] + b"\xff" + content[-1:])
    assert corpus_fingerprint(loading) != before
    (tmp_path / file).write_bytes(content)
    assert corpus_fingerprint(loading) == before
    valid = tmp_path / "mine" / "valid.jsonl"
    renamed = valid.rename(valid.with_name("test.jsonl"))
    assert corpus_fingerprint(loading) != before
    renamed.rename(valid)
    write_jsonl(renamed, 1)
    assert corpus_fingerprint(loading) != before


# In a run.


def test_a_run_names_its_files_absolutely_and_needs_a_data_root_only_for_the_release(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COTMI_DATA_ROOT", raising=False)
    config = base()
    config.data.dataset, config.data.tfds_dir = "jsonl:mine.jsonl=2,arithmetic", "sets"
    resolved = with_data_root(config).data
    assert resolved.dataset == f"jsonl:{tmp_path / 'mine.jsonl'}=2,arithmetic"
    assert (resolved.root, resolved.tfds_dir) == ("", str(tmp_path / "sets"))
    config.data.tfds_dir = "gs://bucket/sets"
    assert with_data_root(config).data.tfds_dir == "gs://bucket/sets"
    assert with_absolute_paths("svamp=3,arithmetic") == "svamp=3,arithmetic"
    assert with_absolute_paths("jsonl:/at/rate=2=1") == "jsonl:/at/rate=2=1"
    config.data.dataset = "jsonl:mine.jsonl,svamp"
    with pytest.raises(UserError, match="^no data root"):
        with_data_root(config)


def test_training_on_teacher_labels_without_a_teacher_is_refused(tmp_path):
    config = base()
    config.data.dataset, config.data.label_type = f"jsonl:{write_jsonl(tmp_path / 'mine.jsonl', 5)}", "llm"
    with pytest.raises(UserError, match="label_type is llm, but no train example of jsonl:mine has a teacher's label"):
        load_data(config)


@pytest.fixture
def mixture(tmp_path) -> dict[str, str]:
    """The keys of config.data for a mixture of two folders, with 4 and 3 rows per split and one bad row."""
    folders = [tmp_path / "mine", tmp_path / "other"]
    for folder, count in zip(folders, (4, 3), strict=True):
        folder.mkdir()
        for split in ("train", "valid", "test"):
            write_jsonl(folder / f"{split}.jsonl", count)
    with (folders[0] / "train.jsonl").open("a") as file:
        file.write("{}\n")
    dataset = f"jsonl:{folders[0]}=3,jsonl:{folders[1]}"
    return {"dataset": dataset, "bad_rows": "skip", "vocabulary": str(VOCABULARY_PATH)}


def test_a_run_reports_skipped_rows_and_quotas(mixture, tmp_path):
    config = runs.tiny_config({f"data.{key}": value for key, value in mixture.items()})
    notes = Experiment.of(config, None).data.notes(None)
    assert "bad rows skipped: 1 of train" in notes
    assert f"  {tmp_path}/mine/train.jsonl:5: field 'input' holds no text; the row has no fields" in notes
    assert "an epoch draws 5 of the 4 of jsonl:mine, 2 of the 3 of jsonl:other" in notes


def test_a_folder_with_a_comma_in_its_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Doe, Jane").mkdir()
    monkeypatch.chdir(tmp_path / "Doe, Jane")
    with pytest.raises(UserError, match="a path cannot contain a comma: move the files"):
        with_absolute_paths("jsonl:mine.jsonl")
    with pytest.raises(UserError, match="a path cannot contain a comma: move the file"):
        with_absolute_files("mine.py")


def test_the_accuracy_of_a_component_is_over_its_own_examples():
    components = (Component("a", 5, 1.0, {"train": 5, "test": 2}), Component("b", 5, 1.0, {"train": 5}))
    components += (Component("c", 5, 1.0, {"train": 5, "test": 3}),)
    correct, clusters = [True, True, False, False, True], ["x", "y", "z", "z", "w"]
    found = accuracy_by_component(correct, clusters, components, "test")
    assert found["c"] == summarize(correct[2:], clusters[2:]) != summarize(correct[2:])
    assert {name: (summary["accuracy"], summary["n"]) for name, summary in found.items()} == {
        "a": (1.0, 2),
        "c": (pytest.approx(1 / 3), 3),
    }
    metrics = {
        "dataset": "a,b,c",
        "split": "test",
        "checkpoint": {"step": 4},
        "loss": {},
        "truncated": {},
        "metrics": {},
    }
    text = format_scores({**metrics, "accuracy": 0.6, "interval": (0.2, 0.9), "n": 5, "components": found})
    assert "label accuracy     60.0%  (95% interval 20.0% to 90.0%)" in text
    assert "\nlabel accuracy, c  33.3%  (95% interval " in text and "), 3 examples" in text
