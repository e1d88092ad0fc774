"""The sharding of every parameter on every mesh, against golden files; meshes, batches and their errors.

`python tests/parallel/test_sharding.py` regenerates golden/sharding/. Review its diff: each line is an array whose
sharding changes.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from helpers import random_batch
from jax.experimental import topologies
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec
from mi_helpers import mi_config
from paths import GOLDEN

from cotmi_jax.aot.topology import topology_devices
from cotmi_jax.config import base
from cotmi_jax.errors import UserError
from cotmi_jax.mi.networks import CRITICS, CriticConfig
from cotmi_jax.models.config import FAMILIES, PRESETS, T5Config, preset
from cotmi_jax.models.module import ModuleDef
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.mi_term import networks_def
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.batch import batch_sharding, constrain_batch, put_batch, rows_of_processes
from cotmi_jax.parallel.mesh import MESH_AXES, batch_shards, make_mesh
from cotmi_jax.parallel.process_rows import ProcessRows
from cotmi_jax.parallel.sharding import RULES, param_shardings, replicated, resolve
from cotmi_jax.training.optimizer import make_optimizers
from cotmi_jax.training.state import StateDef

FOLDER = GOLDEN / "sharding"

MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (4, 64, 1), (1, 16, 16))
OPTIMIZERS = ("adamw", "adafactor")
LeafShardings = dict[str, tuple[tuple[int, ...], NamedSharding]]  # path → shape and sharding


def abstract_mesh(sizes: tuple[int, int, int]) -> Any:
    """A mesh of any size, without devices."""
    return AbstractMesh(sizes, MESH_AXES)


def leaf_shardings(shapes: Any, shardings: Any) -> LeafShardings:
    """Every leaf with its sharding. A path is the field of the optimizer state, if any, and the dict keys."""
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    names = [
        "/".join(part.strip("./") for part in (jax.tree_util.keystr((entry,), simple=True) for entry in path))
        for path, _ in leaves
    ]
    found = zip(names, leaves, jax.tree.leaves(shardings), strict=True)
    return {name: (leaf.shape, sharding) for name, (_, leaf), sharding in found}


def shardings_of(network: ModuleDef, mesh: Any) -> LeafShardings:
    """Of the parameters of a network."""
    return leaf_shardings(network.shapes, param_shardings(network.shapes, network.axes, mesh))


def state_of(config: T5Config, optimizer: str, sizes: tuple[int, int, int]) -> StateDef:
    """The state of a run with the default objective, critic included."""
    settings = base()
    settings.optimizer.name = optimizer
    return StateDef.of(
        StudentDef.of(config),
        make_optimizers(settings),
        abstract_mesh(sizes),
        Objective("cotmi", mi_term=mi_config(critic=CriticConfig())),
    )


def bytes_of(state: StateDef) -> int:
    """Bytes that each device holds."""
    local = jax.tree.map(lambda leaf, sharding: sharding.shard_shape(leaf.shape), state.shapes, state.shardings)
    sizes = jax.tree.map(lambda leaf, shape: math.prod(shape) * leaf.dtype.itemsize, state.shapes, local)
    return sum(jax.tree.leaves(sizes))


def describe(state: StateDef) -> dict[str, dict[str, str]]:
    """Path → shape and the mesh axis of each dimension: of the parameters, and of the arrays of the optimizer that are
    not sharded as their parameter is."""
    found: dict[str, dict[str, str]] = {"parameters": {}, "optimizer": {}}
    for name, (shape, where) in leaf_shardings(state.shapes, state.shardings).items():
        kind, _, path = name.partition("/")
        text = f"{list(shape)} ({', '.join(axis or '-' for axis in where.spec)})"
        if kind == "params":
            found["parameters"][path] = text
        elif shape == (1,):
            continue  # Adafactor's placeholder for a moment that it does not have
        elif not any(path.endswith(f"/{owner}") and text == its for owner, its in found["parameters"].items()):
            found["optimizer"][path or kind] = text
    return found


def make_golden(config: T5Config) -> dict[str, dict[str, Any]]:
    """The sharding of every array of a state, and for each mesh the bytes per device or the error.

    Meshes differ in the sizes of the shards, not in the dimensions that are sharded.
    """
    golden: dict[str, dict[str, Any]] = {"bytes a device": {}}
    for sizes in MESHES:
        title = "x".join(map(str, sizes))
        try:
            states = {name: state_of(config, name, sizes) for name in OPTIMIZERS}
        except UserError as error:
            golden["bytes a device"][title] = str(error)
            continue
        golden["bytes a device"][title] = {name: bytes_of(state) for name, state in states.items()}
        for name, state in states.items():
            found = describe(state)
            for key, value in (("parameters", found["parameters"]), (name, found["optimizer"])):
                assert golden.setdefault(key, value) == value
    return golden


def golden_file(family: str, name: str) -> Path:
    """The golden file of a preset."""
    return FOLDER / f"{family}-{name}.json"


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_leaf_of_every_preset_is_sharded_as_in_the_golden_file(family: str, name: str) -> None:
    assert make_golden(preset(name, family)) == json.loads(golden_file(family, name).read_text())


def test_optimizer_states_are_sharded_as_their_parameters() -> None:
    """Adafactor's row and column factors of a matrix, as the dimensions that they retain."""
    adam, adafactor = (describe(state_of(preset("base"), name, (1, 2, 2))) for name in OPTIMIZERS)
    assert all(text == "[] ()" for text in adam["optimizer"].values())  # counts of steps
    matrix = "student/decoder/blocks/mlp/gate"
    assert adam["parameters"][matrix] == "[12, 768, 2048] (-, fsdp, tensor)"
    factors = {
        side: text
        for side in ("row", "col")
        for path, text in adafactor["optimizer"].items()
        if path.endswith(f"v_{side}/{matrix}")
    }
    assert factors == {"row": "[12, 768] (-, fsdp)", "col": "[12, 2048] (-, tensor)"}


