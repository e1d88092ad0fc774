"""Adversarial NLI (arXiv 1910.14599) with its `reason` field, which the builder in TensorFlow Datasets leaves out.

    python -m cotmi_jax.prepare cotmi_jax/data/builders/anli_reasons --config=r1 --data_dir=DIR

downloads the authors' archive (19 MB) and verifies its checksum.
"""

from collections.abc import Iterator

import tensorflow_datasets as tfds
from etils import epath

from cotmi_jax.data.sources.rows import read_rows, text_field
from cotmi_jax.data.sources.tfds_formats import TFDS_SPLITS

_URL = "https://dl.fbaipublicfiles.com/anli/anli_v0.1.zip"
_FILES = {"train": "train.jsonl", "valid": "dev.jsonl", "test": "test.jsonl"}


class Builder(tfds.core.GeneratorBasedBuilder):
    """One config per round."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=f"r{i}", description=f"Round {i}.") for i in (1, 2, 3)]

    def _info(self) -> tfds.core.DatasetInfo:
        texts = {name: tfds.features.Text() for name in ("uid", "context", "hypothesis", "reason")}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Natural language inference, collected by people who were shown where a model fails.",
            features=tfds.features.FeaturesDict({**texts, "label": tfds.features.ClassLabel(names=["e", "n", "c"])}),
            homepage="https://github.com/facebookresearch/anli",
            disable_shuffling=True,  # Subsets of train are chosen by row.
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        folder = dl_manager.download_and_extract(_URL) / "anli_v0.1" / self.builder_config.name.upper()
        return {TFDS_SPLITS[split]: self._generate_examples(folder / file) for split, file in _FILES.items()}

    def _generate_examples(self, path: epath.Path) -> Iterator[tuple[int, dict[str, str]]]:
        for number, (place, row) in enumerate(read_rows(path)):
            fields = {name: text_field(row, name, place) for name in ("uid", "context", "hypothesis", "label")}
            yield number, {**fields, "reason": text_field({"reason": "", **row}, "reason", place)}
