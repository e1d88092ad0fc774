"""The programs of a run (training step, evaluation losses, generation), lowered from abstract arrays.

Needs no data and no weights; the devices of the mesh may be those of a topology. Does not import tensorflow.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.config import check_batches, validate
from cotmi_jax.data.packing import PackShape
from cotmi_jax.data.tasks import PREDICT
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.evaluator import make_terms
from cotmi_jax.experiment import eval_decoding, expected_embeddings, make_objective
from cotmi_jax.extensions import load_extensions
from cotmi_jax.inference.generation import Generation
from cotmi_jax.models.config import T5Config, preset, with_execution
from cotmi_jax.models.flops import forward_flops, step_flops
from cotmi_jax.models.rng import train_streams
from cotmi_jax.models.student import StudentDef, count_parameters
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.batch import batch_sharding
from cotmi_jax.parallel.mesh import batch_shards
from cotmi_jax.parallel.sharding import PyTree, abstract_arrays, replicated
from cotmi_jax.training.optimizer import make_optimizers, make_schedule
from cotmi_jax.training.state import StateDef, TrainState
from cotmi_jax.training.step import make_train_step

_ANSWER_TOKENS = 16  # of the longest answer of consistency, which only the data gives


@dataclasses.dataclass(frozen=True)
class Program:
    """One jitted program of a run.

    batch: its size, as text. flops: of the model, on all devices. arguments: their bytes per device. resident: bytes
      per device of training state that stays there while the program runs without being an argument.
    """

    name: str
    batch: str
    flops: float
    arguments: float
    resident: float
    lower: Callable[[], jax.stages.Lowered]


NAMES = ("train", "evaluate", "generate")


def check_names(names: Sequence[str]) -> list[str]:
    """The names of programs. Raises UserError for an unknown one."""
    for name in names:
        if name not in NAMES:
            raise UserError(f"unknown program {name!r}: choose from {', '.join(NAMES)}")
    return list(names)


def abstract_student(config: ConfigDict) -> T5Config:
    """The student of config.model.preset and family. model.init is not read, so that no checkpoint is needed."""
    model = config.model
    if model.network != "t5":
        raise UserError(
            f"config.model.network is {model.network!r}, but aot compiles only t5: set config.model.network to t5"
        )
    return with_execution(preset(model.preset, model.family, vocab_size=expected_embeddings(config)), model)


def default_shape(
    config: ConfigDict, mesh: Mesh, *, rows: int = 0, input_length: int = 0, target_length: int = 0
) -> PackShape:
    """Shape of a packed batch without the data; 0 stands for a default.

    By default rows have the longest lengths that the config allows and are as many as a batch has examples: an upper
    bound of the shape that `train` prints when it starts. Raises UserError if the rows do not divide over the mesh.
    """
    load_extensions(config.extensions)  # the objective may be defined there
    validate(config)
    multiple = batch_shards(mesh) * config.micro_batches
    rows = rows or -(-config.batch_size // multiple) * multiple
    if rows % multiple:
        raise UserError(
            f"--rows={rows} does not divide over {batch_shards(mesh)} devices of mesh data × fsdp"
            + f" and config.micro_batches {config.micro_batches}" * (config.micro_batches > 1)
            + f": use a multiple of {multiple}"
        )
    objective, data = make_objective(config), config.data
    pairs = config.batch_size * len(objective.tasks)
    lengths = input_length or data.max_input_tokens, target_length or data.max_target_tokens
    segments, further = int(1.3 * pairs / rows) + 2, objective.counterfactuals * lengths[1]
    return PackShape(rows, *lengths, segments, counterfactual_length=further)


def packed_batch(shape: PackShape, examples: int, objective: Objective, mesh: Mesh) -> PyTree:
    """The batch of data.packing.pack, as abstract arrays on a mesh."""
    inputs, targets, segments = ((shape.rows, n) for n in (shape.input_length, shape.target_length, shape.segments))
    array = _BatchArrays(mesh)
    more_rows, more_examples = {}, {}
    if objective.mi_term is not None and objective.mi_term.consistent:
        more_rows["answers"] = array((shape.rows, shape.segments, _ANSWER_TOKENS))
        more_examples["answer_length"] = array((examples,))
    if objective.counterfactuals:
        columns = array((shape.rows, shape.counterfactual_length))
        more_rows |= {"counterfactuals": columns, "counterfactual_segments": columns}
        more_examples["counterfactuals"] = array((examples, objective.counterfactuals), jnp.bool_)
    return {
        "rows": {
            "inputs": array(inputs),
            "input_segments": array(inputs),
            "targets": array(targets),
            "target_segments": array(targets),
            "task": array(segments),
            "weight": array(segments, jnp.float32),
            **more_rows,
        },
        "examples": {
            "valid": array((examples,), jnp.bool_),
            "weight": array((examples,), jnp.float32),
            "slots": {task: array((examples,)) for task in objective.tasks},
            **more_examples,
        },
    }


def padded_batch(
    examples: int, input_length: int, target_length: int, objective: Objective, mesh: Mesh, *, trains: bool = False
) -> PyTree:
    """The batch of data.tokens.gather or, to train, of data.packing.make_batch, as abstract arrays on a mesh."""
    array = _BatchArrays(mesh)
    task = {"inputs": array((examples, input_length)), "targets": array((examples, target_length))}
    batch: dict[str, Any] = {name: dict(task) for name in objective.tasks}
    if trains and objective.counterfactuals:
        further = array((examples, objective.counterfactuals, target_length))
        batch["counterfactuals"] = dict.fromkeys(objective.tasks, further)
    if objective.mi_term is not None and objective.mi_term.consistent:
        for name in objective.tasks:
            batch[name]["answers"] = array((examples, _ANSWER_TOKENS))
        batch["answer_length"] = array((examples,))
    return batch | {"valid": array((examples,), jnp.bool_), "weight": array((examples,), jnp.float32)}


class _BatchArrays:
    """Makes abstract arrays of a batch, int32 by default, sharded along their first axis."""

    def __init__(self, mesh: Mesh):
        self._sharding = batch_sharding(mesh)

    def __call__(self, shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding)


def bytes_per_device(tree: PyTree) -> float:
    """Bytes per device of a tree whose leaves have shardings."""
    shards = ((leaf.sharding.shard_shape(leaf.shape), leaf.dtype.itemsize) for leaf in jax.tree.leaves(tree))
    return float(sum(size * math.prod(shape) for shape, size in shards))


def programs(config: ConfigDict, mesh: Mesh, shape: PackShape) -> dict[str, Program]:
    """The programs of a run by name: train, evaluate, generate. Lower and compile them inside jax.set_mesh(mesh).

    Raises UserError as a run with this config on this mesh does.
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
        text = f"{rows} rows of {inputs}→{targets} tokens"
    else:
        batch = padded_batch(config.batch_size, inputs, targets, objective, mesh, trains=True)
        rows, text = config.batch_size * len(objective.tasks), _padded_text(config.batch_size, shape, objective)
    flops = step_flops(state_def.student.config, rows=rows, input_length=inputs, target_length=targets)
    arguments = bytes_per_device((state_def.abstract, batch))
    return Program("train", text, flops, arguments, 0.0, lambda: _lower(step, state_def.abstract, batch, keys))


