"""FLOPs of a step from its shapes, against the matrix multiplications in the jaxpr and against XLA's count."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Jaxpr, JaxprEqn, jaxprs_in_params

from cotmi_jax.models.config import T5Config, preset
from cotmi_jax.models.flops import forward_flops, step_flops
from cotmi_jax.models.student import Params, StudentDef

ROWS, INPUTS, TARGETS = 2, 48, 16
BUCKETS = 28  # no other dimension has this size


def _matmul_flops(jaxpr: Jaxpr) -> float:
    """Operations of every dot_general of a jaxpr, those in the body of a scan times its length.

    Without those of position biases, which have a dimension of buckets, and of the sum of their gradients over
    examples: the count of a model's operations has look-ups and sums in their place.
    """
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general" and not _makes_position_bias(equation):
            contracted = equation.params["dimension_numbers"][0][0]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * np.prod([shape[axis] for axis in contracted])
        for inner in jaxprs_in_params(equation.params):
            total += equation.params.get("length", 1) * _matmul_flops(inner)
    return total


def _makes_position_bias(product: JaxprEqn) -> bool:
    shapes = [variable.aval.shape for variable in (*product.invars, *product.outvars)]
    return any(BUCKETS in shape for shape in shapes) or (1, ROWS) in shapes


def _config(family: str) -> T5Config:
    # d_kv is not d_model / heads and the stacks differ in depth, so that no two terms of the count are equal.
    base = preset("tiny", family, vocab_size=1000)
    return dataclasses.replace(base, d_kv=24, num_decoder_layers=3, relative_buckets=BUCKETS, scan_layers=False)


def _loss(config: T5Config) -> tuple[Params, Callable[[Params], jax.Array]]:
    student = StudentDef.of(config)
    ids = jnp.ones((ROWS, INPUTS), jnp.int32), jnp.ones((ROWS, TARGETS), jnp.int32)
    return student.shapes, lambda params: jnp.square(student.bind(params)(*ids)).sum()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["v1.0", "v1.1"])
def test_flops_equal_the_matmuls_of_forward_and_backward(family: str) -> None:
    config = _config(family)
    shapes, loss = _loss(config)
    lengths = {"rows": ROWS, "input_length": INPUTS, "target_length": TARGETS}
    assert _matmul_flops(jax.make_jaxpr(loss)(shapes).jaxpr) == forward_flops(config, **lengths)
    assert _matmul_flops(jax.make_jaxpr(jax.grad(loss))(shapes).jaxpr) == step_flops(config, **lengths)


def test_xla_counts_at_most_5_percent_more() -> None:
    config = preset("mini")
    config = dataclasses.replace(config, scan_layers=False)
    shapes, loss = _loss(config)
    counted = jax.jit(jax.grad(loss)).lower(shapes).cost_analysis()["flops"]
    expected = step_flops(config, rows=ROWS, input_length=INPUTS, target_length=TARGETS)
    assert expected < counted < 1.05 * expected
