"""T5's attention layer, and its one function, `attend`, in several forms. Legend of the shape suffixes in t5.py."""

import functools
from typing import get_args

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cotmi_jax.errors import UserError
from cotmi_jax.models.attention_forms import blocked, plain, repeat_per_example
from cotmi_jax.models.attention_pattern import MASKED, Pattern
from cotmi_jax.models.config import AttentionForm, T5Config
from cotmi_jax.models.dropout import weight_dropout
from cotmi_jax.models.module import declare
from cotmi_jax.models.products import product
from cotmi_jax.models.remat import saved
from cotmi_jax.parallel.mesh import current_platform

FORMS = get_args(AttentionForm)


class Attention(nnx.Module):
    """Multi-head attention without biases and, as T5's is, without the 1/√K scale (it is in the initialization)."""

    def __init__(self, config: T5Config, num: int, *, rngs: nnx.Rngs):
        d, h, k = config.d_model, config.num_heads, config.d_kv
        inward = ("layers", "embed", "heads", "kv")
        self.query = declare(rngs, (num, d, h, k), inward, (d * k) ** -0.5)
        self.key = declare(rngs, (num, d, h, k), inward, d**-0.5)
        self.value = declare(rngs, (num, d, h, k), inward, d**-0.5)
        self.out = declare(rngs, (num, h, k, d), ("layers", "heads", "kv", "embed"), (h * k) ** -0.5)
        self.rate, self.dtype, self.form = config.dropout, config.dtype, config.attention

    def keys_values(self, x_BxSxD: Array) -> tuple[Array, Array]:
        """Keys and values [B, S, H, K] of a sequence."""
        return self._project(x_BxSxD, self.key), self._project(x_BxSxD, self.value)

    def __call__(
        self, x_BxTxD: Array, keys_BxSxHxK: Array, values_BxSxHxK: Array, pattern: Pattern, key: Array | None
    ) -> Array:
        """Outputs [B, T, D]; dropout of the attention weights is on where a key is given."""
        query_BxTxHxK = self._project(x_BxTxD, self.query)
        context_BxTxHxK = attend(
            query_BxTxHxK, keys_BxSxHxK, values_BxSxHxK, pattern, key, rate=self.rate, form=self.form
        )
        context_BxTxN = context_BxTxHxK.reshape(*context_BxTxHxK.shape[:2], -1)
        return product("btn,nd->btd", context_BxTxN, self.out.astype(self.dtype).reshape(-1, self.out.shape[-1]))

    def _project(self, x_BxSxD: Array, weight_DxHxK: Array) -> Array:
        """[B, S, H, K]. For the kernel, which takes it, [B, S, H·K] is saved: of the former a TPU puts the positions
        last, and would copy it. The other forms move less memory without."""
        size, heads, kv = weight_DxHxK.shape
        x_BxSxN = product("bsd,dn->bsn", x_BxSxD, weight_DxHxK.astype(self.dtype).reshape(size, heads * kv))
        if self.form == "kernel":
            x_BxSxN = saved(x_BxSxN)
        x_BxSxHxK = x_BxSxN.reshape(*x_BxSxN.shape[:2], heads, kv)
        return x_BxSxHxK if self.form == "kernel" else saved(x_BxSxHxK)


def attend(
    query_BxTxHxK: Array,
    keys_BxSxHxK: Array,
    values_BxSxHxK: Array,
    pattern: Pattern,
    key: Array | None,
    *,
    rate: float,
    form: AttentionForm = "auto",
) -> Array:
    """softmax(query · key + bias) · value over the keys that a query sees: context [B, T, H, K] in the values' dtype.

    Scores and softmax are float32. With a key the weights are dropped with probability `rate`, by the same mask in
    every form.
    """
    arrays = query_BxTxHxK, keys_BxSxHxK, values_BxSxHxK
    if pattern.split:
        first, second = pattern.halves()
        keys = (None, None) if key is None else jax.random.split(key)
        q_BxTxHxK, k_BxSxHxK, v_BxSxHxK = arrays
        at = pattern.split
        before = attend(q_BxTxHxK[:, :at], k_BxSxHxK[:, :at], v_BxSxHxK[:, :at], first, keys[0], rate=rate, form=form)
        after = attend(q_BxTxHxK[:, at:], k_BxSxHxK[:, at:], v_BxSxHxK[:, at:], second, keys[1], rate=rate, form=form)
        return jnp.concatenate([before, after], axis=1)
    chosen = choose_form(form, query_BxTxHxK, keys_BxSxHxK, pattern)
    if chosen == "kernel":
        from cotmi_jax.models.attention_kernel import fused_attention  # Pallas takes long to import

        return fused_attention(*arrays, pattern, key, rate=rate)
    if chosen == "blocked":
        return blocked(*arrays, pattern, key, rate)
    return (plain if current_platform() == "cpu" else _plain_by_autodiff)(*arrays, pattern, key, rate)


