"""Programs as shapes: they are those of the batches, parameters and steps that a run makes."""

import jax
import numpy as np
import pytest
from mi_helpers import mi_config
from ml_collections import ConfigDict
from splits import TASKS, random_split

from cotmi_jax.aot.programs import (
    abstract_student,
    bytes_per_device,
    default_shape,
    packed_batch,
    padded_batch,
    programs,
)
from cotmi_jax.config import base, smoke
from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.packing import PackShape, make_shape, pack
from cotmi_jax.data.tokens import gather
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import make_objective
from cotmi_jax.models.flops import step_flops
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import PyTree

OBJECTIVES = {"standard": ("predict",), "cotmi": TASKS}


def described(batch: PyTree) -> PyTree:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.sharding.spec), batch)


def recipe(**changes: object) -> ConfigDict:
    config = smoke(base())
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("name, tasks", OBJECTIVES.items())
def test_batches_are_those_that_are_fed(name: str, tasks: tuple[str, ...]) -> None:
    mesh, split = make_mesh(data=2, fsdp=4), random_split(64, tasks=tasks)
    order = TrainOrder.of(split.size, 16, seed=1, tokens=split)
    shape = make_shape(split, order, multiple=8)
    fed = put_batch(pack(split, order.picks(0), shape), mesh)
    objective = Objective(name, mi_term=mi_config() if name == "cotmi" else None)
    assert described(packed_batch(shape, 16, objective, mesh)) == described(fed)

    fed = put_batch(gather(split, np.arange(16)), mesh)
    for task in tasks:
        fed[task]["targets"] = put_batch({"x": np.zeros((16, 16), np.int32)}, mesh)["x"]  # one length for all
    assert described(padded_batch(16, split.input_length, 16, objective, mesh)) == described(fed)


def test_rows_are_given_or_one_for_each_example() -> None:
    mesh, config = make_mesh(fsdp=8), recipe(batch_size=24)
    assert default_shape(config, mesh) == PackShape(24, 1024, 256, segments=4)
    assert default_shape(config, mesh, rows=8, input_length=64, target_length=32) == PackShape(8, 64, 32, segments=9)
    with pytest.raises(UserError, match="--rows=12 does not divide over 8 devices"):
        default_shape(config, mesh, rows=12)
    with pytest.raises(UserError, match="config.micro_batches 2"):
        default_shape(recipe(micro_batches=2), mesh, rows=8)


def test_what_a_device_holds() -> None:
    mesh, config = make_mesh(fsdp=4, tensor=2), recipe(batch_size=8, **{"optimizer.name": "adamw"})
    shape, objective = default_shape(config, mesh, rows=8, input_length=16, target_length=8), make_objective(config)
    found = programs(config, mesh, shape)
    params = StudentDef.of(abstract_student(config)).shapes
    sharded = sum(leaf.size for leaf in jax.tree.leaves(params)) * 4 / 8
    norms = 2 * 32 * 8 * 4 + 128 * 12 * 4  # whole on each device
    assert found["evaluate"].arguments == pytest.approx(sharded + norms, rel=0.05)
    # Beside them lie Adam's two moments, and the critic with its own.
    assert 2 * sharded < found["evaluate"].beside < 2.2 * (sharded + norms)
    # A step takes the whole state: what an evaluation takes of it, and what then lies beside.
    state = found["train"].arguments - bytes_per_device(packed_batch(shape, 8, objective, mesh))
    batch = bytes_per_device(padded_batch(config.eval.batch_size, 16, 8, objective, mesh))
    assert state == found["evaluate"].arguments + found["evaluate"].beside - batch
    assert found["train"].beside == 0
    assert found["train"].flops == step_flops(abstract_student(config), rows=8, input_length=16, target_length=8)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"data.packing": False}, {"micro_batches": 2, "objective.name": "dss"}])
def test_every_program_lowers(changes: dict) -> None:
    mesh, config = make_mesh(data=4, fsdp=2), recipe(batch_size=16, **changes)
    with jax.set_mesh(mesh):
        for program in programs(config, mesh, default_shape(config, mesh, input_length=16, target_length=8)).values():
            assert program.lower().as_text().startswith("module @jit_")


def test_bytes_of_a_device_are_those_of_its_parts() -> None:
    mesh = make_mesh(data=2, fsdp=4)
    whole, parts = np.zeros((16, 3), np.float32), put_batch({"x": np.zeros((16, 3), np.float32)}, mesh)
    assert bytes_per_device(parts) == whole.nbytes / 8
