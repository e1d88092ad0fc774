"""UncachedDecoding generates the same tokens as decoding with a cache."""

import helpers
import jax
import numpy as np

from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.module import ModuleDef
from cotmi_jax.models.prototype import UncachedDecoding
from cotmi_jax.models.student import StudentDef
from cotmi_jax.models.t5 import T5

CONFIG = helpers.small_config(num_encoder_layers=1, num_decoder_layers=1)


class UncachedT5(UncachedDecoding, T5):
    pass


def test_beams_of_a_t5_are_the_same_without_its_cache() -> None:
    traced = ModuleDef.trace(lambda rngs: UncachedT5(CONFIG, rngs=rngs))
    uncached = StudentDef(traced.build, traced.graph, traced.shapes, traced.axes, CONFIG)
    student = StudentDef.of(CONFIG)
    params = helpers.numpy_params(student)
    inputs_BxS = helpers.random_ids(np.random.default_rng(0), (7, 2, 4), 7)
    decoding = Decoding("beam", max_tokens=6, num_beams=3)
    cached, plain = (
        jax.jit(lambda params, each=each: generate(each.bind(params), inputs_BxS, decoding))(params)
        for each in (student, uncached)
    )
    np.testing.assert_array_equal(plain.tokens, cached.tokens)