@pytest.mark.parametrize("name", CRITICS)
def test_every_critic_is_sharded(name: str) -> None:
    """Its largest matrix over fsdp only."""
    found = shardings_of(networks_def(mi_config(critic=CriticConfig(name)), preset("base")), abstract_mesh((1, 4, 2)))
    largest, where = max(found.values(), key=lambda each: math.prod(each[0]))
    assert math.prod(where.shard_shape(largest)) * 4 == math.prod(largest)


def test_parameters_are_sharded_as_the_table_says() -> None:
    """Expected by hand for one parameter of each kind; all but the norms are sharded."""
    found = shardings_of(StudentDef.of(preset("base")), abstract_mesh((1, 4, 2)))
    expected = {
        "embedding": ("tensor", "fsdp"),
        "head": ("fsdp", "tensor"),
        "encoder/blocks/attention/query": (None, "fsdp", "tensor", None),
        "decoder/blocks/cross_attention/out": (None, "tensor", None, "fsdp"),
        "decoder/blocks/mlp/gate": (None, "fsdp", "tensor"),
        "decoder/blocks/mlp/down": (None, "tensor", "fsdp"),
        "decoder/position/embedding": (None, "tensor"),
        "encoder/blocks/mlp_norm/scale": (None, None),
        "encoder/final_norm/scale": (None,),
    }
    assert {name: tuple(found[name][1].spec) for name in expected} == expected
    for name, (shape, where) in found.items():
        if "norm" not in name:
            shards = 2 if "position" in name else 8
            assert np.prod(where.shard_shape(shape)) * shards == np.prod(shape), name


def test_a_dimension_that_does_not_divide_is_refused() -> None:
    """v1.1 small has 6 heads."""
    student = StudentDef.of(preset("small"))
    with pytest.raises(UserError) as caught:
        param_shardings({"student": student.shapes}, {"student": student.axes}, abstract_mesh((1, 2, 4)))  # type: ignore[arg-type]
    message = str(caught.value)
    assert "student/decoder/blocks/attention/key" in message and "\n" not in message
    assert "'heads' of size 6" in message and "4 devices of mesh axis 'tensor'" in message


