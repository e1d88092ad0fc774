"""What a critic's scores give an estimator: contrast over the pairs of a batch, or over the pairs within each example.

Within an example the pairs (label, rationale) share the input x: M of them, K in the shapes of mi/, of which the first
is the example's own. The mean of `infonce` over examples is a lower bound on the conditional mutual information
I(Z;V | X) where the pairs of an input are equally likely. A function of x alone has the same value in all pairs and
contrasts nothing.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.mi import bounds
from cotmi_jax.mi.bounds import MineState
from cotmi_jax.mi.critics import Critic, Scores
from cotmi_jax.mi.estimators import Estimator

Metrics = dict[str, Array]


def over_batch(
    estimator: Estimator,
    critic: Critic,
    z_KxD: Array,
    v_KxE: Array,
    valid_K: Array,
    key: Array | None,
    state: MineState | None,
) -> tuple[Metrics, MineState | None]:
    """`mi`, the loss, and metrics of the scores, as scalars; and the estimator's state after the batch."""
    return _estimate(estimator, critic, critic(z_KxD, v_KxE, key), v_KxE, valid_K, key, state)


def _estimate(
    estimator: Estimator,
    critic: Critic,
    scores: Scores,
    v_KxE: Array,
    valid_K: Array,
    key: Array | None,
    state: MineState | None,
) -> tuple[Metrics, MineState | None]:
    bound, state = estimator(
        scores.score_KxK,
        valid_K,
        positive_K=scores.positive_K,
        baseline_K=critic.baseline(v_KxE, key),
        state=state,
    )
    positive, negative = bounds.score_statistics(scores.score_KxK, valid_K, positive_K=scores.positive_K)
    metrics = {"mi": -bound.objective, "mi_value": bound.value, "mi_positive": positive, "mi_negative": negative}
    size = valid_K.shape[0]
    if math.isfinite(estimator.cap(size)):
        # A cap is a constant plus the logarithm of the number of pairs, of which only valid ones count.
        cap = estimator.cap(size) + jnp.log(jnp.maximum(valid_K.sum(), 2) / size)
        metrics["mi_saturation"] = bound.value / cap
    return metrics, state


def within_examples(
    estimator: Estimator,
    critic: Critic,
    z_BxMxD: Array,
    v_BxMxE: Array,
    valid_BxM: Array,
    key: Array | None,
    state: MineState | None,
) -> tuple[Metrics, MineState | None]:
    """As over_batch, by example [B], in addition `mi_accuracy`; and the state after the batch.

    The critic scores the deviations of features from their mean over the example's pairs, since what all pairs share,
    their input, is most of a feature. Scores are clamped as deviations from their mean, to which infonce is invariant:
    nothing keeps it from moving to the clamp, where scores have no gradient.
    An example with fewer than two valid pairs has the value 0 and the gradient 0, and does not change the state. The
    state, a moving average of the partition function, advances by the mean of that of the examples.
    """

    def one(z_MxD: Array, v_MxE: Array, valid_M: Array, key: Array | None) -> tuple[Metrics, MineState | None]:
        z_MxD, v_MxE = _deviations(z_MxD, valid_M), _deviations(v_MxE, valid_M)
        scores = critic.limit(_centered(critic.unlimited(z_MxD, v_MxE, key), valid_M))
        metrics, advanced = _estimate(estimator, critic, scores, v_MxE, valid_M, key, state)
        return metrics | {"mi_accuracy": _accuracy(scores.score_KxK, valid_M)}, advanced

    keys_B = None if key is None else jax.random.split(key, z_BxMxD.shape[0])
    metrics, states_B = jax.vmap(one)(z_BxMxD, v_BxMxE, valid_BxM, keys_B)
    if state is not None and states_B is not None:
        state = _mean_state(states_B, state, valid_BxM.sum(axis=1) >= 2)
    return metrics, state


def _deviations(x_MxD: Array, valid_M: Array) -> Array:
    """Features minus their mean over the valid pairs; 0 where a pair is not valid."""
    total_1xD = jnp.where(valid_M[:, None], x_MxD, 0.0).sum(axis=0, keepdims=True)
    return jnp.where(valid_M[:, None], x_MxD - total_1xD / jnp.maximum(valid_M.sum(), 1), 0.0)


def _centered(scores: Scores, valid_M: Array) -> Scores:
    """Scores minus their mean over the pairs of valid z and v."""
    both_MxM = valid_M[:, None] & valid_M[None, :]
    mean = jnp.where(both_MxM, scores.score_KxK, 0.0).sum() / jnp.maximum(both_MxM.sum(), 1)
    return Scores(scores.score_KxK - mean, scores.positive_K - mean)


def _accuracy(score_MxM: Array, valid_M: Array) -> Array:
    """Share of the choices between two that the critic makes rightly; of equal scores half count.

    A choice is, given z_i, between v_i and one other v_j. Chance is ½ whatever M is.
    """
    off_MxM = valid_M[:, None] & valid_M[None, :] & ~jnp.eye(valid_M.shape[0], dtype=bool)
    margin_MxM = jnp.diagonal(score_MxM)[:, None] - score_MxM
    right = jnp.where(off_MxM, 0.5 * (1.0 + jnp.sign(margin_MxM)), 0.0).sum()
    return right / jnp.maximum(off_MxM.sum(), 1)


def _mean_state(states_B: MineState, before: MineState, enough_B: Array) -> MineState:
    count = enough_B.sum(dtype=jnp.float32)
    log_sum = jax.nn.logsumexp(states_B.log_sum, where=enough_B) - jnp.log(jnp.maximum(count, 1.0))
    advanced = MineState(log_sum, states_B.steps.max())
    return jax.tree.map(functools.partial(jnp.where, count > 0), advanced, before)
