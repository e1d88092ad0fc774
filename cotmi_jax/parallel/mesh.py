"""The device mesh: its axes, its construction from a config, and the number of batch shards."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from cotmi_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")


BATCH_AXES = ("data", "fsdp")  # a batch is split over both; fsdp also splits the parameters


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


def reshape_mesh(mesh: Mesh, shape: Sequence[int]) -> Mesh:
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


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)
