"""The default estimate: choice of the critic, refits, standard error, scaling of columns, and what start-up imports."""

import dataclasses
import importlib
import math
import subprocess
import sys
import warnings
from typing import Any

import jax
import numpy as np
import optax
import pytest
from scipy.special import ndtri
from scipy.stats import rankdata

from cotmi_jax.errors import UserError
from cotmi_jax.mi import CriticConfig, estimate
from cotmi_jax.mi.estimate import CANDIDATES
from cotmi_jax.mi.estimators import make_estimator
from cotmi_jax.mi.fitting import FitConfig, HeldOutEstimate, fit_and_evaluate, make_model
from cotmi_jax.mi.marginals import scaled
from cotmi_jax.mi.nonparametric import ksg

SMALL = CriticConfig("separable", hidden=8, layers=1, dim=4)


def pairs(size: int, dims: int = 1, rho: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    x = draw.standard_normal((size, dims))
    return x, rho * x + math.sqrt(1 - rho**2) * draw.standard_normal((size, dims))


# --- Choice of the critic and refits, without fitting

Call = tuple[Any, ...]  # arguments of fit_and_evaluate


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Fits are replaced: a critic's objective on the validation pairs and its value are looked up in RESULTS."""
    calls: list[Call] = []

    def fake(train: Any, validation: Any, test: Any, estimator: Any, critic: CriticConfig, *rest: Any) -> Any:
        calls.append((train, validation, test, critic, *rest))
        objective, values = RESULTS[critic.name]
        return HeldOutEstimate(np.array(values), np.array(values), objective, [(0, 0.0)])

    monkeypatch.setattr(importlib.import_module("cotmi_jax.mi.estimate"), "fit_and_evaluate", fake)
    return calls


# The best critic on the validation pairs is not the best on the test pairs.
RESULTS = {"quadratic": (0.2, [0.9, 1.0]), "concat": (0.7, [0.4, 0.6]), "separable": (0.3, [0.2, 0.2])}


def test_the_critic_is_chosen_on_the_validation_pairs(fits: list[Call]) -> None:
    found = estimate(*pairs(400), refits=2)
    assert found.value == pytest.approx(0.5) and found.critics == ("concat", "concat")
    assert [call[3] for call in fits] == [each.critic for each in CANDIDATES] * 2
    assert [call[4].learning_rate for call in fits] == [each.learning_rate for each in CANDIDATES] * 2


def test_refits_test_other_quarters_of_the_pairs(fits: list[Call]) -> None:
    x = np.arange(400.0)
    estimate(x, x, critic=SMALL, refits=4, standardize=False)
    parts = [[set(part[0][:, 0]) for part in call[:3]] for call in fits]
    assert len(parts) == 4 and all(set.union(*part) == set(x) for part in parts)
    assert all(sum(map(len, part)) == 400 for part in parts)  # disjoint
    assert set.union(*(part[2] for part in parts)) == set(x)
    assert len({call[5] for call in fits}) == 4  # seeds


def test_a_critic_that_is_given_is_fitted_once(fits: list[Call]) -> None:
    x, y = pairs(400)
    assert estimate(x, y, critic="separable").critics == ("separable",)
    assert len(fits) == 1 and fits[0][4].learning_rate == 2e-3
    estimate(x, y)
    assert len(fits) == 1 + 4 * len(CANDIDATES)


def test_a_concat_critic_that_exceeds_the_memory_is_not_tried(fits: list[Call]) -> None:
    estimate(*pairs(20_000), num_pairs=4096)
    assert {call[3].name for call in fits} == {"quadratic", "separable"}


def test_the_default_contrasts_a_quarter_of_the_test_pairs(fits: list[Call]) -> None:
    x, y = pairs(8000)
    found = estimate(x, y, refits=1)
    assert {(call[4].num_pairs, call[4].test_pairs) for call in fits} == {(128, 500)}
    assert found.contrasted == 500 and found.cap == pytest.approx(math.log(500))
    assert estimate(x, y, refits=1, num_pairs=64).contrasted == 64
    assert estimate(x, y, critic=SMALL).contrasted == 128


def test_test_pairs_are_contrasted_at_a_time() -> None:
    x = np.arange(64, dtype=np.float32)[:, None] - 32
    config = FitConfig(num_pairs=16, steps=1, test_pairs=64)
    blocks = [
        len(fit_and_evaluate((x, x), (x, x), (x, x), make_estimator("infonce"), SMALL, each, 0).values)
        for each in (config, dataclasses.replace(config, test_pairs=0))
    ]
    assert blocks == [1, 4]


def test_the_error_is_the_larger_of_blocks_and_refits(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = iter([[0.0, 1.0], [0.0, 1.0], [0.2, 0.2], [0.8, 0.8]])

    def fake(*_: Any) -> HeldOutEstimate:
        values = np.array(next(blocks))
        return HeldOutEstimate(values, values, 1.0, [])

    monkeypatch.setattr(importlib.import_module("cotmi_jax.mi.estimate"), "fit_and_evaluate", fake)
    alike, apart = (estimate(*pairs(400), critic=SMALL, refits=2) for _ in range(2))
    assert alike.standard_error == pytest.approx(np.std([0, 1, 0, 1], ddof=1) / 2)  # equal refits, unequal blocks
    assert apart.standard_error == pytest.approx(np.std([0.2, 0.8], ddof=1) / 2**0.5)


def test_the_error_of_an_initial_critic_is_that_of_a_trained_one(monkeypatch: pytest.MonkeyPatch) -> None:
    found = HeldOutEstimate(np.zeros(2), np.array([0.3, -0.3]), 0.0, [])
    monkeypatch.setattr(importlib.import_module("cotmi_jax.mi.estimate"), "fit_and_evaluate", lambda *_: found)
    estimated = estimate(*pairs(400), critic=SMALL)
    assert estimated.value == 0.0 and estimated.standard_error == pytest.approx(0.3)


def test_the_error_is_never_zero() -> None:
    x, y = pairs(400)
    nothing = estimate(x, y, critic=SMALL, steps=5)
    assert (
        nothing.value == pytest.approx(0, abs=1e-5)
        and nothing.standard_error > 1e-3
        and "0.000 ± 0.000" not in str(nothing)
    )
    constant = estimate(x, np.ones(400), critic=SMALL, steps=5)
    assert constant.value == pytest.approx(0, abs=1e-6) and constant.standard_error >= 1 / 400


# --- Dropout


@pytest.mark.slow
def test_dropout_of_a_critic_is_used_in_fits_and_not_in_evaluation() -> None:
    x, y = pairs(400, 2, 0.9)
    options: dict[str, Any] = {"steps": 20, "num_pairs": 16, "learning_rate": 1e-2}
    dropped = CriticConfig("separable", hidden=8, layers=1, dim=4, dropout=0.5)
    assert estimate(x, y, critic=dropped, **options).curve != estimate(x, y, critic=SMALL, **options).curve
    assert estimate(x, y, critic=dropped, **options) == estimate(x, y, critic=dropped, **options)


def test_dropout_masks_differ_from_step_to_step() -> None:
    """At learning rate 0 the steps see the same parameters and pairs; only masks can change the value."""
    critic = CriticConfig("separable", hidden=8, layers=1, dim=4, dropout=0.5)
    model, optimizer = make_model(2, 2, make_estimator("infonce"), critic), optax.adam(0.0)
    x, y = (side.astype(np.float32) for side in pairs(16, 2, 0.9))

    @jax.jit
    def values(key: Any) -> jax.Array:
        fit = model.start(optimizer, jax.random.key(0))
        fit = fit._replace(params=jax.tree.map(lambda leaf: leaf + 0.1, fit.params))
        return model.advance(optimizer, lambda _: (x, y), fit, np.arange(4), key)[1]

    assert len(set(np.asarray(values(jax.random.key(1))).tolist())) == 4
    assert len(set(np.asarray(values(None)).tolist())) == 1


# --- Scaling


def test_ranks_become_normal_scores_of_the_first_set() -> None:
    draw = np.random.default_rng(0)
    z = np.round(draw.standard_cauchy((50, 2)), 1)  # with ties
    (first, _), (other, _) = scaled([(z, z), (np.array([[-1e9, 1e9]]), z[:1])], "ranks")
    for column in range(2):
        np.testing.assert_allclose(first[:, column], ndtri((rankdata(z[:, column]) - 0.5) / 50), rtol=1e-12)
    np.testing.assert_allclose(other, [[first[:, 0].min(), first[:, 1].max()]])


def test_ranks_of_other_sets_are_interpolated() -> None:
    z = np.array([[0.0], [1.0], [3.0]])
    (first, _), (other, _) = scaled([(z, z), (np.array([[2.0]]), z[:1])], "ranks")
    assert other[0, 0] == pytest.approx(first[1:, 0].mean())


def test_ranks_ignore_monotone_maps_and_constant_columns() -> None:
    z = np.random.default_rng(0).standard_normal((20, 3))
    z[:, 2] = 7.0
    ((plain, mapped),) = scaled([(z, np.exp(3 * z) - 5)], "ranks")
    np.testing.assert_array_equal(plain, mapped)
    assert not plain[:, 2].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"standardize": "rank"}, "standardize is 'rank': choose 'ranks'"),
        ({"refits": 0}, "refits is 0.*1 to 4"),
        ({"refits": 5}, "refits is 5.*1 to 4"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        estimate(*pairs(100), **options)


# --- ksg of many dimensions


def test_ksg_of_all_distances_equals_ksg_of_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = pairs(300, 3, 0.7)
    expected = ksg(x, y)
    monkeypatch.setattr("cotmi_jax.mi.nonparametric.TREE_DIMS", 5)
    assert ksg(x, y) == pytest.approx(expected, abs=1e-12)


def test_ksg_of_many_dimensions_warns_of_its_bias() -> None:
    with pytest.warns(UserWarning, match="ksg of 12 dimensions is far below the truth"):
        estimate(*pairs(100, 6, 0.5), estimator="ksg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate(*pairs(100, 5, 0.5), estimator="ksg")


def test_ksg_that_would_take_hours_is_refused() -> None:
    x = np.random.default_rng(0).random((150_000, 25))
    with pytest.raises(UserError, match="ksg of 50 dimensions on 150,000 pairs takes hours.*at most 141,421 pairs"):
        ksg(x, x)


# --- Start-up and progress


@pytest.mark.slow
def test_start_up_imports_neither_tensorflow_nor_scipy() -> None:
    slow = (
        "tensorflow",
        "torch",
        "transformers",
        "orbax",
        "ml_collections",
        "scipy.spatial",
        "scipy.special",
        "cotmi_jax.models",
    )
    program = f"import sys; from cotmi_jax import mi; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_progress_reaches_its_total_and_is_silent_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bars: list[Any] = []
    module = importlib.import_module("cotmi_jax.mi.estimate")
    tqdm = module.tqdm
    monkeypatch.setattr(module, "tqdm", lambda **options: bars.append(tqdm(**options)) or bars[-1])
    estimate(*pairs(64), critic=SMALL, steps=10, refits=2)
    assert bars[0].disable and bars[0].total == 20 and capsys.readouterr().err == ""
    monkeypatch.setattr(module, "tqdm", lambda **options: bars.append(tqdm(**options | {"disable": False})) or bars[-1])
    estimate(*pairs(64), critic=SMALL, steps=10, refits=2)
    assert bars[1].n == 20


def test_steps_that_are_not_needed_count_as_progress() -> None:
    x, y = (side.astype(np.float32) for side in pairs(64))
    done: list[int] = []
    config = FitConfig(num_pairs=16, steps=40, learning_rate=1e-2, every=5, patience=0)
    found = fit_and_evaluate((x, y), (x[::-1], y), (x, y), make_estimator("infonce"), SMALL, config, 0, done.append)
    assert found.curve[-1][0] < 40 and sum(done) == 40
