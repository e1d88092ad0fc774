"""A student's decoder one position at a time, as generation calls it. Legend in t5.py; here M is the number of beams.

T5 arranges its parameters once, before the loop: each layer's own arrays instead of slices of a stack, cast to the
activations' dtype, with query, key and value in one product. Caches are an array for each layer, in the layout of the
products, and are written in place. Beams of an example share its cross-attention keys and values. They are never
copied between beams: a beam attends to the slots of its ancestors, which a table names.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cotmi_jax.models.attention_pattern import MASKED, Pattern
from cotmi_jax.models.module import Params
from cotmi_jax.models.t5 import T5, DecoderBlock
from cotmi_jax.parallel.batch import constrain_batch

Cache = Any  # a pytree of arrays


class Incremental(Protocol):
    """What generation needs of a decoder. `incremental` makes it of a student."""

    def init_cache(self, encoded_BxSxD: Array, valid_BxS: Array, length: int, beams: int) -> Cache:
        """The cache before the first of `length` positions."""

    def step(self, token_BxM: Array, position: Array, cache: Cache) -> tuple[Array, Cache]:
        """Logits [B, M, V] of the tokens after those at a scalar position, and the updated cache."""

    def take_beams(self, cache: Cache, parent_BxM: Array) -> Cache:
        """The cache of beams that continue other beams of their example."""


class T5Weights(NamedTuple):
    """The parameters of a T5's decoder layers as the products of a single position use them."""

    layers: tuple[Params, ...]  # of DecoderBlock, without the leading layer axis
    qkv: tuple[Array, ...]  # [D, 3, H, K]: query, key, value of the self-attention


class T5Cache(NamedTuple):
    """Keys and values of each layer, and which of them are seen."""

    # [B, H, T · M, K]: of all beams at a position, position by position. The products contract this very array: after a
    # reshape XLA would transpose or copy it for each token.
    key: tuple[Array, ...]
    value: tuple[Array, ...]
    cross_key: tuple[Array, ...]  # [B, H, S, K]
    cross_value: tuple[Array, ...]
    valid_BxS: Array
    ancestor_BxMxT: Array | None  # the slot of axis M that holds a beam's position; None for a single beam


