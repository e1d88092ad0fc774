"""The builders for TensorFlow Datasets, on synthetic files, and the command that prepares the real release."""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from paths import REPOSITORY
from releases import cqa_row, nli_row, write_release

from cotmi_jax.data.builders.anli_reasons import anli_reasons_dataset_builder as anli
from cotmi_jax.data.builders.dss import dss_dataset_builder as dss
from cotmi_jax.data.corpus import Loading, corpus_fingerprint, load_corpus
from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.released import ReleasedSource
from cotmi_jax.data.sources.released_sets import RELEASED_NAMES, TEACHERS
from cotmi_jax.data.sources.tfds import TfdsSource
from cotmi_jax.data.sources.tfds_formats import dss_config
from cotmi_jax.errors import UserError

ROWS = {"train": 4, "valid": 2, "test": 3}


def without_sentence(example: Example) -> Example:
    """An example without the teacher's answer sentence."""
    return dataclasses.replace(example, answer_text="")


def write_all(root: Path) -> Path:
    """Every data set with completions of both teachers; the last completion of each split has no readable label."""
    for split, count in ROWS.items():
        texts = [f"{split} {n}" for n in range(count)]
        golds = {
            "svamp": [{"input": f"{text}?", "label": "( 1.0 + 2.0 )"} for text in texts],
            "cqa": [{**cqa_row(["a cork", "b", "c", "d", "e"]), "question": f"{text}?"} for text in texts],
            "esnli": [{**nli_row(1), "premise": text} for text in texts],
            "anli1": [{**nli_row(2), "premise": text} for text in texts],
        }
        ends = {"svamp": "The answer is (1 + 2).", "cqa": "So the answer is (a) a cork.", "esnli": "Answer: neutral"}
        for name, rows in golds.items():
            completions = [f"Because {text}. {ends.get(name, 'So the answer is neutral.')}" for text in texts[:-1]]
            write_release(root, name, rows, [*completions, f"Who knows {texts[-1]}."], split=split)
            neox = root / "gpt-neox" / name
            neox.mkdir(parents=True, exist_ok=True)
            (neox / f"{split}.json").write_text(
                json.dumps([f"Neo: {completion}" for completion in [*completions, "No."]])
            )
    return root


class DssBuilderTest(tfds.testing.DatasetBuilderTestCase):
    """TensorFlow Datasets' own test of a builder, on two configs; test_a_prepared_set… covers all."""

    DATASET_CLASS = dss.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["svamp", "anli1_gpt_neox"]
    SPLITS = {"train": ROWS["train"], "validation": ROWS["valid"], "test": ROWS["test"]}
    EXAMPLE_DIR = write_all(Path(tempfile.mkdtemp(prefix="cotmi_jax_release_")))


class AnliBuilderTest(tfds.testing.DatasetBuilderTestCase):
    """The same for every round, on an archive with a row without a reason."""

    DATASET_CLASS = anli.Builder
    SPLITS = {"train": 2, "validation": 1, "test": 1}
    EXAMPLE_DIR = Path(tempfile.mkdtemp(prefix="cotmi_jax_anli_"))

    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        for number in (1, 2, 3):
            folder = cls.EXAMPLE_DIR / "anli_v0.1" / f"R{number}"
            folder.mkdir(parents=True)
            for file, labels in (("train", "en"), ("dev", "c"), ("test", "n")):
                rows = [
                    {"uid": f"{file}{i}", "context": "A boy hums.", "hypothesis": file, "label": label, "reason": "So."}
                    for i, label in enumerate(labels)
                ]
                del rows[-1]["reason"]  # as in some rows of the archive
                (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("teacher", TEACHERS)
@pytest.mark.parametrize("name", RELEASED_NAMES)
def test_a_prepared_set_gives_the_examples_of_the_release(tmp_path, name, teacher):
    release = write_all(tmp_path / "release")
    builder = dss.Builder(config=dss_config(name, teacher), data_dir=tmp_path / "sets")
    config = tfds.download.DownloadConfig(manual_dir=release, num_shards=2)
    builder.download_and_prepare(download_config=config)
    source = TfdsSource(f"dss/{name}", str(tmp_path / "sets"), teacher)
    corpus = source.read()
    released = ReleasedSource(release, name, teacher).read()
    # The prepared set has no field for the teacher's answer sentence.
    splits = {split: tuple(map(without_sentence, examples)) for split, examples in released.splits.items()}
    assert corpus == dataclasses.replace(released, splits=splits)
    assert corpus.name == name and corpus.splits["train"][-1].teacher_label is None
    assert corpus.splits["train"][1].place == f"{builder.info.full_name} train row 1"


def test_the_fingerprint_depends_on_the_release_the_set_was_prepared_from(tmp_path):
    release, fingerprints = write_all(tmp_path / "release"), []
    for folder in ("a", "b", "c"):
        if folder == "c":  # same length: sizes alone do not differ
            gold = release / "cqa" / "cqa_test.json"
            gold.write_text(gold.read_text().replace("test 0", "text 0"))
        builder = dss.Builder(config="cqa", data_dir=tmp_path / folder)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=release))
        fingerprints.append(corpus_fingerprint(Loading(dataset="tfds:dss/cqa", tfds_dir=str(tmp_path / folder))))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_a_damaged_file_is_an_error(tmp_path):
    builder = dss.Builder(config="svamp", data_dir=tmp_path / "sets")
    release = write_all(tmp_path / "release")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=release))
    (file,) = Path(builder.data_dir).glob("dss-train.tfrecord*")
    file.write_bytes(file.read_bytes().replace(b"train 1?", b"train 7?"))
    with pytest.raises(
        UserError, match=r"^dss/svamp/1.0.0 train: cannot be read \(corrupted record at \d+\); prepare the set again$"
    ):
        TfdsSource("dss/svamp", str(tmp_path / "sets")).read()


def prepare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cotmi_jax.prepare", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command_prepares_the_real_release(tmp_path, data_root):
    folder = "cotmi_jax/data/builders/dss"
    finished = prepare(folder, "--config=svamp", f"--data_dir={tmp_path}", f"--manual_dir={data_root}")
    assert finished.returncode == 0, finished.stderr
    settings = {"data_root": str(data_root), "tfds_dir": str(tmp_path)}
    stored, released = (load_corpus(Loading(dataset=name, **settings)) for name in ("tfds:dss/svamp", "svamp"))
    splits = {split: tuple(map(without_sentence, examples)) for split, examples in released.corpus.splits.items()}
    corpus = dataclasses.replace(released.corpus, splits=splits)
    assert stored == dataclasses.replace(released, corpus=corpus)
    assert [len(examples) for examples in stored.corpus.splits.values()] == [720, 80, 200]
    assert tf.io.gfile.exists(str(tmp_path / "dss" / "svamp" / "1.0.0" / "dataset_info.json"))


def test_the_command_reports_missing_input_in_one_line(tmp_path):
    for manual, message in ((tmp_path, f"{tmp_path}: holds neither svamp/"), (tmp_path / "none", "Manual directory")):
        folders = [f"--data_dir={tmp_path / 'sets'}", f"--manual_dir={manual}"]
        finished = prepare("cotmi_jax/data/builders/dss", "--config=svamp", *folders)
        assert finished.returncode == 2
        assert f"error: {message}" in finished.stderr and "Traceback" not in finished.stderr
