"""The programs of a run as shapes: its training step, evaluation losses and generation, lowered without any array.

Needs no data, no weights and no devices but those of a mesh, which may be a topology's. Imports no tensorflow.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.config import check_batches, load_extensions, validate
from cotmi_jax.data.packing import PackShape
from cotmi_jax.data.tasks import PREDICT
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.evaluator import make_terms
from cotmi_jax.experiment import eval_decoding, make_objective
from cotmi_jax.inference.generation import Generation
from cotmi_jax.models.config import T5_VOCAB_SIZE, T5Config, preset, with_execution
from cotmi_jax.models.flops import forward_flops, step_flops
from cotmi_jax.models.student import StudentDef, count_parameters
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.batch import batch_sharding
from cotmi_jax.parallel.mesh import batch_shards
from cotmi_jax.parallel.sharding import PyTree, abstract_arrays, replicated
from cotmi_jax.training.optimizer import make_optimizers, make_schedule
from cotmi_jax.training.rng import train_streams
from cotmi_jax.training.state import StateDef, TrainState
from cotmi_jax.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted program of a run. `flops` are the model's, of all devices; `arguments` are their bytes on each device,
    and `beside` what it holds while the program runs without being an argument."""

    name: str
    batch: str  # in words
    flops: float
    arguments: float
    beside: float
    lower: Callable[[], jax.stages.Lowered]


NAMES = ("train", "evaluate", "generate")


def chosen(names: Sequence[str]) -> list[str]:
    """Names of programs, checked. Raises UserError for an unknown one."""
    for name in names:
        if name not in NAMES:
            raise UserError(f"unknown program {name!r}: choose from {', '.join(NAMES)}")
    return list(names)


def abstract_student(config: ConfigDict) -> T5Config:
    """The student of config.model.preset and family. model.init is not read: a checkpoint need not be at hand."""
    model = config.model
    if model.network != "t5":
        raise UserError(
            f"config.model.network is {model.network!r}, but aot compiles only t5: set config.model.network to t5"
        )
    return with_execution(preset(model.preset, model.family, vocab_size=model.vocab_size or T5_VOCAB_SIZE), model)