class T5Steps:
    """The decoder of a T5 as `Incremental`."""

    def __init__(self, student: T5, weights: T5Weights | None = None):
        self._student, self._config = student, student.config
        self.weights = self._arrange() if weights is None else weights
        self._logits, self._graph = student.make_logits(), nnx.split(student.decoder.blocks)[0]

    def _arrange(self) -> T5Weights:
        dtype = self._config.dtype
        stacked = nnx.to_pure_dict(nnx.split(self._student.decoder.blocks)[1])
        layers, qkv = [], []
        for layer in range(self._config.num_decoder_layers):
            params = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked)
            # Norms and position biases stay float32, in which they are computed.
            for module in ("attention", "cross_attention", "mlp"):
                params[module] = jax.tree.map(lambda leaf: leaf.astype(dtype), params[module])
            attention = params["attention"]
            qkv.append(jnp.stack([attention[name] for name in ("query", "key", "value")], axis=1))
            layers.append(params)
        return T5Weights(tuple(layers), tuple(qkv))

    def _blocks(self) -> list[DecoderBlock]:
        return [nnx.merge(self._graph, params) for params in self.weights.layers]

    def init_cache(self, encoded_BxSxD: Array, valid_BxS: Array, length: int, beams: int) -> T5Cache:
        config, batch = self._config, encoded_BxSxD.shape[0]
        cross = [block.cross_attention.keys_values(encoded_BxSxD) for block in self._blocks()]
        cross_key, cross_value = (tuple(jnp.swapaxes(each, 1, 2) for each in side) for side in zip(*cross, strict=True))
        empty = jnp.zeros((batch, config.num_heads, length * beams, config.d_kv), config.dtype)
        stack = (empty,) * config.num_decoder_layers
        ancestor_BxMxT = None if beams == 1 else jnp.zeros((batch, beams, length), jnp.int32)
        return T5Cache(stack, stack, cross_key, cross_value, valid_BxS, ancestor_BxMxT)

    def grow(self, cache: T5Cache, length: int) -> T5Cache:
        """The cache with room for `length` positions."""
        beams = 1 if cache.ancestor_BxMxT is None else cache.ancestor_BxMxT.shape[1]

        def pad(x: Array, length: int) -> Array:
            return jnp.pad(x, [(0, length - x.shape[2] if axis == 2 else 0) for axis in range(x.ndim)])

        return cache._replace(
            key=tuple(pad(each, length * beams) for each in cache.key),
            value=tuple(pad(each, length * beams) for each in cache.value),
            ancestor_BxMxT=None if cache.ancestor_BxMxT is None else pad(cache.ancestor_BxMxT, length),
        )

    def take_rows(self, cache: T5Cache, row_N: Array) -> T5Cache:
        """The cache of some examples."""
        return jax.tree.map(lambda leaf: leaf[row_N], cache)

    def take_beams(self, cache: T5Cache, parent_BxM: Array) -> T5Cache:
        if cache.ancestor_BxMxT is None:
            return cache
        return cache._replace(ancestor_BxMxT=jnp.take_along_axis(cache.ancestor_BxMxT, parent_BxM[..., None], axis=1))

    def step(self, token_BxM: Array, position: Array, cache: T5Cache) -> tuple[Array, T5Cache]:
        student, beams = self._student, token_BxM.shape[1]
        length = cache.key[0].shape[2] // beams
        x_BxMxD = constrain_batch(student.embedding[token_BxM].astype(self._config.dtype))
        cross_seen_Bx1x1xS = cache.valid_BxS[:, None, None, :]
        seen_BxMxTxM = (jnp.arange(length) <= position)[None, None, :, None]
        if cache.ancestor_BxMxT is not None:
            own_BxMx1 = jnp.broadcast_to(jnp.arange(beams)[None, :, None], (*token_BxM.shape, 1))
            ancestor_BxMxT = jax.lax.dynamic_update_slice_in_dim(cache.ancestor_BxMxT, own_BxMx1, position, axis=2)
            cache = cache._replace(ancestor_BxMxT=ancestor_BxMxT)
            seen_BxMxTxM = seen_BxMxTxM & (ancestor_BxMxT[..., None] == jnp.arange(beams)[None, None, None])
        seen_Bx1xMxS = seen_BxMxTxM.reshape(*seen_BxMxTxM.shape[:2], length * beams)[:, None]
        keys, values = [], []
        for index, block in enumerate(self._blocks()):
            bias_HxS = _position_bias(student.decoder.position or block.position, position, length, beams)
            qkv_BxMx3xHxK = jnp.einsum("bmd,dchk->bmchk", block.attention_norm(x_BxMxD), self.weights.qkv[index])
            keys.append(_write(cache.key[index], qkv_BxMx3xHxK[:, :, 1], position))
            values.append(_write(cache.value[index], qkv_BxMx3xHxK[:, :, 2], position))
            context_BxMxHxK = _attend(qkv_BxMx3xHxK[:, :, 0], keys[-1], values[-1], bias_HxS, seen_Bx1xMxS)
            x_BxMxD = x_BxMxD + jnp.einsum("bmhk,hkd->bmd", context_BxMxHxK, block.attention.out[...])
            query_BxMxHxK = jnp.einsum("bmd,dhk->bmhk", block.cross_norm(x_BxMxD), block.cross_attention.query[...])
            context_BxMxHxK = _attend(
                query_BxMxHxK, cache.cross_key[index], cache.cross_value[index], None, cross_seen_Bx1x1xS
            )
            x_BxMxD = x_BxMxD + jnp.einsum("bmhk,hkd->bmd", context_BxMxHxK, block.cross_attention.out[...])
            x_BxMxD = constrain_batch(x_BxMxD + block.mlp(block.mlp_norm(x_BxMxD), None))
        logits_BxMxV = self._logits(student.decoder.final_norm(x_BxMxD))
        return logits_BxMxV, cache._replace(key=tuple(keys), value=tuple(values))


