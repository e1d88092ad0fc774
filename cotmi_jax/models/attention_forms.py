"""Attention from plain jax.numpy operations: all scores at once, or a block of queries at a time.

Both have a derivative of their own, of the same two functions. The exponentials of the scores are not normalized: the
context is divided by their sum, which is S times less work than dividing the weights, and the backward pass divides its
cotangent. Arrays have heads before positions, as batched products need them. Shape suffixes: t5.py; G queries of a
block.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.models.attention_pattern import MASKED, Pattern
from cotmi_jax.models.dropout import GROUP, weight_dropout
from cotmi_jax.models.remat import saved
from cotmi_jax.parallel.mesh import current_platform

BLOCK = 256  # queries


class _Operands(NamedTuple):
    """What the scores of all or of a block of queries are computed from; the pattern is without its table."""

    query_BxHxTxK: Array
    keys_BxHxSxK: Array
    values_BxHxSxK: Array
    table_PxNxH: Array | None
    pattern: Pattern
    key: Array | None  # of dropout


class _Results(NamedTuple):
    context_BxHxTxK: Array
    highest_BxHxTx1: Array  # score of a query
    sum_BxHxTx1: Array  # of exp(score − highest)


def plain(
    query_BxTxHxK: Array,
    keys_BxSxHxK: Array,
    values_BxSxHxK: Array,
    pattern: Pattern,
    key: Array | None,
    rate: float,
) -> Array:
    """All scores [B, H, T, S] at once; their exponentials are saved for the backward pass."""
    return _call(_plain, query_BxTxHxK, keys_BxSxHxK, values_BxSxHxK, pattern, key, rate)


def blocked(
    query_BxTxHxK: Array,
    keys_BxSxHxK: Array,
    values_BxSxHxK: Array,
    pattern: Pattern,
    key: Array | None,
    rate: float,
    block: int = BLOCK,
) -> Array:
    """The scores [B, H, G, S] of a block of queries at a time, computed again in the backward pass.

    block: a multiple of dropout.GROUP. The number of queries need not be a multiple of it.
    """
    function = functools.partial(_blocked, block)
    return _call(function, query_BxTxHxK, keys_BxSxHxK, values_BxSxHxK, pattern, key, rate)


def _call(
    function: Callable[[float, _Operands], Array],
    query_BxTxHxK: Array,
    keys_BxSxHxK: Array,
    values_BxSxHxK: Array,
    pattern: Pattern,
    key: Array | None,
    rate: float,
) -> Array:
    query, keys, values = (jnp.swapaxes(x, 1, 2) for x in (query_BxTxHxK, keys_BxSxHxK, values_BxSxHxK))
    without_table = dataclasses.replace(pattern, table_PxNxH=None)
    context_BxHxTxK = function(rate, _Operands(query, keys, values, pattern.table_PxNxH, without_table, key))
    return jnp.swapaxes(context_BxHxTxK, 1, 2)


def _bias(operands: _Operands) -> Array | None:
    queries, keys = operands.query_BxHxTxK.shape[2], operands.keys_BxHxSxK.shape[2]
    return dataclasses.replace(operands.pattern, table_PxNxH=operands.table_PxNxH).bias(queries, keys)


def _exponentials(operands: _Operands, highest_BxHxTx1: Array | None = None) -> tuple[Array, Array]:
    """exp(score − highest) [B, H, T, S] and the highest score of each query, in float32."""
    query_BxHxTxK, keys_BxHxSxK, *_ = operands
    score_BxHxTxS = jnp.einsum("bhtk,bhsk->bhts", query_BxHxTxK, keys_BxHxSxK, preferred_element_type=jnp.float32)
    bias_PxHxTxS = _bias(operands)
    if bias_PxHxTxS is not None:
        score_BxHxTxS = score_BxHxTxS + repeat_per_example(bias_PxHxTxS, score_BxHxTxS.shape[0])
    visible = operands.pattern.visible(*score_BxHxTxS.shape[2:])
    if visible is not None:
        score_BxHxTxS = jnp.where(visible, score_BxHxTxS, MASKED)
    if highest_BxHxTx1 is None:
        highest_BxHxTx1 = score_BxHxTxS.max(axis=-1, keepdims=True)
    return jnp.exp(score_BxHxTxS - highest_BxHxTx1), highest_BxHxTx1


def _dropout(x_BxHxTxS: Array, operands: _Operands, rate: float) -> Array:
    """x with the dropout mask of these queries' weights; linear in x."""
    if operands.key is None:
        return x_BxHxTxS
    return weight_dropout(x_BxHxTxS, rate, operands.key, operands.pattern.first_query // GROUP)


def _forward(rate: float, operands: _Operands) -> tuple[_Results, Array]:
    """The results, and the exponentials in the dtype of the values."""
    exponential_BxHxTxS, highest_BxHxTx1 = _exponentials(operands)
    sum_BxHxTx1 = exponential_BxHxTxS.sum(axis=-1, keepdims=True)
    values_BxHxSxK = operands.values_BxHxSxK
    exponential_BxHxTxS = exponential_BxHxTxS.astype(values_BxHxSxK.dtype)
    dropped_BxHxTxS = _dropout(exponential_BxHxTxS, operands, rate)
    total_BxHxTxK = jnp.einsum("bhts,bhsk->bhtk", dropped_BxHxTxS, values_BxHxSxK, preferred_element_type=jnp.float32)
    context_BxHxTxK = (total_BxHxTxK / sum_BxHxTx1).astype(values_BxHxSxK.dtype)
    return _Results(context_BxHxTxK, highest_BxHxTx1, sum_BxHxTx1), exponential_BxHxTxS


def _backward(
    rate: float, operands: _Operands, results: _Results, exponential_BxHxTxS: Array, d_context_BxHxTxK: Array
) -> tuple[Array, Array, Array, Array | None]:
    """The gradients of query, keys and values, which are float32, and of the table."""
    query_BxHxTxK, keys_BxHxSxK, values_BxHxSxK, table_PxNxH, _, _ = operands
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scaled_BxHxTxK = d_context_BxHxTxK.astype(jnp.float32) / results.sum_BxHxTx1
    # Σ_s weight · d_weight, since the context is the sum of the weighted values.
    mean_BxHxTx1 = (scaled_BxHxTxK * results.context_BxHxTxK).sum(axis=-1, keepdims=True)
    scaled_BxHxTxK = scaled_BxHxTxK.astype(values_BxHxSxK.dtype)
    d_values_BxHxSxK = product("bhts,bhtk->bhsk", _dropout(exponential_BxHxTxS, operands, rate), scaled_BxHxTxK)
    d_weight_BxHxTxS = _dropout(product("bhtk,bhsk->bhts", scaled_BxHxTxK, values_BxHxSxK), operands, rate)
    d_score_BxHxTxS = exponential_BxHxTxS * (d_weight_BxHxTxS - mean_BxHxTx1)
    d_table_PxNxH = None
    if table_PxNxH is not None:
        _, pull_back = jax.vjp(lambda table: _bias(operands._replace(table_PxNxH=table)), table_PxNxH)
        (d_table_PxNxH,) = pull_back(_sum_over_examples(d_score_BxHxTxS, table_PxNxH.shape[0]))
    d_score_BxHxTxS = d_score_BxHxTxS.astype(keys_BxHxSxK.dtype)
    d_query_BxHxTxK = product("bhts,bhsk->bhtk", d_score_BxHxTxS, keys_BxHxSxK)
    d_keys_BxHxSxK = product("bhts,bhtk->bhsk", d_score_BxHxTxS, query_BxHxTxK)
    return d_query_BxHxTxK, d_keys_BxHxSxK, d_values_BxHxSxK, d_table_PxNxH


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _plain(rate: float, operands: _Operands) -> Array:
    return _forward(rate, operands)[0].context_BxHxTxK


def _plain_forward(rate: float, operands: _Operands) -> tuple[Array, tuple[_Operands, _Results, Array]]:
    results, exponential_BxHxTxS = _forward(rate, operands)
    results = results._replace(context_BxHxTxK=saved(results.context_BxHxTxK))
    return results.context_BxHxTxK, (operands, results, exponential_BxHxTxS)


def _plain_backward(rate: float, residuals: tuple[_Operands, _Results, Array], d_context: Array) -> tuple[_Operands]:
    return (_cotangents(residuals[0], *_backward(rate, *residuals, d_context)),)


_plain.defvjp(_plain_forward, _plain_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blocked(block: int, rate: float, operands: _Operands) -> Array:
    return _blocked_forward(block, rate, operands)[0]


def _blocked_forward(block: int, rate: float, operands: _Operands) -> tuple[Array, tuple[_Operands, _Results]]:
    queries = operands.query_BxHxTxK.shape[2]

    def body(_: None, start_and_rows: tuple[Array, Array, Array | None]) -> tuple[None, _Results]:
        return None, _forward(rate, _block_of(operands, *start_and_rows))[0]

    stacked = jax.lax.scan(body, None, _blocks(block, operands))[1]
    results = _Results(*(_join(each, queries) for each in stacked))
    results = _Results(*map(saved, results))  # the forward pass is not repeated under remat "dots"
    return results.context_BxHxTxK, (operands, results)


def _blocked_backward(
    block: int, rate: float, residuals: tuple[_Operands, _Results], d_context_BxHxTxK: Array
) -> tuple[_Operands]:
    operands, results = residuals
    totals = jax.tree.map(
        lambda each: jnp.zeros(each.shape, jnp.float32),
        [operands.keys_BxHxSxK, operands.values_BxHxSxK, operands.table_PxNxH],
    )

    def body(totals: list, inputs: tuple) -> tuple[list, Array]:
        here, results, d_context_BxHxGxK = _block_of(operands, *inputs[0]), inputs[1], inputs[2]
        exponential_BxHxGxS, _ = _exponentials(here, results.highest_BxHxTx1)
        exponential_BxHxGxS = exponential_BxHxGxS.astype(operands.values_BxHxSxK.dtype)
        d_query_BxHxGxK, *others = _backward(rate, here, results, exponential_BxHxGxS, d_context_BxHxGxK)
        return jax.tree.map(jnp.add, totals, others), d_query_BxHxGxK.astype(d_context_BxHxTxK.dtype)

    # Queries that pad the last block have a sum of 1, by which their cotangent of 0 can be divided.
    stacked = _Results(*(_split(each, block, 1) for each in results)), _split(d_context_BxHxTxK, block)
    totals, d_query = jax.lax.scan(body, totals, (_blocks(block, operands), *stacked))
    d_query_BxHxTxK = _join(d_query, operands.query_BxHxTxK.shape[2])
    return (_cotangents(operands, d_query_BxHxTxK, *totals),)


_blocked.defvjp(_blocked_forward, _blocked_backward)


def _blocks(block: int, operands: _Operands) -> tuple[Array, Array, Array | None]:
    """Stacked along a first axis: the first query of each block, its queries [B, H, G, K] and segments [B, G]."""
    query = _split(operands.query_BxHxTxK, block)
    segments_BxT = operands.pattern.query_segments_BxT
    segments = None if segments_BxT is None else _split(segments_BxT[:, None, :, None], block)[:, :, 0, :, 0]
    return jnp.arange(len(query)) * block, query, segments


def _block_of(operands: _Operands, start: Array, query_BxHxGxK: Array, segments_BxG: Array | None) -> _Operands:
    pattern = dataclasses.replace(
        operands.pattern, first_query=operands.pattern.first_query + start, query_segments_BxT=segments_BxG
    )
    return operands._replace(query_BxHxTxK=query_BxHxGxK, pattern=pattern)


def _split(x_BxHxTxK: Array, block: int, padding: int = 0) -> Array:
    """[B, H, T, K] → blocks of queries [T / G, B, H, G, K], padded with a value."""
    batch, heads, queries, size = x_BxHxTxK.shape
    count = -(-queries // block)
    widths = ((0, 0), (0, 0), (0, count * block - queries), (0, 0))
    padded = jnp.pad(x_BxHxTxK, widths, constant_values=padding)
    return jnp.moveaxis(padded.reshape(batch, heads, count, block, size), 2, 0)


def _join(blocks: Array, queries: int) -> Array:
    """The inverse of _split."""
    count, batch, heads, block, size = blocks.shape
    return jnp.moveaxis(blocks, 0, 2).reshape(batch, heads, count * block, size)[:, :, :queries]


def _cotangents(
    operands: _Operands, d_query: Array, d_keys: Array, d_values: Array, d_table: Array | None
) -> _Operands:
    """Gradients in the operands' dtypes; None, which stands for zero, for what has none."""
    d_query, d_keys, d_values = (
        each.astype(operand.dtype)
        for each, operand in (
            (d_query, operands.query_BxHxTxK),
            (d_keys, operands.keys_BxHxSxK),
            (d_values, operands.values_BxHxSxK),
        )
    )
    return _Operands(d_query, d_keys, d_values, d_table, None, None)  # type: ignore[arg-type]


def repeat_per_example(bias_PxHxTxS: Array, batch: int) -> Array:
    """[P, H, T, S] → [B, H, T, S]: the bias of a batch shard for each of its examples; unchanged if it broadcasts."""
    shards, *rest = bias_PxHxTxS.shape
    if shards in (1, batch):
        return bias_PxHxTxS
    return jnp.broadcast_to(bias_PxHxTxS[:, None], (shards, batch // shards, *rest)).reshape(batch, *rest)


def _sum_over_examples(x_BxHxTxS: Array, shards: int) -> Array:
    """[B, H, T, S] → [P, H, T, S], the sum over the examples of each batch shard; the transpose of repeat_per_example.

    On CPU by a product with ones: XLA's sum over the major axis takes 50 times as long (jax 0.10).
    """
    batch, *rest = x_BxHxTxS.shape
    if current_platform() != "cpu":
        return x_BxHxTxS.reshape(shards, batch // shards, *rest).sum(axis=1)
    x_PxBxN = x_BxHxTxS.reshape(shards, batch // shards, -1)
    return jnp.matmul(jnp.ones((shards, 1, batch // shards)), x_PxBxN).reshape(shards, *rest)
