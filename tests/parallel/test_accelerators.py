"""Accelerators by the device_kind of JAX."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import REPOSITORY

from cotmi_jax.parallel.accelerators import ACCELERATORS, find_accelerator, may_have_tpu, set_libtpu_stack_size


@pytest.mark.parametrize(
    "kind, name",
    {
        "TPU v2": "TPU v2",
        "TPU v3": "TPU v3",
        "TPU v4": "TPU v4",
        "TPU v5 lite": "TPU v5e",
        "TPU v5e": "TPU v5e",
        "TPU v5": "TPU v5p",
        "TPU v5p": "TPU v5p",
        "TPU v6 lite": "TPU v6e",
        "TPU v6e": "TPU v6e",
        "Tesla T4": "NVIDIA T4",
        "Tesla V100-SXM2-16GB": "NVIDIA V100",
        "Tesla V100-PCIE-16GB": "NVIDIA V100 PCIe",
        "NVIDIA A100-SXM4-40GB": "NVIDIA A100",
        "NVIDIA A100-PCIE-40GB": "NVIDIA A100",
        "NVIDIA A100-SXM4-80GB": "NVIDIA A100 80 GB SXM",
        "NVIDIA A100 80GB PCIe": "NVIDIA A100 80 GB PCIe",
        "NVIDIA L4": "NVIDIA L4",
        "NVIDIA L40": "NVIDIA L40",
        "NVIDIA L40S": "NVIDIA L40S",
        "NVIDIA H100 80GB HBM3": "NVIDIA H100",
        "NVIDIA H100 PCIe": "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL": "NVIDIA H100 NVL",
        "NVIDIA H200": "NVIDIA H200",
        "NVIDIA H200 NVL": "NVIDIA H200 NVL",
        "NVIDIA T400 4GB": None,
        "NVIDIA A1000": None,
        "TPU v60": None,
        "cpu": None,
    }.items(),
)
def test_device_kinds(kind: str, name: str | None) -> None:
    found = find_accelerator(kind)
    assert (found and found.name) == name


def test_memory_of_an_sxm_module_is_faster_than_that_of_the_card() -> None:
    bandwidths = [find_accelerator(kind).bandwidth for kind in ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB PCIe")]
    assert bandwidths == [2039e9, 1935e9]


def test_every_accelerator_is_found_by_its_own_kinds() -> None:
    assert all(find_accelerator(kind) is each for each in ACCELERATORS for kind in each.kinds)


def test_arguments_already_given_to_libtpu_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = "--fibers_default_thread_stack_size"
    for given, expected in {
        "": f"{stack}=1048576",
        "--xla_a=1": f"--xla_a=1 {stack}=1048576",
        f"{stack}=2097152 --xla_a=1": f"{stack}=2097152 --xla_a=1",
    }.items():
        monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
        set_libtpu_stack_size()
        set_libtpu_stack_size()
        assert os.environ["LIBTPU_INIT_ARGS"] == expected


@pytest.mark.parametrize(
    ("files", "environment", "expected"),
    [
        ({}, {}, False),
        ({}, {"LIBTPU_INIT_ARGS": "--xla_a=1", "TPU_SKIP_MDS_QUERY": "1", "JAX_PLATFORMS": "cuda,cpu"}, False),
        ({}, {"JAX_PLATFORMS": "tpu,cpu"}, True),
        ({}, {"TPU_WORKER_ID": "0"}, True),
        ({"dev/accel0": ""}, {}, True),
        ({"dev/vfio/vfio": ""}, {}, False),
        ({"dev/vfio/0": ""}, {}, True),
        ({"sys/bus/pci/devices/0/vendor": "0x1ae0\n", "sys/bus/pci/devices/0/class": "0xff0000\n"}, {}, True),
        ({"sys/bus/pci/devices/0/vendor": "0x1ae0\n", "sys/bus/pci/devices/0/class": "0x020000\n"}, {}, False),
        ({"sys/bus/pci/devices/0/vendor": "0x10de\n", "sys/bus/pci/devices/0/class": "0x030200\n"}, {}, False),
    ],
    ids=["nothing", "variables of the compiler", "platform", "worker", "accel", "vfio alone", "vfio", "pci"]
    + ["network card", "gpu"],
)
def test_signs_of_a_tpu(tmp_path: Path, files: dict[str, str], environment: dict[str, str], expected: bool) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert may_have_tpu(environment, tmp_path) is expected


@pytest.mark.slow
@pytest.mark.skipif(may_have_tpu(os.environ), reason="this machine has a TPU")
def test_a_machine_without_tpu_says_nothing_of_tpus() -> None:
    """In a fresh process, without the platform that the suite sets."""
    pytest.importorskip("libtpu")
    program = "from cotmi_jax.parallel.accelerators import skip_absent_tpu as skip; skip(); import jax; jax.devices()"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_"))}
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=kept, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
