"""Features that are distributions over the vocabulary, and the two estimators on them that need no critic.

Z and V are pooled over the tokens of the label task and of the rationale task (MI paper, section 3.2).
"""

import jax
import jax.numpy as jnp
from jax import Array


def vocab_max(logits_BxTxV: Array, mask_BxT: Array) -> Array:
    """Highest probability of each vocabulary entry over the unmasked tokens, float32 [B, V]; 0 where all are masked.

    The mask is applied by `where` before the reduction: multiplying by it would let a NaN at a padded position through.
    """
    probability = jax.nn.softmax(logits_BxTxV, axis=-1)
    return jnp.where(mask_BxT[..., None], probability, 0.0).max(axis=1)


def released_loss(z_BxV: Array, v_BxV: Array) -> Array:
    """The released code's loss of each example, −Σ_k z_k log_softmax(v)_k, in nats [B]. z is detached.

    Kept for faithful reproduction only. v is already a probability, so this softmax is the second: the loss is nearly
    Σz·ln|V| − ⟨z, v⟩ and bounds no mutual information.
    """
    return -(jax.lax.stop_gradient(z_BxV) * jax.nn.log_softmax(v_BxV, axis=-1)).sum(axis=-1)


def barber_agakov_loss(z_BxV: Array, v_BxV: Array) -> Array:
    """Cross-entropy −Σ_k z_k log v_k of z under v, both renormalized over the vocabulary, in nats [B]. z is detached.

    H(Z) minus its mean is the lower bound on I(Z;V) of Barber and Agakov (2003, eq. 3), with v as the decoder q(z|v);
    H(Z) is constant where Z is detached, so minimizing this raises the bound. An example that is all padding gives 0.
    """
    z_BxV = jax.lax.stop_gradient(z_BxV)
    total_Bx1 = z_BxV.sum(axis=-1, keepdims=True)
    z_BxV = z_BxV / jnp.where(total_Bx1 == 0, 1.0, total_Bx1)
    # The smallest normal float32 keeps the logarithm finite where a probability underflowed to zero.
    log_v_BxV = jnp.log(jnp.maximum(v_BxV, jnp.finfo(jnp.float32).tiny))
    total_Bx1 = v_BxV.sum(axis=-1, keepdims=True)
    log_v_BxV = log_v_BxV - jnp.log(jnp.where(total_Bx1 == 0, 1.0, total_Bx1))
    return -(z_BxV * log_v_BxV).sum(axis=-1)