def _position_bias(module: Any, position: Array, length: int, beams: int) -> Array:
    """Bias [H, T · M] of the keys of all positions and beams for the query at `position`."""
    diagonals_1xHxT = module.add_to(Pattern(first_query=position)).diagonals(1, length)
    return jnp.repeat(diagonals_1xHxT[0], beams, axis=1)


def _write(cache_BxHxSxK: Array, new_BxMxHxK: Array, position: Array) -> Array:
    """The keys or values of a position, in its place."""
    new_BxHxMxK = jnp.swapaxes(new_BxMxHxK, 1, 2)
    return jax.lax.dynamic_update_slice_in_dim(cache_BxHxSxK, new_BxHxMxK, position * new_BxHxMxK.shape[2], axis=2)


def _attend(
    query_BxMxHxK: Array, key_BxHxSxK: Array, value_BxHxSxK: Array, bias_HxS: Array | None, seen_Bx1xMxS: Array
) -> Array:
    """Context [B, M, H, K] of the queries of M beams over S keys of their example; scores are float32.

    On CPU, XLA's product of keys and queries is fast in this order of operands and axes. The barrier keeps XLA from
    exchanging the operands together with the transposition, which takes 3 times as long for 4 beams.
    """
    query_BxHxMxK = jnp.swapaxes(query_BxMxHxK, 1, 2)
    score_BxHxSxM = jnp.einsum("bhsk,bhmk->bhsm", key_BxHxSxK, query_BxHxMxK, preferred_element_type=jnp.float32)
    score_BxHxMxS = jnp.swapaxes(jax.lax.optimization_barrier(score_BxHxSxM), 2, 3)
    if bias_HxS is not None:
        score_BxHxMxS = score_BxHxMxS + bias_HxS[None, :, None]
    weight_BxHxMxS = jax.nn.softmax(jnp.where(seen_Bx1xMxS, score_BxHxMxS, MASKED), axis=-1)
    context_BxHxMxK = jnp.einsum("bhms,bhsk->bhmk", weight_BxHxMxS.astype(value_BxHxSxK.dtype), value_BxHxSxK)
    return jnp.swapaxes(context_BxHxMxK, 1, 2)


class StudentSteps:
    """A student with init_cache and decode_step (models.student.Student) as `Incremental`.

    Every beam is an example of its own, and beams that continue others copy their caches.
    """

    def __init__(self, student: Any):
        self._student = student

    def init_cache(self, encoded_BxSxD: Array, valid_BxS: Array, length: int, beams: int) -> Cache:
        repeated_BMxSxD = jnp.repeat(encoded_BxSxD, beams, axis=0)
        return self._student.init_cache(repeated_BMxSxD, length), jnp.repeat(valid_BxS, beams, axis=0)

    def step(self, token_BxM: Array, position: Array, cache: Cache) -> tuple[Array, Cache]:
        entries, valid_BMxS = cache
        logits_BMxV, entries = self._student.decode_step(token_BxM.reshape(-1), position, entries, valid_BMxS)
        return logits_BMxV.reshape(*token_BxM.shape, -1), (entries, valid_BMxS)

    def take_beams(self, cache: Cache, parent_BxM: Array) -> Cache:
        entries, valid_BMxS = cache
        batch, beams = parent_BxM.shape
        row_BM = (jnp.arange(batch)[:, None] * beams + parent_BxM).reshape(-1)
        taken = {name: leaf if name.startswith("cross_") else leaf[:, row_BM] for name, leaf in entries.items()}
        return taken, valid_BMxS


def incremental(student: Any) -> Incremental:
    """The decoder of a student, position by position."""
    return StudentSteps(student) if hasattr(student, "decode_step") else T5Steps(student)
