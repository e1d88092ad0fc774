"""Fitting a critic, or a Gaussian q(v|z), to pairs, and evaluating the estimate on other pairs.

On finite data the estimate on the training pairs is biased up: even on independent data a critic overfits until the
estimate is at its cap. So there are three disjoint sets of pairs: training, validation (early stopping) and test.
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
from cotmi_jax.mi.barber_agakov import gaussian_log_q, gaussian_loss
from cotmi_jax.mi.bounds import Bound, MineState
from cotmi_jax.mi.critics import Critic
from cotmi_jax.mi.estimators import Estimator
from cotmi_jax.mi.networks import CriticConfig, GaussianHead

Params = dict[str, Any]  # nested, with array leaves
Pairs = tuple[np.ndarray, np.ndarray]  # z [N, D] and v [N, E], float32


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """How a critic is fitted: Adam from learning_rate along a cosine, on batches of num_pairs.

    Every `every` steps it is evaluated on the validation pairs; the fit ends after `patience` evaluations without an
    improvement, and the best parameters are kept. warmup: fraction of the steps, in [0, 1), in which the rate increases
    linearly from 0: at 1e-2 a wide critic may lose all its units in the first steps without it. test_pairs: pairs at a
    time of the estimate on the test pairs, 0 for num_pairs; more raise the cap and the value of infonce.
    """

    num_pairs: int = 128
    steps: int = 2000
    learning_rate: float = 2e-3
    every: int = 50
    patience: int = 8
    warmup: float = 0.0
    test_pairs: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"steps is {self.steps}: a critic is fitted in at least 1")
        if not 0.0 < self.learning_rate < 1.0:
            raise UserError(f"learning_rate is {self.learning_rate}: it must lie between 0 and 1 (say 2e-3)")


class Fit(NamedTuple):
    """The state of a fit: parameters, optimizer state and, of a stateful estimator, its state."""

    params: Params
    opt_state: Any
    state: MineState | None


@dataclasses.dataclass(frozen=True)
class Model:
    """The network that is fitted for an estimator: its critic, or q(v|z)."""

    estimator: Estimator
    build: Callable[[nnx.Rngs], nnx.Module]
    graph: nnx.GraphDef

    def score(
        self, params: Params, z_KxD: Array, v_KxE: Array, state: MineState | None, key: Array | None = None
    ) -> tuple[Bound, MineState | None]:
        """The estimate on a batch; the fit maximizes its objective. Dropout is on where a key is given."""
        network: Any = nnx.merge(self.graph, params)
        if self.estimator.conditional:
            mean_KxE, log_std_KxE = network(z_KxD, key)
            bound, state = self.estimator(gaussian_log_q(v_KxE, mean_KxE, log_std_KxE), state=state)
            return bound._replace(objective=-gaussian_loss(v_KxE, mean_KxE, log_std_KxE).mean()), state
        critic: Critic = network
        scores, baseline_K = critic(z_KxD, v_KxE, key), critic.baseline(v_KxE, key)
        return self.estimator(scores.score_KxK, positive_K=scores.positive_K, baseline_K=baseline_K, state=state)

    def start(self, optimizer: optax.GradientTransformation, key: Array) -> Fit:
        """Random parameters."""
        params = nnx.to_pure_dict(nnx.split(self.build(nnx.Rngs(params=key)))[1])
        return Fit(params, optimizer.init(params), self.estimator.start())

    def advance(
        self,
        optimizer: optax.GradientTransformation,
        batch: Callable[[Any], tuple[Array, Array]],
        fit: Fit,
        xs: Any,
        key: Array | None = None,
    ) -> tuple[Fit, Array]:
        """One step for each entry x of xs, on the pairs batch(x). Also the value at every step [len(xs)]. Pure.

        key: of the dropout masks; without it there is no dropout.
        """

        def loss(params: Params, z_KxD: Array, v_KxE: Array, *state_and_key: Any) -> tuple[Array, Any]:
            bound, after = self.score(params, z_KxD, v_KxE, *state_and_key)
            return -bound.objective, (bound.value, after)

        def step(fit: Fit, x_and_key: tuple[Any, Array | None]) -> tuple[Fit, Array]:
            x, step_key = x_and_key
            grads, (value, state) = jax.grad(loss, has_aux=True)(fit.params, *batch(x), fit.state, step_key)
            updates, opt_state = optimizer.update(grads, fit.opt_state, fit.params)
            return Fit(optax.apply_updates(fit.params, updates), opt_state, state), value

        keys = None if key is None else jax.random.split(key, len(jax.tree.leaves(xs)[0]))
        return jax.lax.scan(step, fit, (xs, keys))

    def evaluate(self, params: Params, z_NxD: Array, v_NxE: Array, num_pairs: int) -> tuple[Array, Array]:
        """Value and objective of each block of num_pairs pairs, [N // num_pairs] each; a remainder is left out."""
        blocks = z_NxD.shape[0] // num_pairs

        def block(pairs: tuple[Array, Array]) -> tuple[Array, Array]:
            bound, _ = self.score(params, *pairs, self.estimator.start())
            # The objective of a stateful estimator depends on a moving average, which one batch does not give.
            return bound.value, bound.value if self.estimator.stateful else bound.objective

        return jax.lax.map(block, tuple(x[: blocks * num_pairs].reshape(blocks, num_pairs, -1) for x in (z_NxD, v_NxE)))


@functools.lru_cache(maxsize=32)
def make_model(z_dim: int, v_dim: int, estimator: Estimator, critic: CriticConfig) -> Model:
    """The model of an estimator on features of these sizes."""

    def build(rngs: nnx.Rngs) -> nnx.Module:
        if estimator.conditional:
            return GaussianHead(z_dim, v_dim, critic, scale=0.0, rngs=rngs)
        return Critic(z_dim, v_dim, critic, estimator, rngs=rngs)

    return Model(estimator, build, nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))[0])


