"""Communication volume: its lower bound, and what compiled programs send for gradients and for a generated token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config
from jax import Array

from cotmi_jax.aot.hlo import read_collectives
from cotmi_jax.aot.traffic import least_traffic
from cotmi_jax.inference.generation import Generation
from cotmi_jax.models.config import preset
from cotmi_jax.models.decoding import Decoding
from cotmi_jax.models.meshes import MeshShape, parameter_count
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.token_scan import scan_tokens
from cotmi_jax.parallel.batch import batch_sharding, copy_per_shard, current_batch_shards
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import abstract_arrays, param_shardings, replicated

MESH = make_mesh(data=2, fsdp=4)
BATCH, LENGTH, WIDTH, VOCAB = 16, 32, 8, 512
LENGTHS = {"rows": 64, "input_length": 1024, "target_length": 256}


def sent(function, *arguments: jax.ShapeDtypeStruct) -> float:
    with jax.set_mesh(MESH):
        found = read_collectives(jax.jit(function).lower(*arguments).compile().as_text())
    assert not found.unbounded
    return found.total()[2]


def sharded(*shape: int, dtype: type = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(MESH))


@pytest.mark.parametrize("pool", [None, "max"])
def test_the_gradient_of_the_head_is_all_reduced_once_not_per_chunk(pool: str | None) -> None:
    def loss(head: Array, states: Array, targets: Array, chunk: int) -> Array:
        member = None if pool is None else targets[:, None] > 0
        scanned = scan_tokens(states, targets, lambda x: x @ head, chunk=chunk, member_BxNxT=member, pool=pool)
        return scanned.loss_BxT.sum() + (0.0 if pool is None else scanned.log_pooled_BxNxV.mean())

    head = jax.ShapeDtypeStruct((WIDTH, VOCAB), jnp.float32, sharding=replicated(MESH))
    batch = sharded(BATCH, LENGTH, WIDTH), sharded(BATCH, LENGTH, dtype=jnp.int32)
    one, eight = (
        sent(jax.grad(lambda *arguments, chunk=chunk: loss(*arguments, chunk)), head, *batch) for chunk in (LENGTH, 4)
    )
    ring = 2 * 7 / 8 * WIDTH * VOCAB * 4  # one all-reduce
    assert ring <= one < 1.1 * ring
    assert eight < 1.1 * ring


@pytest.mark.slow
def test_the_gradient_of_position_biases_is_all_reduced_as_a_table_not_as_scores() -> None:
    def traffic(length: int) -> float:
        student = StudentDef.of(small_config(num_encoder_layers=3))
        params = abstract_arrays(student.shapes, param_shardings(student.shapes, student.axes, MESH))

        def loss(table: Array, params: dict, inputs: Array) -> Array:
            encoder = params["encoder"] | {"position": {"embedding": table}}
            return jnp.square(student.bind(params | {"encoder": encoder}).encode(inputs)).sum()

        table = params["encoder"]["position"]["embedding"]
        return sent(jax.grad(loss), table, params, sharded(8, length, dtype=jnp.int32))

    # Only the activations of the embedding look-up grow with the length; scores would grow with its square.
    short, long = traffic(16), traffic(128)
    assert long < 8 * short
    scores = small_config().num_heads * 128 * 128 * 4
    assert long - short < scores


@pytest.mark.slow
def test_a_token_is_generated_without_gathering_the_decoder() -> None:
    student = StudentDef.of(small_config(num_decoder_layers=3, d_model=64, d_ff=96))
    generation = Generation(student, MESH)
    assert dict(generation.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4}
    params = abstract_arrays(student.shapes, generation.shardings)
    inputs = jax.ShapeDtypeStruct((2, 8), jnp.int32, sharding=batch_sharding(generation.mesh))
    with jax.set_mesh(generation.mesh):
        program = generation.generate.lower(params, inputs, None, decoding=Decoding("greedy", max_tokens=4)).compile()
    found = read_collectives(program.as_text())
    assert len(found.unbounded) == 1
    decoder = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(student.shapes["decoder"]))
    assert 0 < found.sent_per_iteration() < 0.1 * decoder


def test_copy_per_shard_broadcasts_a_parameter_and_sums_its_gradient() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    with jax.set_mesh(MESH):
        assert current_batch_shards(16) == 8
        assert current_batch_shards(12) == 1
        copies, pull_back = jax.vjp(jax.jit(lambda x: copy_per_shard(x, 8)), x)
        (gradient,) = pull_back(jnp.arange(8.0)[:, None, None] * jnp.ones((8, 2, 3)))
    np.testing.assert_array_equal(copies, np.broadcast_to(x, (8, 2, 3)))
    np.testing.assert_array_equal(gradient, np.full((2, 3), 28.0))
    assert current_batch_shards(16) == 1


def test_the_lower_bound_of_each_mesh_axis() -> None:
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
    activations = 2 * 3 / 4 * 64 * config.d_model * 2  # all-reduce of one position of every row
    forward = 12 * (2 * 1024 + 3 * 256)
    assert tensor["all-reduce"] == activations * 2 * forward
    again = least_traffic(config, MeshShape(1, 1, 4), **LENGTHS, recompute=True)
    last = 12 * (1024 + 256)  # the last all-reduce of each layer, which is not repeated
    assert again["all-reduce"] == activations * (3 * forward - last)
    assert least_traffic(config, MeshShape(1, 1, 1), **LENGTHS, recompute=False)["all-reduce"] == 0


@pytest.mark.parametrize("family", ["v1.0", "v1.1"])
def test_the_embedding_is_gathered_if_that_sends_less_than_exchanging_rows(family: str) -> None:
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
