"""From the states of a task's tokens to one feature for each example.

States are [R, T, D] and member_RxNxT (bool) says which tokens belong to each of a row's N examples: N is 1 for padded
batches; packed rows hold several. Features are [R, N, D] in float32. Masks are applied by `where` before any reduction:
multiplication by a mask would keep a NaN at a padded position. The feature of an example without tokens is 0.
"""

import jax
import jax.numpy as jnp
from jax import Array

_MASKED = -1e9


def members(segment_RxT: Array, num: int) -> Array:
    """member_RxNxT of packed rows, whose tokens are numbered 1 … num by example; 0 is padding."""
    return segment_RxT[:, None, :] == jnp.arange(1, num + 1)[None, :, None]


def _clean(states_RxTxD: Array, member_RxNxT: Array) -> Array:
    """float32 states, 0 at padding."""
    return jnp.where(member_RxNxT.any(axis=1)[..., None], states_RxTxD.astype(jnp.float32), 0.0)


def mean(states_RxTxD: Array, member_RxNxT: Array) -> Array:
    """Mean over an example's tokens."""
    weight_RxNxT = member_RxNxT.astype(jnp.float32)
    total_RxNxD = jnp.einsum("rnt,rtd->rnd", weight_RxNxT, _clean(states_RxTxD, member_RxNxT), precision="highest")
    return total_RxNxD / jnp.maximum(weight_RxNxT.sum(axis=-1), 1.0)[..., None]


def maximum(states_RxTxD: Array, member_RxNxT: Array) -> Array:
    """Largest value of each entry over an example's tokens. Examples of a row one after another, to save memory."""
    states_RxTxD = _clean(states_RxTxD, member_RxNxT)

    def one(member_RxT: Array) -> Array:
        highest_RxD = jnp.where(member_RxT[..., None], states_RxTxD, _MASKED).max(axis=1)
        return jnp.where(member_RxT.any(axis=1)[:, None], highest_RxD, 0.0)

    return jnp.stack([one(member_RxNxT[:, n]) for n in range(member_RxNxT.shape[1])], axis=1)


def attention(states_RxTxD: Array, member_RxNxT: Array, query_D: Array) -> Array:
    """Mean weighted by a softmax over an example's tokens of ⟨query, state⟩ / √D."""
    states_RxTxD = _clean(states_RxTxD, member_RxNxT)
    score_RxT = jnp.einsum("rtd,d->rt", states_RxTxD, query_D, precision="highest") / states_RxTxD.shape[-1] ** 0.5
    score_RxNxT = jnp.where(member_RxNxT, score_RxT[:, None, :], _MASKED)
    weight_RxNxT = jnp.where(member_RxNxT, jax.nn.softmax(score_RxNxT, axis=-1), 0.0)
    return jnp.einsum("rnt,rtd->rnd", weight_RxNxT, states_RxTxD, precision="highest")


def first(states_RxTxD: Array, member_RxNxT: Array) -> Array:
    """The state at an example's first token, which under teacher forcing depends on no target."""
    is_first_RxNxT = member_RxNxT & (jnp.cumsum(member_RxNxT, axis=-1) == 1)
    return mean(states_RxTxD, is_first_RxNxT)
