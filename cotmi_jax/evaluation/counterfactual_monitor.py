"""What the two tasks of a student know of each other beyond their input, read from counterfactual pairs.

Every held-out example has its own label and rationale (y⁺, r⁺) and a counterfactual pair (y⁻, r⁻) for the same input. Z
and V are the mean decoder states of the label and of the rationale task under teacher forcing. All four combinations
are scored, so that neither the input tells the pairs of an example apart, nor anything that labels alone or rationales
alone have, such as traces of the rule that wrote the counterfactual.

Z and V hold the text of the targets, so a critic finds agreement in the states of random weights too: compare with the
same estimate of the run's initial weights. The student's own likelihoods need no critic.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy import stats

from cotmi_jax.data.checks import context_of
from cotmi_jax.data.counterfactuals import counterfactuals, with_pair
from cotmi_jax.data.example import Example
from cotmi_jax.data.run_data import tokenize
from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.data.tokens import Batch, TokenizedSplit
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.batches import by_length
from cotmi_jax.evaluation.comparison import mean_interval
from cotmi_jax.evaluation.scores import Score, share_by_cluster
from cotmi_jax.mi.fitting import FitConfig
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.mi.within import Groups, HeldOutGroups, fit_within
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives import pooling
from cotmi_jax.objectives.forward import Heads, forward
from cotmi_jax.parallel.sharding import replicated

MIN_EXAMPLES = 20  # with counterfactuals, for a fit and for the test
REFITS = 3  # of the critic, with other initial parameters and batches
_VALIDATION = 0.2  # fraction of the fitting examples for early stopping
_FIT = FitConfig(num_pairs=512, steps=1000, every=25, patience=4)
# Of a concat critic with one and with two layers, a bilinear and a separable one, this gives the highest bound.
_CRITIC = CriticConfig("concat", hidden=256, layers=1)


class PairedSplits(NamedTuple):
    """Tokens of examples that have counterfactuals: row i of both splits has the same input.

    own: their own labels and rationales. other: those of a counterfactual. cluster_N: the context that related examples
    share, such as a premise, as a number.
    """

    own: TokenizedSplit
    other: TokenizedSplit
    cluster_N: np.ndarray


class PairedFeatures(NamedTuple):
    """Of N examples, with the own pair at index 0 and the counterfactual at 1.

    z_Nx2xD, v_Nx2xD: mean decoder states of label and rationale task. log_label_Nx2, log_rationale_Nx2: log-likelihoods
    of the whole targets in nats.
    """

    z_Nx2xD: np.ndarray
    v_Nx2xD: np.ndarray
    log_label_Nx2: np.ndarray
    log_rationale_Nx2: np.ndarray
    cluster_N: np.ndarray


@dataclasses.dataclass(frozen=True)
class CounterfactualEstimates:
    """Estimates of n held-out examples, each with its 95% interval over refits of the critic and clusters of examples.

    information: I(Z;V|X) in nats, a lower bound of at most log 2. control: the same procedure on pairs that are
      exchanged at random within each example, fitted for as many steps; a value above 0 shows a fault.
    contradiction: area under the curve of the critic's score, for telling a rationale that contradicts a label from one
      that agrees with it; 0.5 for scores without information.
    prefers_label, prefers_rationale: share of examples whose own label (or rationale) the student gives a higher
      likelihood than the counterfactual one.
    same_preference: share in which it prefers both or neither; by_chance: that share if the two were independent.
    """

    n: int
    information: Score
    control: Score
    contradiction: Score
    prefers_label: Score
    prefers_rationale: Score
    same_preference: Score
    by_chance: float

    def metrics(self) -> dict[str, float]:
        """By name, for a run's metrics; an error is half the width of the interval."""
        flat = {f"mi/{name}": float(score["value"]) for name, score in self._scores().items()}
        for name in ("within", "within_control", "contradiction_auc"):
            flat[f"mi/{name}_error"] = _half(self._scores()[name])
        return flat | {"mi/same_preference_by_chance": self.by_chance}

    def summary(self) -> dict[str, Any]:
        """JSON values for a results file."""
        return {"n": self.n, "by_chance": self.by_chance} | dict(self._scores())

    def lines(self, initial: "CounterfactualEstimates") -> list[tuple[str, str]]:
        """(quantity, description) as text, and the same estimates of the run's initial weights."""
        found, before, control = self.information, initial.information, self.control
        return [
            (
                "held-out I(Z;V|X)",
                f"≥ {found['value']:.3f} ± {_half(found):.3f} nats of at most {np.log(2):.3f}; initial weights "
                f"{before['value']:.3f} ± {_half(before):.3f}, exchanged at random {control['value']:.3f} ± "
                f"{_half(control):.3f} ({self.n:,} examples)",
            ),
            (
                "rationale contradicts label",
                f"AUC {_shown(self.contradiction)}; initial weights {_shown(initial.contradiction)}, chance 0.5",
            ),
            (
                "likelier than a counterfactual",
                f"label {_shown(self.prefers_label)}, rationale {_shown(self.prefers_rationale)}; both or neither "
                f"{_shown(self.same_preference)}, by chance {self.by_chance:.3f}",
            ),
        ]

    def _scores(self) -> dict[str, Score]:
        return {
            "within": self.information,
            "within_control": self.control,
            "contradiction_auc": self.contradiction,
            "prefers_label": self.prefers_label,
            "prefers_rationale": self.prefers_rationale,
            "same_preference": self.same_preference,
        }


