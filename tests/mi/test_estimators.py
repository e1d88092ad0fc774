"""Estimators by name: their settings, and estimators that a user registers."""

import math
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mi_helpers import mi_config

from cotmi_jax.errors import UserError
from cotmi_jax.mi import ESTIMATORS, Setting, bounds, estimate, register_estimator
from cotmi_jax.mi.estimators import make_estimator, parse_settings

SCORES = jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with mock.patch.dict(ESTIMATORS):
        yield


def register() -> None:
    @register_estimator(
        "tempered",
        direction="lower",
        settings={"temperature": Setting(0.5, low=0.0)},
        highest=lambda num_pairs, temperature: math.log(num_pairs),
    )
    def tempered(score_KxK, valid_K=None, *, positive_K=None, temperature):
        return bounds.infonce(score_KxK / temperature, valid_K)


def test_settings_reach_the_function_and_the_cap() -> None:
    column, usual = make_estimator("infonce", axis="column"), make_estimator("infonce")
    np.testing.assert_allclose(column(SCORES)[0].value, usual(SCORES.T)[0].value, rtol=1e-6)
    assert column(SCORES)[0].value != usual(SCORES)[0].value
    assert make_estimator("interpolated", alpha=0.5).cap(8) == math.log(16.0) + 1.0
    assert column != usual == ESTIMATORS["infonce"] and len({column, usual}) == 2  # a key of what is compiled


def test_a_registered_estimator_is_used_by_arrays_and_by_the_term() -> None:
    register()
    warm, cold = (make_estimator("tempered", temperature=temperature) for temperature in (1.0, 0.25))
    np.testing.assert_array_equal(warm(SCORES)[0].value, bounds.infonce(SCORES).value)
    np.testing.assert_array_equal(cold(SCORES)[0].value, bounds.infonce(4 * SCORES).value)
    x = np.random.default_rng(0).normal(size=(256, 2))
    found = estimate(x, x, estimator="tempered", temperature=0.7, steps=20, num_pairs=32)
    assert (found.estimator, found.direction, found.cap) == ("tempered", "lower", math.log(16))
    term = mi_config("tempered", settings="temperature=0.25").score_estimator()
    assert term.values == {"temperature": 0.25} and mi_config("tempered").score_estimator().values == {
        "temperature": 0.5
    }
    np.testing.assert_allclose(jax.jit(lambda scores: term(scores)[0].value)(SCORES), cold(SCORES)[0].value, rtol=1e-6)


def test_settings_are_parsed_from_text() -> None:
    assert parse_settings("") == {} and parse_settings(" a=1e-2, mode = fast,") == {"a": 0.01, "mode": "fast"}
    for text in ("a", "a=", "=1", "a=1,a=2", "a b=1"):
        with pytest.raises(UserError, match="give each once as name=value"):
            parse_settings(text)


def test_unknown_settings_and_bad_values_are_refused() -> None:
    register()
    for call, words in (
        (lambda: make_estimator("infonce", tau=1.0), "infonce does not take tau: its settings are axis, leave tau out"),
        (lambda: make_estimator("nwj", alpha=1.0), "nwj does not take alpha: it has no settings, leave alpha out"),
        (lambda: make_estimator("tempered", temperature=0.0), "temperature of tempered is 0.0: it must lie between 0"),
        (lambda: make_estimator("tempered", temperature="hot"), "temperature of tempered is hot: it must lie"),
        (lambda: mi_config("tempered", settings="heat=1"), "tempered does not take heat: its settings are temperature"),
        (lambda: mi_config("smile", settings="tau=1"), "'tau=1' is for registered estimators, not smile: set mi.tau"),
        (lambda: register_estimator("infonce", direction="lower"), "'infonce' is built in"),
        (lambda: estimate(np.zeros(99), np.zeros(99), estimator="ksg", k=3), "ksg does not take k: it has no settings"),
        (lambda: ESTIMATORS["tuba"](SCORES), "tuba needs baseline_K"),
        (lambda: ESTIMATORS["mine"](SCORES), "mine needs state"),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
