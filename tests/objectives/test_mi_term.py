"""The mutual-information term in training: its gradients and their scale; micro-batches and devices equal the batch."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import mi_oracle
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, numpy_params, random_batch, small_config, toy_student
from mi_helpers import BETA, CRITIC, differ, mi_config, objective_of

from cotmi_jax.config import base
from cotmi_jax.errors import UserError
from cotmi_jax.models.module import Params
from cotmi_jax.models.rng import stream_key, train_streams
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.mi_term import FEATURES, MITermConfig, term_estimators
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.parallel.sharding import param_shardings
from cotmi_jax.training.optimizer import make_optimizers
from cotmi_jax.training.state import StateDef, TrainState
from cotmi_jax.training.step import Gradient, MITermInputs, loss_and_grads, make_train_step
from cotmi_jax.workdir.checkpoint import Checkpoints, find, restore_items, restore_params

STUDENTS = {"toy": toy_student(), "t5": StudentDef.of(small_config())}


def make_batch() -> dict[str, Any]:
    """One row is not valid, one has no label, and one has no rationale. Two rows lack one of two counterfactuals, and
    one row lacks both."""
    batch = random_batch(3, 8)
    others = [random_batch(seed, 8) for seed in (4, 5)]
    batch["counterfactuals"] = {
        task: np.stack([other[task]["targets"] for other in others], axis=1) for task in ("predict", "explain")
    }
    for row, absent in ((0, slice(None)), (1, 1), (3, 0)):
        for targets in batch["counterfactuals"].values():
            targets[row, absent] = 0
    batch["valid"][2] = False
    batch["predict"]["targets"][4] = batch["explain"]["targets"][5] = 0
    answers = [(batch[task]["targets"][:, 1:3] != 0) for task in ("predict", "explain")]
    batch["answer_length"] = (answers[0] & answers[1]).sum(axis=1, dtype=np.int32)  # of rationales that begin with it
    for task in ("predict", "explain"):
        batch[task]["answers"] = np.where(
            np.arange(2) < batch["answer_length"][:, None], np.arange(2, dtype=np.int32), -1
        )
    return batch


def make_params(kind: str, config: MITermConfig) -> Params:
    networks = objective_of(config).networks(STUDENTS[kind].config)
    params = {"student": numpy_params(STUDENTS[kind])}
    return params if networks is None else params | {"mi": numpy_params(networks, seed=1)}  # type: ignore[arg-type]


@functools.cache
def compiled(kind: str, objective: Objective, micro_batches: int = 1) -> Callable[..., Gradient]:
    """(params, batch, ramp) → Gradient, without dropout or noise."""
    student, config = STUDENTS[kind], objective.mi_term
    start = config.score_estimator().start() if config is not None and config.scored else None
    networks = objective.networks(student.config)

    def run(params: Params, batch: Any, ramp: float) -> Gradient:
        beside = MITermInputs(networks, None, start, ramp)
        return loss_and_grads(student, objective, params, batch, None, micro_batches, beside)

    return jax.jit(run)


def compute(kind: str, config: MITermConfig, *, beta: float = BETA, ramp: float = 1.0, **options: Any) -> Gradient:
    return compiled(kind, objective_of(config, beta), **options)(make_params(kind, config), make_batch(), ramp)


# Every estimator, and each feature with one of them.
TERMS = {
    "infonce": mi_config("infonce", axis="symmetric", detach="none"),
    "nwj": mi_config("nwj", feature="decoder_max", detach="v"),
    "tuba": mi_config("tuba", feature="decoder_attention", compression="club", compression_weight=0.2),
    "interpolated": mi_config("interpolated", feature="encoder_mean"),
    "dv": mi_config("dv", feature="vocab_max"),
    "mine": mi_config("mine", compression="variational", compression_weight=0.2),
    "js": mi_config("js", feature="vocab_mean", detach="none"),
    "smile": mi_config("smile"),
    "conditional": mi_config("conditional", bound="mine", counterfactuals=2, detach="none"),
    "released": mi_config("released"),
    "consistency": mi_config("consistency", distance="js"),
    "barber_agakov": mi_config("barber_agakov", feature="vocab_mean"),
    "barber_agakov_head": mi_config("barber_agakov_head"),
    "barber_agakov_gaussian": mi_config("barber_agakov_gaussian", feature="encoder_mean"),
}
assert set(TERMS) == set(term_estimators()) and {term.z_feature for term in TERMS.values()} == set(FEATURES)


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
def test_every_estimator_has_gradients_for_student_and_networks(name: str) -> None:
    result, without = (compute("toy", TERMS[name], ramp=ramp) for ramp in (1.0, 0.0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))
    assert differ(result.grads["student"], without.grads["student"])
    for network, grads in result.grads.get("mi", {}).items():
        assert any(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads)), network
    assert ("mi" in result.grads) == (name not in ("released", "barber_agakov", "consistency"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
def test_a_batch_without_pairs_has_no_loss_and_a_finite_gradient(name: str) -> None:
    batch = jax.tree.map(np.zeros_like, make_batch())
    result = compiled("toy", objective_of(TERMS[name]))(make_params("toy", TERMS[name]), batch, 1.0)
    assert float(result.loss) == 0.0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((result.terms, result.grads)))
    if name == "mine":
        jax.tree.map(np.testing.assert_array_equal, result.mi, TERMS[name].score_estimator().start())
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(result.grads["student"]))


# Estimators that need the most besides scores, and those without scores.
@pytest.mark.slow
@pytest.mark.parametrize("name", ["tuba", "mine", "js", "conditional", "barber_agakov_gaussian"])
def test_micro_batches_equal_the_batch(name: str) -> None:
    """Loss, every term, every gradient and the estimator's state: negatives are those of the batch."""
    whole = compute("toy", TERMS[name])
    # Differences of nearly equal features lose digits: gradients of .1 are rounded to 2.5e-6.
    atol = 1e-5 if name == "conditional" else 1e-6
    assert_trees_close(compute("toy", TERMS[name], micro_batches=4), whole, rtol=1e-4, atol=atol)


