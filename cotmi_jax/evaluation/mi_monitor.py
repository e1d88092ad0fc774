"""Held-out mutual information of a student: I(Z;V) between its two tasks, and its place in the information plane.

Z and V are the mean decoder states of the label and of the rationale task, whatever the features of the training term,
so that runs with different terms, or with none, are comparable. X is the mean encoder state of the input. A critic is
fitted on train examples, stopped early on others of them, and evaluated on the held-out split. Imports no tensorflow.
"""

import dataclasses
import functools
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
from cotmi_jax.mi.estimate import Estimate, estimate_splits
from cotmi_jax.mi.estimators import make_estimator
from cotmi_jax.mi.fitting import FitConfig
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives import pooling
from cotmi_jax.objectives.forward import Heads, forward
from cotmi_jax.parallel.sharding import replicated

Features = dict[str, np.ndarray]  # "z", "v", "x", "first", "y": [N, D]
MIN_PAIRS = 8  # held out: two at a time, four times
_VALIDATION = 0.2  # fraction of the train examples for early stopping
_FIT = FitConfig(every=25, patience=4)
_LABEL_DIMS = 64


@dataclasses.dataclass(frozen=True)
class HeldOutEstimates:
    """The monitor's estimates, in nats.

    between: by estimator, I(Z;V) and, as a control, the same procedure on permuted pairs, whose true value is 0. plane:
    "x_z" and "z_y", InfoNCE between X and Z₁ and between Z₁ and the label, where Z₁ is the first decoder state, which
    depends on no label token.
    """

    between: dict[str, tuple[Estimate, Estimate]]
    plane: dict[str, Estimate]

    def metrics(self) -> dict[str, float]:
        """By name, for a run's metrics."""
        flat: dict[str, float] = {}
        for name, (found, control) in self.between.items():
            flat |= {f"mi/{name}": found.value, f"mi/{name}_error": found.standard_error}
            flat[f"mi/{name}_control"] = control.value
        for name, found in self.plane.items():
            flat |= {f"mi/plane_{name}": found.value, f"mi/plane_{name}_error": found.standard_error}
        return flat

    def summary(self) -> dict[str, Any]:
        """JSON values for a results file."""

        def plain(found: Estimate) -> dict[str, Any]:
            fields = dataclasses.asdict(found)
            return fields | {"cap": found.cap if np.isfinite(found.cap) else None, "saturation": found.saturation}

        between = {name: plain(found) | {"control": plain(control)} for name, (found, control) in self.between.items()}
        return {"between": between, "plane": {name: plain(found) for name, found in self.plane.items()}}

    def lines(self) -> list[tuple[str, str]]:
        """(quantity, description) as text."""
        lines = []
        for found, control in self.between.values():
            lines.append(("held-out I(Z;V)", f"{found.description}; permuted pairs {control.amount}"))
        names = {"x_z": "held-out I(X;Z)", "z_y": "held-out I(Z;Y)"}
        return lines + [(names[name], found.description) for name, found in self.plane.items()]


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


def fitting_rows(size: int, config: ConfigDict) -> np.ndarray:
    """Rows of the train examples that critics are fitted and stopped on."""
    return np.random.default_rng(config.seed).permutation(size)[: config.mi.monitor.examples]


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

    def measure(
        self, params: Params, train: TokenizedSplit, rows_N: np.ndarray, held_out: TokenizedSplit, limit: int = 0
    ) -> HeldOutEstimates:
        """Fit on rows of train, evaluate on the first `limit` examples (0: all) of a held-out split.

        Raises UserError where that is fewer than MIN_PAIRS examples.
        """
        size = min(held_out.size, limit or held_out.size)
        if min(size, len(rows_N)) < MIN_PAIRS:
            raise UserError(
                f"mutual information of {size} held-out examples, fitted on {len(rows_N)}: at least {MIN_PAIRS} of each"
            )
        fitting = self.features(params, train, rows_N)
        test = self.features(params, held_out, np.arange(size))
        estimate = functools.partial(self._estimate, fitting=fitting, test=test)
        between = {
            name: (estimate(name, sides=("z", "v")), estimate(name, sides=("z", "v"), permute=True))
            for name in self._estimators
        }
        plane = {"x_z": estimate("infonce", sides=("x", "first")), "z_y": estimate("infonce", sides=("first", "y"))}
        return HeldOutEstimates(between, plane)

    def _estimate(
        self, name: str, *, fitting: Features, test: Features, sides: tuple[str, str], permute: bool = False
    ) -> Estimate:
        monitor, draw, (a, b) = self._config.mi.monitor, np.random.default_rng(self._config.seed), sides
        stop = round(_VALIDATION * len(fitting[a]))
        sets = [(fitting[a][stop:], fitting[b][stop:]), (fitting[a][:stop], fitting[b][:stop]), (test[a], test[b])]
        if permute:
            sets = [(left, draw.permutation(right)) for left, right in sets]
        return estimate_splits(
            *sets,
            estimator=make_estimator(name),
            critic=CriticConfig(self._config.mi.critic.name),
            config=dataclasses.replace(_FIT, num_pairs=monitor.pairs, steps=monitor.steps),
            seed=self._config.seed,
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
