"""Dropout by whole blocks of Threefry-2x32 (Salmon et al. 2011), the counter-based generator of `jax.random`.

A block has two 32-bit words, of which every element takes 16 bits. `jax.random.bits` computes a block for every word
and discards one of its halves. The four pieces of a block belong to elements that are a quarter of an axis (or 8 query
rows) apart. Each is compared with the rate, and the four results are packed into a byte, which is all that XLA writes
to memory: the operations that apply a mask read it and select their bit. On a CPU an element then costs 1 to 2 ns,
not 7.

A mask is a function of the key and of the element's global position alone: it does not depend on how an array is
sharded, or divided into blocks. The operations are plain jax.numpy, so that Pallas kernels call the same functions.
"""

import jax
import jax.numpy as jnp
from jax import Array

Seed = tuple[Array, Array]  # the two uint32 words of a key

GROUP = 32  # query rows that share the random blocks of attention weights: 4 pieces of 8 rows
_PIECES = 4  # elements of a block
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # Salmon et al. 2011, table 3
_PARITY = 0x1BD11BDA  # of the key schedule


def threefry_2x32(seed: Seed, first: Array, second: Array) -> tuple[Array, Array]:
    """The two random words, uint32, of each counter (first, second), two uint32 arrays that broadcast. 20 rounds."""
    schedule = (*seed, seed[0] ^ seed[1] ^ jnp.uint32(_PARITY))
    first, second = first + schedule[0], second + schedule[1]
    for injection in range(5):
        for distance in _ROTATIONS[injection % 2]:
            first = first + second
            second = ((second << jnp.uint32(distance)) | (second >> jnp.uint32(32 - distance))) ^ first
        first = first + schedule[(injection + 1) % 3]
        second = second + schedule[(injection + 2) % 3] + jnp.uint32(injection + 1)
    return first, second


def seed_of(key: Array) -> Seed:
    """The words of a key. Raises ValueError for a key of another generator."""
    words = jax.random.key_data(key)
    if words.shape != (2,):
        raise ValueError(f"a key with {words.shape} words: dropout needs one of threefry2x32, jax.random's default")
    return words[0], words[1]


def keep(x: Array, random: Array, rate: float) -> Array:
    """x where its 16 random bits do not fall below the rate, scaled so that the expectation is exactly x; else 0.

    The rate is accurate to 2^-16.
    """
    return _select(x, _is_kept(random, rate), rate)


def _is_kept(random: Array, rate: float) -> Array:
    return random >= jnp.uint32(round(rate * 2**16))


def _select(x: Array, kept: Array, rate: float) -> Array:
    """A product, since autodiff would keep the zeros of a select, as large as x, for all layers of a loop.

    The scale is a float32: rounded to bfloat16 it would lower the expectation by .16% at a rate of 0.1.
    """
    scale = jnp.float32(2**16 / (2**16 - round(rate * 2**16)))
    return ((x * kept.astype(x.dtype)).astype(jnp.float32) * scale).astype(x.dtype)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout of an array [..., N] (Srivastava et al. 2014); the identity without a key.

    The counter of a block is the index of its row of N elements, and its index in the row. The two broadcast only when
    the key is added: JAX computes what does not depend on the key before a loop over layers, as arrays in memory.
    """
    if key is None or rate == 0.0:
        return x
    *rows, columns = x.shape
    quarter = -(-columns // _PIECES)
    row = jnp.zeros((1,) * x.ndim, jnp.uint32)
    for axis, size in enumerate(rows):
        row = row * jnp.uint32(size) + _along(axis, x.ndim, jnp.arange(size, dtype=jnp.uint32))
    column = _along(-1, x.ndim, jnp.arange(quarter, dtype=jnp.uint32))
    packed = _pack(_pieces(*threefry_2x32(seed_of(key), row, column)), rate)
    bits = _along(-1, x.ndim, jnp.repeat(_bits(), quarter))
    kept = jnp.concatenate([packed] * _PIECES, axis=-1) & bits != 0
    return _select(x, kept[..., :columns], rate)


def weight_dropout(weight_BxHxTxS: Array, rate: float, key: Array | None, first_group: Array | int = 0) -> Array:
    """Inverted dropout of attention weights from query row 32·first_group on, with the masks of `random_rows`; the
    identity without a key."""
    if key is None or rate == 0.0:
        return weight_BxHxTxS
    batch, heads, queries, columns = weight_BxHxTxS.shape
    plane_BxHx1x1x1 = jnp.arange(batch * heads, dtype=jnp.uint32).reshape(batch, heads, 1, 1, 1)
    kept_BxHxTxS = kept_rows(seed_of(key), plane_BxHx1x1x1, first_group, -(-queries // GROUP), 0, columns, rate)
    return _select(weight_BxHxTxS, kept_BxHxTxS[:, :, :queries], rate)


def random_rows(
    seed: Seed, plane: Array, first_group: Array | int, groups: int, first_column: Array | int, columns: int
) -> Array:
    """Sixteen random bits, as uint32 [..., 32·groups, columns], for attention weights from query row 32·first_group and
    key first_column on.

    plane: uint32 b·H + h, b being the example's index in the global batch; a scalar, or [..., 1, 1, 1]. Queries and
    keys may have positions up to 2^16.
    """
    pieces = _row_pieces(seed, plane, first_group, groups, first_column, columns)
    *outer, groups, _, columns = pieces[0].shape
    return jnp.stack(pieces, axis=-3).reshape(*outer, groups * GROUP, columns)


def kept_rows(
    seed: Seed,
    plane: Array,
    first_group: Array | int,
    groups: int,
    first_column: Array | int,
    columns: int,
    rate: float,
) -> Array:
    """Which attention weights are kept, bool [..., 32·groups, columns]: where `random_rows` is not below the rate."""
    packed = _pack(_row_pieces(seed, plane, first_group, groups, first_column, columns), rate)
    *outer, groups, _, columns = packed.shape
    kept = packed[..., None, :, :] & _along(-3, packed.ndim + 1, _bits()) != 0
    return kept.reshape(*outer, groups * GROUP, columns)


def _row_pieces(
    seed: Seed, plane: Array, first_group: Array | int, groups: int, first_column: Array | int, columns: int
) -> list[Array]:
    """The pieces of the blocks of `random_rows`, each [..., groups, 8, columns]."""
    shape = (groups, GROUP // _PIECES, columns)
    group, within, column = (jax.lax.broadcasted_iota(jnp.uint32, shape, axis) for axis in range(3))
    row = (group + jnp.asarray(first_group, jnp.uint32)) * jnp.uint32(GROUP // _PIECES) + within
    position = (row << jnp.uint32(16)) | (column + jnp.asarray(first_column, jnp.uint32))
    return _pieces(*threefry_2x32(seed, plane, position.reshape((1,) * (plane.ndim - 3) + shape)))


def _pieces(first: Array, second: Array) -> list[Array]:
    """The 16-bit halves of two words."""
    return [half for word in (first, second) for half in (word & jnp.uint32(0xFFFF), word >> jnp.uint32(16))]


def _pack(pieces: list[Array], rate: float) -> Array:
    """Which of the four pieces of each block are kept, int8: a bit for each, as in _bits."""
    return sum((_is_kept(piece, rate).astype(jnp.int8) << index for index, piece in enumerate(pieces)), jnp.int8(0))


def _bits() -> Array:
    return 1 << jnp.arange(_PIECES, dtype=jnp.int8)


def _along(axis: int, dimensions: int, x_N: Array) -> Array:
    """A vector along one of the axes of an array."""
    return jnp.expand_dims(x_N, [each for each in range(dimensions) if each != axis % dimensions])
