"""The kernels of attention_kernel.py, with tiles, online softmax and recomputed weights (Dao et al. 2022).

A step of the grid holds in vector memory the rows of one example, of the heads that share 128 lanes, and loops over
pairs of a query tile and a key tile. The bias of a pair is a matrix whose diagonals are constant, made once for each
head and distance between tiles. Segments are compared and dropout masks generated in the tile. Key tiles that a query
tile cannot see are not computed. The backward pass computes all gradients in one sweep.

Suffixes besides those of t5.py: N steps of heads, G heads of a step, C = G·K lanes, t and s positions of a query tile
and of a key tile, W lanes of a band, I bands of a step.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from cotmi_jax.models.attention_pattern import MASKED
from cotmi_jax.models.dropout import GROUP, keep, random_rows

LANES = 128  # of a register

Ref = Any  # an array in vector or scalar memory


@dataclasses.dataclass(frozen=True)
class Static:
    """What a kernel is compiled for.

    total_heads: of all devices. query_tile, key_tile: positions. rate: of dropout. heads: of a grid step. size: of a
    head. vmem_limit: bytes of vector memory, or None for the compiler's default.
    """

    total_heads: int
    query_tile: int
    key_tile: int
    causal: bool
    rate: float
    interpret: bool
    heads: int = 0
    size: int = 0
    biased: bool = False
    vmem_limit: int | None = None


class Operands(NamedTuple):
    """Inputs of both kernels, of one device.

    band: bias of the distances in each pair of tiles. ids: segments, int32. bounds: first key tile and end of the key
    tiles of each query tile. words: the seed of dropout, and the index of the first example and of the first head.
    """

    query_BxTxD: Array
    keys_BxSxD: Array
    values_BxSxD: Array
    band_NxIxW: Array | None
    query_ids_Bx1xT: Array
    key_ids_Bx1xS: Array
    bounds_2xBxI: Array
    words_4: Array

    @property
    def arrays(self) -> list[Array]:
        """Those of which a grid step gets a block."""
        bands = [] if self.band_NxIxW is None else [self.band_NxIxW]
        return [self.query_BxTxD, self.keys_BxSxD, self.values_BxSxD, self.query_ids_Bx1xT, self.key_ids_Bx1xS, *bands]


def forward(static: Static, operands: Operands) -> tuple[Array, Array]:
    """Context [B, T, D] and log-sum-exp of the scores [B, N, G, T]."""
    call = _Call(static, operands)
    return call(_forward_kernel, [], [], [call.row_shape, call.lse_shape], [call.rows, call.lse], call.bias_tiles)


def backward(
    static: Static, operands: Operands, context_BxTxD: Array, lse_BxNxGxT: Array, d_context_BxTxD: Array
) -> Operands:
    """Gradients of queries, keys, values and bands; None for the other operands."""
    call = _Call(static, operands)
    results = [*operands.arrays[:3], *operands.arrays[5:]]
    sums = pltpu.VMEM((operands.keys_BxSxD.shape[1], call.lanes), jnp.float32)
    gradients = call(
        _backward_kernel,
        [context_BxTxD, lse_BxNxGxT, d_context_BxTxD],
        [call.rows, call.lse, call.rows],
        [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        [call.rows, call.columns, call.columns, *call.bands],
        [sums, sums, *call.bias_tiles, *call.bias_tiles],
    )
    d_query_BxTxD, d_keys_BxSxD, d_values_BxSxD, *d_bands = gradients
    none: Any = None
    return Operands(d_query_BxTxD, d_keys_BxSxD, d_values_BxSxD, d_bands[0] if d_bands else None, *[none] * 4)


class _Call:
    """A call of a kernel on the grid (steps of heads, examples), and the blocks of a step."""

    def __init__(self, static: Static, operands: Operands):
        batch, queries, width = operands.query_BxTxD.shape
        num_keys = operands.keys_BxSxD.shape[1]
        self.static, self.operands = static, operands
        self.lanes = static.heads * static.size
        self.grid = (width // self.lanes, batch)
        self.rows, self.columns = self._states(queries), self._states(num_keys)
        self.row_shape = jax.ShapeDtypeStruct(operands.query_BxTxD.shape, operands.query_BxTxD.dtype)
        self.ids = [pl.BlockSpec((None, 1, length), lambda n, b, *_: (b, 0, 0)) for length in (queries, num_keys)]
        self.lse = pl.BlockSpec((None, None, static.heads, queries), lambda n, b, *_: (b, n, 0, 0))
        self.lse_shape = jax.ShapeDtypeStruct((batch, self.grid[0], static.heads, queries), jnp.float32)
        self.bands, self.bias_tiles = [], []
        if operands.band_NxIxW is not None:
            _, bands, lanes = operands.band_NxIxW.shape
            self.bands = [pl.BlockSpec((None, bands, lanes), lambda n, b, *_: (n, 0, 0))]
            self.bias_tiles = [pltpu.VMEM((bands, static.query_tile, lanes // 2), jnp.float32)]

    def _states(self, length: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, length, self.lanes), lambda n, b, *_: (b, 0, n))

    def __call__(
        self,
        kernel: Callable[..., None],
        inputs: Sequence[Array],
        in_specs: Sequence[pl.BlockSpec],
        out_shape: Sequence[jax.ShapeDtypeStruct],
        out_specs: Sequence[pl.BlockSpec],
        scratch_shapes: Sequence[Any],
    ) -> Any:
        """The kernel's results. Its arguments: static, scalars, arrays of the operands, inputs, results, scratch."""
        grid_spec = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=self.grid,
            in_specs=[self.rows, self.columns, self.columns, *self.ids, *self.bands, *in_specs],
            out_specs=out_specs,
            scratch_shapes=scratch_shapes,
        )
        return pl.pallas_call(
            functools.partial(kernel, self.static),
            grid_spec=grid_spec,
            out_shape=out_shape,
            # Examples in turn: the bias of a step of heads is made at the first, its gradient written at the last.
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=self.static.vmem_limit
            ),
            interpret=self.static.interpret,
        )(self.operands.bounds_2xBxI, self.operands.words_4, *self.operands.arrays, *inputs)