def test_an_axis_that_the_table_lacks_is_refused() -> None:
    with pytest.raises(
        UserError, match="parameter critic/weight: logical axis 'critic_dim' is not in parallel.sharding.RULES: add it"
    ):
        resolve("critic/weight", (8, 8), ("embed", "critic_dim"), abstract_mesh((1, 4, 2)))  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        resolve("critic/weight", (8, 8), ("embed",), abstract_mesh((1, 4, 2)))  # type: ignore[arg-type]


def test_the_table_uses_mesh_axes_only() -> None:
    assert set(RULES.values()) <= {*MESH_AXES, None}


@pytest.mark.parametrize(
    ("asked", "sizes"),
    [
        ((), (8, 1, 1)),
        ((-1, 2, 2), (2, 2, 2)),
        ((1, -1, 4), (1, 2, 4)),
        ((2, 1, -1), (2, 1, 4)),
        ((8, 1, 1), (8, 1, 1)),
    ],
)
def test_meshes(asked: tuple[int, ...], sizes: tuple[int, int, int]) -> None:
    mesh = make_mesh(*asked)
    assert tuple(mesh.shape.items()) == tuple(zip(MESH_AXES, sizes, strict=True))
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert batch_shards(mesh) == sizes[0] * sizes[1]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ((3, 1, 1), "'data': 3.* does not cover 8 devices"),
        ((-1, 3, 1), "'fsdp': 3.* does not cover 8 devices"),
        ((-1, 16, 1), "'fsdp': 16.* does not cover 8 devices"),
        ((2, 2, 1), "does not cover 8 devices"),
        ((-1, -1, 1), "at most one may be -1"),
        ((8, 0, 1), "'fsdp': 0.* sizes must be positive"),
        ((-2, 1, 1), "'data': -2.* sizes must be positive"),
    ],
)
def test_impossible_meshes_are_refused(asked: tuple[int, int, int], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        make_mesh(*asked)
    assert "\n" not in str(caught.value)


def test_a_batch_is_sharded_by_rows_over_data_and_fsdp() -> None:
    mesh, batch = make_mesh(2, 2, 2), random_batch(0, 8)
    on_mesh = put_batch(batch, mesh)
    for leaf, host in zip(jax.tree.leaves(on_mesh), jax.tree.leaves(batch), strict=True):
        assert leaf.sharding.is_equivalent_to(batch_sharding(mesh), leaf.ndim)
        np.testing.assert_array_equal(leaf, host)
        assert {shard.data.shape[0] for shard in leaf.addressable_shards} == {2}


def test_activations_are_constrained_if_there_is_a_mesh() -> None:
    x = np.arange(32.0).reshape(8, 4)
    assert constrain_batch(x) is x
    mesh = make_mesh(4, 2, 1)
    with jax.set_mesh(mesh):
        pinned = jax.jit(constrain_batch)(jax.device_put(x, replicated(mesh)))
    assert pinned.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), 2)
    np.testing.assert_array_equal(pinned, x)


def hosts_of(owners: list[int], sizes: tuple[int, int, int]) -> Any:
    """A mesh of mock devices that belong to these processes, in the order of the mesh."""
    devices = np.array([mock.Mock(process_index=owner) for owner in owners]).reshape(sizes)
    return SimpleNamespace(devices=devices, shape=dict(zip(MESH_AXES, sizes, strict=True)))


