"""The mutual-information term adds at most 5% to the operations and the bytes of a training step."""

import functools

import jax
import pytest

from cotmi_jax.aot.programs import programs
from cotmi_jax.config import base
from cotmi_jax.data.packing import PackShape
from cotmi_jax.parallel.mesh import make_mesh

SHAPE = PackShape(26, 256, 96, segments=8)  # of 64 examples of CommonsenseQA


@functools.cache
def cost(objective: str, estimator: str) -> dict[str, float]:
    """XLA's counts for the step of `small` before optimization. Bodies of loops, as of layers, count once."""
    config = base()
    config.model.preset, config.objective.name, config.mi.estimator = "small", objective, estimator
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        found = programs(config, mesh, SHAPE)["train"].lower().cost_analysis()
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
