"""The builders for TensorFlow Datasets, on made-up files, and the command that prepares the real release."""

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
from cotmi_jax.data.sources.released import ReleasedSource
from cotmi_jax.data.sources.released_sets import RELEASED_NAMES, TEACHERS
from cotmi_jax.data.sources.tfds import TfdsSource
from cotmi_jax.data.sources.tfds_formats import dss_config
from cotmi_jax.errors import UserError

ROWS = {"train": 4, "valid": 2, "test": 3}


def write_all(root: Path) -> Path:
    """Every set of the release with two teachers; the last completion of each split holds no readable label."""
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
            said = [f"Because {text}. {ends.get(name, 'So the answer is neutral.')}" for text in texts[:-1]]
            write_release(root, name, rows, [*said, f"Who knows {texts[-1]}."], split=split)
            neox = root / "gpt-neox" / name
            neox.mkdir(parents=True, exist_ok=True)
            (neox / f"{split}.json").write_text(json.dumps([f"Neo: {completion}" for completion in [*said, "No."]]))
    return root


class DssBuilderTest(tfds.testing.DatasetBuilderTestCase):
    """Registered, prepared, read, reloaded; splits do not overlap. Other configs: test_a_prepared_set below."""

    DATASET_CLASS = dss.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["svamp", "anli1_gpt_neox"]
    SPLITS = {"train": ROWS["train"], "validation": ROWS["valid"], "test": ROWS["test"]}
    EXAMPLE_DIR = write_all(Path(tempfile.mkdtemp(prefix="cotmi_jax_release_")))


class AnliBuilderTest(tfds.testing.DatasetBuilderTestCase):
    """Every round, of an archive with a row without a reason."""

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
                del rows[-1]["reason"]  # As in part of the archive's rows.
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
    assert corpus == ReleasedSource(release, name, teacher).read()
    assert corpus.name == name and corpus.splits["train"][-1].teacher_label is None
    assert corpus.splits["train"][1].place == f"{builder.info.full_name} train row 1"


def test_a_fingerprint_follows_the_release_the_set_was_prepared_from(tmp_path):
    release, found = write_all(tmp_path / "release"), []
    for folder in ("a", "b", "c"):
        if folder == "c":  # Of the same length: sizes alone would not tell.
            gold = release / "cqa" / "cqa_test.json"
            gold.write_text(gold.read_text().replace("test 0", "text 0"))
        builder = dss.Builder(config="cqa", data_dir=tmp_path / folder)
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=release))
        found.append(corpus_fingerprint(Loading(dataset="tfds:dss/cqa", tfds_dir=str(tmp_path / folder))))
    assert found[0] == found[1] != found[2]


def test_a_damaged_file_is_noticed(tmp_path):
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
    done = prepare(folder, "--config=svamp", f"--data_dir={tmp_path}", f"--manual_dir={data_root}")
    assert done.returncode == 0, done.stderr
    settings = {"data_root": str(data_root), "tfds_dir": str(tmp_path)}
    stored, released = (load_corpus(Loading(dataset=name, **settings)) for name in ("tfds:dss/svamp", "svamp"))
    assert stored == released
    assert [len(examples) for examples in stored.corpus.splits.values()] == [720, 80, 200]
    assert tf.io.gfile.exists(str(tmp_path / "dss" / "svamp" / "1.0.0" / "dataset_info.json"))


def test_the_command_says_in_a_line_what_it_lacks(tmp_path):
    for manual, message in ((tmp_path, f"{tmp_path}: holds neither svamp/"), (tmp_path / "none", "Manual directory")):
        folders = [f"--data_dir={tmp_path / 'sets'}", f"--manual_dir={manual}"]
        done = prepare("cotmi_jax/data/builders/dss", "--config=svamp", *folders)
        assert done.returncode == 2
        assert f"error: {message}" in done.stderr and "Traceback" not in done.stderr
