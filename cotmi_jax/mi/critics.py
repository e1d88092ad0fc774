"""Critics: networks that score pairs. Their parameters carry logical axes and shard with the student's.

A critic maps z_KxD and v_KxE to Scores in float32. The output dimension of kernels has the logical axis `critic`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cotmi_jax.errors import UserError
from cotmi_jax.mi.estimators import CLAMP, Estimator
from cotmi_jax.mi.networks import MLP, CriticConfig, Layers, Linear, declare, dropout, normalize

PAIRWISE_BYTES = 2**30  # limit of the K² hidden activations of a pairwise critic


class Scores(NamedTuple):
    """score_KxK[i, j] = f(z_i, v_j), and f(z_i, v_i) computed separately (see bounds.py)."""

    score_KxK: Array
    positive_K: Array


def pairwise_bytes(config: CriticConfig, num_pairs: int) -> int:
    """Bytes of the hidden activations that a critic holds for each of num_pairs² pairs; 0 for most critics."""
    units = {"concat": config.hidden * config.layers, "hybrid": config.dim}.get(config.name, 0)
    return 4 * num_pairs**2 * units


def check_critic(config: CriticConfig, estimator: Estimator, num_pairs: int, *, standardized: bool = False) -> None:
    """Raises UserError where the estimator cannot work with the critic at this number of pairs."""
    if num_pairs < 2:
        raise UserError(f"{estimator.name} on {num_pairs} pairs: a bound contrasts at least 2")
    raw = config.normalization == "none" and not standardized
    if config.name in ("bilinear", "quadratic") and raw:
        raise UserError(
            f"a {config.name} critic on raw features has scores of any scale: set the critic's normalization to layer"
        )
    if estimator.exponentiates and raw and not config.clamp:
        raise UserError(
            f"{estimator.name} takes the exponential of scores of raw features: set the critic's clamp (say {CLAMP:g}) "
            "or its normalization to layer"
        )
    needed = pairwise_bytes(config, num_pairs)
    if needed > PAIRWISE_BYTES:
        raise UserError(
            f"a {config.name} critic on {num_pairs} pairs holds {needed / 2**30:.1f} GiB of activations, more than "
            f"{PAIRWISE_BYTES / 2**30:g}: use a separable critic, fewer pairs or a smaller width"
        )


def all_products(x_KxC: Array, y_KxC: Array) -> Array:
    """⟨x_i, y_j⟩ for all pairs, in full float32; by default accelerators round the factors to bfloat16."""
    return jnp.matmul(x_KxC, y_KxC.T, precision=jax.lax.Precision.HIGHEST)


class Coder(nnx.Module):
    """An MLP with a code [K, C] and an offset [K] as outputs."""

    def __init__(self, inputs: int, config: CriticConfig, *, scale: float, rngs: nnx.Rngs):
        self.mlp = MLP(inputs, config, rngs=rngs)
        self.code = Linear(config.hidden, config.dim, scale=scale, rngs=rngs)
        self.offset = Linear(config.hidden, 1, scale=0.0, split=False, rngs=rngs)

    def __call__(self, x_KxD: Array, key: Array | None) -> tuple[Array, Array]:
        hidden = self.mlp(x_KxD, key)
        return self.code(hidden), self.offset(hidden)[:, 0]


class Separable(nnx.Module):
    """g(z)·h(v) + a(z) + b(v). Initially h = 0, so that all scores are 0 while the gradient of h is not."""

    def __init__(self, z_dim: int, v_dim: int, config: CriticConfig, *, rngs: nnx.Rngs):
        self.z = Coder(z_dim, config, scale=config.dim**-0.5, rngs=rngs)
        self.v = Coder(v_dim, config, scale=0.0, rngs=rngs)

    def __call__(self, z_KxD: Array, v_KxE: Array, key_z: Array | None, key_v: Array | None) -> Scores:
        (g_KxC, a_K), (h_KxC, b_K) = self.z(z_KxD, key_z), self.v(v_KxE, key_v)
        return Scores(
            all_products(g_KxC, h_KxC) + a_K[:, None] + b_K[None, :], (g_KxC * h_KxC).sum(axis=-1) + a_K + b_K
        )


class Bilinear(nnx.Module):
    """zᵀWv, initially W = 0; `squares` adds linear and squared terms of each side, as in the ratio of Gaussians."""

    def __init__(self, z_dim: int, v_dim: int, config: CriticConfig, *, squares: bool, rngs: nnx.Rngs):
        self.weight = declare(rngs, (z_dim, v_dim), ("feature", "critic"), 0.0)
        self.z = Linear(2 * z_dim, 1, scale=0.0, split=False, rngs=rngs) if squares else None
        self.v = Linear(2 * v_dim, 1, scale=0.0, split=False, rngs=rngs) if squares else None
        self.normalization = config.normalization

    def __call__(self, z_KxD: Array, v_KxE: Array, key_z: Array | None, key_v: Array | None) -> Scores:
        z_KxD, v_KxE = normalize(z_KxD, self.normalization), normalize(v_KxE, self.normalization)
        mapped_KxE = z_KxD @ self.weight[...]
        score_KxK, positive_K = all_products(mapped_KxE, v_KxE), (mapped_KxE * v_KxE).sum(axis=-1)
        if self.z is not None and self.v is not None:
            a_K = self.z(jnp.concatenate([z_KxD, z_KxD**2], axis=-1))[:, 0]
            b_K = self.v(jnp.concatenate([v_KxE, v_KxE**2], axis=-1))[:, 0]
            score_KxK, positive_K = score_KxK + a_K[:, None] + b_K[None, :], positive_K + a_K + b_K
        return Scores(score_KxK, positive_K)


class Concat(nnx.Module):
    """MLP of (z, v) for every pair. The first layer is W_z z + W_v v, so that only its sum is computed K² times."""

    def __init__(self, z_dim: int, v_dim: int, config: CriticConfig, *, rngs: nnx.Rngs):
        self.z = Linear(z_dim, config.hidden, scale=1.0, rngs=rngs)
        self.v = Linear(v_dim, config.hidden, scale=1.0, rngs=rngs)
        rest = [Linear(config.hidden, config.hidden, scale=2**0.5, rngs=rngs) for _ in range(config.layers - 1)]
        self.rest = Layers([*rest, Linear(config.hidden, 1, scale=0.0, split=False, rngs=rngs)])
        self.config = config

    def _finish(self, hidden: Array, key: Array | None) -> Array:
        for index, layer in enumerate(self.rest):
            layer_key = None if key is None else jax.random.fold_in(key, index)
            hidden = layer(dropout(jax.nn.relu(hidden), self.config.dropout, layer_key))
        return hidden[..., 0]

    def __call__(self, z_KxD: Array, v_KxE: Array, key_z: Array | None, key_v: Array | None) -> Scores:
        z_KxH = self.z(normalize(z_KxD, self.config.normalization))
        v_KxH = self.v(normalize(v_KxE, self.config.normalization))
        score_KxK = self._finish(z_KxH[:, None, :] + v_KxH[None, :, :], key_z)
        # Its dropout masks differ from those of the matrix; without dropout the two agree.
        return Scores(score_KxK, self._finish(z_KxH + v_KxH, key_v))


class Hybrid(nnx.Module):
    """A separable critic plus a small pairwise one on its codes: a layer of C units for every pair."""

    def __init__(self, z_dim: int, v_dim: int, config: CriticConfig, *, rngs: nnx.Rngs):
        self.separable = Separable(z_dim, v_dim, config, rngs=rngs)
        pairwise = dataclasses.replace(config, hidden=config.dim, layers=1, normalization="none")
        self.pairwise = Concat(config.dim, config.dim, pairwise, rngs=rngs)

    def __call__(self, z_KxD: Array, v_KxE: Array, key_z: Array | None, key_v: Array | None) -> Scores:
        (g_KxC, a_K), (h_KxC, b_K) = self.separable.z(z_KxD, key_z), self.separable.v(v_KxE, key_v)
        rest = self.pairwise(g_KxC, h_KxC, key_z, key_v)
        score_KxK = all_products(g_KxC, h_KxC) + a_K[:, None] + b_K[None, :] + rest.score_KxK
        return Scores(score_KxK, (g_KxC * h_KxC).sum(axis=-1) + a_K + b_K + rest.positive_K)


class Critic(nnx.Module):
    """A critic of any kind with its soft clamp, and the baseline a(v) if the estimator needs one."""

    def __init__(self, z_dim: int, v_dim: int, config: CriticConfig, estimator: Estimator, *, rngs: nnx.Rngs):
        baseline = estimator.baseline
        kinds: dict[str, Callable[..., nnx.Module]] = {
            "separable": Separable,
            "bilinear": functools.partial(Bilinear, squares=False),
            "quadratic": functools.partial(Bilinear, squares=True),
            "concat": Concat,
            "hybrid": Hybrid,
        }
        self.scorer: Any = kinds[config.name](z_dim, v_dim, config, rngs=rngs)
        self.baseline_mlp = MLP(v_dim, config, rngs=rngs) if baseline else None
        self.baseline_out = Linear(config.hidden, 1, scale=0.0, split=False, rngs=rngs) if baseline else None
        self.clamp = config.clamp
        self.origin = estimator.origin

    def __call__(self, z_KxD: Array, v_KxE: Array, key: Array | None = None) -> Scores:
        """Scores of all pairs; dropout is on where a key is given. Raises ValueError where K differs."""
        if z_KxD.shape[0] != v_KxE.shape[0]:
            raise ValueError(f"{z_KxD.shape[0]} z and {v_KxE.shape[0]} v: features come in pairs")
        return self.limit(self.unlimited(z_KxD, v_KxE, key))

    def unlimited(self, z_KxD: Array, v_KxE: Array, key: Array | None = None) -> Scores:
        """Scores before the clamp."""
        key_z, key_v = (None, None) if key is None else jax.random.split(key)
        return self.scorer(z_KxD, v_KxE, key_z, key_v)

    def limit(self, scores: Scores) -> Scores:
        """The soft clamp; then the origin is added."""
        if self.clamp:
            scores = Scores(*(self.clamp * jnp.tanh(score / self.clamp) for score in scores))
        # The initial scores are 0; with the origin the initial estimate is 0.
        return Scores(*(score + self.origin for score in scores))

    def baseline(self, v_KxE: Array, key: Array | None = None) -> Array | None:
        """a(v) [K], None where there is none."""
        if self.baseline_mlp is None or self.baseline_out is None:
            return None
        return self.baseline_out(self.baseline_mlp(v_KxE, key))[:, 0]
