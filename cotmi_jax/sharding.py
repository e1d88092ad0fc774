"""Mesh, logical-axis table and strict resolution of shardings.

Parameters name their dimensions logically (`embed`, `mlp`, …); this file alone says which mesh axis each name uses. A
name that the table lacks, or a dimension that its mesh axes do not divide, is an error: nothing is replicated silently.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, KeyPath

from cotmi_jax.errors import UserError
from cotmi_jax.feed import Feed

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # a batch is split over both; fsdp also splits the parameters

RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv": None,
    "norm": None,
    "buckets": None,
    "layers": None,  # the scanned dimension
    "feature": None,  # inputs of the networks that belong to the mutual-information term
    "critic": "fsdp",  # their hidden units and codes
    "critic_out": None,  # their scalar outputs
}

PyTree = Any


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of all devices, or of those given, with axes (data, fsdp, tensor); one size may be -1, the rest of them.

    On a TPU neighbours in the mesh are neighbours in the torus. Slices, which only the data-centre network connects,
    lie along `data`. Axes are Auto: since JAX 0.9 jax.make_mesh's default is Explicit, under which a
    vocabulary-sharded look-up raises.
    """
    devices = jax.devices() if devices is None else devices
    shape = _mesh_shape({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    # A single slice's devices may have no index. GPUs have one for each group that NVLink connects, which any axis may
    # cross.
    slices = len({getattr(device, "slice_index", 0) for device in devices}) if devices[0].platform == "tpu" else 1
    if slices > 1:
        if shape[0] % slices:
            raise UserError(f"config.mesh.data {shape[0]} does not divide over {slices} slices: make it a multiple")
        arranged = mesh_utils.create_hybrid_device_mesh(
            (shape[0] // slices, *shape[1:]), (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        arranged = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def regroup(mesh: Mesh, shape: Sequence[int]) -> Mesh:
    """The same devices in the same order, otherwise split among the axes."""
    return Mesh(mesh.devices.reshape(shape), mesh.axis_names, axis_types=mesh.axis_types)


def _mesh_shape(sizes: dict[str, int], devices: int) -> tuple[int, ...]:
    """The sizes with -1 filled in. Raises UserError where they do not multiply to the number of devices."""
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"mesh {sizes}: sizes are positive and at most one is -1")
    if free and devices % fixed == 0:
        sizes[free[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise UserError(f"mesh {sizes} does not cover {devices} devices: change config.mesh")
    return tuple(sizes.values())


def resolve(name: str, shape: tuple[int, ...], axes: tuple[str, ...], mesh: Mesh) -> NamedSharding:
    """Sharding of one parameter from its logical axes. Raises UserError for an unknown axis or an uneven split."""
    spec: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis not in RULES:
            raise UserError(f"parameter {name}: logical axis {axis!r} is not in the sharding table")
        mesh_axis = RULES[axis]
        if mesh_axis is not None and size % mesh.shape[mesh_axis]:
            raise UserError(
                f"parameter {name}: axis {axis!r} of size {size} does not divide over "
                f"{mesh.shape[mesh_axis]} devices of mesh axis {mesh_axis!r}: change config.mesh"
            )
        spec.append(mesh_axis)
    return NamedSharding(mesh, PartitionSpec(*spec))


def dict_keys(path: KeyPath) -> tuple[str, ...]:
    """The dict keys of a path in a tree."""
    return tuple(entry.key for entry in path if isinstance(entry, DictKey))


def param_shardings(shapes: PyTree, axes: PyTree, mesh: Mesh) -> PyTree:
    """The sharding of every parameter by its logical axes. Raises UserError as resolve does."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, names: resolve("/".join(dict_keys(path)), leaf.shape, names, mesh), shapes, axes
    )


def placed(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Shapes that carry their shardings: what arrays are restored into, or programs lowered for."""
    return jax.tree.map(
        lambda shape, where: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where), shapes, shardings
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def make_feeds(mesh: Mesh) -> dict[int, Feed]:
    """What each process feeds of a batch that lies on the mesh.

    Raises UserError where processes hold some parts in common and others not, or not equally many.
    """
    held: dict[int, set[int]] = {}
    for part, devices in enumerate(mesh.devices.reshape(batch_shards(mesh), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(part)
    distinct = sorted({tuple(sorted(parts)) for parts in held.values()})
    if len({len(parts) for parts in distinct}) > 1 or sum(map(len, distinct)) != batch_shards(mesh):
        raise UserError(
            f"mesh {dict(mesh.shape)}: processes hold the parts {distinct} of a batch, neither the same ones nor apart "
            "and equally many: change config.mesh"
        )
    feeds = {parts: Feed(number, len(distinct), parts) for number, parts in enumerate(distinct)}
    return {process: feeds[tuple(sorted(parts))] for process, parts in held.items()}


@functools.lru_cache(maxsize=8)
def make_feed(mesh: Mesh) -> Feed:
    """What this process feeds. Raises UserError as make_feeds does."""
    return make_feeds(mesh)[jax.process_index()]


def put_batch(batch: Mapping[str, PyTree], mesh: Mesh) -> PyTree:
    """Host arrays → device arrays split over the mesh along their first axis; this process gives the rows of its feed.

    Raises UserError where the rows do not divide over the mesh.
    """
    sharding, feed = batch_sharding(mesh), make_feed(mesh)

    def put(x: np.ndarray) -> Array:
        total = len(x) * feed.count
        each = feed.size(total) // len(feed.parts)  # rows a part

        def rows_of(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # as for a scalar
            begin = feed.parts.index((index[0].start or 0) // each) * each
            return x[begin : begin + each]

        return jax.make_array_from_callback((total, *x.shape[1:]), sharding, rows_of)

    return jax.tree.map(put, batch)


def constrain_batch(x: Array) -> Array:
    """Pin an activation's first axis to the batch axes of the current mesh; the identity without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def batch_parts(batch: int) -> int:
    """Into how many parts the current mesh splits a batch; 1 without a mesh, or where they would be unequal."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else batch_shards(mesh)
    return parts if batch % parts == 0 else 1


def copy_for_parts(x: Array, parts: int) -> Array:
    """[…] → [parts, …], a copy of a parameter for each part of the batch, on the devices that hold the part.

    What its gradient adds up over layers or chunks then stays on the device until all of it is summed over the parts.
    Of one array for the whole batch, every layer or chunk would sum its share over the mesh.
    """
    copies = jnp.broadcast_to(x[None], (parts, *x.shape))
    return jax.lax.with_sharding_constraint(copies, PartitionSpec(BATCH_AXES, *[PartitionSpec.UNCONSTRAINED] * x.ndim))
