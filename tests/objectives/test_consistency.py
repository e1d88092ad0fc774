"""The answer-consistency term: values, gradients, and the positions that it compares, padded and packed."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from answers import answer_split, consistency, distances
from helpers import assert_trees_close, numpy_params, toy_student
from mi_helpers import BETA, objective_of
from splits import sequence

from cotmi_jax.data.order import Picks
from cotmi_jax.data.packing import PackShape, pack
from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.data.tokens import Batch, gather
from cotmi_jax.models.module import Params
from cotmi_jax.objectives.mi_term import DISTANCES
from cotmi_jax.objectives.objective import Objective
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


def oracle(params: Params, distance: str, held: dict[str, Params] | None = None) -> tuple[float, float]:
    """The term of the batch and the share of agreeing positions; `held`: parameters of a side that are constant."""
    labels, rationales = (logits_of((held or {}).get(task, params), task) for task in (PREDICT, EXPLAIN))
    losses, hits = [], []
    assert SPLIT.answer_starts is not None
    for row, start in enumerate(SPLIT.answer_starts):
        if start < 0:
            continue
        length = len(sequence(SPLIT.tasks[PREDICT].targets, row)) - 1  # the eos is no part of the answer
        for position in range(length):
            p, q = labels[row][position], rationales[row][start + position]
            target, other = (q, p) if held and EXPLAIN in held else (p, q)
            losses.append(distances(distance, target, other))
            hits.append(p.argmax() == q.argmax())
    return float(np.mean(losses)), float(np.mean(hits))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("detach", ["z", "v", "none"])
def test_value_and_gradient_are_those_of_numpy(distance: str, detach: str) -> None:
    """The gradient is that of beta · ramp · the term on the sides that are not detached, by central differences."""
    config = consistency(distance=distance, detach=detach)
    found = compiled(objective_of(config))(PARAMS, padded())
    without = compiled(objective_of(config, beta=0.0))(PARAMS, padded())
    held = {"z": {PREDICT: PARAMS}, "v": {EXPLAIN: PARAMS}, "none": {}}[detach]
    value, agreement = oracle(PARAMS, distance, held)
    np.testing.assert_allclose(found.terms["mi"].mean, value, rtol=1e-5)
    np.testing.assert_allclose(found.terms["mi_agreement"].mean, agreement, rtol=1e-6)
    np.testing.assert_allclose(found.loss - without.loss, BETA * RAMP * value, rtol=1e-4)
    draw = np.random.default_rng(0)
    for name in ("table", "mix"):
        gradient = np.asarray(found.grads["student"][name]) - np.asarray(without.grads["student"][name])
        direction = draw.normal(size=gradient.shape)

        def shifted(step: float, name: str = name, direction: np.ndarray = direction) -> float:
            student = {key: np.float64(leaf) for key, leaf in PARAMS["student"].items()}
            return oracle({"student": student | {name: student[name] + step * direction}}, distance, held)[0]

        slope = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
        np.testing.assert_allclose((gradient * direction).sum(), BETA * RAMP * slope, rtol=2e-4)


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
    with jax.set_mesh(make_mesh(8, 1, 1)) as mesh:
        del mesh
        found = compiled(ALL)(PARAMS, put_batch(batch(), jax.sharding.get_mesh()))
    whole = compiled(ALL)(PARAMS, padded())
    assert_trees_close(pooled(found.terms), pooled(whole.terms), rtol=1e-5)
    assert_trees_close(found.grads, whole.grads, rtol=1e-4, atol=1e-6)
