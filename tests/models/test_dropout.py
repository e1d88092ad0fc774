"""Dropout: its generator, its rate and mean, independence, and masks that depend on the global position alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32 as jax_threefry_2x32
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cotmi_jax.models.dropout import GROUP, dropout, random_rows, seed_of, threefry_2x32, weight_dropout
from cotmi_jax.parallel.mesh import make_mesh

KEY = jax.random.key(3)


def test_threefry_is_that_of_jax() -> None:
    key = jax.random.key_data(KEY)
    counters = jax.random.bits(jax.random.key(1), (2, 500), jnp.uint32)
    words = jnp.concatenate(threefry_2x32(seed_of(KEY), counters[0], counters[1]))
    np.testing.assert_array_equal(words, jax_threefry_2x32(key, counters.reshape(-1)))


def test_a_key_of_another_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="threefry2x32"):
        seed_of(jax.random.key(0, impl="rbg"))


def test_each_quarter_of_a_row_takes_one_half_of_the_random_words() -> None:
    """Computed with jax's generator, for a last axis that does not divide into pieces."""
    rate, quarter = 0.3, 6
    row, column = (each.astype(jnp.uint32) for each in jnp.indices((2 * 5, quarter)))
    words = jax_threefry_2x32(jax.random.key_data(KEY), jnp.stack([row, column]).ravel()).reshape(2, 2, 5, quarter)
    halves = np.concatenate([half for word in np.asarray(words) for half in (word & 0xFFFF, word >> 16)], axis=-1)
    dropped = np.asarray(dropout(jnp.ones((2, 5, 22)), rate, KEY)) == 0.0
    np.testing.assert_array_equal(dropped, halves[..., :22] < round(rate * 2**16))


def dropped_by(function: str, rate: float, key: jax.Array) -> np.ndarray:
    """Where an array of ones [6, 8, 70, 51], with sizes that do not divide into pieces, is dropped."""
    x = jnp.ones((6, 8, 70, 51))
    return np.asarray({"dropout": dropout, "weights": weight_dropout}[function](x, rate, key)) == 0.0


@pytest.mark.parametrize("function", ["dropout", "weights"])
@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_elements_are_dropped_at_the_rate_independently(function: str, rate: float) -> None:
    """Of neighbours along each axis, of elements that share a block, of layers (keys split from one) and of steps."""
    first, second = (dropped_by(function, rate, each) for each in jax.random.split(KEY))
    later = dropped_by(function, rate, jax.random.fold_in(KEY, 7))
    deviation = (rate * (1.0 - rate) / first.size) ** 0.5
    assert abs(first.mean() - rate) < 4 * deviation
    pairs = [first & second, first & later, second & later]
    for axis, distance in itertools.product(range(4), (1, 2)):
        pairs.append(first & np.roll(first, distance, axis))
    quarter = -(-first.shape[-1] // 4)
    for piece in (1, 2, 3):
        pairs.append(first[..., : -piece * quarter] & first[..., piece * quarter :])
        pairs.append(first[:, :, : -8 * piece] & first[:, :, 8 * piece :])
    for both in pairs:
        assert abs(both.mean() - rate**2) < 5 * (rate**2 * (1 - rate**2) / both.size) ** 0.5
    for axes in itertools.combinations(range(4), 3):  # no column, row, head or example differs in its rate
        means = first.mean(axis=axes)
        assert np.all(abs(means - rate) < 5 * deviation * len(means) ** 0.5)


@pytest.mark.parametrize("function", [dropout, weight_dropout])
def test_the_expectation_is_exact_and_without_a_key_nothing_is_dropped(function) -> None:
    x = jnp.full((2, 3, 40, 20), 2.0)
    kept = np.unique(np.asarray(function(x, 0.1, KEY)))
    np.testing.assert_allclose(kept, [0.0, 2.0 / (1.0 - round(0.1 * 2**16) / 2**16)], rtol=1e-6)
    assert function(x, 0.1, None) is x and function(x, 0.0, KEY) is x


def test_bfloat16_keeps_the_expectation() -> None:
    """Single values are rounded, by up to .4%: over the mantissas that cancels, and an error of the scale does not."""
    x = jnp.linspace(1.0, 2.0, 2**15, endpoint=False).astype(jnp.bfloat16)
    kept = dropout(x, 0.1, KEY).astype(jnp.float32)
    ratio = kept[kept != 0].sum() / x.astype(jnp.float32)[kept != 0].sum()
    assert float(ratio) == pytest.approx(2**16 / (2**16 - round(0.1 * 2**16)), rel=3e-4)


def test_the_sixteen_bits_are_uniform() -> None:
    random = np.asarray(random_rows(seed_of(KEY), jnp.arange(4, dtype=jnp.uint32).reshape(4, 1, 1, 1), 0, 4, 0, 256))
    assert random.max() < 2**16
    for counts in (np.bincount(random.ravel() >> 8, minlength=256), np.bincount(random.ravel() & 255, minlength=256)):
        expected = random.size / 256
        assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * (2 * 255) ** 0.5  # chi-squared, 255 degrees


def test_bits_of_attention_weights_do_not_depend_on_the_blocks() -> None:
    planes = jnp.arange(6, dtype=jnp.uint32).reshape(2, 3, 1, 1, 1)
    full = np.asarray(random_rows(seed_of(KEY), planes, 0, 3, 0, 50))
    part = random_rows(seed_of(KEY), jnp.uint32(4), 1, 2, 20, 30)
    np.testing.assert_array_equal(part, full[1, 1, GROUP:, 20:])
    dropped = np.asarray(weight_dropout(jnp.ones((2, 3, 96, 50)), 0.1, KEY)) == 0.0
    np.testing.assert_array_equal(dropped, full < round(0.1 * 2**16))


@pytest.mark.parametrize("function", [dropout, weight_dropout])
@pytest.mark.parametrize("spec", [P("data", "tensor"), P("data", None, None, "tensor")])
def test_masks_are_those_of_one_device(function, spec) -> None:
    mesh = make_mesh(data=4, fsdp=1, tensor=2)
    x = jnp.ones((8, 2, 40, 24))
    sharded = NamedSharding(mesh, spec)
    apply = jax.jit(lambda x: function(x, 0.1, KEY), in_shardings=sharded, out_shardings=sharded)
    np.testing.assert_array_equal(apply(x), function(x, 0.1, KEY))
