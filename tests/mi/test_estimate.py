"""Estimates of mutual information: known values, test pairs, refused input."""

import importlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from paths import REPOSITORY

from cotmi_jax.errors import UserError
from cotmi_jax.mi import ESTIMATORS, CriticConfig, Estimate, estimate
from cotmi_jax.mi.estimators import conditional, make_estimator, scored
from cotmi_jax.mi.fitting import FitConfig, fit_and_evaluate, make_model
from cotmi_jax.mi.nonparametric import ksg

DOCUMENT = REPOSITORY / "docs" / "mutual_information.md"
QUADRATIC = CriticConfig("quadratic", hidden=8)  # the baseline of tuba is 8 wide

RAW = CriticConfig(hidden=32, layers=1, dim=16)


@pytest.fixture
def optimized() -> Iterator[None]:
    """A thousand steps at several levels run here, so full optimization by the compiler pays."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def gaussians(size: int, dims: int, rho: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of unit normals with correlation rho in every dimension."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((size, dims))
    return x, rho * x + math.sqrt(1 - rho**2) * draw.standard_normal((size, dims))


def nats(rho: float, dims: int) -> float:
    """The mutual information of gaussians() in nats."""
    return -0.5 * dims * math.log1p(-(rho**2))


# --- A critic trained on new pairs, d = 20, K = 128, evaluated on 200 new batches


def trained(
    name: str, levels: Sequence[float], critic: CriticConfig, learning_rate: float, **settings: float
) -> list[float]:
    """The estimate at each level of mutual information; the levels are trained in one program."""
    model = make_model(20, 20, make_estimator(name, **settings), critic)  # type: ignore[arg-type]
    optimizer = optax.adam(optax.cosine_decay_schedule(learning_rate, 1000))
    init, train, fresh = jax.random.split(jax.random.key(0), 3)

    def pairs(rho: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        z, noise = jax.random.normal(key, (2, 128, 20))
        return z, rho * z + jnp.sqrt(1 - rho**2) * noise

    def one(rho: jax.Array) -> jax.Array:
        fit = model.start(optimizer, init)
        fit, _ = model.advance(optimizer, lambda key: pairs(rho, key), fit, jax.random.split(train, 1000))

        def evaluate(key: jax.Array) -> jax.Array:
            return model.score(fit.params, *pairs(rho, key), model.estimator.start())[0].value

        return jax.lax.map(evaluate, jax.random.split(fresh, 200)).mean()

    rhos = jnp.sqrt(-jnp.expm1(-jnp.array(levels) / 10))
    return np.asarray(jax.jit(jax.vmap(one))(rhos), np.float64).tolist()


NOTHING = (-0.02, 0.02)
ACCEPTED: dict[str, tuple[dict[str, float], dict[float, tuple[float, float]]]] = {
    "infonce": ({}, {0: NOTHING, 2: (1.80, 1.93), 4: (3.24, 3.39), 6: (4.12, 4.25), 10: (4.65, math.log(128))}),
    "dv": ({}, {0: NOTHING, 2: (1.92, 2.08), 4: (3.90, 4.12), 6: (5.75, 6.35)}),
    "nwj": ({}, {0: NOTHING, 2: (1.90, 2.06), 4: (3.50, 4.05)}),
    "interpolated": ({"alpha": 0.01}, {0: NOTHING, 2: (1.92, 2.07), 4: (3.85, 4.06), 6: (5.60, 5.95), 10: (8.0, 9.46)}),
    "js": ({}, {0: NOTHING, 2: (1.90, 2.06), 4: (3.75, 4.06)}),
    "smile": ({"tau": 5.0}, {0: NOTHING, 2: (1.94, 2.10), 4: (4.08, 4.36)}),
    "smile, clipped at 1": ({"tau": 1.0}, {0: NOTHING, 2: (2.25, 2.48)}),
    "tuba": ({}, {0: NOTHING, 2: (1.90, 2.06)}),
    "mine": ({}, {0: NOTHING, 2: (1.92, 2.08)}),
}


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("case", ACCEPTED)
def test_a_trained_critic_gives_the_known_values(case: str) -> None:
    settings, accepted = ACCEPTED[case]
    values = trained(case.split(",")[0], list(accepted), QUADRATIC, 1e-2, **settings)
    for (level, (low, high)), value in zip(accepted.items(), values, strict=True):
        assert low <= value <= high, f"I = {level}"


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_a_separable_critic_gives_less_than_the_exact_one() -> None:
    values = trained("infonce", [2, 4], CriticConfig(hidden=128), 2e-3)
    assert 1.68 <= values[0] <= 1.893 and 3.10 <= values[1] <= 3.343


# --- Arrays


def quick(x: Any, y: Any, estimator: str = "infonce", **options: Any) -> Estimate:
    """An estimate with a critic that fits Gaussians in few steps."""
    options = {"critic": QUADRATIC, "steps": 300, "learning_rate": 1e-2} | options
    return estimate(x, y, estimator=estimator, **options)


FITTED = (*scored(), *conditional())
INDEPENDENT = gaussians(512, 20, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FITTED)
def test_estimates_of_independent_arrays_are_zero(name: str) -> None:
    read = quick(*INDEPENDENT, name)
    assert abs(read.value) <= 0.05
    # The critic has fitted its training pairs, which gives nothing on other pairs.
    assert max(abs(value) for _, value in read.curve) > 0.05
    assert ("≥" in str(read)) == (ESTIMATORS[name].direction == "lower")


@pytest.mark.slow
def test_an_estimate_on_the_training_pairs_is_biased_up() -> None:
    x, y = (side[:307].astype(np.float32) for side in INDEPENDENT)
    config = FitConfig(num_pairs=32, steps=300, learning_rate=1e-2)
    critic = CriticConfig(hidden=64)
    own = fit_and_evaluate((x, y), (x, y), (x, y), make_estimator("infonce"), critic, config, 0)
    assert own.values.mean() > 2.0


@pytest.mark.parametrize("name", ["ksg", "cca"])
def test_nonparametric_estimates_of_independent_arrays_are_zero(name: str) -> None:
    read = estimate(*gaussians(2000, 2, 0.0), estimator=name)
    assert abs(read.value) <= 0.05 and "≈" in str(read)


GAUSSIAN = gaussians(4000, 2, 0.8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["infonce", "nwj", "js"])
def test_estimates_of_gaussian_arrays_are_near_the_truth(name: str) -> None:
    read, truth = quick(*GAUSSIAN, name), nats(0.8, 2)
    assert 0.75 * truth <= read.value <= truth + 3 * read.standard_error
    assert read.direction == ESTIMATORS[name].direction and read.pairs == 896 and read.contrasted == 128


@pytest.mark.slow
def test_leave_one_out_is_at_most_club() -> None:
    head = CriticConfig(hidden=32, layers=1)
    club, out = (quick(*GAUSSIAN, name, critic=head) for name in conditional())
    assert nats(0.8, 2) - 0.15 <= out.value <= club.value
    assert club.value == pytest.approx(2 * 0.8**2 / (1 - 0.8**2), rel=0.15)  # CLUB of the exact q
    assert "≲" in str(club) and "≲" in str(out)


@pytest.mark.slow
def test_test_pairs_are_not_training_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("cotmi_jax.mi.estimate")
    seen: list[list[np.ndarray]] = []

    def spy(*arguments: Any) -> Any:
        seen.append([arguments[part][0] for part in range(3)])
        return fit_and_evaluate(*arguments)

    monkeypatch.setattr(module, "fit_and_evaluate", spy)
    x, y = GAUSSIAN
    honest = quick(x, y, critic=RAW, standardize=False)
    row_of = {tuple(pair): row for row, pair in enumerate(x.astype(np.float32).tolist())}
    fitted, stopped, read = ([row_of[tuple(pair)] for pair in part.tolist()] for part in seen[0])
    assert sorted(fitted + stopped + read) == list(range(len(x)))

    def without(rows: list[int]) -> float:
        """The estimate with these rows paired at random."""
        shuffled = y.copy()
        shuffled[rows] = y[np.random.default_rng(1).permutation(rows)]
        return quick(x, shuffled, critic=RAW, standardize=False).value

    assert honest.value > 0.8
    assert without(fitted) < 0.05  # nothing learned
    assert without(read) < 0.05  # learned, but not there


def test_the_seed_determines_the_estimate() -> None:
    assert quick(*GAUSSIAN) == quick(*GAUSSIAN)
    assert quick(*GAUSSIAN, seed=1).value != quick(*GAUSSIAN).value


def test_the_fit_ends_at_its_last_step() -> None:
    assert [step for step, _ in quick(*GAUSSIAN, steps=70).curve] == [0, 50, 70]


def test_scale_and_offset_of_the_arrays_change_nothing() -> None:
    x, y = GAUSSIAN
    assert quick(1e8 + x, 1e-12 * y - 1.0).value == pytest.approx(quick(x, y).value, abs=0.01)


@pytest.mark.parametrize("name", ["infonce", "ksg", "cca"])
def test_the_standard_error_is_that_of_repeated_estimates(name: str) -> None:
    reads = [quick(*gaussians(2000, 2, 0.7, seed), name) for seed in range(12)]
    spread = float(np.std([read.value for read in reads], ddof=1))
    reported = float(np.mean([read.standard_error for read in reads]))
    assert spread / 2.5 <= reported <= spread * 2.5


def test_saturation_is_value_over_cap() -> None:
    strong = quick(*gaussians(4000, 8, 0.99), num_pairs=16)
    assert strong.cap == pytest.approx(math.log(16)) and 0.8 < strong.saturation <= 1.0
    assert f"{strong.saturation:.0%} of the cap 2.77" in str(strong)
    free = quick(*GAUSSIAN, "js")
    assert free.cap == math.inf and free.saturation == 0.0 and "cap" not in str(free)


# --- A discrete channel: five symbols, one in five is replaced by another

CHANNEL = math.log(5) + 0.8 * math.log(0.8) + 0.2 * math.log(0.05)  # 0.832 nats


def channel(size: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    sent = draw.integers(5, size=size)
    received = np.where(draw.random(size) < 0.8, sent, (sent + draw.integers(1, 5, size=size)) % 5)
    return np.eye(5)[sent], np.eye(5)[received]


def barber_agakov(z_KxC: np.ndarray, log_q_KxC: np.ndarray) -> float:
    """H(Z) + E log q(z|v) of one-hot z in nats, H that of the mean distribution (Barber and Agakov 2003, eq. 3)."""
    marginal_C = z_KxC.mean(axis=0)
    return float(-(marginal_C * np.log(marginal_C)).sum() + (z_KxC * log_q_KxC).sum(axis=-1).mean())


def test_the_bound_of_barber_and_agakov_is_tight_at_the_exact_decoder() -> None:
    sent, received = channel(200_000)
    log_q = np.where(received == 1, math.log(0.8), math.log(0.05))
    assert barber_agakov(sent, log_q) == pytest.approx(CHANNEL, abs=0.01)


def test_estimates_of_one_hot_arrays_are_at_most_the_information_of_the_channel() -> None:
    read = quick(*channel(8000))
    assert 0.75 <= read.value <= CHANNEL + 3 * read.standard_error


# --- Estimates without a network


@pytest.mark.parametrize("name", ["ksg", "cca"])
@pytest.mark.parametrize(("rho", "dims"), [(0.5, 1), (0.9, 1), (0.5, 2), (0.9, 2)])
def test_nonparametric_estimates_match_the_closed_form(name: str, rho: float, dims: int) -> None:
    x, y = gaussians(5000, dims, rho)
    read = estimate(x[:, 0], y[:, 0], estimator=name) if dims == 1 else estimate(x, y, estimator=name)
    assert read.value == pytest.approx(nats(rho, dims), abs=0.05) and read.pairs == 5000


def test_ksg_is_invariant_under_monotone_maps() -> None:
    x, y = gaussians(5000, 1, 0.9)
    assert ksg(np.exp(x), y**3) == pytest.approx(ksg(x, y), abs=0.03)


# --- Bad input

GOOD = gaussians(400, 3, 0.5)
SPOILED, ENDLESS = GOOD[0].copy(), GOOD[1].copy()
SPOILED[7, 2], ENDLESS[399, 0] = math.nan, -math.inf


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (SPOILED, GOOD[1], r"x\[7, 2\] is nan.*drop those rows"),
        (GOOD[0], ENDLESS, r"y\[399, 0\] is -inf.*drop those rows"),
        (1e300 * GOOD[0], GOOD[1], r"x\[0, 0\] is .*e\+\d+, one of 1200 values"),
        (GOOD[0], GOOD[1][:399], "x has 400 rows and y 399"),
        (GOOD[0][:, :, None], GOOD[1], r"x has shape \(400, 3, 1\): give samples by row"),
        (GOOD[0], GOOD[1][:, :0], r"y has shape \(400, 0\)"),
        ([[1.0, 2.0], [3.0]], [1.0, 2.0], "x is not an array: give samples by row"),
        (["a"] * 400, GOOD[1], "x holds <U1: give real numbers"),
        (GOOD[0].astype(object), GOOD[1], "x holds object: give real numbers"),
        (GOOD[0], GOOD[1] + 1j, "y holds complex128: give real numbers"),
        (GOOD[0][:31], GOOD[1][:31], "31 samples.*give at least 32"),
    ],
)
def test_arrays_that_are_not_paired_samples_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        quick(x, y)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_pairs": 1}, "give at least .*2 pairs"),
        ({"estimator": "mutual"}, "unknown estimator 'mutual': choose one of infonce, nwj"),
        ({"critic": "deep"}, "unknown critic 'deep': choose one of separable"),
        ({"critic": "bilinear", "standardize": False}, "set the critic's normalization to layer"),
        ({"critic": "separable", "estimator": "nwj", "standardize": False}, "set the critic's clamp"),
        ({"critic": CriticConfig("concat", hidden=2**20)}, "GiB.*separable critic, fewer pairs"),
        (
            {"critic": CriticConfig(normalization="layer")},
            "normalization layer removes two of 3 dimensions: choose none",
        ),
        ({"estimator": "interpolated", "alpha": 1.0}, "alpha of interpolated is 1.0: it must lie between 0 and 1"),
        ({"estimator": "smile", "tau": -1.0}, "tau of smile is -1.0: it must lie between"),
        ({"estimator": "mine", "decay": math.nan}, "decay of mine is nan: it must lie between"),
        ({"axis": "both"}, "axis of infonce is 'both': choose one of row, column, symmetric"),
        ({"tau": 5.0}, "infonce does not take tau"),
        ({"estimator": "club", "alpha": 0.5}, "club does not take alpha"),
        ({"estimator": "ksg", "neighbors": 5}, "ksg does not take neighbors"),
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0: it must lie between"),
        ({"learning_rate": math.nan}, "learning_rate is nan: it must lie between"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        quick(*GOOD, **options)
    assert "\n" not in str(refused.value)


def test_nonparametric_estimators_state_how_many_samples_they_need() -> None:
    x, y = GOOD
    with pytest.raises(UserError, match="cca on 60 samples.*at least 70"):
        estimate(x[:60], y[:60], estimator="cca")
    with pytest.raises(UserError, match="ksg on 30 samples.*at least 40"):
        estimate(x[:30], y[:30], estimator="ksg")
    with pytest.raises(UserError, match="rows of x repeat"):
        estimate(np.round(x), y, estimator="ksg")


# --- The document


def test_the_code_of_the_page_prints_its_output(capsys: pytest.CaptureFixture[str]) -> None:
    """Figures of the printed lines may differ by .05 from machine to machine."""
    text = DOCUMENT.read_text()
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```\n(.*?)```)?", text, flags=re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for code, shown in blocks:
        exec(code, names)
        printed = capsys.readouterr().out
        assert re.sub(r"\d+", "", printed) == re.sub(r"\d+", "", shown)
        for value, written in zip(*(re.findall(r"I . (\S+)", lines) for lines in (printed, shown)), strict=True):
            assert float(value) == pytest.approx(float(written), abs=0.05)
