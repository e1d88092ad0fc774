"""The estimators by name, with what a reader of their values has to know. See bounds.py for the formulas."""

import dataclasses
import math
from typing import Literal

from jax import Array

from cotmi_jax.errors import UserError
from cotmi_jax.mi import bounds
from cotmi_jax.mi.bounds import Axis, Bound, MineState

Direction = Literal["lower", "upper", "neither"]
SCORED = ("infonce", "nwj", "tuba", "interpolated", "dv", "mine", "js", "smile")


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An estimator that reads critic scores, with its settings.

    direction: of its value in expectation: a lower bound, an upper bound, or neither.
    origin: the score that the critic for which it is tight gives where the density ratio is 1.
    baseline: whether it needs a(v) beside the scores. stateful: whether it carries a MineState.
    exponentiates: whether e^f enters its gradient unnormalized, so that scores want a soft clamp.
    """

    name: str
    direction: Direction
    baseline: bool = False
    stateful: bool = False
    exponentiates: bool = False
    origin: float = 0.0
    axis: Axis = "row"  # infonce
    alpha: float = 0.01  # interpolated
    tau: float = 5.0  # smile
    decay: float = 0.99  # mine

    def cap(self, num_pairs: int) -> float:
        """The highest value that num_pairs pairs can give, in nats; inf for most."""
        match self.name:
            case "infonce":
                return math.log(num_pairs)
            case "interpolated":
                return math.log(num_pairs / self.alpha) + 1.0
        return math.inf

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
        """The bound of a batch, and the state after it. Only `tuba` reads baseline_K, only `mine` the state."""
        match self.name:
            case "infonce":
                return bounds.infonce(score_KxK, valid_K, positive_K=positive_K, axis=self.axis), state
            case "tuba" if baseline_K is not None:
                return bounds.tuba(score_KxK, baseline_K, valid_K, positive_K=positive_K), state
            case "interpolated":
                return bounds.interpolated(score_KxK, valid_K, positive_K=positive_K, alpha=self.alpha), state
            case "smile":
                return bounds.smile(score_KxK, valid_K, positive_K=positive_K, tau=self.tau), state
            case "mine" if state is not None:
                return bounds.mine(score_KxK, state, valid_K, positive_K=positive_K, decay=self.decay)
            case "nwj" | "dv" | "js":
                return getattr(bounds, self.name)(score_KxK, valid_K, positive_K=positive_K), state
        raise ValueError(f"{self.name} needs {'a state' if self.stateful else 'a baseline'}")


ESTIMATORS: dict[str, Estimator] = {
    estimator.name: estimator
    for estimator in (
        Estimator("infonce", "lower"),
        Estimator("nwj", "lower", exponentiates=True, origin=1.0),
        Estimator("tuba", "lower", baseline=True, exponentiates=True),
        Estimator("interpolated", "lower"),
        Estimator("dv", "neither", exponentiates=True),
        Estimator("mine", "neither", stateful=True, exponentiates=True),
        Estimator("js", "lower"),
        Estimator("smile", "neither"),
        Estimator("club", "upper"),
        Estimator("leave_one_out", "upper"),
    )
}


def make_estimator(
    name: str, *, axis: Axis = "row", alpha: float = 0.01, tau: float = 5.0, decay: float = 0.99
) -> Estimator:
    """A scored estimator with its settings. Raises UserError for a name or a value that does not exist."""
    if name not in SCORED:
        raise UserError(f"unknown estimator {name!r}: choose one of {', '.join(SCORED)}")
    if axis not in ("row", "column", "symmetric"):
        raise UserError(f"axis {axis!r} of infonce: choose row, column or symmetric")
    for what, value, low, high in (("alpha", alpha, 0.0, 1.0), ("decay", decay, 0.0, 1.0), ("tau", tau, 0.0, 80.0)):
        if not low < value < high:
            raise UserError(f"{what} is {value}: it lies between {low:g} and {high:g}")
    return dataclasses.replace(ESTIMATORS[name], axis=axis, alpha=alpha, tau=tau, decay=decay)
