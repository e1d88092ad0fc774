"""Programs lowered from abstract arrays equal those of a run: batches, parameters, steps."""

from pathlib import Path

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
from cotmi_jax.data import tasks
from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.packing import PackShape, make_shape, pack
from cotmi_jax.data.tokens import gather
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import find_vocabulary, make_objective, make_student
from cotmi_jax.inference.generation import Generation
from cotmi_jax.models.flops import step_flops
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import PyTree, abstract_arrays

OBJECTIVES = {"standard": ("predict",), "cotmi": TASKS}


def described(batch: PyTree) -> PyTree:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype), x.sharding.spec), batch)


def recipe(**changes: object) -> ConfigDict:
    config = smoke(base())
    config.objective.name = "cotmi"
    config.update_from_flattened_dict(changes)
    return config


@pytest.mark.parametrize("name, tasks", OBJECTIVES.items())
def test_abstract_batches_equal_those_of_a_run(name: str, tasks: tuple[str, ...]) -> None:
    mesh, split = make_mesh(data=2, fsdp=4), random_split(64, tasks=tasks)
    order = TrainOrder.of(split.size, 16, seed=1, tokens=split)
    shape = make_shape(split, order, multiple=8)
    batch = put_batch(pack(split, order.picks(0), shape), mesh)
    objective = Objective(name, mi_term=mi_config() if name == "cotmi" else None)
    assert described(packed_batch(shape, 16, objective, mesh)) == described(batch)

    batch = put_batch(gather(split, np.arange(16)), mesh)
    for task in tasks:
        batch[task]["targets"] = put_batch({"x": np.zeros((16, 16), np.int32)}, mesh)["x"]  # one length
    assert described(padded_batch(16, split.input_length, 16, objective, mesh)) == described(batch)


def test_the_default_shape_has_a_row_for_each_example() -> None:
    mesh, config = make_mesh(fsdp=8), recipe(batch_size=24)
    assert default_shape(config, mesh) == PackShape(24, 1024, 256, segments=4)
    assert default_shape(config, mesh, rows=8, input_length=64, target_length=32) == PackShape(8, 64, 32, segments=9)
    with pytest.raises(UserError, match="--rows=12 does not divide over 8 devices"):
        default_shape(config, mesh, rows=12)
    with pytest.raises(UserError, match="config.micro_batches 2"):
        default_shape(recipe(micro_batches=2), mesh, rows=8)


def test_an_objective_may_be_defined_in_an_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extension = tmp_path / "study.py"
    extension.write_text(
        "from cotmi_jax.data.tasks import OBJECTIVES, register_objective\n"
        "register_objective('mine', OBJECTIVES['dss'])\n"
    )
    monkeypatch.setattr(tasks, "OBJECTIVES", dict(tasks.OBJECTIVES))
    config = recipe(batch_size=24, extensions=str(extension), **{"objective.name": "mine"})
    expected = default_shape(recipe(batch_size=24, **{"objective.name": "dss"}), make_mesh(fsdp=8))
    assert default_shape(config, make_mesh(fsdp=8)) == expected


def test_arguments_and_resident_state_of_a_device() -> None:
    mesh, config = make_mesh(fsdp=4, tensor=2), recipe(batch_size=8, **{"optimizer.name": "adamw"})
    shape, objective = default_shape(config, mesh, rows=8, input_length=16, target_length=8), make_objective(config)
    found = programs(config, mesh, shape)
    params = StudentDef.of(abstract_student(config)).shapes
    sharded = sum(leaf.size for leaf in jax.tree.leaves(params)) * 4 / 8
    norms = 2 * 32 * 8 * 4 + 128 * 12 * 4  # replicated
    assert found["evaluate"].arguments == pytest.approx(sharded + norms, rel=0.05)
    # Resident: Adam's two moments, the critic with its moments, and the copy of the parameters for generation.
    student = StudentDef.of(abstract_student(config))
    copy = bytes_per_device(abstract_arrays(student.shapes, Generation(student, mesh).shardings))
    assert 2 * sharded + copy < found["evaluate"].resident < 2.2 * (sharded + norms) + copy
    # The argument of a step is the whole state: the arguments of an evaluation and what stays resident meanwhile.
    state = found["train"].arguments - bytes_per_device(packed_batch(shape, 8, objective, mesh))
    batch = bytes_per_device(padded_batch(config.eval.batch_size, 16, 8, objective, mesh))
    assert state == found["evaluate"].arguments + found["evaluate"].resident - copy - batch
    assert found["train"].resident == 0
    assert found["train"].flops == step_flops(abstract_student(config), rows=8, input_length=16, target_length=8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data.packing": False},
        {"micro_batches": 2, "objective.name": "dss"},
        {"mi.estimator": "consistency", "data.rationale_answer": "append"},
        {"mi.estimator": "consistency", "data.rationale_answer": "append", "data.packing": False},
    ],
)
def test_every_program_lowers(changes: dict) -> None:
    mesh, config = make_mesh(data=4, fsdp=2), recipe(batch_size=16, **changes)
    with jax.set_mesh(mesh):
        for program in programs(config, mesh, default_shape(config, mesh, input_length=16, target_length=8)).values():
            assert program.lower().as_text().startswith("module @jit_")


def test_the_student_has_the_embeddings_of_its_vocabulary(data_root: Path) -> None:
    for changes in ({"data.dataset": "arithmetic"}, {"data.dataset": "cqa"}):
        config = recipe(**changes, **{"data.root": str(data_root)})
        student, _ = make_student(config, Vocabulary(find_vocabulary(config)))
        assert abstract_student(config).vocab_size == student.vocab_size
    assert abstract_student(recipe(**{"data.vocabulary": "own:4000"})).vocab_size == 4096
    assert abstract_student(recipe(**{"model.vocab_size": 640})).vocab_size == 640
    with pytest.raises(UserError, match="config.micro_batches is 0"):
        default_shape(recipe(micro_batches=0), make_mesh())


def test_bytes_per_device_count_its_shards() -> None:
    mesh = make_mesh(data=2, fsdp=4)
    x = np.zeros((16, 3), np.float32)
    assert bytes_per_device(put_batch({"x": x}, mesh)) == x.nbytes / 8