@pytest.mark.parametrize(
    ("owners", "sizes", "expected"),
    [
        ([0] * 8, (2, 2, 2), {0: ProcessRows(0, 1, (0, 1, 2, 3))}),
        ([0, 0, 0, 0, 1, 1, 1, 1], (4, 1, 2), {0: ProcessRows(0, 2, (0, 1)), 1: ProcessRows(1, 2, (2, 3))}),
        ([1, 1, 1, 1, 0, 0, 0, 0], (8, 1, 1), {1: ProcessRows(0, 2, (0, 1, 2, 3)), 0: ProcessRows(1, 2, (4, 5, 6, 7))}),
        # The order in which make_mesh takes the chips of v5p:2x2x2.
        ([0, 1, 0, 1, 0, 1, 0, 1], (8, 1, 1), {0: ProcessRows(0, 2, (0, 2, 4, 6)), 1: ProcessRows(1, 2, (1, 3, 5, 7))}),
        # Hosts whose chips hold the same batch shard supply the same rows.
        ([0, 0, 0, 0, 1, 1, 1, 1], (1, 1, 8), {0: ProcessRows(0, 1, (0,)), 1: ProcessRows(0, 1, (0,))}),
        (
            [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3],
            (2, 2, 4),
            {
                0: ProcessRows(0, 2, (0, 1)),
                1: ProcessRows(0, 2, (0, 1)),
                2: ProcessRows(1, 2, (2, 3)),
                3: ProcessRows(1, 2, (2, 3)),
            },
        ),
    ],
)
def test_each_process_supplies_the_rows_of_its_devices(
    owners: list[int], sizes: tuple[int, int, int], expected: dict[int, ProcessRows]
) -> None:
    assert rows_of_processes(hosts_of(owners, sizes)) == expected


@pytest.mark.parametrize(
    ("owners", "sizes"), [([0, 0, 0, 1, 1, 1, 1, 1], (8, 1, 1)), ([0, 0, 0, 1, 1, 1, 1, 1], (4, 1, 2))]
)
def test_processes_that_share_only_some_batch_shards_are_refused(
    owners: list[int], sizes: tuple[int, int, int]
) -> None:
    with pytest.raises(UserError, match=r"processes hold the batch shards \[\(.*\)\]; they have"):
        rows_of_processes(hosts_of(owners, sizes))


@pytest.mark.parametrize(
    ("slice_name", "sizes", "shards_of_host_1"),
    [
        ("v5e-8", (8, 1, 1), (4, 5, 6, 7)),
        ("v5e-64", (64, 1, 1), (16, 17, 24, 25)),  # two rows of chips, two columns
        ("v5e-64", (1, 8, 8), (0, 1)),  # the same rows as the neighbouring host
        ("v5p-16", (2, 2, 2), None),
        ("v4-128", (2, 32, 1), None),  # no axis of its torus is as long
    ],
)
def test_processes_of_a_tpu_slice_supply_every_row_once(
    slice_name: str, sizes: tuple[int, int, int], shards_of_host_1: tuple[int, ...] | None
) -> None:
    """In the order of chips that each kind of slice has."""
    pytest.importorskip("libtpu")
    mesh = make_mesh(*sizes, devices=topology_devices(slice_name))
    by_process = rows_of_processes(mesh)
    assert set(by_process) == {device.process_index for device in mesh.devices.flat}
    rows = 2 * batch_shards(mesh)
    supplied = {each.group: each.indices(rows).tolist() for each in by_process.values()}
    assert sorted(sum(supplied.values(), [])) == list(range(rows))
    assert shards_of_host_1 in (None, by_process[1].shards)


def test_slices_are_placed_along_data() -> None:
    """Two slices, connected only by the data-centre network."""
    pytest.importorskip("libtpu")
    topology_devices("v5e-8")  # sets up libtpu
    devices = topologies.get_topology_desc("v5e:2x4", platform="tpu", num_slices=2).devices
    mesh = make_mesh(4, 2, 2, devices=devices)
    assert [{device.slice_index for device in part.flat} for part in mesh.devices] == [{0}, {0}, {1}, {1}]
    with pytest.raises(UserError, match="config.mesh.data 1 does not divide over 2 slices"):
        make_mesh(1, 8, 2, devices=devices)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for family in FAMILIES:
        for name in PRESETS:
            golden_file(family, name).write_text(json.dumps(make_golden(preset(name, family)), indent=1) + "\n")
