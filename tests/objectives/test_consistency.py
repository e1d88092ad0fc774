"""The answer-consistency term: values, gradients, and the positions that it compares, padded and packed."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import answer_split, consistency, distances
from helpers import assert_trees_close, numpy_params, small_config, toy_student
from mi_helpers import BETA, mi_config, objective_of
from splits import sequence

from cotmi_jax.data.order import Picks
from cotmi_jax.data.packing import PackShape, pack
from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.data.tokens import Batch, gather
from cotmi_jax.models.module import Params
from cotmi_jax.objectives import consistency as module
from cotmi_jax.objectives.consistency import consistency_loss
from cotmi_jax.objectives.mi_term import DISTANCES, Features
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.objectives.placebo import derange, shuffle_pairs
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.training.step import Gradient, MITermInputs, loss_and_grads

STUDENT = toy_student()
PARAMS = {"student": numpy_params(STUDENT)}
SPLIT = answer_split(8)
PICKS = Picks(np.arange(8), np.zeros(8, np.int64))
RAMP = 0.5


def padded() -> Batch:
    return gather(SPLIT, *PICKS)


def packed(rows: int = 8) -> Batch:
    return pack(SPLIT, PICKS, PackShape(rows, 32, 32, 4))


@functools.cache
def compiled(objective: Objective, micro_batches: int = 1, keyed: bool = False) -> Callable[[Params, Any], Gradient]:
    key = jax.random.key(5) if keyed else None

    def run(params: Params, batch: Any) -> Gradient:
        return loss_and_grads(
            STUDENT, objective, params, batch, None, micro_batches, MITermInputs(key=key, ramp=jnp.float32(RAMP))
        )

    return jax.jit(run)


def logits_of(params: Params, task: str) -> list[np.ndarray]:
    """Logits of each example's target, one example at a time, as the toy student defines them, in float64."""
    table, mix = (np.float64(params["student"][name]) for name in ("table", "mix"))
    found = []
    for row in range(SPLIT.size):
        tokens = SPLIT.tasks[task]
        read = np.tanh(table[sequence(tokens.inputs, row)] @ mix).sum(axis=0)
        target = sequence(tokens.targets, row)
        found.append(np.tanh(np.tanh(table[[0, *target[:-1]]] @ mix) + read) @ table.T)
    return found


def oracle(params: Params, held: dict[str, Params]) -> tuple[float, float]:
    """The cross-entropy of the batch and the share of agreeing positions; `held`: constant parameters of a side."""
    labels, rationales = (logits_of(held.get(task, params), task) for task in (PREDICT, EXPLAIN))
    losses, hits = [], []
    assert SPLIT.answer_starts is not None
    for row, start in enumerate(SPLIT.answer_starts):
        if start < 0:
            continue
        length = len(sequence(SPLIT.tasks[PREDICT].targets, row)) - 1  # the eos is no part of the answer
        for position in range(length):
            p, q = labels[row][position], rationales[row][start + position]
            losses.append(distances("cross_entropy", *((q, p) if EXPLAIN in held else (p, q))))
            hits.append(p.argmax() == q.argmax())
    return float(np.mean(losses)), float(np.mean(hits))


