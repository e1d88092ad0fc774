"""A T5 whose layers have a position bias each: packing, the mesh, and unrolling change no value."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from helpers import assert_cached_logits_equal_teacher_forcing, numpy_params, random_ids, small_config
from jax.sharding import PartitionSpec

from cotmi_jax.models.student import StudentDef
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import abstract_arrays, param_shardings

CONFIG = small_config(model_type="umt5", num_encoder_layers=2, num_decoder_layers=2)
STUDENT = StudentDef.of(CONFIG)
PARAMS = numpy_params(STUDENT)
DRAW = np.random.default_rng(0)
INPUTS, TARGETS = random_ids(DRAW, (12,) * 8, 12), random_ids(DRAW, (9,) * 8, 9)


def logits(student: StudentDef) -> jax.Array:
    return jax.jit(lambda p, x, y: student.bind(p)(x, y))(PARAMS, jnp.asarray(INPUTS), jnp.asarray(TARGETS))


def test_every_layer_has_its_own_bias() -> None:
    """Exchanging those of two layers changes the logits, which do not depend on the form of the layers' execution."""
    for stack in ("encoder", "decoder"):
        assert "position" not in PARAMS[stack]
        assert PARAMS[stack]["blocks"]["position"]["embedding"].shape == (2, 8, 4)
    expected = logits(STUDENT)
    unrolled = logits(StudentDef.of(dataclasses.replace(CONFIG, scan_layers=False, remat="full")))
    np.testing.assert_allclose(unrolled, expected, rtol=1e-5, atol=1e-5)
    exchanged = jax.tree.map(lambda leaf: leaf, PARAMS)
    bias = exchanged["decoder"]["blocks"]["position"]
    bias["embedding"] = bias["embedding"][::-1]
    changed = jax.jit(lambda p, x, y: STUDENT.bind(p)(x, y))(exchanged, jnp.asarray(INPUTS), jnp.asarray(TARGETS))
    assert float(jnp.abs(changed - expected).max()) > 0.1


def test_a_mesh_changes_no_logit() -> None:
    mesh = make_mesh(2, 2, 2)
    placed = abstract_arrays(STUDENT.shapes, param_shardings(STUDENT.shapes, STUDENT.axes, mesh))
    params = jax.tree.map(lambda leaf, like: jax.device_put(leaf, like.sharding), PARAMS, placed)
    assert params["encoder"]["blocks"]["position"]["embedding"].sharding.spec == PartitionSpec(None, None, "tensor")
    batch = put_batch({"inputs": INPUTS, "targets": TARGETS}, mesh)
    with jax.set_mesh(mesh):
        found = jax.jit(lambda p, x, y: STUDENT.bind(p)(x, y))(params, batch["inputs"], batch["targets"])
    np.testing.assert_allclose(found, logits(STUDENT), rtol=1e-4, atol=1e-4)


def test_packed_sequences_equal_separate_rows() -> None:
    """Two sequences in a row, with segments, give the states of each alone in a row."""

    @jax.jit
    def states(inputs: jax.Array, targets: jax.Array, segments: tuple[jax.Array, jax.Array]) -> jax.Array:
        bound = STUDENT.bind(PARAMS)
        encoded = bound.encode(inputs, None, segments[0])
        return bound.decode(encoded, inputs, targets, None, segments)

    rows = [(slice(0, 5), slice(0, 4)), (slice(5, 12), slice(4, 9))]
    ones = np.ones((8, 12), np.int32), np.ones((8, 9), np.int32)
    for array, split in zip(ones, (5, 4), strict=True):
        array[:, split:] = 2
    packed = states(jnp.asarray(INPUTS), jnp.asarray(TARGETS), (jnp.asarray(ones[0]), jnp.asarray(ones[1])))
    for source, target in rows:
        x, y = jnp.asarray(INPUTS[:, source]), jnp.asarray(TARGETS[:, target])
        alone = states(x, y, (jnp.ones_like(x), jnp.ones_like(y)))
        np.testing.assert_allclose(packed[:, target], alone, rtol=1e-4, atol=1e-4)


def test_cached_logits_equal_teacher_forcing() -> None:
    assert_cached_logits_equal_teacher_forcing(STUDENT, PARAMS, INPUTS, TARGETS)
