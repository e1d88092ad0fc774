"""What training changed in a student: estimates on a held-out split, and those of its initial weights."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.data.example import Example
from cotmi_jax.data.tokens import TokenizedSplit
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.counterfactual_monitor import (
    MIN_EXAMPLES,
    CounterfactualEstimates,
    CounterfactualMonitor,
    PairedFeatures,
    PairedSplits,
    pair_splits,
    read_counterfactuals,
)
from cotmi_jax.evaluation.mi_monitor import MIN_PAIRS, X_Z, Z_Y, Estimates, HeldOutEstimate, MIMonitor, draw_rows
from cotmi_jax.models.student import Params, StudentDef

_QUANTITIES = {X_Z: "held-out I(X;Z)", Z_Y: "held-out I(Z;Y)"}  # all others: I(Z;V)


class WeightEstimates(NamedTuple):
    """All estimates of one set of weights; within is None where too few examples have a counterfactual."""

    by_name: Estimates
    within: CounterfactualEstimates | None


@dataclasses.dataclass(frozen=True)
class HeldOutEstimates:
    """Estimates of the student and of its initial weights, in nats.

    estimates: by an estimator of I(Z;V), and x_z and z_y, InfoNCE between X and Z₁ and between Z₁ and the label, where
    Z₁ is the first decoder state, which depends on no label token. within, within_initial: on counterfactual pairs;
    None if too few examples have one. not_available: why there are no estimates, if there are none.
    """

    estimates: Mapping[str, HeldOutEstimate]
    within: CounterfactualEstimates | None = None
    within_initial: CounterfactualEstimates | None = None
    not_available: str = ""

    @classmethod
    def of(cls, now: WeightEstimates, initial: WeightEstimates) -> "HeldOutEstimates":
        """From the estimates of the student and of its initial weights."""
        estimates = {name: HeldOutEstimate(found, initial.by_name[name]) for name, found in now.by_name.items()}
        return cls(estimates, now.within, initial.within)

    def metrics(self) -> dict[str, float]:
        """By name, for a run's metrics."""
        flat: dict[str, float] = {}
        for name, estimate in self.estimates.items():
            flat |= {f"mi/{name}": estimate.now.value, f"mi/{name}_error": estimate.now.standard_error}
            flat[f"mi/{name}_initial"] = estimate.initial.value
            flat |= {f"mi/{name}_change": estimate.change, f"mi/{name}_change_error": estimate.change_error}
        if self.within is not None and self.within_initial is not None:
            flat |= self.within.metrics()
            initial = self.within_initial.metrics()
            flat |= {f"{name}_initial": initial[name] for name in ("mi/within", "mi/contradiction_auc")}
        return flat

    def summary(self) -> dict[str, Any]:
        """JSON values for a results file."""
        if self.not_available:
            return {"not_available": self.not_available}
        found: dict[str, Any] = {name: estimate.summary() for name, estimate in self.estimates.items()}
        if self.within is not None and self.within_initial is not None:
            found["within"] = {"now": self.within.summary(), "initial": self.within_initial.summary()}
        return found

    def lines(self) -> list[tuple[str, str]]:
        """(quantity, description) as text."""
        if self.not_available:
            return [("held-out I(Z;V)", f"not available: {self.not_available}")]
        lines = [(_QUANTITIES.get(name, "held-out I(Z;V)"), each.description) for name, each in self.estimates.items()]
        if self.within is None or self.within_initial is None:
            return [*lines, ("held-out I(Z;V|X)", f"not available: fewer than {2 * MIN_EXAMPLES} counterfactuals")]
        return [*lines, *self.within.lines(self.within_initial)]

    def errors(self) -> list[tuple[str, str]]:
        """What the ± of the lines covers, as text."""
        if self.not_available:
            return []
        covered = "one standard error over held-out pairs and refits of the critic"
        if self.within is not None:
            covered += "; of I(Z;V|X) half of the 95% interval over clusters of examples and refits"
        return [("what ± covers", f"{covered}; no other training run")]


@dataclasses.dataclass
class SplitMonitor:
    """The monitors of one split. Its initial weights are read when they are first needed, and once.

    rows_N: of the split, for I(Z;V), I(X;Z) and I(Z;Y). make_pairs: gives the examples with counterfactuals, None if
    there are none; one half, by context, serves the fit of critics, the other the estimates. initial: gives the
    parameters before the first step; it raises UserError where they are not at hand.
    """

    monitor: MIMonitor
    paired_monitor: CounterfactualMonitor
    split: TokenizedSplit
    rows_N: np.ndarray
    make_pairs: Callable[[], PairedSplits | None]
    initial: Callable[[], Params]
    seed: int
    _initial: WeightEstimates | None = None

    @classmethod
    def of(
        cls,
        student: StudentDef,
        config: ConfigDict,
        vocabulary: Vocabulary,
        mesh: Mesh,
        split: TokenizedSplit,
        examples: Sequence[Example],
        initial: Callable[[], Params],
        *,
        batch_size: int,
    ) -> "SplitMonitor":
        """Of at most config.mi.monitor.examples examples, drawn with config.seed.

        Raises UserError for fewer than MIN_PAIRS.
        """
        limit, seed = config.mi.monitor.examples, config.seed
        rows_N = draw_rows([example.id for example in examples], limit, seed)
        if len(rows_N) < MIN_PAIRS:
            raise UserError(f"{len(rows_N)} examples, at least {MIN_PAIRS} are needed")
        make_pairs = functools.partial(pair_splits, examples, vocabulary, config, limit=limit, seed=seed)
        monitor = MIMonitor(student, config, mesh, batch_size=batch_size)
        paired = CounterfactualMonitor(student, mesh, batch_size=batch_size)
        return cls(monitor, paired, split, rows_N, make_pairs, initial, seed)

    @functools.cached_property
    def pairs(self) -> PairedSplits | None:
        """Examples with counterfactuals; None if they are too few. Tokenized when they are first needed."""
        found = self.make_pairs()
        if found is None or np.bincount(found.cluster_N % 2, minlength=2).min() < MIN_EXAMPLES:
            return None
        return found

    def read(self, params: Params) -> WeightEstimates:
        """All estimates of a student's weights."""
        within = None
        if self.pairs is not None:
            features = self.paired_monitor.features(params, self.pairs)
            # By cluster: examples that share a context are all in one half.
            is_fitting_N = features.cluster_N % 2 == 0
            fitting, test = (PairedFeatures(*(x[rows_N] for x in features)) for rows_N in (is_fitting_N, ~is_fitting_N))
            within = read_counterfactuals(fitting, test, self.seed)
        return WeightEstimates(self.monitor.read(params, self.split, self.rows_N), within)

    def measure(self, params: Params) -> HeldOutEstimates:
        """The estimates of a student and of its initial weights."""
        if self._initial is None:
            try:
                params_at_start = self.initial()
            except UserError as error:
                return HeldOutEstimates({}, not_available=f"the initial weights cannot be read: {error}")
            self._initial = self.read(params_at_start)
        return HeldOutEstimates.of(self.read(params), self._initial)
