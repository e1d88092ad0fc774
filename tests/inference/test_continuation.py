"""Outputs that go on after a given beginning, against generation and teacher forcing."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cotmi_jax.inference.continuation import continue_greedily
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.student import StudentDef


@pytest.mark.slow
def test_outputs_keep_their_beginning_and_go_on_greedily() -> None:
    student = StudentDef.of(helpers.small_config())
    params = helpers.numpy_params(student)
    draw = np.random.default_rng(0)
    inputs_BxS = helpers.random_ids(draw, [7, 4, 5, 0], 7)
    begun_BxT = np.zeros((4, 12), np.int32)
    begun_BxT[0, :5], begun_BxT[1, :2] = draw.integers(2, 32, 5), draw.integers(2, 32, 2)

    @jax.jit
    def both(params):
        bound = student.bind(params)
        continued = continue_greedily(bound, inputs_BxS, begun_BxT)
        greedy = generate(bound, inputs_BxS, Decoding("greedy", max_tokens=12), scores=False).tokens
        encoded = bound.encode(jnp.asarray(inputs_BxS))
        return continued, greedy, bound.make_logits()(bound.decode(encoded, inputs_BxS, continued)).argmax(axis=-1)

    continued, greedy, forced = map(np.asarray, both(params))
    np.testing.assert_array_equal(continued[0, :5], begun_BxT[0, :5])
    np.testing.assert_array_equal(continued[1, :2], begun_BxT[1, :2])
    np.testing.assert_array_equal(continued[2], greedy[2])  # nothing is given
    assert (continued[3] == 0).all() and not (continued[0] == greedy[0]).all()
    for row, given in ((0, 5), (1, 2), (2, 0)):
        written = slice(given, int((continued[row] != 0).sum()))
        np.testing.assert_array_equal(continued[row, written], forced[row, written])