def _padded_text(examples: int, shape: PackShape, objective: Objective) -> str:
    return f"{examples} examples × {len(objective.tasks)} of {shape.input_length}→{shape.target_length} tokens"


def _evaluate(
    config: ConfigDict, mesh: Mesh, shape: PackShape, objective: Objective, student: StudentDef, state: TrainState
) -> Program:
    """Losses of a padded batch; the state of the optimizer stays resident, and a copy of the parameters if generation
    uses another mesh."""
    examples, inputs, targets = config.eval.batch_size, shape.input_length, shape.target_length
    terms, batch = make_terms(student, objective, mesh), padded_batch(examples, inputs, targets, objective, mesh)
    params, text = state.params["student"], _padded_text(examples, shape, objective)
    flops = forward_flops(
        student.config, rows=examples * len(objective.tasks), input_length=inputs, target_length=targets
    )
    generation = Generation(student, mesh)
    resident = bytes_per_device(state) - bytes_per_device(params)
    if generation.mesh != mesh:
        resident += bytes_per_device(abstract_arrays(student.shapes, generation.shardings))
    arguments = bytes_per_device((params, batch))
    return Program("evaluate", text, flops, arguments, resident, lambda: _lower(terms, params, batch))


def _generate(
    config: ConfigDict, mesh: Mesh, shape: PackShape, objective: Objective, student: StudentDef, state: TrainState
) -> Program:
    """Encoding and generation for a padded batch; the state stays resident, its parameters too if generation uses
    another mesh and hence a copy of them."""
    examples, inputs, decoding = config.eval.batch_size, shape.input_length, eval_decoding(config)
    generation = Generation(student, mesh)
    params = abstract_arrays(student.shapes, generation.shardings)
    batch = padded_batch(examples, inputs, shape.target_length, objective, generation.mesh)
    text = f"{examples} examples of {inputs}→{decoding.max_tokens} tokens"
    if generation.mesh != mesh:
        text += f", mesh {' × '.join(map(str, generation.mesh.devices.shape))}"
    flops = forward_flops(student.config, rows=examples, input_length=inputs, target_length=decoding.max_tokens)
    resident = bytes_per_device(state) - (bytes_per_device(params) if generation.mesh == mesh else 0.0)

    def lower() -> jax.stages.Lowered:
        with jax.set_mesh(generation.mesh):
            return _lower(generation.generate, params, batch[PREDICT]["inputs"], None, decoding=decoding)

    return Program("generate", text, flops, bytes_per_device((params, batch)), resident, lower)


def summary(config: ConfigDict, mesh: Mesh, topology: str, device: str) -> str:
    """The topology, the student and the objective, as text."""
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
