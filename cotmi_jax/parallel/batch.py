"""Batches on a mesh: which rows a process supplies, placement of host arrays, sharding constraints of activations."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cotmi_jax.errors import UserError
from cotmi_jax.parallel.mesh import BATCH_AXES, batch_shards
from cotmi_jax.parallel.process_rows import Feed
from cotmi_jax.parallel.sharding import PyTree


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


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
