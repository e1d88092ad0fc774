"""Loads a trained student from a workdir, or from a Hugging Face directory or hub name."""

import dataclasses
import math
from typing import Literal

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.data.tasks import ObjectiveName
from cotmi_jax.data.vocabulary import Vocabulary, check_fits, find_tokenizer
from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, absolute, as_path
from cotmi_jax.models.config import StudentConfig, T5Config
from cotmi_jax.models.hf import load_hf, resolve_source
from cotmi_jax.models.meshes import inference_mesh
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.parallel.accelerators import find_accelerator
from cotmi_jax.parallel.distributed import all_gather_text
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import abstract_arrays, param_shardings
from cotmi_jax.workdir import checkpoint
from cotmi_jax.workdir.record import is_workdir, read_run

CheckpointChoice = Literal["best", "latest"] | int


@dataclasses.dataclass(frozen=True)
class TrainedStudent:
    """A student, its parameters on a mesh, and its vocabulary. config and step are None if it is not from a workdir."""

    student: StudentDef
    params: Params
    mesh: Mesh
    vocabulary: Vocabulary
    config: ConfigDict | None
    step: int | None

    @property
    def objective(self) -> ObjectiveName | None:
        """The name of the objective of its training; None if not known."""
        return None if self.config is None else self.config.objective.name


def parse_checkpoint_choice(text: str) -> CheckpointChoice:
    """The value of a --checkpoint flag: best, latest, or a step."""
    match text:
        case "best" | "latest":
            return text
        case _ if text.isdigit():
            return int(text)
    raise UserError(f"--checkpoint={text}: give best, latest or a step")


def _make_inference_mesh(config: StudentConfig) -> Mesh:
    """A mesh of all devices, with parameters sharded as far as the memory of a device requires."""
    devices = jax.devices()
    accelerator = find_accelerator(devices[0].device_kind)
    return make_mesh(*inference_mesh(config, len(devices), accelerator.memory if accelerator else math.inf))


def load_workdir(workdir: Path, which: CheckpointChoice, mesh: Mesh | None = None) -> TrainedStudent:
    """The student of a run at its best or latest checkpoint or at a step. Of the checkpoint only parameters are read.

    mesh None: all devices, with parameters sharded as far as the memory of a device requires.

    Raises:
      UserError: no such run or checkpoint, or hosts that find different checkpoints.
    """
    config, student_config, vocabulary = read_run(workdir)
    found = checkpoint.find(workdir, which)
    if len(set(all_gather_text(str(found)))) > 1:
        raise UserError(f"{workdir}: a run replaced its checkpoints meanwhile; run the same command again")
    mesh = mesh or _make_inference_mesh(student_config)
    if (
        isinstance(student_config, T5Config)
        and student_config.attention == "kernel"
        and mesh.devices.flat[0].platform != "tpu"
    ):
        student_config = dataclasses.replace(student_config, attention="auto")  # it was trained on a TPU
    student = StudentDef.of(student_config)
    abstract = abstract_arrays(student.shapes, param_shardings(student.shapes, student.axes, mesh))
    params = checkpoint.restore_params(found, {"student": abstract})["student"]
    return TrainedStudent(student, params, mesh, vocabulary, config, found.step)


def load_trained(
    source: str, which: CheckpointChoice, mesh: Mesh | None = None, *, vocabulary_path: str | None = None
) -> TrainedStudent:
    """The student of a workdir, or of a Hugging Face directory or hub name; `which` and mesh as in load_workdir.

    Only workdirs have several checkpoints: for other sources `which` has no effect. `vocabulary_path`: the vocabulary
    of a Hugging Face checkpoint that is stored without one; a workdir has its own.

    Raises:
      UserError: no student is found at `source`, or its vocabulary does not match its config.
    """
    if is_workdir(source):
        if vocabulary_path is not None:
            raise UserError(
                f"--vocabulary {vocabulary_path}: workdir {source} has the vocabulary of its training: leave it out"
            )
        return load_workdir(as_path(absolute(source)), which, mesh)
    directory = resolve_source(source)
    config, host_params = load_hf(directory)
    vocabulary = Vocabulary(as_path(vocabulary_path) if vocabulary_path else find_tokenizer(directory))
    check_fits(vocabulary, vocab_size=config.vocab_size, pad_id=config.pad_id, eos_id=config.eos_id)
    student, mesh = StudentDef.of(config), mesh or _make_inference_mesh(config)
    params = jax.tree.map(jax.device_put, host_params, param_shardings(student.shapes, student.axes, mesh))
    return TrainedStudent(student, params, mesh, vocabulary, None, None)