class _Tiles:
    """What both kernels compute of a query tile i and a key tile j."""

    def __init__(
        self, static: Static, bounds_ref: Ref, words_ref: Ref, query_ids_ref: Ref, key_ids_ref: Ref, bias_ref: Ref
    ):
        self.static, self.bounds_ref, self.words_ref = static, bounds_ref, words_ref
        self.query_ids_ref, self.key_ids_ref, self.bias_ref = query_ids_ref, key_ids_ref, bias_ref
        self.step, self.example = pl.program_id(0), pl.program_id(1)
        self.queries, self.num_keys = query_ids_ref.shape[1], key_ids_ref.shape[1]
        self.query_tiles, self.key_tiles = self.queries // static.query_tile, self.num_keys // static.key_tile

    def for_queries(self, body: Callable[[Array], None]) -> None:
        """body(i) for each query tile."""
        jax.lax.fori_loop(0, self.query_tiles, lambda i, _: body(i), None)

    def for_keys(self, i: Array, body: Callable[[Array, Any], Any], carry: Any) -> Any:
        """body(j, carry) → carry for each key tile that query tile i may see."""
        begin, end = (self.bounds_ref[side, self.example, i] for side in range(2))
        return jax.lax.fori_loop(begin, end, body, carry)

    def rows(self, i: Array) -> Any:
        return _at(i, self.static.query_tile, self.queries)

    def columns(self, j: Array) -> Any:
        return _at(j, self.static.key_tile, self.num_keys)

    def split(self, x_txC: Array) -> list[Array]:
        """For each head, x with the lanes of the others set to 0: a product over all lanes is then that of the head."""
        zero = jnp.zeros((), x_txC.dtype)
        return [jnp.where(self._lanes(head, x_txC.shape), x_txC, zero) for head in range(self.static.heads)]

    def join(self, heads_txC: Sequence[Array]) -> Array:
        """[t, C] with the lanes of each head taken from its own array."""
        joined_txC = heads_txC[0]
        for head, x_txC in enumerate(heads_txC[1:], start=1):
            joined_txC = jnp.where(self._lanes(head, x_txC.shape), x_txC, joined_txC)
        return joined_txC

    def _lanes(self, head: int, shape: tuple[int, ...]) -> Array:
        return jax.lax.broadcasted_iota(jnp.int32, shape, 1) // self.static.size == head

    def visible(self, i: Array, j: Array, query_ids_tx1: Array) -> Array:
        """Which keys each query sees, bool [t, s]."""
        static = self.static
        visible_txs = query_ids_tx1 == self.key_ids_ref[:, self.columns(j)]
        if static.causal:
            row, column = (jax.lax.broadcasted_iota(jnp.int32, visible_txs.shape, axis) for axis in range(2))
            visible_txs &= column + j * static.key_tile <= row + i * static.query_tile
        return visible_txs

    def band(self, i: Array, j: Array, head: int) -> Array:
        """Index of the bias tile of a pair of tiles."""
        return j - i + self.query_tiles - 1 + head * (self.query_tiles + self.key_tiles - 1)

    def scores(self, i: Array, j: Array, head: int, query_txC: Array, keys_sxC: Array, visible_txs: Array) -> Array:
        score_txs = _dot(query_txC, keys_sxC, 1, 1)
        if self.static.biased:
            score_txs += self.bias_ref[self.band(i, j, head)][:, : self.static.key_tile]
        return jnp.where(visible_txs, score_txs, MASKED)

    def random(self, i: Array, j: Array, head: int) -> Array:
        """The random bits of models.dropout for this example and head, uint32 [t, s]."""
        static, words_ref = self.static, self.words_ref
        plane = (words_ref[2] + self.example.astype(jnp.uint32)) * jnp.uint32(static.total_heads)
        plane += words_ref[3] + (self.step * static.heads + head).astype(jnp.uint32)
        seed, groups = (words_ref[0], words_ref[1]), -(-static.query_tile // GROUP)
        return random_rows(seed, plane, i * groups, groups, j * static.key_tile, static.key_tile)[: static.query_tile]


def _forward_kernel(static: Static, *refs: Ref) -> None:
    """Online softmax over the key tiles of each query tile."""
    bounds_ref, words_ref, query_ref, keys_ref, values_ref, query_ids_ref, key_ids_ref, *rest = refs
    bias_ref = None
    if static.biased:
        band_ref, *rest, bias_ref = rest
        _make_bias(band_ref, bias_ref)
    context_ref, lse_ref = rest
    tiles = _Tiles(static, bounds_ref, words_ref, query_ids_ref, key_ids_ref, bias_ref)

    def attend(i: Array) -> None:
        rows = tiles.rows(i)
        query_ids_tx1, query_GxtxC = _column(query_ids_ref[:, rows]), tiles.split(query_ref[rows])

        def add_keys(j: Array, carry: list[tuple[Array, Array, Array]]) -> list[tuple[Array, Array, Array]]:
            keys_sxC, values_sxC = keys_ref[tiles.columns(j)], values_ref[tiles.columns(j)]
            visible_txs = tiles.visible(i, j, query_ids_tx1)
            new = []
            for head, (max_tx1, sum_tx1, context_txC) in enumerate(carry):
                score_txs = tiles.scores(i, j, head, query_GxtxC[head], keys_sxC, visible_txs)
                new_max_tx1 = jnp.maximum(max_tx1, score_txs.max(axis=1, keepdims=True))
                weight_txs, decay_tx1 = jnp.exp(score_txs - new_max_tx1), jnp.exp(max_tx1 - new_max_tx1)
                sum_tx1 = decay_tx1 * sum_tx1 + weight_txs.sum(axis=1, keepdims=True)
                if static.rate:
                    weight_txs = keep(weight_txs, tiles.random(i, j, head), static.rate)
                context_txC = decay_tx1 * context_txC + _dot(weight_txs.astype(values_sxC.dtype), values_sxC, 1, 0)
                new.append((new_max_tx1, sum_tx1, context_txC))
            return new

        max_tx1 = jnp.full((static.query_tile, 1), MASKED, jnp.float32)
        empty = max_tx1, jnp.zeros_like(max_tx1), jnp.zeros(query_GxtxC[0].shape, jnp.float32)
        normalized_GxtxC = []
        for head, (max_tx1, sum_tx1, context_txC) in enumerate(tiles.for_keys(i, add_keys, [empty] * static.heads)):
            sum_tx1 = jnp.where(sum_tx1 == 0.0, 1.0, sum_tx1)  # no key tile is seen
            normalized_GxtxC.append(context_txC * (1.0 / sum_tx1))
            lse_ref[head : head + 1, rows] = _row(max_tx1 + jnp.log(sum_tx1))
        context_ref[rows] = tiles.join(normalized_GxtxC).astype(context_ref.dtype)

    tiles.for_queries(attend)


def _backward_kernel(static: Static, *refs: Ref) -> None:
    """Weights are computed from the log-sum-exp; each pair of tiles adds to every gradient."""
    bounds_ref, words_ref, query_ref, keys_ref, values_ref, query_ids_ref, key_ids_ref, *rest = refs
    bias_ref: Ref = None
    d_bias_ref: Ref = None
    if static.biased:
        band_ref, *rest, bias_ref, d_bias_ref = rest
        d_band_ref = rest.pop(6)
        _make_bias(band_ref, bias_ref)
        _clear_bias(d_bias_ref)
    context_ref, lse_ref, d_context_ref, d_query_ref, d_keys_ref, d_values_ref, keys_sum_ref, values_sum_ref = rest
    keys_sum_ref[...] = jnp.zeros_like(keys_sum_ref)
    values_sum_ref[...] = jnp.zeros_like(values_sum_ref)
    tiles = _Tiles(static, bounds_ref, words_ref, query_ids_ref, key_ids_ref, bias_ref)
    heads = range(static.heads)

    def attend(i: Array) -> None:
        rows = tiles.rows(i)
        query_ids_tx1, query_GxtxC = _column(query_ids_ref[:, rows]), tiles.split(query_ref[rows])
        d_context_GxtxC, context_txC = tiles.split(d_context_ref[rows]), context_ref[rows].astype(jnp.float32)
        # The sum over keys of weight · gradient of the weight (Dao et al. 2022, section B.2).
        mean_Gxtx1 = [(x.astype(jnp.float32) * context_txC).sum(axis=1, keepdims=True) for x in d_context_GxtxC]
        lse_Gxtx1 = [_column(lse_ref[head : head + 1, rows]) for head in heads]

        def add_keys(j: Array, d_query_GxtxC: list[Array]) -> list[Array]:
            columns = tiles.columns(j)
            keys_sxC, values_sxC = keys_ref[columns], values_ref[columns]
            visible_txs = tiles.visible(i, j, query_ids_tx1)
            new = []
            for head in heads:
                score_txs = tiles.scores(i, j, head, query_GxtxC[head], keys_sxC, visible_txs)
                weight_txs = kept_txs = jnp.exp(score_txs - lse_Gxtx1[head])
                d_weight_txs = _dot(d_context_GxtxC[head], values_sxC, 1, 1)
                if static.rate:
                    random_txs = tiles.random(i, j, head)
                    kept_txs = keep(weight_txs, random_txs, static.rate)
                    d_weight_txs = keep(d_weight_txs, random_txs, static.rate)
                d_score_txs = weight_txs * (d_weight_txs - mean_Gxtx1[head])
                if static.biased:
                    d_bias_ref[tiles.band(i, j, head), :, : static.key_tile] += d_score_txs
                kept_txs, d_score_txs = (x.astype(keys_sxC.dtype) for x in (kept_txs, d_score_txs))
                values_sum_ref[columns] += _dot(kept_txs, d_context_GxtxC[head], 0, 0)
                keys_sum_ref[columns] += _dot(d_score_txs, query_GxtxC[head], 0, 0)
                new.append(d_query_GxtxC[head] + _dot(d_score_txs, keys_sxC, 1, 0))
            return new

        zero_txC = jnp.zeros(context_txC.shape, jnp.float32)
        d_query_GxtxC = tiles.for_keys(i, add_keys, [zero_txC] * static.heads)
        d_query_ref[rows] = tiles.join(d_query_GxtxC).astype(d_query_ref.dtype)

    tiles.for_queries(attend)
    d_keys_ref[...] = keys_sum_ref[...].astype(d_keys_ref.dtype)
    d_values_ref[...] = values_sum_ref[...].astype(d_values_ref.dtype)
    if static.biased:
        _sum_diagonals(d_bias_ref, d_band_ref)


def _make_bias(band_ref: Ref, bias_ref: Ref) -> None:
    """The bias tiles from their bands, at the first example: row t is the band, moved right by t lanes."""
    bands, tile, half = bias_ref.shape

    def make(index: Array, _: None) -> None:
        band_txW = jnp.broadcast_to(band_ref[pl.ds(index, 1)], (tile, 2 * half))
        bias_ref[index] = _rotate_rows(band_txW, 1)[:, half:]

    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        jax.lax.fori_loop(0, bands, make, None)


def _clear_bias(d_bias_ref: Ref) -> None:
    @pl.when(pl.program_id(1) == 0)
    def _() -> None:
        d_bias_ref[...] = jnp.zeros_like(d_bias_ref)


def _sum_diagonals(d_bias_ref: Ref, d_band_ref: Ref) -> None:
    """The transpose of _make_bias, at the last example: rows are moved back and summed."""
    bands, tile, half = d_bias_ref.shape

    def add(index: Array, _: None) -> None:
        d_band_txW = jnp.concatenate([jnp.zeros((tile, half), jnp.float32), d_bias_ref[index]], axis=1)
        d_band_ref[pl.ds(index, 1)] = _rotate_rows(d_band_txW, -1).sum(axis=0, keepdims=True)

    @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
    def _() -> None:
        jax.lax.fori_loop(0, bands, add, None)


def _rotate_rows(x_txW: Array, direction: int) -> Array:
    """Row t rotated by t lanes, to the right (1) or left (-1), one power of two after the other: no TPU can rotate each
    row by its own number of lanes to the left, and only those since v5 to the right."""
    rows, width = x_txW.shape
    row_txW = jax.lax.broadcasted_iota(jnp.int32, x_txW.shape, 0)
    for power in range((rows - 1).bit_length()):
        rotated_txW = pltpu.roll(x_txW, direction * (1 << power) % width, 1)
        x_txW = jnp.where((row_txW >> power) & 1 == 1, rotated_txW, x_txW)
    return x_txW


def _at(index: Array, tile: int, length: int) -> Any:
    """The positions of a tile. The only tile of a row need not be aligned, hence its start has to be a constant."""
    return pl.ds(0, tile) if tile == length else pl.ds(pl.multiple_of(index * tile, tile), tile)


def _column(x_1xt: Array) -> Array:
    return jnp.broadcast_to(x_1xt, (8, x_1xt.shape[1])).T[:, :1]


def _row(x_tx1: Array) -> Array:
    return jnp.broadcast_to(x_tx1, (x_tx1.shape[0], 8)).T[:1]


def _dot(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    dimensions = (((left_axis,), (right_axis,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)
