"""Accelerators by the device_kind of JAX."""

import os

import pytest

from cotmi_jax.parallel.accelerators import ACCELERATORS, find_accelerator, set_libtpu_stack_size


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
        "NVIDIA A100-SXM4-40GB": "NVIDIA A100",
        "NVIDIA A100-PCIE-40GB": "NVIDIA A100",
        "NVIDIA A100-SXM4-80GB": "NVIDIA A100 80 GB",
        "NVIDIA A100 80GB PCIe": "NVIDIA A100 80 GB",
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
