"""The weight of the label task by step: phases, losses and gradients, the mutual-information term, resuming."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_trees_close, numpy_params, toy_student
from mi_helpers import mi_config
from splits import random_split

from cotmi_jax.config import base, differences
from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.packing import make_shape, pack
from cotmi_jax.data.tokens import Batch, gather
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import make_objective
from cotmi_jax.models.student import Params
from cotmi_jax.objectives.alpha_schedule import AlphaSchedule, parse_alpha_schedule
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.batch import put_batch
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.report import model_card
from cotmi_jax.training.fit import label_config
from cotmi_jax.training.loop import quality
from cotmi_jax.training.state import StateDef
from cotmi_jax.training.step import Gradient, MITermInputs, loss_and_grads, make_train_step

PHASES = "1@0.2,0.25@0.8,0@1"
STEPS = 10
SCHEDULE = AlphaSchedule((1.0, 0.25, 0.0), (2, 8, 10))
TERM = mi_config("barber_agakov")  # no networks, and no warm-up
STUDENT = toy_student()


def test_phases_are_piecewise_constant_in_the_fraction_of_steps() -> None:
    schedule = parse_alpha_schedule(PHASES, STEPS)
    assert schedule == SCHEDULE
    steps = np.arange(12)
    expected = [1.0] * 2 + [0.25] * 6 + [0.0] * 4  # the last weight also after the end
    np.testing.assert_array_equal(jax.vmap(schedule)(steps), expected)
    assert parse_alpha_schedule(" 0.5@1 ", 3) == AlphaSchedule((0.5,), (3,))
    assert parse_alpha_schedule("1@0.5,0@1", 700) == AlphaSchedule((1.0, 0.0), (350, 700))
    assert parse_alpha_schedule("", STEPS) is None


@pytest.mark.parametrize(
    ("phases", "message"),
    [
        ("1@0.2,half@1", "'half@1' is no phase: give ALPHA@END"),
        ("0.5", "'0.5' is no phase"),
        ("1@0.2,0.5@nan", "'0.5@nan' is no phase"),
        ("1@0.2,,0@1", "'' is no phase"),
        ("1.5@0.2,0@1", r"weights of the label task lie in \[0, 1\]"),
        ("1@0.2,-1@1", r"weights of the label task lie in \[0, 1\]"),
        ("1@0.2,0@0.9", "increase from above 0 to 1"),
        ("1@0.6,0.5@0.4,0@1", "increase from above 0 to 1"),
        ("1@0,0@1", "increase from above 0 to 1"),
        ("1@0.01,0@1", "phase 1@0.01 has no step of config.steps 10"),
        ("1@1", "never trains the rationale task"),
        ("0@0.5,0@1", "never trains the label task"),
    ],
)
def test_a_schedule_that_cannot_be_meant_is_refused(phases: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_alpha_schedule(phases, STEPS)


def test_a_schedule_needs_both_tasks_and_a_term_needs_them_together() -> None:
    config = base()
    config.steps, config.objective.alpha_schedule, config.objective.name = STEPS, PHASES, "standard"
    with pytest.raises(UserError, match="alpha_schedule weighs two tasks, and standard has one"):
        make_objective(config)
    config.objective.name, config.mi.warmup_steps = "cotmi", 7
    assert make_objective(config).alpha_schedule == SCHEDULE
    config.mi.warmup_steps = 8
    with pytest.raises(UserError, match="no phase of both tasks after config.mi.warmup_steps 8"):
        make_objective(config)
    config.mi.estimator, config.data.packing = "released", False  # it has no warm-up
    make_objective(config)
    config.objective.alpha_schedule = "1@0.5,0@1"
    with pytest.raises(UserError, match="no phase of both tasks after config.mi.warmup_steps 0"):
        make_objective(config)
    assert label_config(config, 5).objective.alpha_schedule == ""  # of a student of labels alone


def test_a_run_with_a_schedule_cannot_be_extended() -> None:
    old = base()
    old.optimizer.schedule = "constant"
    new = old.copy_and_resolve_references()
    new.steps += 1
    assert differences(old, new) == []
    for config in (old, new):
        config.objective.alpha_schedule = PHASES
    assert differences(old, new) == ["steps: 10000 → 10001"]


def test_the_model_card_states_the_phases() -> None:
    config = base()
    assert "phase" not in model_card._training(config, 5, 10)
    config.objective.alpha_schedule = PHASES
    assert f"α by phase, with its end as a fraction of the steps | {PHASES} |" in model_card._training(config, 5, 10)


def test_selection_by_loss_takes_the_constant_alpha() -> None:
    objective = Objective("dss", alpha=0.3, alpha_schedule=SCHEDULE)
    assert quality({"predict": 2.0, "explain": 1.0}, "loss", objective) == (pytest.approx(-1.3), 0.0)


@functools.cache
def batches() -> dict[str, Batch]:
    split = random_split(40)
    order = TrainOrder.of(split.size, 8, seed=1, tokens=split)
    picks = order.picks(0)
    return {"padded": gather(split, *picks), "packed": pack(split, picks, make_shape(split, order, multiple=2))}


@functools.cache
def compiled(objective: Objective, micro_batches: int) -> Callable[[Params, Batch, int], Gradient]:
    def run(params: Params, batch: Batch, step: int) -> Gradient:
        inputs = MITermInputs(ramp=objective.ramp(step))
        coefficients = objective.coefficients_at(step)
        return loss_and_grads(STUDENT, objective, params, batch, None, micro_batches, inputs, coefficients)

    return jax.jit(run)


def gradient(objective: Objective, form: str, micro_batches: int = 1, step: int = 0) -> dict[str, Any]:
    params = {"student": numpy_params(STUDENT)}
    found = compiled(objective, micro_batches)(params, batches()[form], step)
    return {"loss": found.loss, "grads": found.grads}


@pytest.mark.slow
def test_each_phase_has_the_loss_and_gradient_of_its_constant_alpha() -> None:
    """In packed micro-batches, against padded batches. With one task off the mutual-information term is off as well:
    what remains is `dss` with that alpha."""
    scheduled = Objective("cotmi", alpha=0.9, beta=0.7, mi_term=TERM, alpha_schedule=SCHEDULE)
    for step, expected in (
        (1, Objective("dss", alpha=1.0)),
        (2, Objective("cotmi", alpha=0.25, beta=0.7, mi_term=TERM)),
        (9, Objective("dss", alpha=0.0)),
    ):
        found, known = gradient(scheduled, "packed", 2, step), gradient(expected, "padded")
        assert_trees_close(found, known, rtol=3e-5, atol=3e-6)
        if 0.0 < expected.alpha < 1.0:  # the term counts
            alone = dataclasses.replace(expected, beta=0.0)
            assert abs(found["loss"] - gradient(alone, "padded")["loss"]) > 1e-3


def test_phases_share_one_program_and_a_resumed_run_knows_its_phase() -> None:
    objective = Objective("cotmi", beta=0.7, mi_term=TERM, alpha_schedule=SCHEDULE)
    mesh, streams = make_mesh(), {"dropout": jax.random.key(0), "mi": jax.random.key(1)}
    with jax.set_mesh(mesh):
        definition = StateDef.of(STUDENT, optax.sgd(0.1), mesh, objective)
        step = make_train_step(definition, objective, optax.constant_schedule(0.1))
        state = definition.from_student(numpy_params(STUDENT), jax.random.key(0))
        shown, saved, batch = [], None, put_batch(batches()["padded"], mesh)
        for number in range(STEPS):
            state, metrics = step(state, batch, streams)
            shown.append([float(metrics[name]) for name in ("alpha", "beta")])
            if number == 4:
                saved = jax.device_get(state.items())
        resumed = definition.restored(jax.device_put(saved, definition.shardings.items()), 5)
        for _ in range(5, STEPS):
            resumed, metrics = step(resumed, batch, streams)
    np.testing.assert_allclose(shown, [[1.0, 0.0]] * 2 + [[0.25, 0.7]] * 6 + [[0.0, 0.0]] * 2)
    assert step._cache_size() == 1  # type: ignore[attr-defined]
    assert_trees_close(jax.device_get(resumed.params), jax.device_get(state.params), rtol=0, atol=0)
    assert int(resumed.step) == STEPS and jnp.isfinite(metrics["loss"])
