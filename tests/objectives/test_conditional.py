"""The term `conditional`: contrast of the pairs of one input, against an oracle, padded, packed, in micro-batches."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mi_oracle
import numpy as np
import pytest
from helpers import Toy, assert_trees_close, numpy_params, small_config, toy_student
from mi_helpers import BETA, mi_config, objective_of
from splits import random_split

from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.packing import make_batch, make_shape
from cotmi_jax.data.tokens import Batch
from cotmi_jax.errors import UserError
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.models.module import ModuleDef
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives import contrast
from cotmi_jax.objectives.forward import TaskStates
from cotmi_jax.objectives.gather import gather_features
from cotmi_jax.objectives.mi_term import Features, MITermConfig, losses
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.training.step import Gradient, MITermInputs, loss_and_grads

BILINEAR = CriticConfig("bilinear", clamp=5.0, normalization="layer")
B, M, D = 5, 3, 3
# One example has all its counterfactuals, two lack one, one has none, and one is no pair.
COUNTERFACTUAL = np.array([[1, 1], [1, 0], [0, 1], [0, 0], [1, 1]], bool)
VALID = np.array([1, 1, 1, 0, 0], bool)
NUMBER = 3.0  # of valid examples
KEPT = {0: [0, 1, 2], 1: [0, 1], 2: [0, 2]}  # by valid example, the pairs that count


def conditional(**changes: Any) -> MITermConfig:
    return mi_config("conditional", **({"counterfactuals": M - 1, "detach": "none", "critic": BILINEAR} | changes))


def features_of(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Z, V and the critic's weight."""
    draw = np.random.default_rng(seed)
    return draw.normal(size=(B, M, D)), draw.normal(size=(B, M, D)), draw.normal(size=(D, D))


@functools.cache
def term(config: MITermConfig) -> Callable[..., Any]:
    """(z, v, weight) → ((loss, (reported, state of the estimator)), gradients)."""
    networks: Any = objective_of(config).networks(small_config(d_model=D))

    def loss(z: jax.Array, v: jax.Array, weight: jax.Array) -> tuple[jax.Array, Any]:
        bound = networks.bind({"critic": {"scorer": {"weight": weight}}})
        features = Features(z, v, None, None)
        rest = jnp.float32(NUMBER), 1.0, None, config.score_estimator().start(), COUNTERFACTUAL
        result = losses(config, bound, None, features, VALID, *rest)
        return result.total, (result.reported, result.state)

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))


def oracle(bound: Callable[[np.ndarray], float]) -> Callable[..., float]:
    """Loss of (z, v, weight), by example as its definition says, in float64."""

    def normalized(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6)

    def loss(z: np.ndarray, v: np.ndarray, weight: np.ndarray) -> float:
        values = []
        for example, kept in KEPT.items():
            z_, v_ = (normalized(x[example, kept] - x[example, kept].mean(axis=0)) for x in (z, v))
            score = z_ @ weight @ v_.T
            score = score - score.mean()
            values.append(bound(BILINEAR.clamp * np.tanh(score / BILINEAR.clamp)))
        return -sum(values) / NUMBER

    return loss


@pytest.mark.parametrize(
    ("bound", "expected"),
    [("infonce", mi_oracle.infonce_row), ("dv", mi_oracle.dv), ("js", mi_oracle.js_objective)],
)
def test_value_and_gradients_are_those_of_the_bound_of_each_example(
    bound: str, expected: Callable[[np.ndarray], float]
) -> None:
    point = features_of(0)
    (value, _), gradients = term(conditional(bound=bound))(*point)
    loss = oracle(expected)
    np.testing.assert_allclose(value, loss(*point), rtol=1e-5)
    for place, gradient in enumerate(gradients):

        def along(x: np.ndarray, place: int = place) -> float:
            return loss(*point[:place], x, *point[place + 1 :])

        np.testing.assert_allclose(gradient, mi_oracle.gradient(along, point[place]), rtol=2e-3, atol=2e-5)
    for gradient in gradients[:2]:
        assert np.abs(gradient[0]).min() > 0  # of all pairs
        assert not np.asarray(gradient)[~VALID].any()


