"""I(Z;V|X) in nats from groups of pairs: the M pairs (z, v) of a group share an x and are contrasted with each other.

The estimate is InfoNCE over the M pairs of a group in the mean of both directions (v given z, and z given v), a lower
bound of at most log M; with M = 2 it is log 2 + E log σ(f(z, v⁺) − f(z, v⁻)). What a score knows of x pays nothing,
nor does what it knows of z alone or of v alone: for f = g(x) the value is 0, for f = g(z) or f = h(v) at most 0.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax import nnx
from jax import Array

from cotmi_jax.errors import UserError
from cotmi_jax.mi.bounds import Bound, MineState
from cotmi_jax.mi.estimators import make_estimator
from cotmi_jax.mi.fitting import FitConfig, Model, Params, make_model
from cotmi_jax.mi.marginals import scaled
from cotmi_jax.mi.networks import CriticConfig

Groups = tuple[np.ndarray, np.ndarray]  # z [N, M, D] and v [N, M, E]


class HeldOutGroups(NamedTuple):
    """What a fitted critic gives on test groups: the value of each [N], whose mean is the estimate, and f(z_ni, v_nj).

    steps: the number of steps of the fit.
    """

    value_N: np.ndarray
    score_NxMxM: np.ndarray
    steps: int


@dataclasses.dataclass(frozen=True)
class _GroupModel(Model):
    """A model whose estimate is the mean over groups."""

    def score(
        self, params: Params, z_KxD: Array, v_KxE: Array, state: MineState | None, key: Array | None = None
    ) -> tuple[Bound, MineState | None]:
        """Here of z [G, M, D] and v [G, M, E]; without dropout."""
        one = super().score
        bound_G, _ = jax.vmap(lambda z_MxD, v_MxE: one(params, z_MxD, v_MxE, None))(z_KxD, v_KxE)
        return jax.tree.map(lambda each_G: each_G.mean(), bound_G), state

    def by_group(self, params: Params, z_NxMxD: Array, v_NxMxE: Array) -> tuple[Array, Array]:
        """Value [N] and scores [N, M, M] of each group."""
        network: Any = nnx.merge(self.graph, params)

        def group(z_MxD: Array, v_MxE: Array) -> tuple[Array, Array]:
            scores = network(z_MxD, v_MxE)
            bound, _ = self.estimator(scores.score_KxK, positive_K=scores.positive_K)
            return bound.value, scores.score_KxK

        return jax.vmap(group)(z_NxMxD, v_NxMxE)


class _Compiled(NamedTuple):
    start: Callable
    advance: Callable
    by_group: Callable


@functools.lru_cache(maxsize=8)
def _compiled(z_dim: int, v_dim: int, critic: CriticConfig, config: FitConfig) -> _Compiled:
    """Compiled functions, kept so that a monitor compiles once in a run."""
    plain = make_model(z_dim, v_dim, make_estimator("infonce", axis="symmetric"), critic)
    model = _GroupModel(plain.estimator, plain.build, plain.graph)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    def advance(fit: Any, rows_SxG: Array, z_NxMxD: Array, v_NxMxE: Array) -> Any:
        return model.advance(optimizer, lambda rows_G: (z_NxMxD[rows_G], v_NxMxE[rows_G]), fit, rows_SxG)[0]

    return _Compiled(jax.jit(lambda key: model.start(optimizer, key)), jax.jit(advance), jax.jit(model.by_group))


def fit_within(
    train: Groups,
    validation: Groups,
    test: Groups,
    *,
    critic: CriticConfig,
    config: FitConfig,
    seed: int,
    steps: int | None = None,
) -> HeldOutGroups:
    """Fit a critic on training groups, stop on validation groups, evaluate it on test groups.

    Features are standardized by the training groups. A step contrasts config.num_pairs pairs, num_pairs // M groups.

    steps: fit exactly so many, whatever the validation groups say; as a control on groups whose pairs were exchanged at
      random, where early stopping would choose the initial critic, whose value is 0 whatever is wrong.

    Raises:
      UserError: a set has no group, or groups of one pair.
    """
    sizes, num = [len(groups[0]) for groups in (train, validation, test)], train[0].shape[1]
    if min(sizes) < 1 or num < 2:
        raise UserError(f"{sizes} training, validation and test groups of {num} pairs: give groups of at least 2 pairs")
    train, validation, test = _standardized([train, validation, test])
    functions = _compiled(train[0].shape[-1], train[1].shape[-1], critic, config)
    fit = functions.start(jax.random.key(seed))
    rows_SxG = np.random.default_rng(seed).integers(sizes[0], size=(config.steps, max(config.num_pairs // num, 1)))
    best, best_value, best_step, evaluations = fit.params, -np.inf, 0, 0
    for step in range(0, config.steps + 1, config.every):
        if step:
            fit = functions.advance(fit, rows_SxG[step - config.every : step], *train)
        if steps is not None:
            if step >= steps:
                best, best_step = fit.params, step
                break
            continue
        value, evaluations = float(functions.by_group(fit.params, *validation)[0].mean()), evaluations + 1
        if value > best_value:
            best, best_value, best_step, evaluations = fit.params, value, step, 0
        if evaluations > config.patience:
            break
    value_N, score_NxMxM = functions.by_group(best, *test)
    return HeldOutGroups(np.asarray(value_N, np.float64), np.asarray(score_NxMxM, np.float64), best_step)


def _standardized(sets: list[Groups]) -> list[Groups]:
    """float32 features with mean 0 and variance 1 over the first set."""
    flat = scaled([(z.reshape(-1, z.shape[-1]), v.reshape(-1, v.shape[-1])) for z, v in sets], True)
    return [
        (new_z.reshape(z.shape).astype(np.float32), new_v.reshape(v.shape).astype(np.float32))
        for (new_z, new_v), (z, v) in zip(flat, sets, strict=True)
    ]