@pytest.mark.slow
def test_micro_batches_of_a_t5_equal_the_batch() -> None:
    whole = compute("t5", mi_config())
    assert_trees_close(compute("t5", mi_config(), micro_batches=4), whole, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sizes"), [("toy", (8, 1, 1)), ("toy", (1, 8, 1)), ("t5", (2, 2, 2)), ("t5", (1, 2, 4))], ids=str
)
def test_eight_devices_equal_one(kind: str, sizes: tuple[int, int, int]) -> None:
    """Each device has one or two rows: negatives are on other devices."""
    objective, mesh, params = objective_of(mi_config()), make_mesh(*sizes), make_params(kind, mi_config())
    networks = objective.networks(STUDENTS[kind].config)
    assert networks is not None
    with jax.set_mesh(mesh):
        where = param_shardings(params, {"student": STUDENTS[kind].axes, "mi": networks.axes}, mesh)
        actual = compiled(kind, objective)(jax.device_put(params, where), put_batch(make_batch(), mesh), 1.0)
    whole = compute(kind, mi_config())
    np.testing.assert_allclose(actual.loss, whole.loss, rtol=1e-6)
    assert_trees_close(actual, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_beta_and_ramp_scale_the_gradient_of_the_student_only() -> None:
    """In the warm-up the gradient of the student is that of dss."""
    config = mi_config()
    off, half, full = (compute("toy", config, ramp=ramp) for ramp in (0.0, 0.5, 1.0))
    other = compute("toy", config, beta=2 * BETA, ramp=0.25)
    student = {"student": make_params("toy", config)["student"]}
    dss = compiled("toy", Objective("dss", alpha=0.4))(student, make_batch(), 1.0)
    assert_trees_close(off.grads["student"], dss.grads["student"], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(off.loss, dss.loss, rtol=1e-6)
    np.testing.assert_allclose(full.loss - dss.loss, BETA * full.terms["mi"].mean, rtol=1e-5)
    for result in (off, half, other):
        assert_trees_close(result.grads["mi"], full.grads["mi"], rtol=1e-6, atol=1e-8)
    assert differ(full.grads["mi"], jax.tree.map(jnp.zeros_like, full.grads["mi"]))
    middle = jax.tree.map(lambda a, b: (a + b) / 2, off.grads["student"], full.grads["student"])
    assert_trees_close(half.grads["student"], middle, rtol=1e-5, atol=1e-6)
    assert_trees_close(half.grads["student"], other.grads["student"], rtol=1e-5, atol=1e-6)


def test_the_ramp_rises_after_the_warm_up() -> None:
    def ramp(**changes: Any) -> list[float]:
        objective = objective_of(mi_config(**({"warmup_steps": 3, "ramp_steps": 3} | changes)))
        return [float(objective.ramp(jnp.int32(step))) for step in range(8)]

    assert ramp() == [0.0, 0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert ramp(ramp_steps=0) == [0.0] * 3 + [1.0] * 5
    assert ramp(warmup_steps=0, ramp_steps=0) == [1.0] * 8
    assert ramp(estimator="consistency") == ramp()
    assert ramp(estimator="barber_agakov") == [1.0] * 8  # nothing there to warm up


def test_a_row_without_label_or_rationale_is_not_a_pair() -> None:
    objective, batch, params = objective_of(mi_config()), make_batch(), make_params("toy", mi_config())
    kept = np.array([0, 1, 3, 6, 7])
    assert objective.weights(batch, 0)["mi"] == len(kept)
    np.testing.assert_array_equal(np.flatnonzero(objective.pairs(batch, 0)), kept)
    whole = compute("toy", mi_config())
    alone = compiled("toy", objective)(params, jax.tree.map(lambda leaf: leaf[kept], batch), 1.0)
    for name in ("mi", "mi_value", "mi_positive", "mi_negative"):
        np.testing.assert_allclose(whole.terms[name].mean, alone.terms[name].mean, rtol=1e-5)
    assert_trees_close(whole.grads["mi"], alone.grads["mi"], rtol=1e-4)


# In the training step


def optimizer_config() -> Any:
    config = base()
    config.steps, config.optimizer.learning_rate, config.mi.learning_rate = 10, 1e-2, 3e-2
    return config


class Run(NamedTuple):
    definition: StateDef
    states: list[TrainState]  # before, between and after the steps
    metrics: list[dict[str, float]]
    step: Callable


@pytest.fixture(scope="module")
def run() -> Run:
    """Two steps with an estimator that has a state, a critic with dropout and a warm-up of one step."""
    config = mi_config("mine", critic=dataclasses.replace(CRITIC, dropout=0.3), warmup_steps=1, ramp_steps=1, decay=0.7)
    objective = objective_of(config)
    definition = StateDef.of(STUDENTS["toy"], make_optimizers(optimizer_config()), make_mesh(2, 2, 2), objective)
    step = make_train_step(definition, objective, optax.constant_schedule(1e-2))
    state, metrics = definition.init(stream_key(0, "init")), []
    states = [jax.device_get(state)]
    for _ in range(2):
        state, measured = step(state, make_batch(), train_streams(0))
        states.append(jax.device_get(state))
        metrics.append({name: float(value) for name, value in measured.items()})
    return Run(definition, states, metrics, step)


@pytest.mark.slow
def test_the_state_of_mine_is_the_moving_average(run: Run) -> None:
    partitions = [np.exp(metrics["mi_negative"]) for metrics in run.metrics]
    assert abs(partitions[0] - partitions[1]) > 1e-4
    average = mi_oracle.moving_average(partitions, 0.7) * (1 - 0.7**2)
    assert run.states[2].mi.steps == 2
    np.testing.assert_allclose(run.states[2].mi.log_sum, np.log(average), rtol=1e-5)
    assert [metrics["beta"] for metrics in run.metrics] == [0.0, BETA / 2]


@pytest.mark.slow
def test_a_step_is_determined_by_state_and_streams(run: Run) -> None:
    """The same state and streams give the same step; another step or seed gives other dropout masks."""

    def again(step: int, seed: int) -> float:
        state = dataclasses.replace(jax.device_put(run.states[1], run.definition.shardings), step=jnp.int32(step))
        return float(run.step(state, make_batch(), train_streams(seed))[1]["mi_value"])

    assert again(1, 0) == run.metrics[1]["mi_value"]
    assert len({again(1, 0), again(5, 0), again(1, 1)}) == 3


def test_a_checkpoint_contains_networks_and_estimator_state(run: Run, tmp_path: Path) -> None:
    """Bit by bit; the student's parameters are restored without them."""
    checkpoints = Checkpoints(tmp_path, keep=1)
    checkpoints.save(jax.device_put(run.states[2], run.definition.shardings).items(), 2, {}, {})
    checkpoints.close()
    found = find(tmp_path, "latest")
    restored = run.definition.restored(restore_items(found, run.definition.abstract.items()), found.step)
    assert {"mi", "student"} == set(restored.params) and restored.mi.steps.dtype == jnp.int32
    assert_trees_close(restored, run.states[2], rtol=0, atol=0)
    student = restore_params(find(tmp_path, "latest"), {"student": run.definition.abstract.params["student"]})
    assert_trees_close(student, {"student": run.states[2].params["student"]}, rtol=0, atol=0)


def test_the_critic_s_gradient_does_not_clip_the_student_s() -> None:
    """Nor is its own clipped; each group has its own learning rate."""
    optimizer, params = make_optimizers(optimizer_config()), {"student": np.ones(4), "mi": np.ones(4)}
    for critic in (1e-2, 1e6):
        grads = {"student": np.full(4, 0.1, np.float32), "mi": np.full(4, critic, np.float32)}
        updates, state = optimizer.update(grads, optimizer.init(params), params)
        np.testing.assert_allclose(updates["student"], -1e-2, rtol=1e-3)
        np.testing.assert_allclose(updates["mi"], -3e-2, rtol=1e-3)
        moments = dict(zip(params, optax.tree.get_all_with_path(state, "mu"), strict=True))
        for name, (_, moment) in moments.items():
            np.testing.assert_allclose(moment[name], 0.1 * grads[name], rtol=1e-5)


# Errors


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (dict(estimator="ba"), ("mi.estimator 'ba'", *term_estimators())),
        (dict(feature="mean"), ("mi.feature 'mean'", *FEATURES)),
        (dict(detach="both"), ("mi.detach 'both'", "z, v, none")),
        (dict(compression="vib"), ("mi.compression.name 'vib'", "none, club, variational")),
        (dict(axis="rows"), ("'rows'", "row, column, symmetric")),
        (dict(estimator="interpolated", alpha=0.0), ("alpha of interpolated is 0.0",)),
        (dict(estimator="mine", decay=1.0), ("decay of mine is 1.0",)),
        (dict(estimator="smile", tau=0.0), ("tau of smile is 0.0",)),
        (dict(estimator="barber_agakov", detach="none"), ("barber_agakov needs mi.detach z", "'none'")),
        (
            dict(estimator="released", feature="vocab_mean"),
            ("does not take mi.feature vocab_mean", "vocab_max"),
        ),
        (dict(estimator="barber_agakov_gaussian", feature="vocab_max"), ("does not take", "decoder_mean")),
        (dict(estimator="barber_agakov_head", feature="decoder_mean"), ("does not take", "vocab_mean")),
        (dict(feature="vocab_max", compression="club", compression_weight=1.0), ("feature of states, not vocab_max",)),
        (dict(compression="club", compression_weight=0.0), ("mi.compression.weight is 0.0", "above 0")),
        (dict(estimator="released", compression="club", compression_weight=1.0), ("feature of states, not vocab_max",)),
    ],
    ids=str,
)
def test_impossible_terms_are_refused(changes: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        mi_config(**changes)
    assert "\n" not in str(caught.value)
    assert all(part in str(caught.value) for part in parts), caught.value


def test_impossible_objectives_and_batches_are_refused() -> None:
    bottleneck = mi_config(compression="variational", compression_weight=1.0)
    club = mi_config("barber_agakov_gaussian", compression="club", compression_weight=1.0)
    for call, words in (
        (lambda: objective_of(bottleneck, beta=0.0), "beta is 0: .*variational"),
        (lambda: mi_config().check_batch(1), "infonce on 1 pairs"),
        (lambda: club.check_batch(1), "at least 2"),
        (lambda: dataclasses.replace(club, compression="variational"), "variational needs an estimator with a critic"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    mi_config("barber_agakov").check_batch(1)
