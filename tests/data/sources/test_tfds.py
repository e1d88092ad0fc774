"""Data sets of TensorFlow Datasets: human rationales by mock_data, and errors for sets that are not prepared."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from cotmi_jax.data.builders.anli_reasons import anli_reasons_dataset_builder as anli
from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.sources.tfds import TfdsSource
from cotmi_jax.errors import UserError

Rows = dict[str, list[dict]]

NLI = {"premise": "A boy hums.", "hypothesis": "A boy sings."}
ESNLI: Rows = {
    "train": [
        {**NLI, "label": 1, "explanation_1": "Humming is no song.", "explanation_2": "", "explanation_3": ""},
        {**NLI, "label": 0, "explanation_1": " ", "explanation_2": "", "explanation_3": ""},
    ],
    "validation": [
        {**NLI, "label": 2, "explanation_1": "One.", "explanation_2": "Two.\n", "explanation_3": "Three."},
    ],
}
COS_E: Rows = {
    "train": [
        {
            "id": "f00d",
            "question": "What floats?",
            "choices": ["a stone", "iron", "sand", "a cork", "a nail"],
            "answer": "a cork",
            "abstractive_explanation": "Corks are light.",
            "extractive_explanation": "floats",
        }
    ]
}
BOY = {"context": "A boy hums.", "hypothesis": "A boy sings."}
ANLI: Rows = {
    split: [
        {**BOY, "uid": f"{split}-{label}", "label": label, "reason": why} for label, why in ((0, "He does."), (2, ""))
    ]
    for split in ("train", "validation", "test")
}


@contextlib.contextmanager
def prepared(data_dir: Path, name: str, rows: Rows) -> Iterator[TfdsSource]:
    """A source on mock_data: the features of the real builder, its metadata in data_dir, and these rows."""

    def as_dataset(self, split, **_):
        infos = self.info.features.get_tensor_info()
        signature = {name: tf.TensorSpec(info.shape, info.dtype) for name, info in infos.items()}
        listed = [{name: row[name] for name in infos} for row in rows[split]]
        return tf.data.Dataset.from_generator(lambda: iter(listed), output_signature=signature)

    policy = tfds.testing.MockPolicy.USE_FILES
    with tfds.testing.mock_data(policy=policy, data_dir=str(data_dir), as_dataset_fn=as_dataset):
        builder = anli.Builder(config=name[-2:]) if name.startswith("anli") else tfds.builder(name)
        splits = [
            tfds.core.SplitInfo(name=name, shard_lengths=[len(listed)], num_bytes=100) for name, listed in rows.items()
        ]
        builder.info.set_splits(tfds.core.SplitDict(splits))
        Path(builder.data_dir).mkdir(parents=True)
        builder.info.write_to_directory(builder.data_dir)
        yield TfdsSource(name, str(data_dir))


def test_esnli_has_one_explanation_in_train_and_three_held_out(tmp_path):
    with prepared(tmp_path, "esnli", ESNLI) as source:
        corpus = source.read()
    assert (source.name, list(corpus.splits), corpus.label_kind) == ("tfds:esnli", ["train", "valid"], "text")
    first, second = corpus.splits["train"]
    assert (first.id, first.input, first.label) == ("tfds:esnli/train/0", "A boy hums.</s>A boy sings.", "neutral")
    assert first.rationales == (("Humming is no song.", 1.0),) and first.teacher_label is None
    assert (second.id, second.label, second.rationales) == ("tfds:esnli/train/1", "entailment", (("", 0.0),))
    (held_out,) = corpus.splits["valid"]
    assert held_out.label == "contradiction"
    assert held_out.rationales == (("One.", 1.0), ("Two.", 1.0), ("Three.", 1.0))
    assert held_out.place == "esnli/0.1.0 validation row 0"
    assert held_out.choices == ("entailment", "neutral", "contradiction")
    assert first.cluster.startswith("tfds:esnli/") and len({first.cluster, second.cluster, held_out.cluster}) == 1


def test_cos_e_inputs_have_the_form_of_the_release(tmp_path):
    with prepared(tmp_path, "cos_e", COS_E) as source:
        (example,) = source.read().splits["train"]
    assert example.id == "tfds:cos_e/train/f00d"
    assert example.input == "What floats?\nAnswer Choices:\n(a) a stone\n(b) iron\n(c) sand\n(d) a cork\n(e) a nail"
    assert (example.label, example.rationale, example.teacher_label) == ("a cork", "Corks are light.", None)
    assert example.choices == ("a stone", "iron", "sand", "a cork", "a nail")


@pytest.mark.parametrize("config", ["r1", "r2", "r3"])
def test_anli_has_the_reasons_of_its_authors(tmp_path, config):
    with prepared(tmp_path, f"anli/{config}", ANLI) as source:
        corpus = source.read()
    assert list(corpus.splits) == ["train", "valid", "test"]
    first, second = corpus.splits["valid"]
    assert (first.id, first.input) == (f"tfds:anli/{config}/valid/validation-0", "A boy hums.</s>A boy sings.")
    assert (first.label, first.rationale, first.weight) == ("entailment", "He does.", 1.0)
    assert (second.label, second.rationale, second.weight) == ("contradiction", "", 0.0)


def test_empty_human_rationales_follow_the_config(tmp_path):
    settings = {"dataset": "tfds:esnli", "tfds_dir": str(tmp_path)}
    with prepared(tmp_path, "esnli", ESNLI):
        with pytest.raises(UserError, match="^esnli/0.1.0 train row 1: no rationale for example tfds:esnli/train/1; "):
            load_corpus(Loading(**settings))
        dropped, kept = (load_corpus(Loading(**settings, empty_rationale=policy)) for policy in ("drop", "keep"))
    assert dropped.dropped == {"train": 1, "valid": 0} and len(dropped.corpus.splits["train"]) == 1
    assert [example.weight for example in kept.corpus.splits["train"]] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": -1}, "label = -1; give one of 0 (entailment), 1 (neutral), 2 (contradiction)"),
        ({"premise": b"caf\xe9"}, "not UTF-8 (unexpected end of data); prepare the set again"),
        ({"premise": "", "hypothesis": " "}, "the input is empty"),
    ],
)
def test_bad_rows_are_named_or_counted(tmp_path, change, message):
    rows = {"train": [ESNLI["train"][0], {**ESNLI["train"][0], **change}]}
    with prepared(tmp_path, "esnli", rows) as source:
        with pytest.raises(UserError) as error:
            source.read()
        skipping = TfdsSource("esnli", str(tmp_path), bad_rows="skip").read()
    assert str(error.value).startswith(f"esnli/0.1.0 train row 1: {message}")
    assert skipping.skipped == {"train": 1} and skipping.skip_notes == (str(error.value),)
    assert len(skipping.splits["train"]) == 1


def test_ids_must_be_unique_and_splits_need_a_usable_row(tmp_path):
    row = COS_E["train"][0]
    with prepared(tmp_path / "a", "cos_e", {"train": [row, row]}) as source:
        with pytest.raises(
            UserError, match="^cos_e/0.0.1 train row 1: id f00d is also that of cos_e/0.0.1 train row 0;"
        ):
            source.read()
    unusable = {"train": [{**row, "answer": "a balloon"}]}
    with prepared(tmp_path / "b", "cos_e", unusable) as source:
        with pytest.raises(UserError, match="row 0: answer = 'a balloon'; give one of the choices, a stone, iron"):
            source.read()
        with pytest.raises(UserError, match="^cos_e/0.0.1 train: none of its 1 rows is usable"):
            TfdsSource("cos_e", source.data_dir, bad_rows="skip").read()


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("esnli", "esnli --data_dir=DIR"),
        ("anli/r2", "BUILDERS/anli_reasons --config=r2 --data_dir=DIR"),
        ("dss/cqa", "BUILDERS/dss --config=cqa --data_dir=DIR --manual_dir=RELEASE"),
    ],
)
def test_a_set_that_is_not_prepared_is_an_error_with_the_command_that_prepares_it(tmp_path, name, command):
    builders = Path(anli.__file__).parent.parent
    command = command.replace("DIR", str(tmp_path), 1).replace("BUILDERS", str(builders))
    for load in (load_corpus, corpus_fingerprint):
        with pytest.raises(UserError) as error:
            load(Loading(dataset=f"tfds:{name}", tfds_dir=str(tmp_path)))
        expected = f"tfds:{name} is not prepared in {tmp_path}: run python -m cotmi_jax.prepare {command}"
        assert str(error.value) == expected
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=f"^tfds:{name} is not prepared in {tmp_path}/none: run "):
        TfdsSource(name, f"{tmp_path}/none").read()


def test_a_set_without_a_train_split_is_refused(tmp_path):
    with prepared(tmp_path, "esnli", {"validation": ESNLI["validation"]}) as source:
        with pytest.raises(UserError, match="^esnli/0.1.0 has no train split; prepare the set again$"):
            source.read()


def test_the_default_folder_is_that_of_tensorflow_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="^tfds:cos_e is not prepared in TensorFlow Datasets' folder: run python -m co"):
        TfdsSource("cos_e").read()


def test_the_fingerprint_depends_on_the_prepared_set_and_the_settings(tmp_path):
    def fingerprint(folder: str, rows: Rows, **settings: str) -> str:
        with prepared(tmp_path / folder, "esnli", rows) as source:
            return corpus_fingerprint(Loading(dataset="tfds:esnli", tfds_dir=source.data_dir, **settings))

    fewer = {split: rows[:1] for split, rows in ESNLI.items()}
    assert fingerprint("a", ESNLI) == fingerprint("b", ESNLI)
    different = [
        fingerprint("c", fewer),
        fingerprint("d", ESNLI, bad_rows="skip"),
        fingerprint("e", ESNLI, empty_rationale="drop"),
    ]
    assert len({fingerprint("f", ESNLI), *different}) == 4
