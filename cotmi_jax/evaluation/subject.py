"""What an evaluation scores: the student of a run or a Hugging Face checkpoint, on the run's data or on another set."""

import dataclasses
import hashlib
import re
from collections.abc import Mapping

from ml_collections import ConfigDict

from cotmi_jax.config import base
from cotmi_jax.data.grammar import with_absolute_paths
from cotmi_jax.data.rationale_weights import UNIFORM
from cotmi_jax.data.tasks import find_objective
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import make_objective
from cotmi_jax.files import Path, absolute, as_path
from cotmi_jax.inference.load import TrainedStudent, is_workdir, load_trained, parse_checkpoint_choice
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.workdir.record import RUN_FILE

BASELINE_OBJECTIVE = "predict"  # of a checkpoint that is scored as it is: the label task alone, with its prefix
# Keys of config.data that another data set leaves as they were in training. The others say how to read a certain set.
_KEPT = (
    *("root", "tfds_dir", "vocabulary", "cache", "packing", "max_input_tokens", "max_target_tokens", "too_long"),
    "rationale_answer",  # the form of the targets
)
_MAX_NAME = 60  # characters of a folder's name


@dataclasses.dataclass(frozen=True)
class Subject:
    """A student to score, and the config with the objective, the data and the limits it is scored with.

    source: as the user gave it, of a workdir its absolute path.
    trained_on: the data set of its training; None if it is not known.
    own_data: whether it is scored on the data set of its training.
    """

    source: str
    trained: TrainedStudent
    config: ConfigDict
    objective: Objective
    trained_on: str | None
    own_data: bool

    def default_output(self, corpus_name: str, split: str) -> Path:
        """The folder for results where the user names none. Results on other data get folders of their own."""
        if self.own_data:
            return as_path(self.source) / "evaluation" / split
        data = _folder_name(corpus_name, self.config.data.dataset)
        if self.trained_on is not None:
            return as_path(self.source) / "evaluation" / data / split
        model = _folder_name(self.source.rstrip("/").rpartition("/")[2], self.source)
        return as_path(absolute("evaluation")) / model / data / split


def _folder_name(name: str, identity: str) -> str:
    """A folder's name; with a digest where the name does not identify what it stands for."""
    safe = re.sub(r"[^\w.=-]+", "-", name).strip("-.")[:_MAX_NAME]
    return safe if safe == identity else f"{safe}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def find_subject(
    source: str,
    *,
    checkpoint: str = "best",
    dataset: str | None = None,
    objective: str | None = None,
    vocabulary: str | None = None,
    settings: Mapping[str, object] | None = None,
) -> Subject:
    """The student at `source`, a workdir, a Hugging Face directory or a hub name, with the config to score it.

    dataset: in the form of config.data.dataset; None: that of the run. settings: keys of config.data for that data set.
    objective and vocabulary: of a Hugging Face checkpoint only, by default BASELINE_OBJECTIVE and its own.

    Raises:
      UserError: no student at `source`, arguments that do not go together, or an unknown data set or objective.
    """
    which, in_workdir = parse_checkpoint_choice(checkpoint), is_workdir(source)
    if in_workdir and objective is not None:
        raise UserError(f"--objective {objective}: workdir {source} has the objective of its training: leave it out")
    if not in_workdir and dataset is None:
        raise UserError(
            f"no {RUN_FILE} in {absolute(source)}: give the workdir of a run, or --dataset to score another model"
        )
    if not in_workdir:
        find_objective(objective or BASELINE_OBJECTIVE)
    trained = load_trained(source, which, vocabulary_path=vocabulary)
    config = trained.config or base()
    trained_on = None if trained.config is None else config.data.dataset
    if trained_on is None:
        config.objective.name = objective or BASELINE_OBJECTIVE
    else:
        source = absolute(source)
    scored = make_objective(config)
    if dataset is not None:
        config = _with_dataset(config, dataset)
    config.data.update(dict(settings or {}))
    config.data.rationale_weights = UNIFORM  # they are of training: a file of weights that is gone is no obstacle
    for key in ("root", "tfds_dir"):
        config.data[key] = config.data[key] and absolute(config.data[key])
    return Subject(source, trained, config, scored, trained_on, own_data=dataset is None)


def _with_dataset(config: ConfigDict, dataset: str) -> ConfigDict:
    """The config with another data set, read by the defaults."""
    changed = config.copy_and_resolve_references()
    changed.data.update({key: value for key, value in base().data.items() if key not in _KEPT})
    changed.data.dataset = with_absolute_paths(dataset)
    changed.data.empty_rationale = "keep"  # an example is scored whether or not it has a rationale
    return changed
