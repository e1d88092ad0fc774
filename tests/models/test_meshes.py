"""Recommended meshes of training, evaluation and generation."""

import math

import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.models.config import PRESETS, preset
from cotmi_jax.models.meshes import MeshShape, generation_mesh, inference_mesh, parameter_count, recommended_mesh
from cotmi_jax.models.student import StudentDef, count_parameters
from cotmi_jax.parallel.accelerators import GIB
from cotmi_jax.parallel.sharding import RULES


@pytest.mark.parametrize("family", ["v1.0", "v1.1"])
def test_parameter_count_excludes_norms_and_position_biases(family: str) -> None:
    config = preset("small", family)
    rest = count_parameters(StudentDef.of(config).shapes) - parameter_count(config)[1]
    norms = (2 * config.num_encoder_layers + 3 * config.num_decoder_layers + 2) * config.d_model
    assert rest == norms + 2 * config.relative_buckets * config.num_heads


def test_recommended_meshes_use_the_least_fsdp_that_fits() -> None:
    assert recommended_mesh(preset("small"), 8, 16 * GIB) == (8, 1, 1)
    assert recommended_mesh(preset("large"), 64, 16 * GIB) == (32, 2, 1)
    assert recommended_mesh(preset("xl"), 8, 16 * GIB) == (1, 8, 1)
    with pytest.raises(UserError, match="8 devices of 16 GiB do not hold 166 GiB"):
        recommended_mesh(preset("xxl"), 8, 16 * GIB)


def test_inference_meshes_use_the_least_tensor_that_fits() -> None:
    assert inference_mesh(preset("base"), 8, 16 * GIB) == (8, 1, 1)
    assert inference_mesh(preset("xl"), 8, 16 * GIB) == (4, 1, 2)
    assert inference_mesh(preset("xxl"), 8, 16 * GIB) == (1, 1, 8)
    assert inference_mesh(preset("xxl"), 8, 80 * GIB) == (4, 1, 2)
    assert inference_mesh(preset("xxl"), 8, math.inf) == (8, 1, 1)
    assert inference_mesh(preset("small"), 8, 0.1 * GIB) == (1, 4, 2)  # six heads
    with pytest.raises(UserError, match="4 devices of 16 GiB do not hold 41 GiB of parameters"):
        inference_mesh(preset("xxl"), 4, 16 * GIB)


def test_generation_meshes_replace_fsdp_by_tensor_where_it_divides() -> None:
    assert generation_mesh(preset("xl"), MeshShape(8, 8, 1)) == (8, 1, 8)
    assert generation_mesh(preset("xxl"), MeshShape(2, 16, 2)) == (2, 1, 32)
    assert generation_mesh(preset("base"), MeshShape(1, 8, 1)) == (1, 2, 4)  # twelve heads
    assert generation_mesh(preset("base"), MeshShape(1, 6, 1)) == (1, 3, 2)  # 32,128 tokens
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
