"""Outputs after a forced prefix, against generation and teacher forcing."""

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

from cotmi_jax.inference.continuation import Continuation
from cotmi_jax.inference.load import load_workdir
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.student import StudentDef

quick_compilation = runs.quick_compilation


@pytest.mark.slow
def test_outputs_keep_their_prefix_and_go_on_greedily() -> None:
    student = StudentDef.of(helpers.small_config())
    params = helpers.numpy_params(student)
    draw = np.random.default_rng(0)
    inputs_BxS = helpers.random_ids(draw, [7, 4, 5, 0], 7)
    prefix_BxT = np.zeros((4, 12), np.int32)
    prefix_BxT[0, :5], prefix_BxT[1, :2] = draw.integers(2, 32, 5), draw.integers(2, 32, 2)

    decoding = Decoding(max_tokens=12)

    @jax.jit
    def both(params):
        bound = student.bind(params)
        continued = generate(bound, inputs_BxS, decoding, prefix_BxT=prefix_BxT, scores=False).tokens
        greedy = generate(bound, inputs_BxS, decoding, scores=False).tokens
        encoded = bound.encode(jnp.asarray(inputs_BxS))
        return continued, greedy, bound.make_logits()(bound.decode(encoded, inputs_BxS, continued)).argmax(axis=-1)

    continued, greedy, forced = map(np.asarray, both(params))
    np.testing.assert_array_equal(continued[0, :5], prefix_BxT[0, :5])
    np.testing.assert_array_equal(continued[1, :2], prefix_BxT[1, :2])
    np.testing.assert_array_equal(continued[2], greedy[2])  # nothing is given
    assert (continued[3] == 0).all() and not (continued[0] == greedy[0]).all()
    for row, given in ((0, 5), (1, 2), (2, 0)):
        written = slice(given, int((continued[row] != 0).sum()))
        np.testing.assert_array_equal(continued[row, written], forced[row, written])


@pytest.mark.slow
def test_texts_begin_as_given_in_batches_of_any_size() -> None:
    trained = load_workdir(runs.trained(), "latest")
    complete = Continuation(trained.student, trained.params, trained.vocabulary, trained.mesh)
    inputs = [f"Tom has {n} cups." for n in range(2, 12)]
    prefixes = [f"Tom has {n} cups." * (n % 3) for n in range(2, 12)]
    with jax.set_mesh(trained.mesh):
        found = complete(inputs, prefixes, batch_size=8, max_input=32, max_new=8)
        alone = complete(inputs[8:], prefixes[8:], batch_size=8, max_input=32, max_new=8)
    assert all(text.startswith(start) for text, start in zip(found, prefixes, strict=True))
    assert any(len(text) > len(start) for text, start in zip(found, prefixes, strict=True)) and found[8:] == alone


def test_beams_have_no_prefix() -> None:
    student = StudentDef.of(helpers.small_config())
    with pytest.raises(ValueError, match="beams have no prefix"):
        generate(
            student.bind(helpers.numpy_params(student)),
            np.ones((1, 3), np.int32),
            Decoding("beam", max_tokens=4),
            prefix_BxT=jnp.zeros((1, 4), jnp.int32),
        )
