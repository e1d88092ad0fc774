"""Recommended meshes and the traffic they cannot do without."""

import dataclasses
import math

import pytest

from cotmi_jax.aot.traffic import least_traffic
from cotmi_jax.errors import UserError
from cotmi_jax.models.config import PRESETS, preset
from cotmi_jax.models.meshes import MeshShape, generation_mesh, inference_mesh, parameter_count, recommended_mesh
from cotmi_jax.models.student import StudentDef, count_parameters
from cotmi_jax.parallel.accelerators import GIB
from cotmi_jax.parallel.sharding import RULES

LENGTHS = {"rows": 64, "input_length": 1024, "target_length": 256}


@pytest.mark.parametrize("family", ["v1.0", "v1.1"])
def test_parameters_are_all_but_norms_and_position_biases(family: str) -> None:
    config = preset("small", family)
    rest = count_parameters(StudentDef.of(config).shapes) - parameter_count(config)[1]
    norms = (2 * config.num_encoder_layers + 3 * config.num_decoder_layers + 2) * config.d_model
    assert rest == norms + 2 * config.relative_buckets * config.num_heads


def test_meshes_shard_no_more_than_they_must() -> None:
    assert recommended_mesh(preset("small"), 8, 16 * GIB) == (8, 1, 1)
    assert recommended_mesh(preset("large"), 64, 16 * GIB) == (32, 2, 1)
    assert recommended_mesh(preset("xl"), 8, 16 * GIB) == (1, 8, 1)
    with pytest.raises(UserError, match="8 devices of 16 GiB do not hold 166 GiB"):
        recommended_mesh(preset("xxl"), 8, 16 * GIB)


def test_students_are_used_in_as_few_parts_as_hold_them() -> None:
    assert inference_mesh(preset("base"), 8, 16 * GIB) == (8, 1, 1)
    assert inference_mesh(preset("xl"), 8, 16 * GIB) == (4, 1, 2)
    assert inference_mesh(preset("xxl"), 8, 16 * GIB) == (1, 1, 8)
    assert inference_mesh(preset("xxl"), 8, 80 * GIB) == (4, 1, 2)
    assert inference_mesh(preset("xxl"), 8, math.inf) == (8, 1, 1)
    assert inference_mesh(preset("small"), 8, 0.1 * GIB) == (1, 4, 2)  # six heads
    with pytest.raises(UserError, match="4 devices of 16 GiB do not hold 41 GiB of parameters"):
        inference_mesh(preset("xxl"), 4, 16 * GIB)


def test_generation_takes_tensor_for_as_much_of_fsdp_as_divides() -> None:
    assert generation_mesh(preset("xl"), MeshShape(8, 8, 1)) == (8, 1, 8)
    assert generation_mesh(preset("xxl"), MeshShape(2, 16, 2)) == (2, 1, 32)
    assert generation_mesh(preset("base"), MeshShape(1, 8, 1)) == (1, 2, 4)  # twelve heads
    assert generation_mesh(preset("base"), MeshShape(1, 6, 1)) == (1, 3, 2)  # 32,128 words
    assert generation_mesh(preset("small"), MeshShape(8, 1, 1)) == (8, 1, 1)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("devices", [1, 4, 64, 256])
def test_meshes_cover_the_devices_and_split_every_parameter(name: str, devices: int) -> None:
    config = preset(name)
    mesh = recommended_mesh(config, devices, 1024 * GIB / devices)
    assert mesh.data * mesh.fsdp * mesh.tensor == devices
    sizes = {"embed": config.d_model, "mlp": config.d_ff, "heads": config.num_heads, "vocab": config.vocab_size}
    for axis, size in sizes.items():
        assert size % getattr(mesh, RULES[axis] or "data") == 0


def test_the_least_traffic_of_each_axis() -> None:
    config = dataclasses.replace(preset("base"), dtype="bfloat16")
    layers, everything = parameter_count(config)
    table = config.vocab_size * config.d_model

    data = least_traffic(config, MeshShape(8, 1, 1), **LENGTHS, recompute=False)
    assert data["all-reduce"] == 2 * 7 / 8 * 2 * everything
    assert sum(data.values()) == data["all-reduce"]

    fsdp = least_traffic(config, MeshShape(1, 8, 1), **LENGTHS, recompute=False)
    assert fsdp["all-gather"] == 2 * fsdp["reduce-scatter"] == 2 * 7 / 8 * 2 * (layers + table)
    assert fsdp["all-to-all"] == 2 * 7 / 8 * (64 / 8) * (1024 + 256) * config.d_model * 2
    assert fsdp["all-reduce"] == 0

    tensor = least_traffic(config, MeshShape(1, 1, 4), **LENGTHS, recompute=False)
    activations = 2 * 3 / 4 * 64 * config.d_model * 2  # of one position of every row, summed
    forward = 12 * (2 * 1024 + 3 * 256)
    assert tensor["all-reduce"] == activations * 2 * forward
    again = least_traffic(config, MeshShape(1, 1, 4), **LENGTHS, recompute=True)
    last = 12 * (1024 + 256)  # of each layer, which nothing recomputed reads
    assert again["all-reduce"] == activations * (3 * forward - last)
    assert least_traffic(config, MeshShape(1, 1, 1), **LENGTHS, recompute=False)["all-reduce"] == 0


@pytest.mark.parametrize("family", ["v1.0", "v1.1"])
def test_the_embedding_is_gathered_where_that_is_less_than_its_rows(family: str) -> None:
    config = dataclasses.replace(preset("base", family), dtype="bfloat16")
    mesh, positions = MeshShape(1, 8, 1), 1024 + 256
    most = 8 * config.vocab_size // positions  # rows at which a device has fewer tokens than the vocabulary
    few, many, more = (
        least_traffic(config, mesh, **LENGTHS | {"rows": rows}, recompute=False) for rows in (most, most + 8, 8 * most)
    )
    table = 7 / 8 * config.vocab_size * config.d_model * 2
    if config.tied:
        assert few == many == more and few["all-to-all"] == 0
    else:
        assert few["all-to-all"] == 2 * 7 / 8 * most / 8 * positions * config.d_model * 2 < 2 * table
        assert many == more and many["all-to-all"] == 0
        assert many["all-gather"] - few["all-gather"] == many["reduce-scatter"] - few["reduce-scatter"] == table
    everything = parameter_count(config)[1]
    assert least_traffic(config, MeshShape(8, 1, 1), **LENGTHS, recompute=False)["all-reduce"] == 3.5 * everything
