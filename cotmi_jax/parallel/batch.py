"""Batches on a mesh: the rows each process supplies, placement of host arrays, sharding constraints of activations."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cotmi_jax.errors import UserError
from cotmi_jax.parallel.mesh import BATCH_AXES, batch_shards
from cotmi_jax.parallel.process_rows import ProcessRows
from cotmi_jax.parallel.sharding import PyTree


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def rows_of_processes(mesh: Mesh) -> dict[int, ProcessRows]:
    """The rows that each process supplies of a batch sharded over the mesh, by process index.

    Raises UserError unless any two processes hold either the same batch shards or none in common, all equally many.
    """
    held: dict[int, set[int]] = {}
    for shard, devices in enumerate(mesh.devices.reshape(batch_shards(mesh), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(shard)
    distinct = sorted({tuple(sorted(shards)) for shards in held.values()})
    if len({len(shards) for shards in distinct}) > 1 or sum(map(len, distinct)) != batch_shards(mesh):
        raise UserError(
            f"mesh {dict(mesh.shape)}: processes hold the batch shards {distinct}; they have to hold equally many, and "
            "any two of them the same ones or none in common: change config.mesh"
        )
    rows = {shards: ProcessRows(group, len(distinct), shards) for group, shards in enumerate(distinct)}
    return {process: rows[tuple(sorted(shards))] for process, shards in held.items()}


@functools.lru_cache(maxsize=8)
def make_process_rows(mesh: Mesh) -> ProcessRows:
    """The rows that this process supplies. Raises UserError as rows_of_processes does."""
    return rows_of_processes(mesh)[jax.process_index()]


def put_batch(batch: Mapping[str, PyTree], mesh: Mesh) -> PyTree:
    """Host arrays → device arrays sharded over the mesh along their first axis.

    The host arrays hold the rows that make_process_rows gives this process. Raises UserError if the rows do not
    divide over the mesh.
    """
    sharding, process_rows = batch_sharding(mesh), make_process_rows(mesh)

    def put(x: np.ndarray) -> Array:
        total = len(x) * process_rows.groups
        process_rows.size(total)  # raises where the rows do not divide
        return jax.make_array_from_process_local_data(sharding, x, (total, *x.shape[1:]))

    return jax.tree.map(put, batch)


def constrain_batch(x: Array) -> Array:
    """Constrain the first axis of an activation to the batch axes of the current mesh; the identity without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(BATCH_AXES))


def current_batch_shards(batch: int) -> int:
    """Number of shards of a batch of that size on the current mesh; 1 without a mesh or if they would be unequal."""
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else batch_shards(mesh)
    return shards if batch % shards == 0 else 1


def copy_per_shard(x: Array, shards: int) -> Array:
    """[…] → [shards, …], a copy of a parameter for each batch shard, on the devices that hold the shard.

    Its gradient then accumulates over layers or chunks on each device and is summed over shards once, at the end. The
    gradient of a single array would be all-reduced in every layer or chunk.
    """
    copies = jnp.broadcast_to(x[None], (shards, *x.shape))
    return jax.lax.with_sharding_constraint(copies, PartitionSpec(BATCH_AXES, *[PartitionSpec.UNCONSTRAINED] * x.ndim))
