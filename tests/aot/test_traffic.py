"""What devices send: gradients once, however many chunks or layers add to them; for a generated token, no parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import small_config
from jax import Array

from cotmi_jax.aot.hlo import read_collectives
from cotmi_jax.inference.generation import Generation
from cotmi_jax.models.decoding import Decoding
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.token_scan import scan_tokens
from cotmi_jax.parallel.batch import batch_sharding, copy_per_shard, current_batch_shards
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import abstract_arrays, param_shardings, replicated

MESH = make_mesh(data=2, fsdp=4)
BATCH, LENGTH, WIDTH, VOCAB = 16, 32, 8, 512


def sent(function, *arguments: jax.ShapeDtypeStruct) -> float:
    with jax.set_mesh(MESH):
        found = read_collectives(jax.jit(function).lower(*arguments).compile().as_text())
    assert not found.unbounded
    return found.total()[2]


def split(*shape: int, dtype: type = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(MESH))


@pytest.mark.parametrize("pool", [None, "max"])
def test_the_heads_gradient_is_summed_once_for_all_chunks(pool: str | None) -> None:
    def loss(head: Array, states: Array, targets: Array, chunk: int) -> Array:
        member = None if pool is None else targets[:, None] > 0
        scanned = scan_tokens(states, targets, lambda x: x @ head, chunk=chunk, member_BxNxT=member, pool=pool)
        return scanned.loss_BxT.sum() + (0.0 if pool is None else scanned.log_pooled_BxNxV.mean())

    head = jax.ShapeDtypeStruct((WIDTH, VOCAB), jnp.float32, sharding=replicated(MESH))
    batch = split(BATCH, LENGTH, WIDTH), split(BATCH, LENGTH, dtype=jnp.int32)
    one, eight = (
        sent(jax.grad(lambda *arguments, chunk=chunk: loss(*arguments, chunk)), head, *batch) for chunk in (LENGTH, 4)
    )
    whole = 2 * 7 / 8 * WIDTH * VOCAB * 4  # a ring's all-reduce
    assert whole <= one < 1.1 * whole
    assert eight < 1.1 * whole


@pytest.mark.slow
def test_position_biases_send_their_table_not_their_scores() -> None:
    def traffic(length: int) -> float:
        student = StudentDef.of(small_config(num_encoder_layers=3))
        params = abstract_arrays(student.shapes, param_shardings(student.shapes, student.axes, MESH))

        def loss(table: Array, params: dict, inputs: Array) -> Array:
            encoder = params["encoder"] | {"position": {"embedding": table}}
            return jnp.square(student.bind(params | {"encoder": encoder}).encode(inputs)).sum()

        table = params["encoder"]["position"]["embedding"]
        return sent(jax.grad(loss), table, params, split(8, length, dtype=jnp.int32))

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
        program = generation.write.lower(params, inputs, decoding=Decoding("greedy", max_tokens=4)).compile()
    found = read_collectives(program.as_text())
    assert len(found.unbounded) == 1
    decoder = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(student.shapes["decoder"]))
    assert 0 < found.sent_each_turn() < 0.1 * decoder


def test_a_copy_for_each_part_is_the_parameter_and_sums_its_gradient() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    with jax.set_mesh(MESH):
        assert current_batch_shards(16) == 8
        assert current_batch_shards(12) == 1
        copies, pull_back = jax.vjp(jax.jit(lambda x: copy_per_shard(x, 8)), x)
        (gradient,) = pull_back(jnp.arange(8.0)[:, None, None] * jnp.ones((8, 2, 3)))
    np.testing.assert_array_equal(copies, np.broadcast_to(x, (8, 2, 3)))
    np.testing.assert_array_equal(gradient, np.full((2, 3), 28.0))
    assert current_batch_shards(16) == 1
