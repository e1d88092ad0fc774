"""Mutual information between two arrays of paired samples."""

import dataclasses
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from cotmi_jax.errors import UserError
from cotmi_jax.mi.critics import PAIRWISE_BYTES, check_critic, pairwise_bytes
from cotmi_jax.mi.estimators import ESTIMATORS, Direction, Estimator, make_estimator
from cotmi_jax.mi.fitting import FitConfig, HeldOutEstimate, Pairs, fit_and_evaluate
from cotmi_jax.mi.marginals import Scaling, check_scaling, scaled
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.mi.nonparametric import TREE_DIMS, cca, ksg

NONPARAMETRIC = {"ksg": ksg, "cca": cca}
_LAYER_DIMS = 8  # layer normalization removes two dimensions of a vector: too many of fewer than these
_FIT, _VALIDATION = 0.6, 0.15  # fractions of the pairs; the rest is the test set
_REFITS = 4  # each with another quarter of the pairs as its test set
_SUBSETS = 10  # into which a non-parametric estimate is split for its standard error
_BAR_DELAY = 2.0  # seconds of fitting before a progress bar appears


class Candidate(NamedTuple):
    """A critic that `auto` tries, with the learning rate it is fitted at."""

    critic: CriticConfig
    learning_rate: float


# Chosen on the tasks of benchmarks/mi_bmi.py: the first is exact for Gaussians whose sides have independent dimensions,
# the second is strongest in many dimensions, the third where the dependence is by radius or rotation.
CANDIDATES = (
    Candidate(CriticConfig("quadratic"), 1e-2),
    Candidate(CriticConfig("concat", hidden=32, layers=3), 1e-2),
    Candidate(CriticConfig("separable", hidden=128), 1e-2),
)
_WARMUP = 0.05  # of the steps, for candidates
_NUM_PAIRS = 128  # at a time
_MAX_TEST_PAIRS = 1024  # at a time, for candidates: a concat critic then holds 0.4 GiB
_CRITIC_RATE = 2e-3  # of a critic that is given


@dataclasses.dataclass(frozen=True)
class Estimate:
    """I(X;Y) in nats by one estimator, from `pairs` test pairs, to which its network was not fitted.

    standard_error: the larger of that over blocks of test pairs and that over refits, at least 1 / pairs. It covers the
    choice of test and training pairs and the random initialization. It does not cover what every fit of a critic misses
    of the density ratio, by which the value of a lower bound is below the truth. direction: whether the expectation of
    the value is a lower bound, an upper bound or neither. cap: the highest value it can take with this many pairs at a
    time (inf: none). curve: (step, value on the validation pairs) along the first fit. critics: of each refit, the
    critic.
    """

    estimator: str
    value: float
    standard_error: float
    direction: Direction
    cap: float
    pairs: int
    contrasted: int  # pairs at a time
    curve: tuple[tuple[int, float], ...]
    critics: tuple[str, ...] = ()

    @property
    def saturation(self) -> float:
        """value / cap; near 1 the value is that of the cap, not of the data. 0 without a cap."""
        return self.value / self.cap if math.isfinite(self.cap) else 0.0

    @property
    def amount(self) -> str:
        """Value and standard error: "1.874 ± 0.040"."""
        return f"{round(self.value, 3) + 0.0:.3f} ± {self.standard_error:.3f}"  # + 0.0: never "-0.000"

    @property
    def description(self) -> str:
        """As text: "≥ 1.874 ± 0.040 nats (…)"."""
        # The upper bounds hold where q = p, and q is fitted.
        sign = {"lower": "≥", "upper": "≲", "neither": "≈"}[self.direction]
        text = f"{sign} {self.amount} nats ({self.estimator}, {self.pairs:,} pairs"
        return text + (f", {self.saturation:.0%} of the cap {self.cap:.2f})" if math.isfinite(self.cap) else ")")

    def __str__(self) -> str:
        return f"I {self.description}"


def check_features(x: np.ndarray, y: np.ndarray) -> Pairs:
    """Both as float64 [N, D]. Raises UserError for shapes that are not paired samples and for values not finite."""
    arrays = []
    for name, array in (("x", x), ("y", y)):
        try:
            array = np.asarray(array)
        except ValueError as error:
            raise UserError(f"{name} is not an array: give samples by row, [N] or [N, D], all of one length") from error
        if array.ndim == 1:
            array = array[:, None]
        if array.ndim != 2 or array.shape[1] == 0:
            raise UserError(f"{name} has shape {array.shape}: give samples by row, [N] or [N, D]")
        if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
            raise UserError(f"{name} holds {array.dtype}: give real numbers (one-hot rows for classes)")
        bad = np.argwhere(~(np.abs(array) <= np.finfo(np.float32).max))
        if bad.size:
            row, column = bad[0]
            raise UserError(
                f"{name}[{row}, {column}] is {array[row, column]}, one of {len(bad)} values that are not finite in "
                "float32: drop those rows"
            )
        arrays.append(array.astype(np.float64))
    if len(arrays[0]) != len(arrays[1]):
        raise UserError(
            f"x has {len(arrays[0])} rows and y {len(arrays[1])}: row i of one pairs with row i of the other"
        )
    return arrays[0], arrays[1]


