"""Known accelerators: peak speed, memory, memory and link bandwidth. Imports jax only where a backend is concerned."""

import dataclasses
import glob
import importlib.util
import os
import platform
from collections.abc import Mapping
from pathlib import Path

GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One device as JAX counts them: a chip of TPU v4 and later, a core of earlier TPUs, a GPU.

    Figures are those of the manufacturers, for dense bfloat16 (float16 if a device has no bfloat16 units). Model FLOP
    utilization refers to that peak whatever the dtype of the run is (Chowdhery et al. 2022, appendix B).
    """

    name: str
    kinds: tuple[str, ...]  # prefixes of jax.Device.device_kind, in whole words
    flops: float  # peak FLOP/s
    memory: float  # bytes
    bandwidth: float  # of the memory, bytes/s
    # Bytes/s that a device can send over all its inter-chip links; 0: unknown. One direction, which is half of what
    # Google publishes for both (600 GB/s for v4, 400 for v5e, 1200 for v5p, 800 for v6e).
    link_bandwidth: float = 0.0


# A kind that is a prefix of another is listed after it. Sources: Cloud TPU documentation, a page for each generation
# (v3: of a chip, which is two devices, 123 TFLOP/s and 900 GB/s; v5e and v6e: 819 and 1,640 GB/s in the editions of
# 2024 and 2025, since then rounded to 800 and 1,600; v4: rounded to 1,200, but 1,230 in jax's tpu_info.py); for v2,
# Jouppi et al. 2020. GPUs: NVIDIA's data sheets, whose figures "with sparsity" are twice the dense ones.
ACCELERATORS = (
    Accelerator("TPU v2", ("TPU v2",), 22.5e12, 8 * GIB, 350e9),
    Accelerator("TPU v3", ("TPU v3",), 61.5e12, 16 * GIB, 450e9),
    Accelerator("TPU v4", ("TPU v4",), 275e12, 32 * GIB, 1228e9, 300e9),
    Accelerator("TPU v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9),
    Accelerator("TPU v5p", ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9),
    Accelerator("TPU v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1640e9, 400e9),
    Accelerator("NVIDIA T4", ("Tesla T4", "NVIDIA T4"), 65e12, 16e9, 320e9),
    Accelerator("NVIDIA V100 PCIe", ("Tesla V100-PCIE",), 112e12, 16e9, 900e9),
    Accelerator("NVIDIA V100", ("Tesla V100", "NVIDIA V100"), 125e12, 16e9, 900e9),
    Accelerator("NVIDIA A100 80 GB SXM", ("NVIDIA A100-SXM4-80GB",), 312e12, 80e9, 2039e9),
    Accelerator("NVIDIA A100 80 GB PCIe", ("NVIDIA A100 80GB",), 312e12, 80e9, 1935e9),
    Accelerator("NVIDIA A100", ("NVIDIA A100",), 312e12, 40e9, 1555e9),
    Accelerator("NVIDIA L40S", ("NVIDIA L40S",), 362.05e12, 48e9, 864e9),
    Accelerator("NVIDIA L40", ("NVIDIA L40",), 181.05e12, 48e9, 864e9),
    Accelerator("NVIDIA L4", ("NVIDIA L4",), 121e12, 24e9, 300e9),
    Accelerator("NVIDIA H200 NVL", ("NVIDIA H200 NVL",), 835.5e12, 141e9, 4800e9),
    Accelerator("NVIDIA H200", ("NVIDIA H200",), 989.4e12, 141e9, 4800e9),
    Accelerator("NVIDIA H100 NVL", ("NVIDIA H100 NVL",), 835.5e12, 94e9, 3900e9),
    Accelerator("NVIDIA H100 PCIe", ("NVIDIA H100 PCIe",), 756.5e12, 80e9, 2000e9),
    Accelerator("NVIDIA H100", ("NVIDIA H100",), 989.4e12, 80e9, 3350e9),
)


def find_accelerator(kind: str) -> Accelerator | None:
    """The accelerator of a jax.Device.device_kind; None for one that is not in the table, such as a CPU."""
    return next((each for each in ACCELERATORS if any(_starts_with(kind, prefix) for prefix in each.kinds)), None)


def _starts_with(kind: str, prefix: str) -> bool:
    """Whether a kind starts with a prefix in whole words: an L40 is not an L4."""
    return kind == prefix or kind.startswith((f"{prefix} ", f"{prefix}-"))


def processor() -> str:
    """The processor of this host and the cores that this process may use: "AMD EPYC 7763, 2 cores"."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def machine() -> str:
    """All devices of a run, "8 × TPU v5e", or the processor where it computes."""
    import jax

    devices = jax.devices()
    if devices[0].platform == "cpu":
        return processor()
    kind = devices[0].device_kind
    accelerator = find_accelerator(kind)
    return f"{len(devices)} × {accelerator.name if accelerator else kind}"


def set_libtpu_stack_size() -> None:
    """Give the threads of the TPU compiler 1 MiB of stack; takes effect only before the first use of libtpu.

    With the default of 64 KiB, the compiler's cost model overflows the stack for layers of xl and xxl on v5e and v6e,
    and the process crashes (libtpu 0.0.42). A size that LIBTPU_INIT_ARGS already sets is kept.
    """
    flag, given = "--fibers_default_thread_stack_size", os.environ.get("LIBTPU_INIT_ARGS", "")
    if flag not in given:
        os.environ["LIBTPU_INIT_ARGS"] = f"{given} {flag}={1 << 20}".strip()


# As text in /sys/bus/pci/devices/*/{vendor,class}. Google's virtual disks and network cards have its vendor number too.
_GOOGLE_PCI_VENDOR, _DISKS_AND_NETWORK = "0x1ae0", ("0x01", "0x02")
# What a cloud or a user sets for processes that use a TPU. LIBTPU_INIT_ARGS and the like do not say that there is one.
_TPU_VARIABLES = (
    *("TPU_NAME", "TPU_WORKER_", "TPU_ACCELERATOR_TYPE", "TPU_TOPOLOGY", "TPU_PROCESS_", "TPU_VISIBLE_", "TPU_CHIPS_"),
    *("TPU_HOST_", "CLOUD_TPU_", "JAX_FORCE_TPU_INIT"),
)


def may_have_tpu(environment: Mapping[str, str], root: Path = Path("/")) -> bool:
    """Whether this machine may have a TPU: by its variables, device files or PCI devices. root: of the file system."""
    if "tpu" in environment.get("JAX_PLATFORMS", "") or any(name.startswith(_TPU_VARIABLES) for name in environment):
        return True
    if any(glob.glob(f"{root}/dev/{pattern}") for pattern in ("accel*", "vfio/[0-9]*")):
        return True
    return any(
        vendor.read_text().strip() == _GOOGLE_PCI_VENDOR
        and not vendor.with_name("class").read_text().startswith(_DISKS_AND_NETWORK)
        for vendor in root.glob("sys/bus/pci/devices/*/vendor")
    )


def skip_absent_tpu() -> None:
    """On a machine without TPU, keep JAX from trying libtpu; takes effect before JAX is first asked for devices.

    JAX tries every installed backend. An installation that only compiles for TPUs (`aot`) has libtpu too, whose attempt
    takes a second and logs four lines of errors. Compiling for a TPU topology does not use the backend and still works.
    """
    if importlib.util.find_spec("libtpu") is None or may_have_tpu(os.environ):
        return
    from jax.extend.backend import register_backend_factory

    def absent() -> None:
        raise RuntimeError("this machine has no TPU")

    register_backend_factory("tpu", absent, fail_quietly=True)
