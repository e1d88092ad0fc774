"""Pairs without information, for studies: labels and rationales of a batch, or of an example, paired at random.

The gradient that the term sends into the student keeps its form and about its size. What it still changes in a
comparison is an effect of regularization, not of what a label and its rationale share.
"""

import jax
import jax.numpy as jnp
from jax import Array


def derange(key: Array, valid_B: Array) -> tuple[Array, Array]:
    """Another valid example for each valid one, none twice: a random cycle; and which are valid, none if only one is.

    Index [B], own where an example is not valid; valid [B].
    """
    number, count = jnp.arange(valid_B.shape[0]), valid_B.sum()
    order = jnp.argsort(jnp.where(valid_B, jax.random.uniform(key, valid_B.shape), 2.0))  # valid ones first
    following = jnp.where(number < count, order[(number + 1) % jnp.maximum(count, 1)], order)
    return number.at[order].set(following), valid_B & (count > 1)


def shuffle_pairs(key: Array, v_BxMxE: Array, counterfactual_BxM: Array) -> Array:
    """V with the pairs of each example in random order: its own and those of its M − 1 counterfactuals there are."""
    valid_BxM = jnp.pad(counterfactual_BxM, ((0, 0), (1, 0)), constant_values=True)
    places_BxM = jnp.argsort(~valid_BxM, axis=1, stable=True)
    drawn_BxM = jnp.argsort(jnp.where(valid_BxM, jax.random.uniform(key, valid_BxM.shape), 2.0), axis=1, stable=True)
    order_BxM = jnp.put_along_axis(places_BxM, places_BxM, drawn_BxM, axis=1, inplace=False)
    return jnp.take_along_axis(v_BxMxE, order_BxM[..., None], axis=1)
