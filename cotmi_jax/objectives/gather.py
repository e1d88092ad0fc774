"""The features Z and V of a batch, from the states of its tasks, with the gradient that reaches the student scaled."""

import jax
import jax.numpy as jnp
from jax import Array

from cotmi_jax.objectives import pooling
from cotmi_jax.objectives.forward import TaskStates
from cotmi_jax.objectives.mi_term import VOCABULARY_FEATURES, Features, MITermConfig, Networks


def scale_gradient(x: Array, factor: Array | float) -> Array:
    """x, with its gradient multiplied by factor."""
    constant = jax.lax.stop_gradient(x)
    return constant + factor * (x - constant)


def _pool(name: str, states: TaskStates, query: Array | None) -> Array:
    """A feature of each sequence pair [R, N, …]."""
    if name in VOCABULARY_FEATURES:
        assert states.log_pooled_RxNxV is not None
        return states.log_pooled_RxNxV
    if name == "encoder_mean":
        return pooling.mean(states.encoded_RxSxD, states.input_RxNxS)
    if name == "decoder_attention":
        assert query is not None
        return pooling.attention(states.states_RxTxD, states.target_RxNxT, query)
    pool = {"decoder_mean": pooling.mean, "decoder_max": pooling.maximum}[name]
    return pool(states.states_RxTxD, states.target_RxNxT)


def _through(states: TaskStates, factor: Array | float | None) -> TaskStates:
    """The states with their gradient scaled, or stopped (None)."""

    def scaled(x: Array) -> Array:
        return jax.lax.stop_gradient(x) if factor is None else scale_gradient(x, factor)

    return states._replace(
        encoded_RxSxD=scaled(states.encoded_RxSxD),
        states_RxTxD=scaled(states.states_RxTxD),
        log_pooled_RxNxV=None if states.log_pooled_RxNxV is None else scaled(states.log_pooled_RxNxV),
    )


def gather_features(
    config: MITermConfig,
    networks: Networks | None,
    label: TaskStates,
    rationale: TaskStates,
    beta: float,
    ramp: Array | float,
    counterfactuals: tuple[TaskStates, TaskStates] | None = None,
) -> Features:
    """Z and V of a batch. The term's gradient reaches the student times beta · ramp, on the sides not detached.

    counterfactuals: their states of label and rationale task, for `conditional`.
    """
    z_factor, v_factor = (None if config.detach == side else beta * ramp for side in ("z", "v"))
    queries = (getattr(networks, name, None) for name in ("query_z", "query_v"))
    query_z, query_v = (None if query is None else query[...] for query in queries)
    z = _pool(config.z_feature, _through(label, z_factor), query_z)
    v = _pool(config.v_feature, _through(rationale, v_factor), query_v)
    if counterfactuals is not None:
        of_label, of_rationale = counterfactuals
        z = _stack_pairs(z, _pool(config.z_feature, _through(of_label, z_factor), query_z))
        v = _stack_pairs(v, _pool(config.v_feature, _through(of_rationale, v_factor), query_v))
    x = z_free = None
    if config.compression != "none":
        x = _pool("encoder_mean", _through(label, None), None)
        factor = ramp * (config.compression_weight if config.compression == "club" else beta)
        # The penalty of CLUB trains the student only.
        query = jax.lax.stop_gradient(query_z) if config.compression == "club" else query_z
        z_free = _pool(config.z_feature, _through(label, factor), query)
    return Features(z, v, x, z_free)


def _stack_pairs(own_RxNxD: Array, others_RxPxD: Array) -> Array:
    """[R, N, M, D]: the feature of each sequence pair, and of its M − 1 counterfactuals; P = (M − 1) · N."""
    rows, num, size = own_RxNxD.shape
    others = others_RxPxD.reshape(rows, -1, num, size)
    return jnp.swapaxes(jnp.concatenate([own_RxNxD[:, None], others], axis=1), 1, 2)