def default_shape(
    config: ConfigDict, mesh: Mesh, *, rows: int = 0, input_length: int = 0, target_length: int = 0
) -> PackShape:
    """Shape of a packed batch when the data is not at hand; 0 stands for a default.

    Rows are as long as the longest sequences that the config lets through, and as many as a batch has examples: more
    than a real batch takes, whose shape `train` prints when it starts. Raises UserError for rows that do not divide.
    """
    load_extensions(config.extensions)  # the objective may be defined there
    multiple = batch_shards(mesh) * config.micro_batches
    rows = rows or -(-config.batch_size // multiple) * multiple
    if rows % multiple:
        raise UserError(
            f"--rows={rows} does not divide over {batch_shards(mesh)} devices of mesh data × fsdp"
            + f" and config.micro_batches {config.micro_batches}" * (config.micro_batches > 1)
        )
    pairs = config.batch_size * len(make_objective(config).tasks)
    data = config.data
    lengths = input_length or data.max_input_tokens, target_length or data.max_target_tokens
    return PackShape(rows, *lengths, segments=int(1.3 * pairs / rows) + 2)


def packed_batch(shape: PackShape, examples: int, objective: Objective, mesh: Mesh) -> PyTree:
    """What data.packing.pack makes, as shapes on a mesh."""
    inputs, targets, segments = ((shape.rows, n) for n in (shape.input_length, shape.target_length, shape.segments))
    of = _Leaves(mesh)
    return {
        "rows": {
            "inputs": of(inputs),
            "input_segments": of(inputs),
            "targets": of(targets),
            "target_segments": of(targets),
            "task": of(segments),
            "weight": of(segments, jnp.float32),
        },
        "examples": {
            "valid": of((examples,), jnp.bool_),
            "weight": of((examples,), jnp.float32),
            "slots": {task: of((examples,)) for task in objective.tasks},
        },
    }


def padded_batch(examples: int, input_length: int, target_length: int, objective: Objective, mesh: Mesh) -> PyTree:
    """What data.tokens.gather makes, as shapes on a mesh."""
    of = _Leaves(mesh)
    task = {"inputs": of((examples, input_length)), "targets": of((examples, target_length))}
    batch: dict[str, Any] = {name: dict(task) for name in objective.tasks}
    return batch | {"valid": of((examples,), jnp.bool_), "weight": of((examples,), jnp.float32)}


class _Leaves:
    """Makes arrays of a batch: int32 unless told otherwise, split along their first axis."""

    def __init__(self, mesh: Mesh):
        self._sharding = batch_sharding(mesh)

    def __call__(self, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding)


def bytes_per_device(tree: PyTree) -> float:
    """Bytes that each device holds of an abstract tree whose leaves carry shardings."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
    return float(sum(size * math.prod(shape) for shape, size in shards))


def programs(config: ConfigDict, mesh: Mesh, shape: PackShape) -> dict[str, Program]:
    """The programs of a run by name: train, evaluate, generate. To be lowered and compiled inside jax.set_mesh(mesh).

    Raises UserError for a config that a run on this mesh would refuse.
    """
    load_extensions(config.extensions)
    validate(config)
    check_batches(config, batch_shards(mesh))
    objective, student = make_objective(config), StudentDef.of(abstract_student(config))
    state_def = StateDef.of(student, make_optimizers(config), mesh, objective)
    rest = mesh, shape, objective, student, state_def.abstract
    return {
        "train": _train(config, mesh, shape, objective, state_def),
        "evaluate": _evaluate(config, *rest),
        "generate": _generate(config, *rest),
    }


def _lower(jitted: Callable, *arguments: Any, **static: Any) -> jax.stages.Lowered:
    return jitted.lower(*arguments, **static)  # type: ignore[attr-defined]


def _train(config: ConfigDict, mesh: Mesh, shape: PackShape, objective: Objective, state_def: StateDef) -> Program:
    schedule = make_schedule(config.optimizer, config.steps)
    step = make_train_step(state_def, objective, schedule, micro_batches=config.micro_batches)
    keys = jax.eval_shape(lambda: train_streams(config.seed))
    keys = abstract_arrays(keys, jax.tree.map(lambda _: replicated(mesh), keys))
    inputs, targets = shape.input_length, shape.target_length
    if config.data.packing:
        rows, batch = shape.rows, packed_batch(shape, config.batch_size, objective, mesh)
        words = f"{rows} rows of {inputs}→{targets} tokens"
    else:
        batch = padded_batch(config.batch_size, inputs, targets, objective, mesh)
        rows, words = config.batch_size * len(objective.tasks), _padded_words(config.batch_size, shape, objective)
    flops = step_flops(state_def.student.config, rows=rows, input_length=inputs, target_length=targets)
    arguments = bytes_per_device((state_def.abstract, batch))
    return Program("train", words, flops, arguments, 0.0, lambda: _lower(step, state_def.abstract, batch, keys))


def _padded_words(examples: int, shape: PackShape, objective: Objective) -> str:
    return f"{examples} examples × {len(objective.tasks)} of {shape.input_length}→{shape.target_length} tokens"


def _evaluate(
    config: ConfigDict, mesh: Mesh, shape: PackShape, objective: Objective, student: StudentDef, state: TrainState
) -> Program:
    """Losses of a padded batch; the optimizer's state stays where it is meanwhile."""
    examples, inputs, targets = config.eval.batch_size, shape.input_length, shape.target_length
    terms, batch = make_terms(student, objective, mesh), padded_batch(examples, inputs, targets, objective, mesh)
    params, words = state.params["student"], _padded_words(examples, shape, objective)
    flops = forward_flops(
        student.config, rows=examples * len(objective.tasks), input_length=inputs, target_length=targets
    )
    beside = bytes_per_device(state) - bytes_per_device(params)
    held = bytes_per_device((params, batch)), beside
    return Program("evaluate", words, flops, *held, lambda: _lower(terms, params, batch))


def _generate(
    config: ConfigDict, mesh: Mesh, shape: PackShape, objective: Objective, student: StudentDef, state: TrainState
) -> Program:
    """Generation for a padded batch; the state stays where it is meanwhile, its parameters too if those of generation
    lie otherwise."""
    examples, inputs, decoding = config.eval.batch_size, shape.input_length, eval_decoding(config)
    generation = Generation(student, mesh)
    params = abstract_arrays(student.shapes, generation.shardings)
    batch = padded_batch(examples, inputs, shape.target_length, objective, generation.mesh)
    words = f"{examples} examples of {inputs}→{decoding.max_tokens} tokens"
    if generation.mesh != mesh:
        words += f", mesh {' × '.join(map(str, generation.mesh.devices.shape))}"
    flops = forward_flops(student.config, rows=examples, input_length=inputs, target_length=decoding.max_tokens)
    beside = bytes_per_device(state) - (bytes_per_device(params) if generation.mesh == mesh else 0.0)

    def lower() -> jax.stages.Lowered:
        with jax.set_mesh(generation.mesh):
            return _lower(generation.generate, params, batch[PREDICT]["inputs"], decoding=decoding)

    return Program("generate", words, flops, bytes_per_device((params, batch)), beside, lower)


def summary(config: ConfigDict, mesh: Mesh, topology: str, device: str) -> str:
    """What is compiled for what, in words."""
    model = config.model
    parameters = count_parameters(StudentDef.of(abstract_student(config)).shapes)
    lines = [
        f"{topology}: {mesh.size} × {device}, mesh {dict(mesh.shape)}",
        f"student: {model.family} {model.preset}, {parameters:,} parameters, {model.dtype}, remat {model.remat}; "
        f"objective {config.objective.name}, {config.micro_batches} micro-batches",
    ]
    if model.init != "random":
        lines.append(f"config.model.init {model.init} is not read: the student's shape is that of model.preset")
    return "\n".join(lines)
