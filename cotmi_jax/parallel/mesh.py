"""The device mesh: its axes, its construction, and the number of batch shards."""

import math
from collections.abc import Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh

from cotmi_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")  # a batch is sharded over both; parameters over fsdp too


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh of all devices, or of those given, with axes (data, fsdp, tensor); a size of -1 is inferred from the others.

    On a TPU, neighbours in the mesh are neighbours in the torus. Slices, which are connected only by the data-centre
    network, are placed along `data`. Axes are Auto: since JAX 0.9 the default of jax.make_mesh is Explicit, under which
    a vocabulary-sharded look-up raises.

    Raises UserError if the sizes do not fit the devices or the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = _mesh_shape({"data": data, "fsdp": fsdp, "tensor": tensor}, len(devices))
    # Devices of a single slice may have no slice_index. GPUs have one for each group connected by NVLink, but any mesh
    # axis may cross these groups.
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
    """A mesh of the same devices in the same order, with other sizes of the axes."""
    return Mesh(mesh.devices.reshape(shape), mesh.axis_names, axis_types=mesh.axis_types)


def _mesh_shape(sizes: dict[str, int], devices: int) -> tuple[int, ...]:
    """The sizes with -1 inferred. Raises UserError if their product is not the number of devices."""
    free = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
        raise UserError(f"mesh {sizes}: sizes must be positive, at most one may be -1: change config.mesh")
    if free and devices % fixed == 0:
        sizes[free[0]] = devices // fixed
    if math.prod(sizes.values()) != devices:
        raise UserError(f"mesh {sizes} does not cover {devices} devices: change config.mesh")
    return tuple(sizes.values())


def batch_shards(mesh: Mesh | AbstractMesh) -> int:
    """Number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def current_platform() -> str:
    """Platform that a computation is traced for: cpu, tpu or gpu; that of the current mesh, else JAX's default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