def pair_splits(
    examples: Sequence[Example], vocabulary: Vocabulary, config: ConfigDict, *, limit: int, seed: int
) -> PairedSplits | None:
    """The first `limit` (0: all) examples with counterfactuals, in an order drawn from the seed; None if none has."""
    own, other = [], []
    for row in np.random.default_rng(seed).permutation(len(examples)):
        example = examples[row]
        for pair in counterfactuals(example, 1, seed):
            own.append(dataclasses.replace(example, more=()))
            other.append(with_pair(example, pair))
        if len(own) == limit > 0:
            break
    if not own:
        return None
    first, second = (tokenize(config, vocabulary, each, train=False) for each in (own, other))
    cluster_N = np.unique([context_of(example) for example in own], return_inverse=True)[1]
    return PairedSplits(first, second, cluster_N)


class CounterfactualMonitor:
    """Estimates of students of one shape; features are compiled once per padded shape."""

    def __init__(self, student: StudentDef, mesh: Mesh, *, batch_size: int):
        self._mesh, self._batch_size = mesh, batch_size

        def states(params: Params, batch: Batch) -> dict[str, Array]:
            outputs = forward(student.bind(params), batch, None, (PREDICT, EXPLAIN), Heads())
            found = {}
            for name, log, task in (("z", "log_label", PREDICT), ("v", "log_rationale", EXPLAIN)):
                states, loss_BxT = outputs[task].states, outputs[task].loss_RxT
                found[name] = pooling.mean(states.states_RxTxD, states.target_RxNxT)[:, 0]
                found[log] = -jax.numpy.where(states.target_RxNxT[:, 0], loss_BxT, 0.0).sum(axis=1)
            return found

        self._states = jax.jit(states, out_shardings=replicated(mesh))

    def features(self, params: Params, splits: PairedSplits) -> PairedFeatures:
        """What the student computes for both pairs of every example, float32."""
        own, other = (self._of_split(params, split) for split in (splits.own, splits.other))
        names = ("z", "v", "log_label", "log_rationale")
        z, v, log_label, log_rationale = (np.stack([own[name], other[name]], axis=1) for name in names)
        return PairedFeatures(z, v, log_label, log_rationale, splits.cluster_N)

    def _of_split(self, params: Params, split: TokenizedSplit) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for batch, places in by_length(split, np.arange(split.size), self._batch_size, self._mesh):
            for name, value_B in jax.device_get(self._states(params, batch)).items():
                value_N = found.setdefault(name, np.zeros((split.size, *value_B.shape[1:]), np.float32))
                value_N[places[places >= 0]] = value_B[places >= 0]
        return found


