"""The table from logical axes to mesh axes, and the shardings of parameters that follow from it.

Parameters name their dimensions by logical axes (`embed`, `mlp`, …); only this table assigns mesh axes to them. A name
that the table lacks, or a dimension that its mesh axis does not divide, is an error: nothing is replicated silently.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, KeyPath

from cotmi_jax.errors import UserError

RULES: dict[str, str | None] = {
    "vocab": "tensor",
    "embed": "fsdp",
    "mlp": "tensor",
    "heads": "tensor",
    "kv": None,
    "norm": None,
    "buckets": None,
    "layers": None,  # the scanned dimension
    "feature": None,  # inputs of the networks of the mutual-information term
    "critic": "fsdp",  # their hidden units and codes
    "critic_out": None,  # their scalar outputs
}

PyTree = Any


def resolve(name: str, shape: tuple[int, ...], axes: tuple[str, ...], mesh: Mesh) -> NamedSharding:
    """Sharding of one parameter from its logical axes. Raises UserError for an unknown axis or an uneven split."""
    spec: list[str | None] = []
    for size, axis in zip(shape, axes, strict=True):
        if axis not in RULES:
            raise UserError(f"parameter {name}: logical axis {axis!r} is not in parallel.sharding.RULES: add it")
        mesh_axis = RULES[axis]
        if mesh_axis is not None and size % mesh.shape[mesh_axis]:
            raise UserError(
                f"parameter {name}: axis {axis!r} of size {size} does not divide over "
                f"{mesh.shape[mesh_axis]} devices of mesh axis {mesh_axis!r}: change config.mesh"
            )
        spec.append(mesh_axis)
    return NamedSharding(mesh, PartitionSpec(*spec))


def dict_keys(path: KeyPath) -> tuple[str, ...]:
    """The dict keys in the path of a leaf."""
    return tuple(entry.key for entry in path if isinstance(entry, DictKey))


def param_shardings(shapes: PyTree, axes: PyTree, mesh: Mesh) -> PyTree:
    """The sharding of every parameter by its logical axes. Raises UserError as resolve does."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf, names: resolve("/".join(dict_keys(path)), leaf.shape, names, mesh), shapes, axes
    )


def abstract_arrays(shapes: PyTree, shardings: PyTree) -> PyTree:
    """Abstract arrays with shardings, into which arrays are restored and for which programs are lowered."""
    return jax.tree.map(
        lambda shape, sharding: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding), shapes, shardings
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that is replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())
