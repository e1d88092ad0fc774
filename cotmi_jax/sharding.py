"""Mesh, logical-axis table and strict resolution of shardings.

Parameters name their dimensions logically (`embed`, `mlp`, …); this file alone says which mesh axis each name uses. A
name that the table lacks, or a dimension that its mesh axes do not divide, is an error: nothing is replicated silently.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from cotmi_jax.errors import UserError

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
    """Mesh of all devices with axes (data, fsdp, tensor); one size may be -1, the rest of the devices.

    `devices` stand in for jax.devices(), such as those of a topology that programs are only compiled for.

    Axes are Auto: since JAX 0.9 make_mesh's default is Explicit, under which a vocabulary-sharded look-up raises.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    devices = jax.devices() if devices is None else devices
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"mesh {sizes}: sizes are positive and at most one is -1")
    if free and len(devices) % fixed == 0:
        sizes[free[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise UserError(f"mesh {sizes} does not cover {len(devices)} devices: change config.mesh")
    types = (AxisType.Auto,) * len(MESH_AXES)
    return jax.make_mesh(tuple(sizes.values()), MESH_AXES, axis_types=types, devices=devices)


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


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def check_host_blocks(mesh: Mesh) -> None:
    """Raises UserError unless the parts of a batch that lie on a process's devices are its own contiguous block.

    Batches are fed by process in order, and packed ones count rows over all of them.
    """
    parts = batch_shards(mesh)
    held: dict[int, set[int]] = {}
    for device, (part, *_) in batch_sharding(mesh).devices_indices_map((parts,)).items():
        held.setdefault(device.process_index, set()).add(part.start or 0)  # type: ignore[attr-defined]
    processes = len(held)
    for process, found in sorted(held.items()):
        block = range(process * parts // processes, (process + 1) * parts // processes)
        if parts % processes or found != set(block):
            raise UserError(
                f"mesh {dict(mesh.shape)}: the devices of process {process} hold parts {sorted(found)} of a batch in "
                f"{parts} parts over {processes} processes, not a block of their own: change config.mesh"
            )


def put_batch(batch: Mapping[str, PyTree], mesh: Mesh) -> PyTree:
    """Host arrays → device arrays split over the mesh along their first axis (this process gives its own rows)."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


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
