"""Mutual information between two arrays of paired samples."""

import dataclasses
import math

import numpy as np

from cotmi_jax.errors import UserError
from cotmi_jax.mi.critics import check_critic
from cotmi_jax.mi.estimators import ESTIMATORS, Direction, Estimator, make_estimator
from cotmi_jax.mi.fitting import FitConfig, Pairs, fit_and_evaluate
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.mi.nonparametric import cca, ksg

NONPARAMETRIC = {"ksg": ksg, "cca": cca}
_LAYER_DIMS = 8  # layer normalization removes two dimensions of a vector: too many of fewer than these
_FIT, _VALIDATION = 0.6, 0.15  # fractions of the pairs; the rest is the test set
_SUBSETS = 10  # into which a non-parametric estimate is split for its standard error


@dataclasses.dataclass(frozen=True)
class Estimate:
    """I(X;Y) in nats by one estimator, from `pairs` test pairs, to which its network was not fitted.

    direction: whether the expectation of the value is a lower bound, an upper bound or neither. cap: the highest value
    it can take with this many pairs at a time (inf: none). curve: (step, value on the validation pairs) along the fit.
    """

    estimator: str
    value: float
    standard_error: float
    direction: Direction
    cap: float
    pairs: int
    contrasted: int  # pairs at a time
    curve: tuple[tuple[int, float], ...]

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


def _standardized(sets: list[Pairs]) -> list[Pairs]:
    """Every column to mean 0 and variance 1 of the first set of pairs; a column that is constant there becomes 0."""
    scaled = []
    for side in (0, 1):
        mean, std = sets[0][side].mean(axis=0), sets[0][side].std(axis=0)
        scale = np.where(std > 1e-6 * max(float(std.max()), 1e-30), 1.0 / np.where(std == 0, 1.0, std), 0.0)
        scaled.append([(pairs[side] - mean) * scale for pairs in sets])
    return list(zip(*scaled, strict=True))


def _find_fitted(name: str, settings: dict[str, float | str]) -> Estimator | None:
    """The estimator whose network is fitted; None for one without a network."""
    if name in NONPARAMETRIC:
        if settings:
            raise UserError(f"{name} does not take {', '.join(settings)}: it has no settings, leave them out")
        return None
    if name not in ESTIMATORS:
        raise UserError(f"unknown estimator {name!r}: choose one of {', '.join((*ESTIMATORS, *NONPARAMETRIC))}")
    return make_estimator(name, **settings)


def estimate_splits(
    train: Pairs,
    validation: Pairs,
    test: Pairs,
    *,
    estimator: Estimator,
    critic: CriticConfig,
    config: FitConfig,
    seed: int,
    standardize: bool = True,
) -> Estimate:
    """Fit on the training pairs with early stopping on the validation pairs; the estimate is that of the test pairs."""
    sets = [train, validation, test]
    if standardize:
        sets = _standardized(sets)
    # After standardization, since float32 loses a small variation about a large mean.
    train, validation, test = ((x.astype(np.float32), y.astype(np.float32)) for x, y in sets)
    # At least four blocks, so that there is a standard error.
    num_pairs = min(config.num_pairs, len(train[0]), len(validation[0]), len(test[0]) // 4)
    if not estimator.conditional:
        check_critic(critic, estimator, num_pairs, standardized=standardize)
    config = dataclasses.replace(config, num_pairs=num_pairs)
    held_out = fit_and_evaluate(train, validation, test, estimator, critic, config, seed)
    if not np.isfinite(held_out.values).all():
        raise UserError(
            f"{estimator.name} is {held_out.values.mean()}: its scores overflow; set the critic's clamp (say 20)"
        )
    error = float(held_out.values.std(ddof=1) / len(held_out.values) ** 0.5)
    return Estimate(
        estimator.name,
        float(held_out.values.mean()),
        error,
        estimator.direction,
        estimator.cap(num_pairs),
        len(held_out.values) * num_pairs,
        num_pairs,
        tuple(held_out.curve),
    )


def estimate(
    x: np.ndarray,
    y: np.ndarray,
    *,
    estimator: str = "infonce",
    critic: str | CriticConfig = "separable",
    seed: int = 0,
    num_pairs: int = 128,
    steps: int = 2000,
    learning_rate: float = 2e-3,
    standardize: bool = True,
    **settings: float | str,
) -> Estimate:
    """I(X;Y) of paired samples x [N, D] (or [N]) and y [N, E], in nats.

    estimator: infonce nwj tuba interpolated dv mine js smile (with a critic), club leave_one_out (with a Gaussian
    q(y|x)), ksg cca (neither). Of N pairs, in an order drawn from the seed, 60% are training pairs of the network, 15%
    validation pairs and 25% test pairs, num_pairs at a time; ksg and cca take all. settings: axis of infonce, alpha of
    interpolated, tau of smile, decay of mine, or those of a registered estimator. Raises UserError for input that
    cannot be read, naming it.
    """
    fitted = _find_fitted(estimator, settings)
    if isinstance(critic, str):
        critic = CriticConfig(critic)
    if seed < 0:
        raise UserError(f"seed is {seed}: it must be at least 0")
    x, y = check_features(x, y)
    narrow = min(x.shape[1], y.shape[1])
    if critic.normalization == "layer" and narrow < _LAYER_DIMS:
        raise UserError(f"critic normalization layer removes two of {narrow} dimensions: choose none")
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order], y[order]
    if fitted is None:
        return _nonparametric(x, y, estimator)
    if len(x) < 32 or num_pairs < 2:
        raise UserError(f"{estimator} on {len(x)} samples, {num_pairs} at a time: give at least 32 samples and 2 pairs")
    first, second = round(_FIT * len(x)), round((_FIT + _VALIDATION) * len(x))
    sets = [(x[rows], y[rows]) for rows in (slice(first), slice(first, second), slice(second, None))]
    return estimate_splits(
        *sets,
        estimator=fitted,
        critic=critic,
        config=FitConfig(num_pairs, steps, learning_rate),
        seed=seed,
        standardize=standardize,
    )


def _nonparametric(x: np.ndarray, y: np.ndarray, name: str) -> Estimate:
    """On all pairs, with the standard error of the mean of disjoint subsets."""
    function = NONPARAMETRIC[name]
    needed = _SUBSETS * (4 if name == "ksg" else x.shape[1] + y.shape[1] + 1)
    if len(x) < needed:
        raise UserError(
            f"{name} on {len(x)} samples of {x.shape[1]} and {y.shape[1]} dimensions: give at least {needed}"
        )
    value = function(x, y)
    subsets = [function(x[i::_SUBSETS], y[i::_SUBSETS]) for i in range(_SUBSETS)]
    error = float(np.std(subsets, ddof=1) / _SUBSETS**0.5)
    return Estimate(name, value, error, "neither", math.inf, len(x), len(x), ())
