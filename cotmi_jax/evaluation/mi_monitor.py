"""Held-out mutual information of a student and of its initial weights: I(Z;V), I(X;Z) and I(Z;Y).

Z and V are the mean decoder states of the label and of the rationale task, whatever the features of the training term,
so that runs with different terms, or with none, are comparable. X is the mean encoder state of the input. Z and V are
functions of one input, which identifies the pair, so that the estimate of I(Z;V) of a student with random weights is
already near the cap: only its difference to that of the initial weights is informative. Critics are fitted, stopped and
evaluated on different parts of the held-out examples, since features of train examples are distributed otherwise.
Imports no tensorflow.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.data.tokens import Batch, TokenizedSplit
from cotmi_jax.data.vocabulary import PAD_ID
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.batches import by_length
from cotmi_jax.mi.estimate import Estimate, estimate
from cotmi_jax.mi.estimators import make_estimator
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives import pooling
from cotmi_jax.objectives.forward import Heads, forward
from cotmi_jax.parallel.sharding import replicated

Features = dict[str, np.ndarray]  # "z", "v", "x", "first", "y": [N, D]
Estimates = dict[str, Estimate]  # by estimator, I(Z;V); X_Z and Z_Y
X_Z, Z_Y = "x_z", "z_y"
MIN_PAIRS = 32  # held out: four blocks of two, a quarter of the pairs
_REFITS = 3
_LABEL_DIMS = 64


@dataclasses.dataclass(frozen=True)
class HeldOutEstimate:
    """An estimate, and the same with the initial weights of the run, in nats."""

    now: Estimate
    initial: Estimate

    @property
    def change(self) -> float:
        """By how much training changed it."""
        return self.now.value - self.initial.value

    @property
    def change_error(self) -> float:
        """Standard error of the change; the errors of the two are added as of independent estimates."""
        return float(np.hypot(self.now.standard_error, self.initial.standard_error))

    def summary(self) -> dict[str, Any]:
        """JSON values."""
        sides = {"now": _plain(self.now), "initial": _plain(self.initial)}
        return sides | {"change": self.change, "change_error": self.change_error}

    @property
    def description(self) -> str:
        """The change, then the levels: "+0.198 ± 0.070 nats since the initial weights: 3.009 to ≥ 3.207 ± 0.050 …"."""
        change = f"{self.change:+.3f} ± {self.change_error:.3f} nats since the initial weights"
        return f"{change}: {self.initial.value:.3f} to {self.now.description}"


def _plain(found: Estimate) -> dict[str, Any]:
    fields = dataclasses.asdict(found)
    return fields | {"cap": found.cap if np.isfinite(found.cap) else None, "saturation": found.saturation}


def estimator_names(config: ConfigDict) -> list[str]:
    """The estimators of config.mi.monitor. Raises UserError for an unknown one."""
    names = [name.strip() for name in config.mi.monitor.estimators.split(",") if name.strip()]
    for name in names:
        make_estimator(name)
    return names


def check_monitor(config: ConfigDict) -> None:
    """Raises UserError for a monitor that names unknown estimators."""
    try:
        estimator_names(config)
    except UserError as error:
        raise UserError(f"config.mi.monitor.estimators {config.mi.monitor.estimators!r}: {error}") from error


def draw_rows(ids: Sequence[str], count: int, seed: int) -> np.ndarray:
    """At most `count` rows of a split, drawn with the seed, of each component its share.

    ids: of the examples; up to the first "/" they name the component. A file's order puts related examples together.
    """
    draw, count = np.random.default_rng(seed), min(count, len(ids))
    component_N = np.unique([each.partition("/")[0] for each in ids], return_inverse=True)[1]
    order = draw.permutation(len(ids))
    # The k-th of n rows of a component comes at (k + a random part) / n of the way: the first rows hold all shares.
    place_N = np.empty(len(ids))
    for component in np.unique(component_N):
        rows = order[component_N[order] == component]
        place_N[rows] = (np.arange(len(rows)) + draw.random(len(rows))) / len(rows)
    return np.argsort(place_N, kind="stable")[:count]


class MIMonitor:
    """Held-out estimates of students of one shape; features are compiled once per padded shape."""

    def __init__(self, student: StudentDef, config: ConfigDict, mesh: Mesh, *, batch_size: int):
        self._config, self._mesh, self._batch_size = config, mesh, batch_size
        self._estimators, self._vocab_size = estimator_names(config), student.config.vocab_size

        def states(params: Params, batch: Batch) -> dict[str, Array]:
            outputs = forward(student.bind(params), batch, None, (PREDICT, EXPLAIN), Heads())
            label, rationale = (outputs[task].states for task in (PREDICT, EXPLAIN))
            pooled = {
                "z": pooling.mean(label.states_RxTxD, label.target_RxNxT),
                "v": pooling.mean(rationale.states_RxTxD, rationale.target_RxNxT),
                "x": pooling.mean(label.encoded_RxSxD, label.input_RxNxS),
                "first": pooling.first(label.states_RxTxD, label.target_RxNxT),
            }
            return {name: feature[:, 0] for name, feature in pooled.items()}

        self._states = jax.jit(states, out_shardings=replicated(mesh))

    def features(self, params: Params, split: TokenizedSplit, rows_N: np.ndarray) -> Features:
        """Z, V, X, Z₁ and the label of some of a split's examples, float32 [N, …]."""
        features: Features = {}
        for batch, places in by_length(split, rows_N, self._batch_size, self._mesh):
            for name, feature_BxD in jax.device_get(self._states(params, batch)).items():
                feature_NxD = features.setdefault(name, np.zeros((len(rows_N), feature_BxD.shape[1]), np.float32))
                feature_NxD[places[places >= 0]] = feature_BxD[places >= 0]
        labels = split.tasks[PREDICT].targets
        codes = label_features(labels.padded(rows_N, split.target_lengths[PREDICT]), self._vocab_size)
        return features | {"y": codes}

    def read(self, params: Params, split: TokenizedSplit, rows_N: np.ndarray) -> Estimates:
        """Every estimate on rows of a held-out split. Raises UserError for fewer than MIN_PAIRS rows."""
        if len(rows_N) < MIN_PAIRS:
            raise UserError(f"mutual information of {len(rows_N)} held-out examples: at least {MIN_PAIRS} are needed")
        features = self.features(params, split, rows_N)
        found = {name: self._estimate(name, features["z"], features["v"]) for name in self._estimators}
        found[X_Z] = self._estimate("infonce", features["x"], features["first"])
        found[Z_Y] = self._estimate("infonce", features["first"], features["y"])
        return found

    def _estimate(self, name: str, a_NxD: np.ndarray, b_NxD: np.ndarray) -> Estimate:
        monitor = self._config.mi.monitor
        return estimate(
            *(a_NxD, b_NxD),
            estimator=name,
            critic=self._config.mi.critic.name,
            seed=self._config.seed,
            num_pairs=monitor.pairs,
            steps=monitor.steps,
            refits=_REFITS,
        )


def label_features(targets_NxT: np.ndarray, vocab_size: int) -> np.ndarray:
    """A fixed random code of each label [N, 64]: the sum of its tokens' codes with signs by position.

    It is a function of the label, so its mutual information with any variable is at most that of the label.
    """
    draw = np.random.default_rng(0)
    code_VxC = draw.normal(size=(vocab_size, _LABEL_DIMS)).astype(np.float32)
    sign_TxC = draw.choice([-1.0, 1.0], (targets_NxT.shape[1], _LABEL_DIMS)).astype(np.float32)
    coded_NxTxC = np.where((targets_NxT != PAD_ID)[..., None], code_VxC[targets_NxT] * sign_TxC[None], 0.0)
    return coded_NxTxC.sum(axis=1)
