"""An NVIDIA H100 to compile for, without the GPU: any x86 Linux machine that has JAX's CUDA plugin can do it."""

import importlib.util
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from cotmi_jax.errors import UserError

GPU = "h100"
# Without a GPU nothing can be timed, so that XLA takes the default tiling of each product.
GPU_OPTIONS = {"xla_gpu_autotune_level": "0"}
# What XLA asks a GPU for (its GpuTargetConfigProto), of an H100 with 80 GB on an SXM module: "NVIDIA H100 Tensor Core
# GPU Architecture", 2022, and the limits of compute capability 9.0 in the CUDA C++ Programming Guide.
_H100 = """
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 10 }
gpu_device_info {
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation"
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_address_bits: 64
  driver_version: "13.0.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}
"""


def gpu_devices() -> Sequence[jax.Device]:
    """One H100. Raises UserError if the CUDA plugin is missing."""
    if not any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13)):
        raise UserError("compiling for GPUs needs JAX's CUDA plugin: pip install -e '.[cuda]' (in the repository)")
    return topologies.get_topology_desc(GPU, platform="cuda", topology="1x1x1", target_config=_H100).devices