@pytest.mark.parametrize("bound", ["infonce", "dv"])
def test_functions_of_the_input_alone_pay_exactly_nothing(bound: str) -> None:
    """Z and V tell all inputs apart: over the batch they would have the highest value."""
    z, v, weight = features_of(1)
    z[:], v[:] = z[:, :1], 3 * z[:, :1]
    (value, _), gradients = term(conditional(bound=bound))(z, v, 20 * weight)
    assert abs(float(value)) < 1e-6
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
    (_, (tied, _)), _ = term(conditional(bound=bound))(0 * z, v, weight)
    np.testing.assert_array_equal(np.asarray(tied["mi_accuracy"])[VALID], 0.5)


def test_the_cap_is_the_logarithm_of_the_number_of_pairs_of_an_example() -> None:
    z = np.tile(10 * np.eye(M, D)[None], (B, 1, 1))
    config = conditional(critic=CriticConfig("bilinear", clamp=0.0, normalization="layer"))
    (value, (reported, _)), _ = term(config)(z, z, 50 * np.eye(D))
    np.testing.assert_allclose(value, -(np.log(3) + 2 * np.log(2)) / 3, rtol=1e-5)
    for name in ("mi_saturation", "mi_accuracy"):
        np.testing.assert_allclose(np.asarray(reported[name])[VALID], 1.0, rtol=1e-5)
    (_, (reversed_, _)), _ = term(config)(z, z, -50 * np.eye(D))
    np.testing.assert_allclose(np.asarray(reversed_["mi_accuracy"])[VALID], 0.0)


def test_the_moving_average_advances_by_the_mean_partition_of_the_examples() -> None:
    (_, (reported, state)), _ = term(conditional(bound="mine", decay=0.75))(*features_of(2))
    partitions = np.exp(np.asarray(reported["mi_negative"], np.float64)[VALID])
    assert np.ptp(partitions) > 0.1 and state.steps == 1
    np.testing.assert_allclose(state.log_sum, np.log(0.25 * partitions.mean()), rtol=1e-5)


def test_a_constant_added_to_all_scores_changes_nothing() -> None:
    """InfoNCE does not see it, so that nothing would bring scores back from the clamp."""
    critic = dataclasses.replace(BILINEAR, name="quadratic")
    config, (z, v, _) = conditional(critic=critic), features_of(3)
    networks: Any = objective_of(config).networks(small_config(d_model=D))
    estimator, params = config.score_estimator(), numpy_params(networks)

    @jax.jit
    def objective(params: Any, bias: float) -> tuple[jax.Array, Any]:
        def total(params: Any) -> jax.Array:
            shifted = jax.tree.map_with_path(lambda path, x: x + bias if path[-1].key == "bias" else x, params)
            valid = np.ones((B, M), bool)
            scorer = networks.bind(shifted).critic
            return contrast.within_examples(estimator, scorer, z, v, valid, None, None)[0]["mi_value"].sum()

        return jax.value_and_grad(total)(params)

    expected = objective(params, 0.0)
    assert_trees_close(objective(params, 200.0), expected, rtol=1e-3, atol=1e-3)
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[1])) > 0.1


@pytest.mark.parametrize("detach", ["z", "v", "none"])
def test_the_detached_side_of_all_pairs_has_no_gradient(detach: str) -> None:
    """Of two sequence pairs in each of two rows, with two counterfactuals each: the segments 1 … 6 in that order."""
    draw = np.random.default_rng(0)
    states = {name: draw.normal(size=(2, 6, 4)).astype(np.float32) for name in ("label", "reason", "labels", "reasons")}
    member = np.tile(np.eye(6, dtype=bool)[None], (2, 1, 1))

    def of(states_RxTxD: jax.Array, num: int) -> TaskStates:
        return TaskStates(jnp.zeros((2, 1, 4)), jnp.ones((2, num, 1), bool), states_RxTxD, member[:, :num], None)

    def weighted(states: dict[str, jax.Array]) -> tuple[jax.Array, Features]:
        own, others = (
            (of(states["label"], 2), of(states["reason"], 2)),
            (of(states["labels"], 4), of(states["reasons"], 4)),
        )
        found = gather_features(conditional(detach=detach), None, *own, 0.5, 0.5, others)
        return (found.z + 2.0 * found.v).sum(), found

    gradients, found = jax.grad(weighted, has_aux=True)(states)
    for name, feature, count in (("label", found.z, 2), ("reason", found.v, 2)):
        assert feature.shape == (2, 2, 3, 4)
        np.testing.assert_allclose(feature[:, :, 0], states[name][:, :count])
        np.testing.assert_allclose(feature[:, :, 1], states[f"{name}s"][:, :2])
        np.testing.assert_allclose(feature[:, :, 2], states[f"{name}s"][:, 2:4])
    for name, side, factor in (("label", "z", 0.25), ("reason", "v", 0.5)):
        for each, count in ((name, 2), (f"{name}s", 4)):
            expected = 0.0 if detach == side else factor
            np.testing.assert_allclose(gradients[each][:, :count], expected)