def _find_fitted(name: str, settings: dict[str, float | str]) -> Estimator | None:
    """The estimator whose network is fitted; None for one without a network."""
    if name in NONPARAMETRIC:
        if settings:
            raise UserError(f"{name} does not take {', '.join(settings)}: it has no settings, leave them out")
        return None
    if name not in ESTIMATORS:
        raise UserError(f"unknown estimator {name!r}: choose one of {', '.join((*ESTIMATORS, *NONPARAMETRIC))}")
    return make_estimator(name, **settings)


class _Fitted(NamedTuple):
    held_out: HeldOutEstimate
    contrasted: int
    critic: str


def _fit(
    sets: Sequence[Pairs],
    estimator: Estimator,
    candidates: Sequence[tuple[CriticConfig, FitConfig]],
    seed: int,
    scaling: Scaling,
    progress: Callable[[int], Any] = lambda steps: None,
) -> _Fitted:
    """The candidate with the highest objective on the validation pairs. UserError for scores that overflow."""
    # float32 after scaling, since it loses a small variation about a large mean.
    train, validation, test = ((x.astype(np.float32), y.astype(np.float32)) for x, y in scaled(list(sets), scaling))
    best: _Fitted | None = None
    for critic, config in candidates:
        # At least four blocks, so that there is a standard error.
        num_pairs = min(config.num_pairs, len(train[0]), len(validation[0]), len(test[0]) // 4)
        if not estimator.conditional:
            check_critic(critic, estimator, num_pairs, standardized=scaling is not False)
        contrasted = min(config.test_pairs, len(test[0]) // 4) or num_pairs
        config = dataclasses.replace(config, num_pairs=num_pairs, test_pairs=contrasted)
        found = fit_and_evaluate(train, validation, test, estimator, critic, config, seed, progress)
        if best is None or found.objective > best.held_out.objective:
            best = _Fitted(found, contrasted, critic.name)
    assert best is not None
    values = np.concatenate([best.held_out.values, best.held_out.trained_values])
    if not np.isfinite(values).all():
        raise UserError(f"{estimator.name} is {values.mean()}: its scores overflow; set the critic's clamp (say 20)")
    return best


def _combine(estimator: Estimator, fits: Sequence[_Fitted]) -> Estimate:
    """The mean over the blocks of all fits, with its standard error (see Estimate)."""
    contrasted, values = fits[0].contrasted, np.concatenate([fit.held_out.values for fit in fits])
    pairs = len(values) * contrasted
    # Initial critics give 0 on every block, whose spread says nothing: here that of trained ones replaces it.
    spread = np.std(np.concatenate([fit.held_out.trained_values for fit in fits]), ddof=1)
    errors = [1 / pairs, spread / len(values) ** 0.5]
    if len(fits) > 1:
        errors.append(np.std([fit.held_out.values.mean() for fit in fits], ddof=1) / len(fits) ** 0.5)
    return Estimate(
        estimator.name,
        float(values.mean()),
        float(max(errors)),
        estimator.direction,
        estimator.cap(contrasted),
        pairs,
        contrasted,
        tuple(fits[0].held_out.curve),
        tuple(fit.critic for fit in fits),
    )


def estimate(
    x: np.ndarray,
    y: np.ndarray,
    *,
    estimator: str = "infonce",
    critic: str | CriticConfig = "auto",
    seed: int = 0,
    num_pairs: int | None = None,
    steps: int = 2000,
    learning_rate: float | None = None,
    standardize: Scaling = "ranks",
    refits: int | None = None,
    **settings: float | str,
) -> Estimate:
    """I(X;Y) of paired samples x [N, D] (or [N]) and y [N, E], in nats.

    Of N pairs, in an order drawn from the seed, 60% are training pairs of the network, 15% validation pairs and 25%
    test pairs. Each refit takes another quarter as its test pairs; ksg and cca take all at once.

    estimator: infonce nwj tuba interpolated dv mine js smile (with a critic), club leave_one_out (with a Gaussian
      q(y|x)), ksg cca (neither).
    critic: "auto" fits a quadratic, a concat and a separable critic (CANDIDATES; concat where its activations take at
      most 1 GiB) and takes that with the highest objective on the validation pairs, in each refit. Otherwise a name or
      a configuration.
    num_pairs: pairs that are contrasted at a time. None: 128; with critic="auto" a quarter of the test pairs, at most
      1,024, in the estimate that is reported, where infonce then misses less of the truth and has a higher cap.
    steps: at most; a fit ends early when the validation pairs show no improvement.
    learning_rate: None: that of the candidate, and 2e-3 for a critic that is given.
    standardize: "ranks" maps each column to normal scores, under which mutual information does not change and heavy
      tails do no harm; True scales it to mean 0 and variance 1; False leaves it. All are fitted to the training pairs.
    refits: 1 to 4. None: 4, and 1 for a critic that is given.
    settings: axis of infonce, alpha of interpolated, tau of smile, decay of mine, or those of a registered estimator.

    Raises UserError for input that cannot be read, naming it.
    """
    fitted = _find_fitted(estimator, settings)
    check_scaling(standardize)
    if isinstance(critic, str) and critic != "auto":
        critic = CriticConfig(critic)
    if seed < 0:
        raise UserError(f"seed is {seed}: it must be at least 0")
    if refits is not None and not 1 <= refits <= _REFITS:
        raise UserError(f"refits is {refits}: each has another quarter of the pairs as test pairs, so 1 to {_REFITS}")
    x, y = check_features(x, y)
    narrow = min(x.shape[1], y.shape[1])
    if isinstance(critic, CriticConfig) and critic.normalization == "layer" and narrow < _LAYER_DIMS:
        raise UserError(f"critic normalization layer removes two of {narrow} dimensions: choose none")
    order = np.random.default_rng(seed).permutation(len(x))
    if fitted is None:
        return _nonparametric(x[order], y[order], estimator)
    if len(x) < 32 or (num_pairs is not None and num_pairs < 2):
        at_a_time = "" if num_pairs is None else f", {num_pairs} at a time"
        raise UserError(f"{estimator} on {len(x)} samples{at_a_time}: give at least 32 samples and 2 pairs")
    config = FitConfig(num_pairs or _NUM_PAIRS, steps)
    if critic == "auto" and num_pairs is None and not fitted.conditional:
        config = dataclasses.replace(config, test_pairs=_MAX_TEST_PAIRS)
    candidates = _candidates(fitted, critic, config, learning_rate)
    refits = refits or (_REFITS if critic == "auto" else 1)
    first, second = round(_FIT * len(x)), round((_FIT + _VALIDATION) * len(x))
    fits = []
    total = refits * len(candidates) * steps
    with tqdm(total=total, desc=estimator, unit="step", leave=False, disable=None, delay=_BAR_DELAY) as bar:
        for refit in range(refits):
            rows = np.roll(order, refit * (len(x) - second))
            parts = rows[:first], rows[first:second], rows[second:]
            sets = [(x[part], y[part]) for part in parts]
            # seed + refit: other initial parameters and another order of the batches.
            fits.append(_fit(sets, fitted, candidates, seed + refit, standardize, bar.update))
    return _combine(fitted, fits)


def _candidates(
    estimator: Estimator, critic: str | CriticConfig, config: FitConfig, learning_rate: float | None
) -> list[tuple[CriticConfig, FitConfig]]:
    """The critics to choose from, each with its fit; a conditional estimator has no critic but an MLP to q(y|x)."""
    if isinstance(critic, CriticConfig):
        choices = [Candidate(critic, _CRITIC_RATE)]
    elif estimator.conditional:
        choices = [Candidate(CriticConfig(), _CRITIC_RATE)]
    else:
        choices = [each for each in CANDIDATES if pairwise_bytes(each.critic, config.num_pairs) <= PAIRWISE_BYTES]
        config = dataclasses.replace(config, warmup=_WARMUP)
    rates = [each.learning_rate if learning_rate is None else learning_rate for each in choices]
    return [
        (each.critic, dataclasses.replace(config, learning_rate=rate))
        for each, rate in zip(choices, rates, strict=True)
    ]


def _nonparametric(x: np.ndarray, y: np.ndarray, name: str) -> Estimate:
    """On all pairs, with the standard error of the mean of disjoint subsets."""
    function = NONPARAMETRIC[name]
    needed = _SUBSETS * (4 if name == "ksg" else x.shape[1] + y.shape[1] + 1)
    if len(x) < needed:
        raise UserError(
            f"{name} on {len(x)} samples of {x.shape[1]} and {y.shape[1]} dimensions: give at least {needed}"
        )
    dims = x.shape[1] + y.shape[1]
    if name == "ksg" and dims > TREE_DIMS:
        warnings.warn(
            f"ksg of {dims} dimensions is far below the truth (of 2 nats in 40 dimensions it finds 0.5): take an "
            "estimator with a critic, or cca for Gaussian data",
            stacklevel=3,
        )
    value = function(x, y)
    subsets = [function(x[i::_SUBSETS], y[i::_SUBSETS]) for i in range(_SUBSETS)]
    error = float(np.std(subsets, ddof=1) / _SUBSETS**0.5)
    return Estimate(name, value, error, "neither", math.inf, len(x), len(x), ())