DSS = Objective("dss", alpha=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("detach", ["z", "v"])
def test_the_term_of_a_student_is_that_of_numpy(detach: str) -> None:
    """Its gradient, times beta · ramp, is that of the side that is not detached, by central differences."""
    found, without = (compiled(each)(PARAMS, padded()) for each in (objective_of(consistency(detach=detach)), DSS))
    held = {"z": {PREDICT: PARAMS}, "v": {EXPLAIN: PARAMS}}[detach]
    value, agreement = oracle(PARAMS, held)
    np.testing.assert_allclose(found.terms["mi"].mean, value, rtol=1e-5)
    np.testing.assert_allclose(found.terms["mi_agreement"].mean, agreement, rtol=1e-6)
    np.testing.assert_allclose(found.loss - without.loss, BETA * RAMP * value, rtol=1e-4)
    draw = np.random.default_rng(0)
    for name in ("table", "mix"):
        gradient = np.asarray(found.grads["student"][name]) - np.asarray(without.grads["student"][name])
        direction = draw.normal(size=gradient.shape)

        def shifted(step: float, name: str = name, direction: np.ndarray = direction) -> float:
            student = {key: np.float64(leaf) for key, leaf in PARAMS["student"].items()}
            return oracle({"student": student | {name: student[name] + step * direction}}, held)[0]

        slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        np.testing.assert_allclose((gradient * direction).sum(), BETA * RAMP * slope, rtol=2e-4)


LENGTHS = np.array([2, 0, 3, 1])


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("detach", ["z", "v", "none"])
def test_distances_and_their_gradients_are_those_of_numpy(
    distance: str, detach: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the states of both sides and by the head: the head of a detached side is constant too. Two of three chunks."""
    monkeypatch.setattr(module, "rows_at_a_time", lambda: 20)
    draw = np.random.default_rng(1)
    z, v = draw.normal(size=(2, 4, 3 * 8))
    table = np.float64(PARAMS["student"]["table"])

    def term(table: jax.Array, z: jax.Array, v: jax.Array) -> jax.Array:
        student = STUDENT.bind(PARAMS["student"] | {"table": table})
        return consistency_loss(distance, detach, student, Features(z, v, None, None), LENGTHS)["mi"].sum

    def exact(moved: dict[str, np.ndarray]) -> float:
        """With the arguments of the sides that are not detached moved."""
        moved = {"table": table, "z": z, "v": v} | moved
        still = {"table": table, "z": z, "v": v}
        z_logits, v_logits = (
            each[side].reshape(4, 3, 8) @ each["table"].T
            for side, each in (("z", still if detach == "z" else moved), ("v", still if detach == "v" else moved))
        )
        by_position = distances(distance, *((v_logits, z_logits) if detach == "v" else (z_logits, v_logits)))
        return float(by_position[np.arange(3) < LENGTHS[:, None]].sum())

    arguments = [jnp.asarray(x, jnp.float32) for x in (table, z, v)]
    value, gradients = jax.jit(jax.value_and_grad(term, argnums=(0, 1, 2)))(*arguments)
    np.testing.assert_allclose(value, exact({}), rtol=1e-5)
    for name, argument, gradient in zip(("table", "z", "v"), (table, z, v), gradients, strict=True):
        direction = draw.normal(size=argument.shape)
        slope = (exact({name: argument + 1e-5 * direction}) - exact({name: argument - 1e-5 * direction})) / 2e-5
        np.testing.assert_allclose((np.asarray(gradient) * direction).sum(), slope, rtol=1e-3, atol=1e-5)


# One objective for all of these: its token losses are those of dss, its term that of `detach` none.
ALL = objective_of(consistency(detach="none"))


def pooled(terms: Any) -> dict[str, tuple[float, float]]:
    return {name: (float(term.sum), float(term.weight)) for name, term in terms.items()}


@pytest.mark.parametrize(
    ("batch", "micro_batches"), [(packed, 1), (padded, 4), (packed, 4)], ids=["packed", "micro", "packed and micro"]
)
def test_packed_rows_and_micro_batches_equal_the_padded_batch(batch: Callable[[], Batch], micro_batches: int) -> None:
    whole = compiled(ALL)(PARAMS, padded())
    found = compiled(ALL, micro_batches)(PARAMS, batch())
    assert pooled(found.terms).keys() == pooled(whole.terms).keys() >= {"mi", "mi_agreement", "mi_share"}
    np.testing.assert_allclose(found.loss, whole.loss, rtol=1e-5)
    assert_trees_close(pooled(found.terms), pooled(whole.terms), rtol=1e-5)
    assert_trees_close(found.grads, whole.grads, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [padded, packed])
def test_eight_devices_equal_one(batch: Callable[[], Batch]) -> None:
    mesh = make_mesh(8, 1, 1)
    with jax.set_mesh(mesh):
        found = compiled(ALL)(PARAMS, put_batch(batch(), mesh))
    whole = compiled(ALL)(PARAMS, padded())
    assert_trees_close(pooled(found.terms), pooled(whole.terms), rtol=1e-5)
    assert_trees_close(found.grads, whole.grads, rtol=1e-4, atol=1e-6)


# Placebo


@pytest.mark.parametrize("num", [0, 1, 2, 5])
def test_a_derangement_pairs_every_valid_example_with_another(num: int) -> None:
    """Each is taken once, no one its own, and another key gives other pairs; a single example has none."""
    valid_B = np.isin(np.arange(8), np.array([1, 6, 3, 0, 7])[:num])
    drawn = [jax.jit(derange)(jax.random.key(seed), valid_B) for seed in range(8)]
    for others_B, kept_B in drawn:
        np.testing.assert_array_equal(kept_B, valid_B & (num > 1))
        np.testing.assert_array_equal(np.sort(others_B), np.arange(8))
        np.testing.assert_array_equal(np.asarray(others_B) != np.arange(8), kept_B)
    if num == 5:
        assert len({tuple(np.asarray(others_B)) for others_B, _ in drawn}) > 4


@pytest.mark.slow
def test_the_placebo_has_as_many_positions_and_no_pair_of_its_own() -> None:
    """Micro-batches and packed rows give the term of the padded batch, with the pairs of the key; evaluation the pairs
    of the batch."""
    placebo = objective_of(consistency(detach="none", placebo=True))
    whole, own = compiled(placebo, 1, True)(PARAMS, padded()), compiled(ALL)(PARAMS, padded())
    assert whole.terms["mi"].weight == own.terms["mi"].weight
    assert abs(float(whole.terms["mi"].mean - own.terms["mi"].mean)) > 0.01
    for batch in (padded(), packed()):
        found = compiled(placebo, 4, True)(PARAMS, batch)
        assert_trees_close(pooled(found.terms), pooled(whole.terms), rtol=1e-5)
        assert_trees_close(found.grads, whole.grads, rtol=1e-4, atol=1e-6)
    assert_trees_close(compiled(placebo)(PARAMS, padded()).terms, own.terms, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["infonce", "released"])
def test_the_placebo_of_other_estimators_exchanges_the_rationales(name: str) -> None:
    """The term is that of the features with the rationale of the drawn example, in which invalid ones stay."""
    draw, valid_B = np.random.default_rng(2), np.arange(8) != 3
    z, v = (jax.nn.log_softmax(x) for x in draw.normal(size=(2, 8, 1, 16)).astype(np.float32))
    batch = padded() | {"valid": valid_B}
    key = jax.random.key(1)
    others_B, kept_B = derange(jax.random.split(key)[1], valid_B)
    np.testing.assert_array_equal(kept_B, valid_B)

    def loss(objective: Objective, v: Any, key: Any) -> Any:
        definition = objective.networks(small_config(d_model=16, vocab_size=16))
        bound = None if definition is None else definition.bind(numpy_params(definition))  # type: ignore[arg-type]
        features, student = Features(z, v, None, None), STUDENT.bind(PARAMS["student"])
        return objective.mi_loss(student, bound, bound, features, batch, jnp.float32(7), key, None)[0]

    exchanged = loss(objective_of(mi_config(name)), v[others_B], None)
    np.testing.assert_allclose(loss(objective_of(mi_config(name, placebo=True)), v, key), exchanged, rtol=1e-5)
    assert abs(float(exchanged - loss(objective_of(mi_config(name)), v, None))) > 1e-4


def test_the_placebo_of_conditional_shuffles_the_pairs_of_an_example() -> None:
    """Each order is drawn; a counterfactual that there is not stays where it is."""
    v_BxMxE = np.arange(3 * 4.0).reshape(3, 4, 1)
    there_BxM = np.array([[True, False, True], [False, False, False], [True, True, True]])
    seen: list[set] = [set(), set(), set()]
    for seed in range(40):
        for row, order in enumerate(np.asarray(shuffle_pairs(jax.random.key(seed), v_BxMxE, there_BxM))[..., 0]):
            seen[row].add(tuple((order - 4 * row).astype(int).tolist()))
    three = {(0, 1, 3), (0, 3, 1), (1, 0, 3), (1, 3, 0), (3, 0, 1), (3, 1, 0)}
    assert seen[0] == {(a, b, 2, c) for a, b, c in three}
    assert seen[1] == {(0, 1, 2, 3)} and len(seen[2]) > 15