# Through the student.


class ReadsInputOnly(Toy):
    """A student whose states do not depend on the targets."""

    def decode(  # type: ignore[no-untyped-def]
        self, encoded, inputs, targets, key, segments=None, source_segments_BxT=None, split=0
    ) -> jax.Array:
        return super().decode(encoded, inputs, jnp.zeros_like(targets), key, segments, source_segments_BxT)


def reads_input_only() -> StudentDef:
    config = small_config(d_model=8)
    traced: Any = ModuleDef.trace(lambda rngs: ReadsInputOnly(config, rngs=rngs))
    return StudentDef(traced.build, traced.graph, traced.shapes, traced.axes, config)


STUDENTS = {"toy": toy_student(), "input": reads_input_only()}
SPLIT = random_split(40, rationales=3, counterfactuals=2)
ORDER = TrainOrder.of(SPLIT.size, 8, seed=1, tokens=SPLIT)


def make(packed: bool, *, multiple: int = 2) -> Batch:
    return make_batch(SPLIT, ORDER, 7, make_shape(SPLIT, ORDER, multiple=multiple) if packed else None)


def compute(config: MITermConfig, batch: Batch, *, student: str = "toy", micro_batches: int = 1) -> Gradient:
    """Loss, terms and gradient without dropout."""
    objective, definition = objective_of(config), STUDENTS[student]
    networks: Any = objective.networks(definition.config)
    params = {"student": numpy_params(definition), "mi": numpy_params(networks, seed=1)}
    inputs = MITermInputs(networks, None, config.score_estimator().start(), 0.5)
    run = jax.jit(lambda *given: loss_and_grads(definition, objective, *given, None, micro_batches, inputs))
    return jax.device_get(run(params, batch))


@functools.cache
def of_padded_batch(config: MITermConfig) -> Gradient:
    return compute(config, make(packed=False))


CONFIG = conditional(bound="mine", critic=CriticConfig(hidden=8, layers=1, dim=4, normalization="layer"))


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_packed_rows_and_micro_batches_equal_the_padded_batch(micro_batches: int) -> None:
    """With the estimator that has a state, and gradients of both sides."""
    expected = of_padded_batch(CONFIG)
    found = compute(CONFIG, make(packed=True), micro_batches=micro_batches)
    assert_trees_close(found._asdict(), expected._asdict(), rtol=3e-5, atol=3e-6)
    batch = make(packed=False)
    others = SPLIT.counterfactuals
    assert others is not None
    took = (batch["weight"] > 0) & (np.diff(others.offsets)[SPLIT.rationale_rows(*ORDER.picks(7))] > 0)
    assert 0 < took.sum() < (batch["weight"] > 0).sum()
    assert found.terms["mi_share"] == (took.sum(), (batch["weight"] > 0).sum())
    assert abs(float(found.terms["mi"].mean)) > 1e-3
    means = {name: float(term.mean) for name, term in found.terms.items()}
    loss = 0.4 * means["predict"] + 0.6 * means["explain"] + 0.5 * BETA * means["mi"]
    np.testing.assert_allclose(found.loss, loss, rtol=1e-5)


@pytest.mark.slow
def test_counterfactuals_are_in_no_loss_and_no_accuracy_of_tokens() -> None:
    definition, objective = STUDENTS["toy"], objective_of(CONFIG)

    @jax.jit
    def terms(params: Any, padded: Batch, packed: Batch) -> tuple[Any, ...]:
        student = definition.bind(params)
        trained = (objective.compute(student, None, batch, None).terms for batch in (padded, packed))
        return objective.evaluate(student, padded).terms, *trained

    expected, padded, packed = terms(numpy_params(definition), make(packed=False), make(packed=True))
    assert set(expected) == {f"{task}{kind}" for task in ("predict", "explain") for kind in ("", "_token_accuracy")}
    assert_trees_close(padded, expected, rtol=1e-5)
    assert_trees_close(packed, expected, rtol=1e-5)