def choose_form(form: AttentionForm, query_BxTxHxK: Array, keys_BxSxHxK: Array, pattern: Pattern) -> AttentionForm:
    """The form in which attention of these shapes is computed on the current mesh: `form`, and plain for "auto".

    Raises UserError for an unknown form, and for the kernel where it is not supported.
    """
    if form not in FORMS:
        raise UserError(f"config.model.attention is {form!r}: choose one of {', '.join(FORMS)}")
    if form == "kernel":
        from cotmi_jax.models.attention_kernel import unsupported

        reason = unsupported(query_BxTxHxK, keys_BxSxHxK, pattern)
        if reason is not None:
            raise UserError(f"config.model.attention is kernel, but {reason}: set it to auto, plain or blocked")
    return "plain" if form == "auto" else form


def _plain_by_autodiff(
    query_BxTxHxK: Array, keys_BxSxHxK: Array, values_BxSxHxK: Array, pattern: Pattern, key: Array | None, rate: float
) -> Array:
    """All scores [B, H, T, S] at once, with JAX's derivative: the form on accelerators, for which it is tuned."""
    queries, keys = query_BxTxHxK.shape[1], keys_BxSxHxK.shape[1]
    score_BxHxTxS = jnp.einsum("bthk,bshk->bhts", query_BxTxHxK, keys_BxSxHxK, preferred_element_type=jnp.float32)
    bias_PxHxTxS = pattern.bias(queries, keys)
    if bias_PxHxTxS is not None:
        score_BxHxTxS = score_BxHxTxS + repeat_per_example(bias_PxHxTxS, score_BxHxTxS.shape[0])
    visible_Bx1xTxS = pattern.visible(queries, keys)
    if visible_Bx1xTxS is not None:
        # A sum: for a select, autodiff would keep both alternatives [B, H, T, S] for the backward pass.
        score_BxHxTxS = score_BxHxTxS + jnp.where(visible_Bx1xTxS, 0.0, MASKED)
    weight_BxHxTxS = _softmax(score_BxHxTxS, values_BxSxHxK.dtype)
    weight_BxHxTxS = weight_dropout(weight_BxHxTxS, rate, key)
    return jnp.einsum("bhts,bshk->bthk", weight_BxHxTxS, values_BxSxHxK)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _softmax(score_BxHxTxS: Array, dtype: jnp.dtype) -> Array:
    """Attention weights, computed in float32 and rounded to `dtype`, in which the backward pass reads them."""
    return jax.nn.softmax(score_BxHxTxS, axis=-1).astype(dtype)


def _softmax_forward(score_BxHxTxS: Array, dtype: jnp.dtype) -> tuple[Array, Array]:
    weight_BxHxTxS = _softmax(score_BxHxTxS, dtype)
    return weight_BxHxTxS, weight_BxHxTxS


def _softmax_backward(dtype: jnp.dtype, weight_BxHxTxS: Array, d_weight_BxHxTxS: Array) -> tuple[Array]:
    weight_BxHxTxS, d_weight_BxHxTxS = weight_BxHxTxS.astype(jnp.float32), d_weight_BxHxTxS.astype(jnp.float32)
    mean_BxHxTx1 = (weight_BxHxTxS * d_weight_BxHxTxS).sum(axis=-1, keepdims=True)
    return (weight_BxHxTxS * (d_weight_BxHxTxS - mean_BxHxTx1),)


_softmax.defvjp(_softmax_forward, _softmax_backward)
