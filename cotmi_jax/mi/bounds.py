"""Estimators of mutual information from a matrix of critic scores, as pure functions. All values in nats.

score_KxK[i, j] = f(z_i, v_j): rows are Z, columns V, positives on the diagonal. D is the mean over the diagonal, O the
mean over the K(K−1) entries off it, r the density ratio p(z, v) / p(z)p(v). Everything is float32.

All take valid_K, which masks padded pairs (they are neither positives nor negatives, as if they were sliced away),
and positive_K: f(z_i, v_i) computed separately, so that a matrix sharded by rows need not be gathered for its diagonal.
Fewer than two valid pairs give 0. They raise ValueError for K < 2 and for shapes that do not fit.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Axis = Literal["row", "column", "symmetric"]
_MASKED = -1e9  # as a score: its exponential is 0, and unlike −inf it gives no NaN in gradients


class Bound(NamedTuple):
    """`value` is reported, `objective` is maximized; they are equal unless the estimator states otherwise."""

    value: Array
    objective: Array


class _Pairs(NamedTuple):
    """Scores with masked entries replaced by 0, and which entries count."""

    score_KxK: Array  # the diagonal holds the positives
    positive_K: Array
    on_K: Array
    off_KxK: Array
    num: Array  # valid pairs, float32, at least 2
    enough: Array  # whether at least 2 pairs are valid

    def mean_on(self, x_K: Array) -> Array:
        """D[x]."""
        return jnp.where(self.on_K, x_K, 0.0).sum() / self.num

    def mean_off(self, x_KxK: Array) -> Array:
        """O[x]."""
        return jnp.where(self.off_KxK, x_KxK, 0.0).sum() / (self.num * (self.num - 1.0))

    def log_mean_off(self, x_KxK: Array) -> Array:
        """log O[e^x]."""
        return jax.nn.logsumexp(x_KxK, where=self.off_KxK) - jnp.log(self.num * (self.num - 1.0))

    def bound(self, value: Array, objective: Array | None = None) -> Bound:
        """The result, 0 where there are too few pairs."""
        value = jnp.where(self.enough, value, 0.0)
        return Bound(value, value if objective is None else jnp.where(self.enough, objective, 0.0))


def _pairs(score_KxK: Array, valid_K: Array | None, positive_K: Array | None) -> _Pairs:
    if score_KxK.ndim != 2 or score_KxK.shape[0] != score_KxK.shape[1] or score_KxK.shape[0] < 2:
        raise ValueError(f"scores of shape {score_KxK.shape}: at least 2 pairs, as a square matrix, make a bound")
    k = score_KxK.shape[0]
    for name, vector in (("valid_K", valid_K), ("positive_K", positive_K)):
        if vector is not None and vector.shape != (k,):
            raise ValueError(f"{name} has shape {vector.shape} beside scores of shape {score_KxK.shape}")
    score_KxK = score_KxK.astype(jnp.float32)
    diagonal_KxK = jnp.eye(k, dtype=bool)
    if positive_K is None:
        positive_K = jnp.diagonal(score_KxK)
    else:
        score_KxK = jnp.where(diagonal_KxK, positive_K.astype(jnp.float32)[:, None], score_KxK)
        positive_K = positive_K.astype(jnp.float32)
    if valid_K is None:
        num, enough = jnp.float32(k), jnp.asarray(True)
        return _Pairs(score_KxK, positive_K, jnp.ones(k, bool), ~diagonal_KxK, num, enough)
    enough = valid_K.sum() >= 2
    both_KxK = valid_K[:, None] & valid_K[None, :]
    score_KxK, positive_K = jnp.where(both_KxK, score_KxK, 0.0), jnp.where(valid_K, positive_K, 0.0)
    # With fewer than two pairs all entries count, as zeros: the result is discarded, and no log(0) gives a NaN
    # gradient.
    both_KxK = both_KxK | ~enough
    num = jnp.where(enough, valid_K.sum(dtype=jnp.float32), jnp.float32(k))
    return _Pairs(score_KxK, positive_K, valid_K | ~enough, both_KxK & ~diagonal_KxK, num, enough)


def infonce(
    score_KxK: Array, valid_K: Array | None = None, *, positive_K: Array | None = None, axis: Axis = "row"
) -> Bound:
    """InfoNCE lower bound on I(Z;V), at most log K (van den Oord et al. 2018, eq. 4-5).

    axis "row" contrasts each z with all v, "column" each v with all z, "symmetric" is the mean of both.
    """
    pairs = _pairs(score_KxK, valid_K, positive_K)
    counted_KxK = pairs.off_KxK | (jnp.eye(score_KxK.shape[0], dtype=bool) & pairs.on_K[:, None])
    masked_KxK = jnp.where(counted_KxK, pairs.score_KxK, _MASKED)

    def contrast(over: int) -> Array:
        return jnp.log(pairs.num) + pairs.mean_on(pairs.positive_K - jax.nn.logsumexp(masked_KxK, axis=over))

    match axis:
        case "row":
            return pairs.bound(contrast(1))
        case "column":
            return pairs.bound(contrast(0))
        case "symmetric":
            return pairs.bound(0.5 * (contrast(0) + contrast(1)))
    raise ValueError(f"axis {axis!r}: choose row, column or symmetric")


def nwj(score_KxK: Array, valid_K: Array | None = None, *, positive_K: Array | None = None) -> Bound:
    """Lower bound D[f] − O[e^(f−1)] (Nguyen, Wainwright and Jordan 2010).

    Tight at f = 1 + log r. Its variance grows like e^(2I): clamp the scores.
    """
    pairs = _pairs(score_KxK, valid_K, positive_K)
    return pairs.bound(_nwj(pairs, 0.0))


def _nwj(pairs: _Pairs, shift: float) -> Array:
    """nwj of f + shift."""
    return pairs.mean_on(pairs.positive_K) + shift - jnp.exp(pairs.log_mean_off(pairs.score_KxK) + (shift - 1.0))


def tuba(
    score_KxK: Array, baseline_K: Array, valid_K: Array | None = None, *, positive_K: Array | None = None
) -> Bound:
    """Lower bound 1 + D[f − a(v)] − O[e^(f − a(v))] with baseline_K[j] = a(v_j) (Poole et al. 2019, section 2)."""
    pairs = _pairs(score_KxK, valid_K, positive_K)
    if baseline_K.shape != pairs.positive_K.shape:
        raise ValueError(f"baseline_K has shape {baseline_K.shape} beside scores of shape {score_KxK.shape}")
    baseline_K = jnp.where(pairs.on_K & pairs.enough, baseline_K.astype(jnp.float32), 0.0)
    above_KxK = pairs.score_KxK - baseline_K[None, :]
    return pairs.bound(1.0 + pairs.mean_on(pairs.positive_K - baseline_K) - jnp.exp(pairs.log_mean_off(above_KxK)))


def _log_sum_of_others(x_KxK: Array) -> Array:
    """[i, j]: log Σ_{k≠i} e^{x_kj}. Subtraction from the column's sum loses precision for its largest entry only, whose
    sum of others is computed directly."""
    largest_KxK = jax.lax.broadcasted_iota(jnp.int32, x_KxK.shape, 0) == jnp.argmax(x_KxK, axis=0)[None, :]
    top_1xK = jax.lax.stop_gradient(x_KxK.max(axis=0, keepdims=True))
    scaled_KxK = jnp.exp(x_KxK - top_1xK)
    rest_KxK = jnp.where(largest_KxK, 1.0, scaled_KxK.sum(axis=0, keepdims=True) - scaled_KxK)
    without_largest_K = jax.nn.logsumexp(jnp.where(largest_KxK, _MASKED, x_KxK), axis=0)
    return jnp.where(largest_KxK, without_largest_K[None, :], top_1xK + jnp.log(rest_KxK))


def interpolated(
    score_KxK: Array,
    valid_K: Array | None = None,
    *,
    positive_K: Array | None = None,
    alpha: float = 0.01,
    log_baseline_K: Array | None = None,
) -> Bound:
    """Lower bound between TUBA (alpha → 0) and InfoNCE (1), at most log(K/alpha) + 1 (Poole et al. 2019, section 2).

    TUBA with the baseline a = log[alpha · mean of e^f over the other z + (1 − alpha) q(v)]. The z left out of the mean
    is the positive one in the marginal term; in the joint term the value is the average over leaving out each of the
    negatives. log q is log_baseline_K, 0 by default.
    """
    if not 0.0 < alpha < 1.0:
        raise ValueError(f"alpha is {alpha}: it must lie between 0 (TUBA) and 1 (InfoNCE)")
    pairs = _pairs(score_KxK, valid_K, positive_K)
    k = score_KxK.shape[0]
    counted_KxK = pairs.off_KxK | (jnp.eye(k, dtype=bool) & pairs.on_K[:, None])
    masked_KxK = jnp.where(counted_KxK, pairs.score_KxK, _MASKED)
    log_mean_KxK = _log_sum_of_others(masked_KxK) - jnp.log(pairs.num - 1.0)
    if log_baseline_K is not None and log_baseline_K.shape != (k,):
        raise ValueError(f"log_baseline_K has shape {log_baseline_K.shape} beside scores of shape {score_KxK.shape}")
    log_q_K = jnp.zeros(k) if log_baseline_K is None else jnp.where(pairs.on_K, log_baseline_K, 0.0)
    log_rest_K = jnp.log1p(-alpha) + log_q_K.astype(jnp.float32)
    baseline_KxK = jnp.logaddexp(jnp.log(alpha) + log_mean_KxK, jnp.broadcast_to(log_rest_K[None, :], (k, k)))
    joint = pairs.mean_off(pairs.positive_K[None, :] - baseline_KxK)
    marginal = pairs.log_mean_off(pairs.score_KxK - jnp.diagonal(baseline_KxK)[None, :])
    return pairs.bound(1.0 + joint - jnp.exp(marginal))


def _dv(pairs: _Pairs) -> Array:
    return pairs.mean_on(pairs.positive_K) - pairs.log_mean_off(pairs.score_KxK)


def dv(score_KxK: Array, valid_K: Array | None = None, *, positive_K: Array | None = None) -> Bound:
    """D[f] − log O[e^f] (Donsker and Varadhan 1983): biased up at finite K, hence not a bound."""
    pairs = _pairs(score_KxK, valid_K, positive_K)
    return pairs.bound(_dv(pairs))


class MineState(NamedTuple):
    """Moving average of the partition O[e^f] before the correction of its bias to 0; float32 and int32 scalars."""

    log_sum: Array
    steps: Array

    @classmethod
    def start(cls) -> "MineState":
        """Before the first batch."""
        return cls(jnp.asarray(-jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))


def mine(
    score_KxK: Array,
    state: MineState,
    valid_K: Array | None = None,
    *,
    positive_K: Array | None = None,
    decay: float = 0.99,
) -> tuple[Bound, MineState]:
    """The value of dv; its gradient divides by a moving average of O[e^f] (Belghazi et al. 2018, section 3.2).

    The average includes this batch, is computed in the log domain, and its bias is corrected as that of Adam's moments.
    """
    pairs = _pairs(score_KxK, valid_K, positive_K)
    log_partition = pairs.log_mean_off(pairs.score_KxK)
    steps = state.steps + 1
    log_sum = jnp.logaddexp(state.log_sum + jnp.log(decay), jax.lax.stop_gradient(log_partition) + jnp.log1p(-decay))
    log_average = log_sum - jnp.log1p(-(decay ** steps.astype(jnp.float32)))
    objective = pairs.mean_on(pairs.positive_K) - jnp.exp(log_partition - log_average)
    advanced = MineState(log_sum, steps)
    advanced = jax.tree.map(lambda new, old: jnp.where(pairs.enough, new, old), advanced, state)
    return pairs.bound(_dv(pairs), objective), advanced


def _jensen_shannon(pairs: _Pairs) -> Array:
    positive = pairs.mean_on(-jax.nn.softplus(-pairs.positive_K))
    return positive - pairs.mean_off(jax.nn.softplus(pairs.score_KxK))


def js(score_KxK: Array, valid_K: Array | None = None, *, positive_K: Array | None = None) -> Bound:
    """Maximizes D[−softplus(−f)] − O[softplus(f)] (Hjelm et al. 2019, eq. 4), whose variance no e^f increases.

    This objective is not an estimate in nats. Its optimum is f = log r, so the value is nwj at f + 1: a lower bound.
    """
    pairs = _pairs(score_KxK, valid_K, positive_K)
    return pairs.bound(_nwj(pairs, 1.0), _jensen_shannon(pairs))


def smile(
    score_KxK: Array, valid_K: Array | None = None, *, positive_K: Array | None = None, tau: float = 5.0
) -> Bound:
    """D[f] − log O[e^clip(f, ±tau)], trained as js (Song and Ermon 2020). Biased up for small tau.

    Only the scores of negatives are clipped, and only in the value.
    """
    pairs = _pairs(score_KxK, valid_K, positive_K)
    clipped_KxK = jnp.clip(pairs.score_KxK, -tau, tau)
    return pairs.bound(pairs.mean_on(pairs.positive_K) - pairs.log_mean_off(clipped_KxK), _jensen_shannon(pairs))


def club(log_q_KxK: Array, valid_K: Array | None = None) -> Bound:
    """Upper bound D[log q] − O[log q] where q = p; log_q[i, j] = log q(v_j | z_i) (Cheng et al. 2020)."""
    pairs = _pairs(log_q_KxK, valid_K, None)
    return pairs.bound(pairs.mean_on(pairs.positive_K) - pairs.mean_off(pairs.score_KxK))


def leave_one_out(log_q_KxK: Array, valid_K: Array | None = None) -> Bound:
    """Upper bound with the mean of q(v_j | z_i) over the other z for p(v_j) (Poole et al. 2019); at most club.

    log_q[i, j] = log q(v_j | z_i).
    """
    pairs = _pairs(log_q_KxK, valid_K, None)
    others_KxK = jnp.where(pairs.off_KxK, pairs.score_KxK, _MASKED)
    log_marginal_K = jax.nn.logsumexp(others_KxK, axis=0) - jnp.log(pairs.num - 1.0)
    return pairs.bound(pairs.mean_on(pairs.positive_K - log_marginal_K))


def score_statistics(
    score_KxK: Array, valid_K: Array | None = None, *, positive_K: Array | None = None
) -> tuple[Array, Array]:
    """D[f] and log O[e^f], the two terms of most estimators, as metrics of a run."""
    pairs = _pairs(score_KxK, valid_K, positive_K)
    return pairs.bound(pairs.mean_on(pairs.positive_K)).value, pairs.bound(pairs.log_mean_off(pairs.score_KxK)).value
