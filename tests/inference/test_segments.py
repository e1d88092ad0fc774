"""Generation in segments: the same outputs as in one loop while finished examples leave and the cache grows."""

from typing import Any

import jax
import numpy as np
import pytest
from helpers import numpy_params, random_ids, small_config

from cotmi_jax.inference import generation, segments
from cotmi_jax.inference.generation import Generation
from cotmi_jax.models.decoding import Decoding, generate
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.parallel.mesh import make_mesh

STUDENT = StudentDef.of(small_config())
INPUTS = random_ids(np.random.default_rng(5), (9, 3, 0, 1, 6, 4, 9, 2, 7, 8, 5, 3, 1, 9, 6, 2), 9)
LIMIT = 14


@pytest.fixture(scope="module")
def params() -> Params:
    """With a frequent eos."""
    params = numpy_params(STUDENT, seed=35)
    params["head"] = (3.0 * params["head"]).at[:, 1].multiply(3.0)
    return params


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in dict(SEGMENT=4, GROWTH=4, MIN_ROWS=2, WHOLE_BATCHES=1).items():
        monkeypatch.setattr(segments, name, value)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
def test_segments_change_no_output(method: Any, params: Params) -> None:
    decoding = Decoding(method, max_tokens=LIMIT, num_beams=2)
    key = jax.random.key(0) if method == "sample" else None
    whole = jax.jit(lambda params, inputs: generate(STUDENT.bind(params), inputs, decoding, key))(params, INPUTS)
    lengths = (np.asarray(whole.tokens) != 0).sum(axis=1)
    assert len(set(lengths)) >= 5 and lengths.max() == LIMIT

    runner = segments.Segments(STUDENT, decoding, scores=True)
    resized: list[tuple[int, int]] = []
    resize = runner._resize

    def record(params: Params, weights: Any, state: Any, rows: np.ndarray, *, length: int) -> Any:
        resized.append((len(rows), length))
        return resize(params, weights, state, rows, length=length)

    runner._resize = record  # type: ignore[method-assign,assignment]
    for _ in range(2):
        found = runner(params, INPUTS, None, key)
        np.testing.assert_array_equal(found.tokens, whole.tokens)
        np.testing.assert_allclose(found.score, whole.score, rtol=1e-5, atol=1e-5)
    # Rows leave from the second batch on, and never in sampling, where draws depend on the row.
    first, *later = resized
    assert first == (16, LIMIT) and later[-1] == (16 if method == "sample" else 8, LIMIT)


def test_a_t5_on_one_device_generates_in_segments(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a mesh of several devices it is one program, since rows would have to move between devices."""
    made = []

    class Recorded(segments.Segments):
        def __init__(self, *arguments: Any, **keywords: Any):
            made.append(arguments)

        def __call__(self, params: Params, inputs: Any, *_: Any) -> segments.Tokens:
            return segments.Tokens(np.asarray(inputs), None)

    monkeypatch.setattr(generation, "Segments", Recorded)
    one, many = (Generation(STUDENT, make_mesh(devices=jax.devices()[:number])) for number in (1, 8))
    many.generate = lambda params, inputs, *_, **__: segments.Tokens(-inputs, None)  # type: ignore[method-assign]
    for decoding in (Decoding(max_tokens=3), Decoding(max_tokens=3), Decoding(max_tokens=4)):
        np.testing.assert_array_equal(one.tokens(params, INPUTS, decoding=decoding), INPUTS)
        np.testing.assert_array_equal(many.tokens(params, INPUTS, decoding=decoding), -INPUTS)
    assert made == [(STUDENT, Decoding(max_tokens=3)), (STUDENT, Decoding(max_tokens=4))]  # programs are kept


def test_segments_of_samples_need_a_key(params: Params) -> None:
    with pytest.raises(ValueError, match="needs a key"):
        segments.Segments(STUDENT, Decoding("sample"), scores=False)(params, INPUTS)
