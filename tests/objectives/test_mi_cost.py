"""What the mutual-information term adds to the operations and the bytes of a training step: at most 5%, or a third."""

import functools

import jax
import pytest

from cotmi_jax.aot.programs import programs
from cotmi_jax.config import base
from cotmi_jax.data.packing import PackShape
from cotmi_jax.parallel.mesh import make_mesh

SHAPE = PackShape(26, 256, 96, segments=8)  # of 64 examples of CommonsenseQA
WITH_COUNTERFACTUALS = PackShape(24, 280, 104, segments=8, counterfactual_length=72)  # two thirds of them have one


@functools.cache
def cost(objective: str, estimator: str, shape: PackShape = SHAPE) -> dict[str, float]:
    """XLA's counts for the step of `small` before optimization. Bodies of loops, as of layers, count once."""
    config = base()
    config.model.preset, config.objective.name, config.mi.estimator = "small", objective, estimator
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        found = programs(config, mesh, shape)["train"].lower().cost_analysis()
    assert found is not None
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator, counts",
    # Before fusion each operation on a vocabulary feature counts as a pass over memory: no bytes of barber_agakov.
    [("infonce", ["flops", "bytes accessed"]), ("barber_agakov", ["flops"])],
)
def test_the_term_is_at_most_a_twentieth_of_the_step(estimator: str, counts: list[str]) -> None:
    without, with_term = cost("dss", "infonce"), cost("cotmi", estimator)
    for count in counts:
        added = with_term[count] / without[count] - 1.0
        assert 0.0 < added <= 0.05, f"{count}: {added:.1%} more than a step of dss"


@pytest.mark.slow
def test_counterfactuals_add_at_most_a_third_to_the_step() -> None:
    """Their inputs are not encoded again, and their targets have no logits."""
    without, with_term = cost("dss", "infonce"), cost("cotmi", "conditional", WITH_COUNTERFACTUALS)
    for count in ("flops", "bytes accessed"):
        added = with_term[count] / without[count] - 1.0
        assert 0.1 < added <= 0.35, f"{count}: {added:.1%} more than a step of dss"