def read_counterfactuals(fitting: PairedFeatures, test: PairedFeatures, seed: int) -> CounterfactualEstimates:
    """The estimates on test features. Raises UserError for fewer than MIN_EXAMPLES fitting or test examples."""
    sizes = len(fitting.z_Nx2xD), len(test.z_Nx2xD)
    if min(sizes) < MIN_EXAMPLES:
        raise UserError(
            f"counterfactuals of {sizes[1]} held-out examples, critics fitted on {sizes[0]}: at least {MIN_EXAMPLES} "
            "of each; describe counts the examples that have one"
        )
    found = [_fit(fitting, test, seed + refit) for refit in range(REFITS)]
    first, second = (_exchanged(features, seed + i) for i, features in enumerate((fitting, test)))
    controls = [_fit(first, second, seed + refit, steps=fit.steps) for refit, fit in enumerate(found)]
    label_N, rationale_N = (log_Nx2[:, 0] > log_Nx2[:, 1] for log_Nx2 in (test.log_label_Nx2, test.log_rationale_Nx2))
    a, b = float(label_N.mean()), float(rationale_N.mean())
    return CounterfactualEstimates(
        sizes[1],
        _score(np.stack([fit.value_N for fit in found]), test.cluster_N),
        _score(np.stack([fit.value_N for fit in controls]), test.cluster_N),
        contradiction_auc(np.stack([fit.score_NxMxM for fit in found]), test.cluster_N),
        _share(label_N, test.cluster_N),
        _share(rationale_N, test.cluster_N),
        _share(label_N == rationale_N, test.cluster_N),
        a * b + (1 - a) * (1 - b),
    )


def contradiction_auc(score_SxNx2x2: np.ndarray, cluster_N: np.ndarray) -> Score:
    """Probability that a critic scores a random agreeing label and rationale above a random contradicting pair.

    score_SxNx2x2[s, n, i, j]: of refit s, for label i and rationale j of example n; equal scores count half. The
    interval treats the pairs of a cluster of examples as dependent (Obuchowski 1997): to first order the area is the
    mean over examples of what their pairs add to it, and these terms have its variance.
    """
    sums = []
    for score_Nx2x2 in score_SxNx2x2:
        agree_Nx2 = np.diagonal(score_Nx2x2, axis1=1, axis2=2)
        contradict_Nx2 = np.diagonal(score_Nx2x2[:, ::-1], axis1=1, axis2=2)
        num = agree_Nx2.size
        rank_2xNx2 = stats.rankdata([agree_Nx2, contradict_Nx2]).reshape(2, *agree_Nx2.shape)
        below_Nx2 = (rank_2xNx2[0] - stats.rankdata(agree_Nx2).reshape(agree_Nx2.shape)) / num
        above_Nx2 = 1.0 - (rank_2xNx2[1] - stats.rankdata(contradict_Nx2).reshape(agree_Nx2.shape)) / num
        area = below_Nx2.mean()
        sums.append(area + (below_Nx2 - area).mean(axis=1) + (above_Nx2 - area).mean(axis=1))
    found = _score(np.stack(sums), cluster_N)
    low, high = found["interval"] or (0.0, 1.0)
    return found | Score(value=found["value"], interval=(max(low, 0.0), min(high, 1.0)), n=found["n"])


def _fit(fitting: PairedFeatures, test: PairedFeatures, seed: int, steps: int | None = None) -> HeldOutGroups:
    groups: Groups = (fitting.z_Nx2xD, fitting.v_Nx2xD)
    stop = round(_VALIDATION * len(groups[0]))
    train, validation = ((z[rows], v[rows]) for z, v in [groups] for rows in (slice(stop, None), slice(stop)))
    held_out = (test.z_Nx2xD, test.v_Nx2xD)
    return fit_within(train, validation, held_out, critic=_CRITIC, config=_FIT, seed=seed, steps=steps)


def _exchanged(features: PairedFeatures, seed: int) -> PairedFeatures:
    """The rationales of each example exchanged with probability one half."""
    flip_N = np.random.default_rng(seed).random(len(features.v_Nx2xD)) < 0.5
    v_Nx2xD = features.v_Nx2xD
    return features._replace(v_Nx2xD=np.where(flip_N[:, None, None], v_Nx2xD[:, ::-1], v_Nx2xD))


def _score(value_SxN: np.ndarray, cluster_N: np.ndarray) -> Score:
    """The mean over refits and examples, with its interval."""
    found = mean_interval(value_SxN, cluster_N)
    return Score(value=found.value, interval=(found.low, found.high), n=value_SxN.shape[1])


def _share(hit_N: np.ndarray, cluster_N: np.ndarray) -> Score:
    return share_by_cluster(hit_N.tolist(), cluster_N.tolist())


def _half(score: Score) -> float:
    low, high = score["interval"] or (0.0, 0.0)
    return (high - low) / 2


def _shown(score: Score) -> str:
    low, high = score["interval"] or (score["value"], score["value"])
    return f"{score['value']:.3f} [{low:.3f}, {high:.3f}]"