class _Compiled(NamedTuple):
    start: Callable
    advance: Callable
    evaluate: Callable


def _learning_rate(config: FitConfig) -> optax.Schedule:
    if not config.warmup:
        return optax.cosine_decay_schedule(config.learning_rate, config.steps)
    return optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, int(config.warmup * config.steps), config.steps
    )


@functools.lru_cache(maxsize=32)
def _compiled(z_dim: int, v_dim: int, estimator: Estimator, critic: CriticConfig, config: FitConfig) -> _Compiled:
    """Compiled functions, kept so that a monitor compiles once in a run."""
    model = make_model(z_dim, v_dim, estimator, critic)
    optimizer = optax.adam(_learning_rate(config))

    def advance(fit: Fit, rows_SxK: Array, z_NxD: Array, v_NxE: Array, key: Array) -> tuple[Fit, Array]:
        dropout_key = key if critic.dropout else None
        return model.advance(optimizer, lambda rows_K: (z_NxD[rows_K], v_NxE[rows_K]), fit, rows_SxK, dropout_key)

    return _Compiled(
        jax.jit(lambda key: model.start(optimizer, key)),
        jax.jit(advance),
        jax.jit(model.evaluate, static_argnames="num_pairs"),
    )


class HeldOutEstimate(NamedTuple):
    """What a fit yields.

    values: the estimate on each block of test pairs. trained_values: those of the best parameters after at least one
    step; they differ from `values` where the initial parameters, whose estimate is 0, are the best. objective: the
    highest mean objective on the validation pairs. curve: (step, value on the validation pairs) along the fit.
    """

    values: np.ndarray
    trained_values: np.ndarray
    objective: float
    curve: list[tuple[int, float]]


def _batches(size: int, config: FitConfig, seed: int) -> np.ndarray:
    """Row numbers [steps, K] of every step's pairs: epochs, each in another order."""
    draw = np.random.default_rng(seed)
    per_epoch = size // config.num_pairs
    epochs = [draw.permutation(size)[: per_epoch * config.num_pairs] for _ in range(-(-config.steps // per_epoch))]
    return np.concatenate(epochs).reshape(-1, config.num_pairs)[: config.steps]


def fit_and_evaluate(
    train: Pairs,
    validation: Pairs,
    test: Pairs,
    estimator: Estimator,
    critic: CriticConfig,
    config: FitConfig,
    seed: int,
    progress: Callable[[int], Any] = lambda steps: None,
) -> HeldOutEstimate:
    """Fit on training pairs, stop on validation pairs, evaluate on test pairs. UserError for fewer than 2 of each.

    progress: called with numbers of steps that are done or not needed, config.steps in all.
    """
    sizes = [len(pairs[0]) for pairs in (train, validation, test)]
    num_pairs = min(config.num_pairs, *sizes)
    if num_pairs < 2:
        raise UserError(f"{sizes} training, validation and test pairs: give at least 2 of each")
    config = dataclasses.replace(config, num_pairs=num_pairs)
    functions = _compiled(train[0].shape[1], train[1].shape[1], estimator, critic, config)
    init_key = jax.random.key(seed)
    fit = functions.start(init_key)
    best = trained = fit.params
    best_objective = trained_objective = -np.inf
    evaluations = 0  # since the best
    curve: list[tuple[int, float]] = []
    rows = _batches(sizes[0], config, seed)
    # From step 0 on: on independent data the initial critic, whose estimate is 0, is the best.
    before = 0
    for step in (*range(0, config.steps, config.every), config.steps):
        if step:
            fit, _ = functions.advance(fit, rows[before:step], *train, jax.random.fold_in(init_key, step))
            progress(step - before)
            before = step
        values, objectives = functions.evaluate(fit.params, *validation, num_pairs=num_pairs)
        objective = float(objectives.mean())
        curve.append((step, float(values.mean())))
        evaluations += 1
        if step and objective > trained_objective:
            trained, trained_objective = fit.params, objective
        if objective > best_objective:
            best, best_objective, evaluations = fit.params, objective, 0
        if evaluations > config.patience:
            break
    progress(config.steps - before)
    values, trained_values = (
        np.asarray(functions.evaluate(params, *test, num_pairs=config.test_pairs or num_pairs)[0], np.float64)
        for params in (best, trained)
    )
    return HeldOutEstimate(values, trained_values, best_objective, curve)
