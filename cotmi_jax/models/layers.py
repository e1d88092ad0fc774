"""Normalization and feed-forward layer of a T5. Legend of the shape suffixes in t5.py.

A module declares the parameters of `num` layers at once, stacked along a leading layer axis; its `__call__` gets one
layer's slice. Scanned and unrolled execution therefore share one parameter tree.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cotmi_jax.models.config import T5Config
from cotmi_jax.models.dropout import dropout
from cotmi_jax.models.module import declare
from cotmi_jax.models.products import product
from cotmi_jax.models.remat import saved


class RMSNorm(nnx.Module):
    """Root-mean-square normalization without mean or bias, computed in float32 (Zhang and Sennrich 2019)."""

    def __init__(self, config: T5Config, num: int | None, *, rngs: nnx.Rngs):
        stack, axes = ((), ()) if num is None else ((num,), ("layers",))
        self.scale = declare(rngs, (*stack, config.d_model), (*axes, "norm"), None)
        self.epsilon, self.dtype = config.norm_epsilon, config.dtype

    def __call__(self, x_BxTxD: Array) -> Array:
        x_BxTxD = x_BxTxD.astype(jnp.float32)
        mean_square_BxTx1 = jnp.mean(x_BxTxD * x_BxTxD, axis=-1, keepdims=True)
        normed_BxTxD = x_BxTxD * jax.lax.rsqrt(mean_square_BxTx1 + self.epsilon)
        return (normed_BxTxD * self.scale[None, None, :]).astype(self.dtype)


class MLP(nnx.Module):
    """Feed-forward layer: relu (v1.0) or gated tanh-gelu (v1.1; Shazeer 2020, GEGLU)."""

    def __init__(self, config: T5Config, num: int, *, rngs: nnx.Rngs):
        d, f = config.d_model, config.d_ff
        inward = ("layers", "embed", "mlp")
        self.gate = declare(rngs, (num, d, f), inward, d**-0.5) if config.gated else None
        self.up = declare(rngs, (num, d, f), inward, d**-0.5)
        self.down = declare(rngs, (num, f, d), ("layers", "mlp", "embed"), f**-0.5)
        self.rate, self.dtype = config.dropout, config.dtype

    def __call__(self, x_BxTxD: Array, key: Array | None) -> Array:
        hidden_BxTxF = saved(product("btd,df->btf", x_BxTxD, self.up.astype(self.dtype)))
        if self.gate is None:
            hidden_BxTxF = jax.nn.relu(hidden_BxTxF)
        else:
            gate_BxTxF = saved(product("btd,df->btf", x_BxTxD, self.gate.astype(self.dtype)))
            hidden_BxTxF = jax.nn.gelu(gate_BxTxF, approximate=True) * hidden_BxTxF
        return product("btf,fd->btd", dropout(hidden_BxTxF, self.rate, key), self.down.astype(self.dtype))
