"""T5's attention layer, and its one function, `attend`, in several forms. Legend of the shape suffixes in t5.py."""

import functools
import sys
from typing import get_args

import jax.numpy as jnp
from flax import nnx
from jax import Array

from cotmi_jax.errors import UserError
from cotmi_jax.models.attention_forms import blocked, plain
from cotmi_jax.models.attention_pattern import Pattern
from cotmi_jax.models.config import AttentionForm, T5Config
from cotmi_jax.models.module import declare
from cotmi_jax.models.remat import saved
from cotmi_jax.parallel.mesh import current_platform

FORMS = get_args(AttentionForm)
LONGEST_PLAIN = 512 * 512  # pairs of a query and a key, above which an accelerator computes blocks of queries


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
        return (
            saved(jnp.einsum("bsd,dhk->bshk", x_BxSxD, self.key.astype(self.dtype))),
            saved(jnp.einsum("bsd,dhk->bshk", x_BxSxD, self.value.astype(self.dtype))),
        )

    def __call__(
        self, x_BxTxD: Array, keys_BxSxHxK: Array, values_BxSxHxK: Array, pattern: Pattern, key: Array | None
    ) -> Array:
        """Outputs [B, T, D]; dropout of the attention weights is on where a key is given."""
        query_BxTxHxK = saved(jnp.einsum("btd,dhk->bthk", x_BxTxD, self.query.astype(self.dtype)))
        context_BxTxHxK = attend(
            query_BxTxHxK, keys_BxSxHxK, values_BxSxHxK, pattern, key, rate=self.rate, form=self.form
        )
        return jnp.einsum("bthk,hkd->btd", context_BxTxHxK, self.out.astype(self.dtype))


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
    chosen = choose_form(form, query_BxTxHxK, keys_BxSxHxK, pattern)
    if chosen == "kernel":
        from cotmi_jax.models.attention_kernel import fused_attention  # Pallas takes long to import

        return fused_attention(*arrays, pattern, key, rate=rate)
    return (blocked if chosen == "blocked" else plain)(*arrays, pattern, key, rate)


def choose_form(form: AttentionForm, query_BxTxHxK: Array, keys_BxSxHxK: Array, pattern: Pattern) -> AttentionForm:
    """The form in which attention of these shapes is computed on the current mesh: `form`, unless that is "auto".

    auto: on CPU plain, which is fastest there at every length (a block's products are too small for its threads); on
    accelerators the kernel, or, where it is not supported, blocked above 512 × 512 pairs and plain below.

    Raises UserError for an unknown form, and for the kernel where it is not supported.
    """
    if form not in FORMS:
        raise UserError(f"config.model.attention is {form!r}: choose one of {', '.join(FORMS)}")
    on_cpu = current_platform() == "cpu"
    if form in ("plain", "blocked") or (form == "auto" and on_cpu):
        return "plain" if form == "auto" else form
    from cotmi_jax.models.attention_kernel import unsupported

    reason = unsupported(query_BxTxHxK, keys_BxSxHxK, pattern)
    if reason is None:
        return "kernel"
    if form == "kernel":
        raise UserError(f"config.model.attention is kernel, but {reason}: set it to auto, plain or blocked")
    queries, keys = query_BxTxHxK.shape[1], keys_BxSxHxK.shape[1]
    chosen: AttentionForm = "blocked" if queries * keys > LONGEST_PLAIN else "plain"
    _print_once(f"attention of {queries} → {keys} tokens is {chosen}, without the kernel: {reason}")
    return chosen


@functools.cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
