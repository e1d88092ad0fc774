"""Estimators with a decoder q(z|v) in place of a critic: the released loss and the bound of Barber and Agakov.

I(Z;V) ≥ H(Z) + E log q(z|v) (Barber and Agakov 2003, eq. 3). Losses are −log q by example. All detach Z, so that H(Z)
does not depend on the trained parameters.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array


def released_loss(z_BxV: Array, v_BxV: Array) -> Array:
    """The released code's loss of each example, −Σ_k z_k log_softmax(v)_k, in nats [B]. z is detached.

    z and v are the highest probability of each vocabulary entry. For reproduction of the paper only: v is a probability
    already, so this softmax is the second one; the loss is nearly Σz·ln|V| − ⟨z, v⟩ and bounds no mutual information.
    """
    return -(jax.lax.stop_gradient(z_BxV) * jax.nn.log_softmax(v_BxV, axis=-1)).sum(axis=-1)


def vocabulary_loss(log_z_BxV: Array, log_q_BxV: Array) -> Array:
    """Cross-entropy −Σ_k z_k log q_k with both renormalized over the vocabulary, in nats [B]. z is detached.

    Both are logarithms of probabilities pooled over tokens, or logits of a head, so that no probability underflows.
    """
    z_BxV = jax.lax.stop_gradient(jax.nn.softmax(log_z_BxV, axis=-1))
    return -(z_BxV * jax.nn.log_softmax(log_q_BxV, axis=-1)).sum(axis=-1)


def gaussian_loss(z_BxD: Array, mean_BxD: Array, log_std_BxD: Array) -> Array:
    """−log N(z; mean, std²) in nats [B]. z is detached."""
    standard_BxD = (jax.lax.stop_gradient(z_BxD) - mean_BxD) * jnp.exp(-log_std_BxD)
    return (0.5 * standard_BxD**2 + log_std_BxD + 0.5 * math.log(2 * math.pi)).sum(axis=-1)


def gaussian_log_q(v_KxD: Array, mean_KxD: Array, log_std_KxD: Array) -> Array:
    """log_q_KxK[i, j] = log N(v_j; mean_i, std_i²), as matrix products: no array has size K²·D."""
    precision_KxD = jnp.exp(-2.0 * log_std_KxD)
    # Large terms cancel, so the factors are not to be rounded to bfloat16, as accelerators do by default.
    product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    squares_KxK = product(precision_KxD, (v_KxD**2).T) - 2.0 * product(precision_KxD * mean_KxD, v_KxD.T)
    constant_K = (precision_KxD * mean_KxD**2 + 2.0 * log_std_KxD + math.log(2 * math.pi)).sum(axis=-1)
    return -0.5 * (squares_KxK + constant_K[:, None])
