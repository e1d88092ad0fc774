"""The estimators by name, with what a user of their values has to know. See bounds.py for the formulas."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jax import Array

from cotmi_jax.errors import UserError
from cotmi_jax.mi import bounds
from cotmi_jax.mi.bounds import Bound, MineState

Direction = Literal["lower", "upper", "neither"]
BoundFunction = Callable[..., Any]  # a Bound, or (Bound, MineState) of a stateful estimator
CLAMP = 20.0  # soft clamp of scores, nats, recommended where e^f enters a gradient unnormalized


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting of an estimator with the values it may have: one of choices, or strictly between low and high.

    Raises UserError for another value.
    """

    value: float | str
    choices: tuple[str, ...] = ()
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if self.choices:
            if self.value not in self.choices:
                raise UserError(f"{self.value!r}: choose one of {', '.join(self.choices)}")
        elif isinstance(self.value, str) or not self.low < self.value < self.high:
            raise UserError(f"{self.value}: it must lie between {self.low:g} and {self.high:g}")


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An estimator with its settings, hashable.

    function: of bounds.py, or of its signature: (score_KxK, valid_K, *, positive_K, **settings) → Bound.
    direction: of its value in expectation: a lower bound, an upper bound, or neither.
    conditional: it takes log q(v|z) of a fitted Gaussian, not the scores of a critic.
    baseline: whether it needs a(v) as baseline_K. stateful: whether it carries a MineState.
    exponentiates: whether e^f enters its gradient unnormalized, so that scores need a soft clamp.
    origin: the score of an optimal critic where the density ratio is 1.
    highest: (num_pairs, **settings) → the highest value that num_pairs pairs can give, in nats, a constant plus
        log(num_pairs); None: unbounded.
    """

    name: str
    function: BoundFunction
    direction: Direction
    settings: tuple[tuple[str, Setting], ...] = ()
    conditional: bool = False
    baseline: bool = False
    stateful: bool = False
    exponentiates: bool = False
    origin: float = 0.0
    highest: Callable[..., float] | None = None

    @property
    def values(self) -> dict[str, float | str]:
        """The settings by name."""
        return {name: setting.value for name, setting in self.settings}

    def cap(self, num_pairs: int) -> float:
        """The highest value that num_pairs pairs can give, in nats; inf for most."""
        return math.inf if self.highest is None else self.highest(num_pairs, **self.values)

    def start(self) -> MineState | None:
        """The state before the first batch, for those that carry one."""
        return MineState.start() if self.stateful else None

    def __call__(
        self,
        score_KxK: Array,
        valid_K: Array | None = None,
        *,
        positive_K: Array | None = None,
        baseline_K: Array | None = None,
        state: MineState | None = None,
    ) -> tuple[Bound, MineState | None]:
        """The bound of a batch, and the state after it. ValueError without the baseline or the state that it needs."""
        options: dict[str, Any] = dict(self.values)
        if not self.conditional:
            options["positive_K"] = positive_K
        for needed, name, value in ((self.baseline, "baseline_K", baseline_K), (self.stateful, "state", state)):
            if needed and value is None:
                raise ValueError(f"{self.name} needs {name}")
            if needed:
                options[name] = value
        result = self.function(score_KxK, valid_K=valid_K, **options)
        return result if self.stateful else (result, state)


def _infonce_cap(num_pairs: int, axis: str) -> float:
    return math.log(num_pairs)


def _interpolated_cap(num_pairs: int, alpha: float) -> float:
    return math.log(num_pairs / alpha) + 1.0


_AXIS = (("axis", Setting("row", ("row", "column", "symmetric"))),)
_ALPHA, _TAU = (("alpha", Setting(0.01, low=0.0, high=1.0)),), (("tau", Setting(5.0, low=0.0, high=80.0)),)
_DECAY = (("decay", Setting(0.99, low=0.0, high=1.0)),)

ESTIMATORS: dict[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator("infonce", bounds.infonce, "lower", _AXIS, highest=_infonce_cap),
        Estimator("nwj", bounds.nwj, "lower", exponentiates=True, origin=1.0),
        Estimator("tuba", bounds.tuba, "lower", baseline=True, exponentiates=True),
        Estimator("interpolated", bounds.interpolated, "lower", _ALPHA, highest=_interpolated_cap),
        Estimator("dv", bounds.dv, "neither", exponentiates=True),
        Estimator("mine", bounds.mine, "neither", _DECAY, stateful=True, exponentiates=True),
        Estimator("js", bounds.js, "lower"),
        Estimator("smile", bounds.smile, "neither", _TAU),
        Estimator("club", bounds.club, "upper", conditional=True),
        Estimator("leave_one_out", bounds.leave_one_out, "upper", conditional=True),
    )
}
BUILT_IN = frozenset(ESTIMATORS)


def scored() -> tuple[str, ...]:
    """Names of the estimators that take the scores of a critic."""
    return tuple(name for name, estimator in ESTIMATORS.items() if not estimator.conditional)


def conditional() -> tuple[str, ...]:
    """Names of the estimators that take log q(v|z) of a Gaussian."""
    return tuple(name for name, estimator in ESTIMATORS.items() if estimator.conditional)


def register_estimator(
    name: str,
    *,
    direction: Direction,
    settings: Mapping[str, Setting] | None = None,
    baseline: bool = False,
    exponentiates: bool = False,
    origin: float = 0.0,
    highest: Callable[..., float] | None = None,
) -> Callable[[BoundFunction], BoundFunction]:
    """Decorator: make an estimator available to config.mi.estimator, config.mi.monitor.estimators and estimate().

    It scores pairs by a critic; arguments as of Estimator. It replaces an earlier one registered as `name`. Its
    settings have the defaults given here; config.mi.settings ("name=value", separated by commas) changes them.

    Raises:
      UserError: a built-in estimator has that name.
    """
    if name in BUILT_IN:
        raise UserError(f"estimator {name!r} is built in: register yours under another name")

    def register(function: BoundFunction) -> BoundFunction:
        ESTIMATORS[name] = Estimator(
            name,
            function,
            direction,
            tuple((settings or {}).items()),
            baseline=baseline,
            exponentiates=exponentiates,
            origin=origin,
            highest=highest,
        )
        return function

    return register


def make_estimator(name: str, **settings: float | str) -> Estimator:
    """An estimator with other settings than its defaults. UserError for an unknown name or setting or a bad value."""
    if name not in ESTIMATORS:
        raise UserError(f"unknown estimator {name!r}: choose one of {', '.join(ESTIMATORS)}")
    estimator = ESTIMATORS[name]
    declared = dict(estimator.settings)
    for setting, value in settings.items():
        if setting not in declared:
            rest = f"its settings are {', '.join(declared)}" if declared else "it has no settings"
            raise UserError(f"{name} does not take {setting}: {rest}, leave {setting} out")
        try:
            declared[setting] = dataclasses.replace(declared[setting], value=value)
        except UserError as error:
            raise UserError(f"{setting} of {name} is {error}") from None
    return dataclasses.replace(estimator, settings=tuple(declared.items()))


def parse_settings(text: str) -> dict[str, float | str]:
    """Settings as "name=value" separated by commas; numbers are floats. UserError for another form."""
    settings: dict[str, float | str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not (name.isidentifier() and equals and value) or name in settings:
            raise UserError(f"settings {text!r}: give each once as name=value, separated by commas")
        try:
            settings[name] = float(value)
        except ValueError:
            settings[name] = value
    return settings
