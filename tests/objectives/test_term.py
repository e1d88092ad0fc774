"""The mutual-information term on random states of two tasks: gradients of each side, and compression."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_trees_close, numpy_params, small_config
from mi_helpers import BETA, mi_config, objective_of

from cotmi_jax.mi import barber_agakov, bounds
from cotmi_jax.mi.networks import normalize
from cotmi_jax.models.module import Params
from cotmi_jax.objectives.forward import TaskStates
from cotmi_jax.objectives.gather import gather_features
from cotmi_jax.objectives.mi_term import MITermConfig, losses

D, V = 8, 16
SHAPE = small_config(d_model=D, vocab_size=V)
MEMBER = {"input": np.arange(7) < np.array([7, 2, 0, 5, 1, 0, 3, 4])[:, None]}
MEMBER |= {"target": np.arange(4) < np.array([4, 2, 0, 3, 1, 0, 2, 4])[:, None]}
VALID = MEMBER["target"].any(axis=1)
Arrays = dict[str, np.ndarray]


def make_states(seed: int) -> Arrays:
    draw = np.random.default_rng(seed)
    shapes = {"encoded_RxSxD": (8, 7, D), "states_RxTxD": (8, 4, D), "log_pooled_RxNxV": (8, 1, V)}
    return {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def sources(*tasks: Arrays) -> list[TaskStates]:
    members = {f"{name}_RxNx{axis}": MEMBER[name][:, None] for name, axis in (("input", "S"), ("target", "T"))}
    return [TaskStates(**members, **states) for states in tasks]  # type: ignore[arg-type]


class Pulled(NamedTuple):
    """What the term reports, and its gradients by networks and by both tasks' states."""

    reported: dict[str, jax.Array]
    networks: Params
    label: Arrays
    rationale: Arrays


@functools.cache
def term(config: MITermConfig) -> Callable[..., Pulled]:
    networks = objective_of(config).networks(SHAPE)
    assert networks is not None

    def total(params: Params, label: Arrays, rationale: Arrays, ramp: float) -> tuple[jax.Array, Any]:
        bound, frozen = networks.bind(params), networks.bind(jax.lax.stop_gradient(params))
        features = gather_features(config, bound, *sources(label, rationale), BETA, ramp).by_example(None)
        result = losses(config, bound, frozen, features, VALID, VALID.sum(dtype=np.float32), BETA, None, None)
        return result.total, result.reported

    def run(*arguments: Any) -> Pulled:
        grads, reported = jax.grad(total, argnums=(0, 1, 2), has_aux=True)(*arguments)
        return Pulled(reported, *grads)

    return jax.jit(run)


def pull(config: MITermConfig, *, ramp: float = 1.0, params: Params | None = None) -> Pulled:
    networks: Any = objective_of(config).networks(SHAPE)
    return term(config)(params or numpy_params(networks), make_states(0), make_states(1), ramp)


def touched(arrays: Arrays) -> set[str]:
    return {name for name, leaf in arrays.items() if np.asarray(leaf).any()}


READS = dict.fromkeys(("decoder_mean", "decoder_max", "decoder_attention"), "states_RxTxD")
READS |= {"encoder_mean": "encoded_RxSxD", "vocab_mean": "log_pooled_RxNxV"}


@functools.cache
def gathered(feature: str) -> Callable[[Arrays, Arrays], dict[str, Any]]:
    """Side that is detached → features, and the gradients of a scalar of them by both tasks' states."""

    def scalar(label: Arrays, rationale: Arrays, detach: str) -> tuple[jax.Array, Any]:
        config = mi_config(feature=feature, detach=detach)
        networks: Any = objective_of(config).networks(SHAPE)
        bound = networks.bind(numpy_params(networks))
        features = gather_features(config, bound, *sources(label, rationale), BETA, 0.5).by_example(None)
        kept = [jnp.where(VALID[:, None], leaf, 0.0) for leaf in (features.z, features.v)]
        return sum((jnp.sin(leaf) * np.arange(leaf.size).reshape(leaf.shape)).sum() for leaf in kept), features

    def run(label: Arrays, rationale: Arrays) -> dict[str, Any]:
        grad = jax.grad(scalar, argnums=(0, 1), has_aux=True)
        return {detach: grad(label, rationale, detach) for detach in ("none", "z", "v")}

    return jax.jit(run)


@pytest.mark.parametrize(("feature", "read"), READS.items())
def test_detaching_stops_the_gradient_of_one_side(feature: str, read: str) -> None:
    """That of the other side is unchanged, and only the states that a feature depends on have one."""
    by_detached = gathered(feature)(make_states(0), make_states(1))
    found = {detach: tuple(touched(side) for side in grads) for detach, (grads, _) in by_detached.items()}
    assert found == {"none": ({read}, {read}), "z": (set(), {read}), "v": ({read}, set())}
    (label, rationale), features = by_detached["none"]
    assert_trees_close((by_detached["v"][0][0], by_detached["z"][0][1]), (label, rationale), rtol=1e-6)
    for detach in ("z", "v"):
        assert_trees_close(by_detached[detach][1], features, rtol=0, atol=0)


