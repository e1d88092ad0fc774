"""T5's attention as one TPU kernel, forward and backward (Pallas). Legend of the shape suffixes in t5.py.

Neither scores nor weights, bias, mask or random bits are written to memory. This module prepares the kernels' operands
and divides them over the mesh; the kernels are in attention_tiles.py.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import PartitionSpec

from cotmi_jax.models.attention_pattern import Pattern
from cotmi_jax.models.attention_tiles import LANES, Operands, Static, backward, forward
from cotmi_jax.models.dropout import seed_of
from cotmi_jax.models.remat import saved
from cotmi_jax.parallel.mesh import BATCH_AXES, batch_shards

TILE = 128  # positions of a tile
_ROWS = 16  # of bfloat16 in a register: shorter tiles have a multiple
_SIZES = (64, 128)  # of heads, which fill the lanes of a register in pairs or singly
_MIB = 1 << 20
# Bytes of vector memory that the arrays of a grid step may take: of 16 MiB up to v4, of at least 64 MiB since then.
_OLD_KINDS, _OLD_VMEM, _VMEM = ("v2", "v3", "v4"), 12 * _MIB, 40 * _MIB
# Padding, segment 0, is renumbered, so that segments which ascend still do. The two numbers after it are those of the
# queries and keys that are added to fill a tile.
_NO_SEGMENT = 1 << 30


def unsupported(query_BxTxHxK: Array, keys_BxSxHxK: Array, pattern: Pattern) -> str | None:
    """Why the kernel cannot be used for these shapes, on the current mesh and device; None if it can."""
    batch, queries, heads, size = query_BxTxHxK.shape
    num_keys, item = keys_BxSxHxK.shape[1], query_BxTxHxK.dtype.itemsize
    mesh = jax.sharding.get_abstract_mesh()
    device = mesh.abstract_device
    platform, kind = (jax.default_backend(), "") if device is None else (device.platform, device.device_kind)
    if platform != "tpu":
        return f"it is compiled for TPUs, not for {platform}"
    if not isinstance(pattern.first_query, int) or pattern.first_query:
        return "it is for whole rows, not for one position of a decoding loop"
    if size not in _SIZES:
        return f"it takes heads of 64 or 128 features, not of {size}"
    shards, head_shards = (1, 1) if mesh.empty else (batch_shards(mesh), mesh.shape["tensor"])
    if batch % shards or heads % head_shards:
        return f"{batch} rows and {heads} heads do not divide over {shards} × {head_shards} devices"
    allowed = _OLD_VMEM if any(old in kind for old in _OLD_KINDS) else _VMEM
    biased = pattern.table_PxNxH is not None
    need = _vmem_bytes(queries, num_keys, heads // head_shards, size, item, biased=biased)
    if need > allowed:
        text = f"{need / _MIB:.0f} MiB of vector memory, of which {allowed // _MIB} may be used"
        return f"rows of {queries} → {num_keys} tokens need {text}"
    return None


def fused_attention(
    query_BxTxHxK: Array,
    keys_BxSxHxK: Array,
    values_BxSxHxK: Array,
    pattern: Pattern,
    key: Array | None,
    *,
    rate: float,
    tile: int = TILE,
    interpret: bool = False,
) -> Array:
    """attention.attend as a kernel: context [B, T, H, K] in the queries' dtype, which keys and values have too.

    On the current mesh batch and heads are sharded; dropout masks do not depend on it. tile: positions of a tile, a
    multiple of 32. interpret: on any device, slowly, for tests.
    """
    batch, queries, heads, _ = query_BxTxHxK.shape
    num_keys = keys_BxSxHxK.shape[1]
    query_tile, key_tile = _tile(queries, tile), _tile(num_keys, tile)
    if pattern.table_PxNxH is not None:
        query_tile = key_tile = max(query_tile, key_tile)
    segments = pattern.query_segments_BxT, pattern.key_segments_BxS
    if pattern.query_segments_BxT is None:
        segments = jnp.ones((batch, queries), jnp.int32), jnp.ones((batch, num_keys), jnp.int32)

    band_PxHxOxW = _bands(pattern, query_tile, -(-queries // query_tile), -(-num_keys // key_tile))
    seed_2 = None if key is None or rate == 0.0 else jnp.stack(seed_of(key))
    static = Static(
        total_heads=heads,
        query_tile=query_tile,
        key_tile=key_tile,
        causal=pattern.causal,
        rate=0.0 if seed_2 is None else rate,
        interpret=interpret,
    )
    mesh = jax.sharding.get_abstract_mesh()
    attend = functools.partial(_attend, static, not mesh.empty)
    operands: tuple[Any, ...] = (query_BxTxHxK, keys_BxSxHxK, values_BxSxHxK, band_PxHxOxW, *segments, seed_2)
    if mesh.empty:
        return attend(*operands)
    states, rows, bands = PartitionSpec(BATCH_AXES, None, "tensor"), PartitionSpec(BATCH_AXES), None
    if band_PxHxOxW is not None:
        bands = PartitionSpec(BATCH_AXES if len(band_PxHxOxW) > 1 else None, "tensor")
    specs = states, states, states, bands, rows, rows, None if seed_2 is None else PartitionSpec()
    # Each device computes its examples and heads alone; the gradient of a bias that all share is summed over devices.
    return jax.shard_map(attend, in_specs=specs, out_specs=states, check_vma=False)(*operands)


def _attend(
    static: Static,
    sharded: bool,
    query_BxTxHxK: Array,
    keys_BxSxHxK: Array,
    values_BxSxHxK: Array,
    band_PxHxOxW: Array | None,
    query_segments_BxT: Array,
    key_segments_BxS: Array,
    seed_2: Array | None,
) -> Array:
    """The context of the examples and heads of one device."""
    batch, queries, heads, size = query_BxTxHxK.shape
    num_keys, item = keys_BxSxHxK.shape[1], query_BxTxHxK.dtype.itemsize
    biased = band_PxHxOxW is not None
    need = _vmem_bytes(queries, num_keys, heads, size, item, biased=biased)
    static = dataclasses.replace(
        static,
        heads=_heads_per_step(heads, size),
        size=size,
        biased=biased,
        vmem_limit=None if need <= _OLD_VMEM else _VMEM + 16 * _MIB,  # some of it for registers that are spilled
    )
    first_2 = jnp.zeros(2, jnp.uint32)
    if sharded:
        first = jax.lax.axis_index(BATCH_AXES) * batch, jax.lax.axis_index("tensor") * heads
        first_2 = jnp.stack(first).astype(jnp.uint32)
    words_4 = jnp.concatenate([jnp.zeros(2, jnp.uint32) if seed_2 is None else seed_2, first_2])
    band_NxIxW = None
    if band_PxHxOxW is not None:  # one copy on each device
        band_NxIxW = band_PxHxOxW[0].reshape(heads // static.heads, -1, band_PxHxOxW.shape[-1])
    query_ids_BxT = _pad(_renumber(query_segments_BxT), static.query_tile, _NO_SEGMENT + 1)
    key_ids_BxS = _pad(_renumber(key_segments_BxS), static.key_tile, _NO_SEGMENT + 2)
    operands = Operands(
        _pad(query_BxTxHxK.reshape(batch, queries, -1), static.query_tile),
        _pad(keys_BxSxHxK.reshape(batch, num_keys, -1), static.key_tile),
        _pad(values_BxSxHxK.reshape(batch, num_keys, -1), static.key_tile),
        band_NxIxW,
        query_ids_BxT[:, None],
        key_ids_BxS[:, None],
        _key_tiles(static, query_ids_BxT, key_ids_BxS),
        words_4,
    )
    context_BxTxD = _attention(static, operands)
    return context_BxTxD[:, :queries].reshape(batch, queries, heads, size)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static: Static, operands: Operands) -> Array:
    return forward(static, operands)[0]


def _attention_forward(static: Static, operands: Operands) -> tuple[Array, tuple[Operands, Array, Array]]:
    context_BxTxD, lse_BxNxGxT = (saved(x) for x in forward(static, operands))
    return context_BxTxD, (operands, context_BxTxD, lse_BxNxGxT)


def _attention_backward(
    static: Static, residuals: tuple[Operands, Array, Array], d_context_BxTxD: Array
) -> tuple[Operands]:
    return (backward(static, *residuals, d_context_BxTxD),)


_attention.defvjp(_attention_forward, _attention_backward)


def _heads_per_step(heads: int, size: int) -> int:
    """Heads that share 128 lanes; all, if their number is not a multiple of that."""
    shared = max(1, LANES // size)
    return shared if heads % shared == 0 else heads


def _tile(length: int, tile: int) -> int:
    """Positions of a tile of rows of this length."""
    return tile if length > tile else -(-length // _ROWS) * _ROWS


def _vmem_bytes(queries: int, num_keys: int, heads: int, size: int, item: int, *, biased: bool) -> int:
    """Bytes of the arrays that a grid step of the backward pass holds in vector memory."""
    queries, num_keys = (-(-length // TILE) * TILE for length in (queries, num_keys))
    heads = _heads_per_step(heads, size)
    lanes = -(-heads * size // LANES) * LANES
    blocks = 2 * 4 * (queries + num_keys) * lanes * item  # twice: those of the next step are copied meanwhile
    sums = 2 * num_keys * lanes * 4
    bias = 2 * heads * (queries + num_keys) * LANES * 4 if biased else 0
    return blocks + sums + bias


def _pad(x_BxTx: Array, tile: int, value: int = 0) -> Array:
    """Padded along axis 1 to a multiple of the tile."""
    missing = -x_BxTx.shape[1] % tile
    if not missing:
        return x_BxTx
    return jnp.pad(x_BxTx, ((0, 0), (0, missing), *[(0, 0)] * (x_BxTx.ndim - 2)), constant_values=value)


def _renumber(segments_BxT: Array) -> Array:
    return jnp.where(segments_BxT == 0, _NO_SEGMENT, segments_BxT)


def _bands(pattern: Pattern, tile: int, query_tiles: int, key_tiles: int) -> Array | None:
    """[P, H, O, W], or None: for each of the O distances between a query tile and a key tile, the bias of the distances
    key − query in them. Lane W/2 is that of their first query and first key."""
    diagonals_PxHxZ = pattern.diagonals(query_tiles * tile, key_tiles * tile)
    if diagonals_PxHxZ is None:
        return None
    half = -(-tile // LANES) * LANES
    padded_PxHxZ = jnp.pad(diagonals_PxHxZ, ((0, 0), (0, 0), (half - tile + 1, half - tile)))
    starts = range(0, (query_tiles + key_tiles - 1) * tile, tile)
    return jnp.stack([padded_PxHxZ[..., start : start + 2 * half] for start in starts], axis=-2)


def _key_tiles(static: Static, query_ids_BxT: Array, key_ids_BxS: Array) -> Array:
    """int32 [2, B, query tiles]: the first key tile that a query tile may see, and the one after the last.

    Tiles see each other if the ranges of their segments overlap. Every key tile between is computed, so that segments
    in any order give the same result.
    """
    query_BxIxt = query_ids_BxT.reshape(len(query_ids_BxT), -1, static.query_tile)
    key_BxJxs = key_ids_BxS.reshape(len(key_ids_BxS), -1, static.key_tile)
    sees_BxIxJ = query_BxIxt.max(-1)[:, :, None] >= key_BxJxs.min(-1)[:, None, :]
    sees_BxIxJ &= query_BxIxt.min(-1)[:, :, None] <= key_BxJxs.max(-1)[:, None, :]
    query_tiles, key_tiles = sees_BxIxJ.shape[1:]
    if static.causal:
        end_I, first_J = (jnp.arange(query_tiles) + 1) * static.query_tile, jnp.arange(key_tiles) * static.key_tile
        sees_BxIxJ &= (first_J[None, :] < end_I[:, None])[None]
    begin_BxI = jnp.argmax(sees_BxIxJ, axis=-1)
    end_BxI = key_tiles - jnp.argmax(sees_BxIxJ[..., ::-1], axis=-1)
    return jnp.stack([begin_BxI, jnp.where(sees_BxIxJ.any(-1), end_BxI, begin_BxI)]).astype(jnp.int32)
