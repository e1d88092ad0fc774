"""The data sets of the Distilling Step-by-Step release with their teachers' rationales, for TensorFlow Datasets.

    python -m cotmi_jax.prepare cotmi_jax/data/builders/dss --config=svamp --manual_dir=RELEASE --data_dir=DIR

RELEASE is the unpacked release, in the layout of `cotmi_jax.data.sources.released`; DIR may be a gs:// URL.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.released import ReleasedSource
from cotmi_jax.data.sources.released_sets import RELEASED_NAMES, TEACHERS
from cotmi_jax.data.sources.tfds_formats import TFDS_SPLITS, dss_config

_DESCRIPTION = (
    "Inputs, gold labels, and a teacher LLM's rationales and labels as parsed from its chain-of-thought completions. "
    "has_teacher_label is false where a completion holds no readable label."
)
_CITATION = """@inproceedings{hsieh2023distilling,
  title = {Distilling Step-by-Step! Outperforming Larger Language Models with Less Training Data and Smaller Model
    Sizes},
  author = {Hsieh, Cheng-Yu and others},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2023},
  year = {2023},
}"""


class _SetAndTeacher(NamedTuple):
    name: str
    teacher: str


_CONFIGS = {dss_config(name, teacher): _SetAndTeacher(name, teacher) for name in RELEASED_NAMES for teacher in TEACHERS}


class Builder(tfds.core.GeneratorBasedBuilder):
    """One config per data set and teacher, named by `cotmi_jax.data.sources.tfds_formats.dss_config`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name=config, description=f"{choice.name} with the completions of {choice.teacher}.")
        for config, choice in _CONFIGS.items()
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack the datasets of github.com/google-research/distilling-step-by-step into the manual directory, so that "
        "it holds svamp/svamp_train.json and so on, or holds them in dss/."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        features = {name: tfds.features.Text() for name in ("id", "input", "label", "rationale", "teacher_label")}
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict({**features, "has_teacher_label": np.bool_}),
            homepage="https://github.com/google-research/distilling-step-by-step",
            citation=_CITATION,
            metadata=tfds.core.MetadataDict(),
            disable_shuffling=True,  # The valid split made from train, and subsets of train, are chosen by row.
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        source = ReleasedSource(dl_manager.manual_dir, *_CONFIGS[self.builder_config.name])
        self.info.metadata["release_sha256"] = source.fingerprint()
        splits = source.read().splits
        return {TFDS_SPLITS[split]: self._generate_examples(examples) for split, examples in splits.items()}

    def _generate_examples(self, examples: tuple[Example, ...]) -> Iterator[tuple[int, dict[str, str | bool]]]:
        for row, example in enumerate(examples):
            yield (
                row,
                {
                    "id": example.id,
                    "input": example.input,
                    "label": example.label,
                    "rationale": example.rationale,
                    "teacher_label": example.teacher_label or "",
                    "has_teacher_label": example.teacher_label is not None,
                },
            )