@pytest.mark.parametrize("feature", [feature for feature in READS if feature != "vocab_mean"])
def test_values_at_padding_and_in_invalid_rows_change_nothing(feature: str) -> None:
    filled = (make_states(0), make_states(1))
    for states in filled:
        states["encoded_RxSxD"][~MEMBER["input"]] = np.nan
        states["states_RxTxD"][~MEMBER["target"]] = np.nan
    assert_trees_close(gathered(feature)(*filled), gathered(feature)(make_states(0), make_states(1)), rtol=0, atol=0)


# Compression


def with_club(config: MITermConfig) -> tuple[Any, Params, Params]:
    """Networks, their parameters, and the same without q."""
    networks: Any = objective_of(config).networks(SHAPE)
    params = numpy_params(networks)
    return networks, params, {name: leaf for name, leaf in params.items() if name != "club"}


@pytest.mark.slow
def test_club_trains_q_by_its_fit_and_the_student_by_its_penalty() -> None:
    """The fit trains q only, with its full gradient; the penalty the student only, times its weight and the ramp."""
    plain, club = mi_config(), mi_config(compression="club", compression_weight=0.2)
    networks, params, critic_alone = with_club(club)
    without, full, half = pull(plain, params=critic_alone), pull(club), pull(club, ramp=0.5)
    double = pull(dataclasses.replace(club, compression_weight=0.4))
    assert not {"compression", "compression_fit"} & set(without.reported)
    assert not touched(without.label) and touched(full.label) == {"states_RxTxD"}
    assert_trees_close(double.label, jax.tree.map(lambda leaf: 2 * leaf, full.label), rtol=1e-5)
    assert_trees_close(half.label, jax.tree.map(lambda leaf: leaf / 2, full.label), rtol=1e-5)
    assert_trees_close(full.rationale, without.rationale, rtol=1e-6)
    for other in (half, double):
        assert_trees_close(other.networks, full.networks, rtol=1e-6)

    label = make_states(0)
    x = pooled(label["encoded_RxSxD"], MEMBER["input"])

    def fit(params: Params) -> jax.Array:
        z = normalize(pooled(label["states_RxTxD"], MEMBER["target"]), "layer")
        return barber_agakov.gaussian_loss(z, *networks.bind(params).club(x))[VALID].mean()

    def penalty(states: np.ndarray) -> jax.Array:
        log_q = barber_agakov.gaussian_log_q(
            normalize(pooled(states, MEMBER["target"]), "layer"), *networks.bind(params).club(x)
        )
        return 0.2 * bounds.club(log_q[VALID][:, VALID]).value

    assert_trees_close(full.networks["club"], jax.jit(jax.grad(fit))(params)["club"], rtol=1e-4)
    np.testing.assert_allclose(
        full.label["states_RxTxD"], jax.jit(jax.grad(penalty))(label["states_RxTxD"]), rtol=1e-4, atol=1e-6
    )


def pooled(states: np.ndarray, member: np.ndarray) -> jax.Array:
    return jnp.where(member[..., None], states, 0.0).sum(axis=1) / np.maximum(member.sum(axis=1), 1)[:, None]


@pytest.mark.slow
def test_the_penalty_of_club_has_no_gradient_for_an_attention_query() -> None:
    """A query is one of the term's networks, in which the penalty would not be scaled."""
    plain = mi_config(feature="decoder_attention")
    club = dataclasses.replace(plain, compression="club", compression_weight=0.2)
    _, params, kept = with_club(club)
    grads, expected = pull(club, params=params).networks, pull(plain, params=kept).networks
    assert_trees_close({name: grads[name] for name in expected}, expected, rtol=1e-5)


@pytest.mark.slow
def test_a_variational_bottleneck_adds_its_divergence() -> None:
    config = mi_config(compression="variational", compression_weight=0.2)
    networks: Any = objective_of(config).networks(SHAPE)
    params = numpy_params(networks)
    full, half, off = (pull(config, ramp=ramp) for ramp in (1.0, 0.5, 0.0))
    z = pooled(make_states(0)["states_RxTxD"], MEMBER["target"])
    mean, log_std = (np.asarray(x, np.float64)[..., None] for x in jax.jit(networks.bind(params).bottleneck)(z))
    x = np.linspace(-60, 60, 60_001)[None, None, :]
    log_p = -((x - mean) ** 2) / (2 * np.exp(2 * log_std)) - log_std
    density = np.exp(log_p - 0.5 * np.log(2 * np.pi))
    expected = (density * (log_p + x**2 / 2)).sum(axis=-1).sum(axis=-1) * (x[0, 0, 1] - x[0, 0, 0])
    np.testing.assert_allclose(full.reported["compression"], expected, rtol=1e-4)
    assert (np.asarray(full.reported["compression"]) >= 0).all()

    assert touched(full.label) == {"states_RxTxD"} and not touched(off.label)
    assert_trees_close(half.label, jax.tree.map(lambda leaf: leaf / 2, full.label), rtol=1e-5)
    assert_trees_close(half.networks, full.networks, rtol=1e-6)
    double = pull(dataclasses.replace(config, compression_weight=0.4))
    assert_trees_close(double.label, jax.tree.map(lambda leaf: 2 * leaf, full.label), rtol=1e-5)

    standard = params | {"bottleneck": jax.tree.map(jnp.zeros_like, params["bottleneck"])}
    nothing = pull(config, params=standard)
    assert not np.asarray(nothing.reported["compression"]).any()
