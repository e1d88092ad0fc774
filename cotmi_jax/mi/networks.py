"""Layers of the networks of estimators, and their configuration."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cotmi_jax.errors import UserError

CRITICS = ("separable", "bilinear", "concat", "hybrid", "quadratic")


@dataclasses.dataclass(frozen=True)
class CriticConfig:
    """Shape of a critic.

    normalization: of each input vector, "layer" (to mean 0 and variance 1 over its entries), or "none" where features
    are standardized, as those of estimate() are. clamp: scores become clamp·tanh(f / clamp); 0 for none.
    """

    name: str = "separable"
    hidden: int = 256  # width of a hidden layer
    layers: int = 2  # hidden layers
    dim: int = 64  # width C of the codes that separable and hybrid multiply
    dropout: float = 0.0  # probability, after each hidden layer
    clamp: float = 0.0
    normalization: str = "none"

    def __post_init__(self) -> None:
        if self.name not in CRITICS:
            raise UserError(f"unknown critic {self.name!r}: choose one of {', '.join(CRITICS)}")
        if self.normalization not in ("layer", "none"):
            raise UserError(f"critic normalization {self.normalization!r}: choose layer or none")
        if min(self.hidden, self.layers, self.dim) < 1:
            raise UserError(f"critic hidden {self.hidden}, layers {self.layers}, dim {self.dim}: all are at least 1")
        if not 0.0 <= self.dropout < 1.0:
            raise UserError(f"critic dropout is {self.dropout}: a probability below 1")
        if self.clamp < 0.0:
            raise UserError(f"critic clamp is {self.clamp}: a bound on scores in nats, or 0 for none")


def declare(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], std: float) -> nnx.Param[Array]:
    """A float32 parameter drawn from N(0, std²), with one logical axis name per dimension (metadata for sharding)."""
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """Inverted dropout; the identity without a key. Each 32-bit draw decides two elements, at 16 bits each."""
    if key is None or rate == 0.0:
        return x
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 2)), jnp.uint32)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(*x.shape[:-1], -1)[..., : x.shape[-1]]
    return jnp.where(bits >= jnp.uint16(round(rate * 2**16)), x / (1.0 - rate), 0.0)


def normalize(x_KxD: Array, normalization: str) -> Array:
    """The vectors in float32; with "layer" each is scaled to mean 0 and variance 1 over its entries."""
    x_KxD = x_KxD.astype(jnp.float32)
    if normalization == "none":
        return x_KxD
    x_KxD = x_KxD - x_KxD.mean(axis=-1, keepdims=True)
    return x_KxD * jax.lax.rsqrt(jnp.mean(x_KxD * x_KxD, axis=-1, keepdims=True) + 1e-6)


class Linear(nnx.Module):
    """Affine map over the last axis; scale is the standard deviation of an output for inputs of unit variance."""

    def __init__(self, inputs: int, outputs: int, *, scale: float, split: bool = True, rngs: nnx.Rngs):
        out = "critic" if split else "critic_out"
        self.kernel = declare(rngs, (inputs, outputs), ("feature", out), scale * inputs**-0.5)
        self.bias = declare(rngs, (outputs,), (out,), 0.0)

    def __call__(self, x: Array) -> Array:
        flat = x.reshape(-1, x.shape[-1])
        return (flat @ self.kernel[...] + self.bias[...][None, :]).reshape(*x.shape[:-1], -1)


class Layers(nnx.Module):
    """A sequence of linear layers, as attributes, so that the keys of parameter trees are strings."""

    def __init__(self, layers: Sequence[Linear]):
        self.num = len(layers)
        for index, layer in enumerate(layers):
            setattr(self, f"layer_{index}", layer)

    def __iter__(self) -> Iterator[Linear]:
        return (getattr(self, f"layer_{index}") for index in range(self.num))


class MLP(nnx.Module):
    """Hidden layers with relu and dropout over normalized inputs."""

    def __init__(self, inputs: int, config: CriticConfig, *, rngs: nnx.Rngs):
        widths = [inputs] + [config.hidden] * config.layers
        self.hidden = Layers([Linear(a, b, scale=2**0.5, rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.config = config

    def __call__(self, x_KxD: Array, key: Array | None) -> Array:
        x_KxD = normalize(x_KxD, self.config.normalization)
        for index, layer in enumerate(self.hidden):
            layer_key = None if key is None else jax.random.fold_in(key, index)
            x_KxD = dropout(jax.nn.relu(layer(x_KxD)), self.config.dropout, layer_key)
        return x_KxD


_LOG_STD_LIMIT = 5.0  # of Gaussian heads, as a soft clamp


class GaussianHead(nnx.Module):
    """Mean and logarithm of the standard deviation of a diagonal Gaussian, from an MLP; N(0, 1) at scale 0."""

    def __init__(self, inputs: int, outputs: int, config: CriticConfig, *, scale: float = 1.0, rngs: nnx.Rngs):
        self.mlp = MLP(inputs, config, rngs=rngs)
        self.mean = Linear(config.hidden, outputs, scale=scale, rngs=rngs)
        self.log_std = Linear(config.hidden, outputs, scale=0.1 * scale, rngs=rngs)

    def __call__(self, x_BxD: Array, key: Array | None = None) -> tuple[Array, Array]:
        hidden = self.mlp(x_BxD, key)
        return self.mean(hidden), _LOG_STD_LIMIT * jnp.tanh(self.log_std(hidden) / _LOG_STD_LIMIT)