@pytest.mark.slow
def test_eight_devices_equal_one() -> None:
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    with jax.set_mesh(mesh):
        found = compute(CONFIG, put_batch(make(packed=True, multiple=4), mesh))
    assert_trees_close(found._asdict(), of_padded_batch(CONFIG)._asdict(), rtol=3e-5, atol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("packed", [True, False])
def test_a_student_that_reads_the_input_only_is_paid_nothing(packed: bool) -> None:
    """The counterfactuals of a packed row attend to the input of their own example."""
    config = conditional(critic=CriticConfig(hidden=8, layers=1, dim=4, normalization="layer"))
    found = compute(config, make(packed=packed), student="input")
    assert abs(float(found.terms["mi"].mean)) < 1e-5
    np.testing.assert_allclose(found.terms["mi_accuracy"].mean, 0.5, atol=0.3)
    for leaf in jax.tree.leaves(found.grads["mi"]):
        np.testing.assert_allclose(leaf, 0.0, atol=1e-5)
    assert found.terms["mi_share"].sum > 0


def test_several_targets_of_a_row_have_the_same_input() -> None:
    """In T5, states of the targets of two segments that attend to one are those of each target with that input."""
    definition = StudentDef.of(small_config())
    student = definition.bind(numpy_params(definition))
    draw = np.random.default_rng(0)
    inputs, targets = draw.integers(2, 32, (1, 6)), draw.integers(2, 32, (1, 7))
    segments, sources = np.array([[1, 1, 2, 2, 2, 2]]), np.array([[1, 1, 2, 2, 1, 1, 1]])

    @functools.partial(jax.jit, static_argnames="split")
    def states(
        inputs: jax.Array, targets: jax.Array, segments: tuple[jax.Array, jax.Array], sources: jax.Array, split: int = 0
    ) -> jax.Array:
        encoded = student.encode(inputs, None, segments[0])
        return student.decode(encoded, inputs, targets, None, segments, source_segments_BxT=sources, split=split)

    found = states(inputs, targets, (segments, np.array([[1, 1, 2, 2, 3, 3, 3]])), sources)
    # The third target alone in a row of the same shape: its tokens after those of other segments.
    alone = states(inputs, targets, (segments, np.array([[0, 0, 0, 0, 1, 1, 1]])), np.where(sources == 1, 1, 0))
    np.testing.assert_allclose(found[:, 4:], alone[:, 4:], rtol=1e-5, atol=1e-6)
    divided = states(inputs, targets, (segments, np.array([[1, 1, 2, 2, 3, 3, 3]])), sources, split=4)
    np.testing.assert_allclose(divided, found, rtol=1e-5, atol=1e-6)
    other = states(np.where(segments == 2, 5, inputs), targets, (segments, np.array([[1, 1, 2, 2, 3, 3, 3]])), sources)
    np.testing.assert_array_equal(found[:, 4:], other[:, 4:])
    assert np.abs(found - other)[:, 2:4].max() > 1e-3


def test_terms_that_contrast_nothing_or_too_much_are_refused() -> None:
    for changes, words in (
        ({"feature": "encoder_mean"}, "does not take mi.feature encoder_mean: choose one of decoder_mean"),
        ({"feature": "vocab_max"}, "does not take mi.feature vocab_max"),
        ({"bound": "barber_agakov"}, "unknown mi.bound 'barber_agakov': choose one of infonce"),
        ({"bound": "conditional"}, "unknown mi.bound 'conditional'"),
        ({"compression": "club", "compression_weight": 1.0}, "mi.compression.name club is not for mi.estimator condit"),
        ({"bound": "interpolated", "alpha": 2.0}, "alpha of interpolated is 2.0"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            conditional(**changes)
        assert "\n" not in str(caught.value)
    conditional().check_batch(1)  # the pairs of an example are contrasted, whatever the size of the batch


def test_a_network_without_source_segments_needs_padded_batches() -> None:
    class Plain(Toy):
        def decode(self, encoded, inputs, targets, key, segments=None):  # type: ignore[no-untyped-def,override]
            return super().decode(encoded, inputs, targets, key, segments)

    config = small_config(d_model=8)
    traced: Any = ModuleDef.trace(lambda rngs: Plain(config, rngs=rngs))
    definition = StudentDef(traced.build, traced.graph, traced.shapes, traced.axes, config)
    student = definition.bind(numpy_params(definition))
    with pytest.raises(UserError, match="source_segments_BxT of Plain.decode: set data.packing to False"):
        objective_of(CONFIG).forward(student, make(packed=True), None, trains=True)
