"""Products of activations and parameters. Legend of the shape suffixes in t5.py."""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.parallel.mesh import current_platform


def product(equation: str, x: Array, weight: Array) -> Array:
    """jnp.einsum(equation, x, weight), with a backward pass that is fast on CPU.

    JAX computes the weight's gradient as (d_outputᵀ · x)ᵀ. XLA:CPU then transposes d_output, and computes what it comes
    from, such as the derivative of gelu, within the transposition, against the order of memory. As xᵀ · d_output it
    needs no transposition: the gradient of a feed-forward layer takes 0.4 of the time.
    """
    return _product(equation, x, weight) if current_platform() == "cpu" else jnp.einsum(equation, x, weight)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(equation: str, x: Array, weight: Array) -> Array:
    return jnp.einsum(equation, x, weight)


def _product_forward(equation: str, x: Array, weight: Array) -> tuple[Array, tuple[Array, Array]]:
    return jnp.einsum(equation, x, weight), (x, weight)


def _product_backward(equation: str, operands: tuple[Array, Array], d_output: Array) -> tuple[Array, Array]:
    x, weight = operands
    indices, of_output = equation.split("->")
    of_x, of_weight = indices.split(",")
    d_x = jnp.einsum(f"{of_output},{of_weight}->{of_x}", d_output, weight)
    return d_x, jnp.einsum(f"{of_x},{of_output}->{of_weight}", x, d_output)


_product.defvjp(_product_forward, _product_backward)
