"""The mutual-information term of training: from features Z and V of a batch to losses and metrics.

Z is a feature of the label task, V of the rationale task. The term's own networks (critic, q, bottleneck) receive its
full gradient; the gradient that reaches the student is scaled where features are computed (gather.py). No value depends
on that scale.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from cotmi_jax.data.tasks import EXPLAIN, PREDICT
from cotmi_jax.errors import UserError
from cotmi_jax.mi import barber_agakov, bounds
from cotmi_jax.mi.bounds import Axis, MineState
from cotmi_jax.mi.critics import Critic, check_critic
from cotmi_jax.mi.estimators import BUILT_IN, ESTIMATORS, Estimator, make_estimator, parse_settings, scored
from cotmi_jax.mi.networks import MLP, CriticConfig, GaussianHead, Linear, normalize
from cotmi_jax.models.config import StudentConfig
from cotmi_jax.models.module import ModuleDef, declare
from cotmi_jax.objectives import contrast
from cotmi_jax.objectives.token_scan import Pool

VOCABULARY_POOLS: dict[str, Pool] = {"vocab_max": "max", "vocab_mean": "mean"}
VOCABULARY_FEATURES = tuple(VOCABULARY_POOLS)
STATE_FEATURES = ("decoder_mean", "decoder_attention", "decoder_max", "encoder_mean")
FEATURES = (*STATE_FEATURES, *VOCABULARY_FEATURES)
CONDITIONAL = "conditional"
# Within an example encoder_mean is a constant, and vocabulary features would need the head on all counterfactuals.
CONDITIONAL_FEATURES = ("decoder_mean", "decoder_attention", "decoder_max")
CONSISTENCY = "consistency"
DISTANCES = ("cross_entropy", "symmetric_kl", "js")  # of consistency (consistency.py)
COMPRESSIONS = ("none", "club", "variational")


class Features(NamedTuple):
    """Z and V, float32; vocabulary features as logarithms. x and z_free serve compression only.

    [R, N, …] as gathered, N sequence pairs a row; [B, …] by example. `conditional` has M of each: [R, N, M, …].
    """

    z: Array
    v: Array
    x: Array | None
    z_free: Array | None  # Z again, never detached

    def by_example(self, slots: Mapping[str, Array] | None) -> "Features":
        """[B, …]. slots: by task, the positions [B] of an example's sequence pair in packed rows (data/packing.py)."""

        def of(feature: Array | None, task: str) -> Array | None:
            if feature is None:
                return None
            flat = feature.reshape(-1, *feature.shape[2:])
            return flat if slots is None else flat[slots[task]]

        z, v = of(self.z, PREDICT), of(self.v, EXPLAIN)
        assert z is not None and v is not None
        return Features(z, v, of(self.x, PREDICT), of(self.z_free, PREDICT))


class Losses(NamedTuple):
    """The scalar to differentiate, and metrics: name → value by example [B], or a scalar of the batch."""

    total: Array
    reported: dict[str, Array]
    state: MineState | None


@dataclasses.dataclass(frozen=True)
class MITermConfig:
    """The mutual-information side of an objective: keys of config.mi, where each is explained and has its default."""

    estimator: str
    bound: str
    counterfactuals: int
    feature: str
    detach: str
    distance: str
    placebo: bool
    axis: Axis
    alpha: float
    tau: float
    decay: float
    settings: str
    critic: CriticConfig
    warmup_steps: int
    ramp_steps: int
    compression: str
    compression_weight: float

    def __post_init__(self) -> None:
        for key, value, choices in (
            ("estimator", self.estimator, term_estimators()),
            ("bound", self.bound, scored()),
            ("feature", self.z_feature, FEATURES),
            ("detach", self.detach, ("z", "v", "none")),
            ("distance", self.distance, DISTANCES),
            ("compression.name", self.compression, COMPRESSIONS),
        ):
            if value not in choices:
                raise UserError(f"unknown mi.{key} {value!r}: choose one of {', '.join(choices)}")
        if self.scored:
            self.score_estimator()
        elif self.consistent:
            self._check_consistency()
        elif self.detach != "z":
            raise UserError(
                f"mi.estimator {self.estimator} needs mi.detach z, not {self.detach!r}: H(Z) must be constant"
            )
        allowed = self._features
        if self.z_feature not in allowed:
            raise UserError(
                f"mi.estimator {self.estimator} does not take mi.feature {self.feature}: choose one of "
                f"{', '.join(allowed)}"
            )
        if self.compression != "none":
            if self.conditional:
                raise UserError(f"mi.compression.name {self.compression} is not for mi.estimator {CONDITIONAL}: none")
            if self.z_feature in VOCABULARY_FEATURES:
                raise UserError(
                    f"mi.compression.name {self.compression} needs a feature of states, not {self.z_feature}"
                )
            if self.compression_weight <= 0.0:
                raise UserError(f"mi.compression.weight is {self.compression_weight}: it must be above 0")
        if self.compression == "variational" and not self.scored:
            raise UserError(f"mi.compression.name variational needs an estimator with a critic, not {self.estimator}")

    def _check_consistency(self) -> None:
        for key, value, needed in (("feature", self.feature, ""), ("compression.name", self.compression, "none")):
            if value != needed:
                raise UserError(f"mi.{key} {value!r} is not for mi.estimator {CONSISTENCY}: set it to {needed!r}")

    @property
    def consistent(self) -> bool:
        """Whether it compares the answers of both tasks (consistency.py), without features or networks."""
        return self.estimator == CONSISTENCY

    @property
    def scored(self) -> bool:
        """Whether a critic scores pairs."""
        return not self.consistent and self.estimator not in UNSCORED

    @property
    def conditional(self) -> bool:
        """Whether pairs are contrasted within an example, with its counterfactuals."""
        return self.estimator == CONDITIONAL

    @property
    def learns(self) -> bool:
        """Whether the term has parameters of its own."""
        return not self.consistent and (self.scored or UNSCORED[self.estimator].learns or self.compression != "none")

    @property
    def couples_examples(self) -> bool:
        """Whether an example's loss depends on other examples of its batch."""
        if self.conditional:
            return self.placebo or self.score_estimator().stateful  # through the state
        return self.scored or self.compression == "club" or self.placebo

    @property
    def ramps(self) -> bool:
        """Whether warmup_steps and ramp_steps apply."""
        return self.scored or self.consistent

    @property
    def _features(self) -> tuple[str, ...]:
        """The features that the estimator takes, the default first."""
        if self.conditional:
            return CONDITIONAL_FEATURES
        return FEATURES if self.scored or self.consistent else UNSCORED[self.estimator].features

    @property
    def z_feature(self) -> str:
        """The feature of the label side."""
        return self.feature or self._features[0]

    @property
    def v_feature(self) -> str:
        """The feature of the rationale side."""
        unscored = UNSCORED.get(self.estimator)
        return (unscored.v_feature if unscored else "") or self.z_feature

    def score_estimator(self) -> Estimator:
        """The estimator of the critic's scores. Raises UserError for settings that it does not have."""
        name = self.bound if self.conditional else self.estimator
        if name not in BUILT_IN:
            return make_estimator(name, **parse_settings(self.settings))
        settings = ESTIMATORS[name].values.keys()
        if self.settings:
            rest = f"set mi.{', mi.'.join(settings)}" if settings else "it has no settings"
            raise UserError(f"mi.settings {self.settings!r} is for registered estimators, not {name}: {rest}")
        return make_estimator(name, **{setting: getattr(self, setting) for setting in settings})

    def check_batch(self, num_pairs: int) -> None:
        """Raises UserError where batches of this size cannot be scored."""
        if self.scored:
            contrasted = 1 + self.counterfactuals if self.conditional else num_pairs
            check_critic(self.critic, self.score_estimator(), contrasted)
        elif self.couples_examples and num_pairs < 2:
            what = "mi.placebo" if self.placebo else f"mi.compression.name {self.compression}"
            raise UserError(f"{what} on {num_pairs} pairs: it contrasts at least 2")

    def ramp(self, step: Array) -> Array:
        """Factor of beta at a step: 0 in the warm-up, then linearly to 1; always 1 for estimators without either."""
        if not self.ramps:
            return jnp.float32(1.0)
        return jnp.clip((step - self.warmup_steps + 1) / (self.ramp_steps + 1), 0.0, 1.0).astype(jnp.float32)


class Networks(nnx.Module):
    """All networks of the term."""

    def __init__(self, config: MITermConfig, student: StudentConfig, *, rngs: nnx.Rngs):
        z_dim = student.vocab_size if config.z_feature in VOCABULARY_FEATURES else student.d_model
        v_dim = student.vocab_size if config.v_feature in VOCABULARY_FEATURES else student.d_model
        attends, net = config.z_feature == "decoder_attention", config.critic
        self.query_z = declare(rngs, (z_dim,), ("feature",), 1.0) if attends else None
        self.query_v = declare(rngs, (v_dim,), ("feature",), 1.0) if attends else None
        self.club = GaussianHead(z_dim, z_dim, net, rngs=rngs) if config.compression == "club" else None
        narrows = config.compression == "variational"
        self.bottleneck = GaussianHead(z_dim, net.dim, net, rngs=rngs) if narrows else None
        scored_dim = net.dim if narrows else z_dim
        self.critic = Critic(scored_dim, v_dim, net, config.score_estimator(), rngs=rngs) if config.scored else None
        gaussian, head = (config.estimator == f"barber_agakov_{form}" for form in ("gaussian", "head"))
        self.gaussian = GaussianHead(v_dim, z_dim, net, rngs=rngs) if gaussian else None
        self.head_mlp = MLP(v_dim, net, rngs=rngs) if head else None
        self.head = Linear(net.hidden, z_dim, scale=1.0, rngs=rngs) if head else None


def _build(config: MITermConfig, student: StudentConfig, rngs: nnx.Rngs) -> Networks:
    return Networks(config, student, rngs=rngs)


def networks_def(config: MITermConfig, student: StudentConfig) -> ModuleDef[Networks]:
    """Definition of the term's networks, without parameters."""
    return ModuleDef.trace(functools.partial(_build, config, student))


def losses(
    config: MITermConfig,
    networks: Networks | None,
    frozen: Networks | None,
    features: Features,
    valid_B: Array,
    weight: Array,
    beta: float,
    key: Array | None,
    state: MineState | None,
    counterfactual_BxM: Array | None = None,
) -> Losses:
    """The term of features by example, of a batch or of a micro-batch; `weight` is the number of pairs of the batch.

    Dropout is on with a key. `frozen` has the parameters of `networks`, as constants. counterfactual_BxM: which of the
    M − 1 counterfactuals of `conditional` there are, at least one of every valid example.
    Reported: `mi`, the loss with coefficient beta; with a critic also `mi_value` (the estimate), `mi_positive` and
    `mi_negative` (mean score of positives, log-mean-exp of negatives) and, where there is a cap, `mi_saturation`;
    `compression` and `compression_fit`. Of `conditional` these are by example, and `mi_accuracy` is added.
    """
    critic_key, bottleneck_key = (None, None) if key is None else jax.random.split(key)
    z_BxD, v_BxE = features.z, features.v
    reported: dict[str, Array] = {}
    extra = jnp.float32(0.0)
    if config.compression == "club":
        assert networks is not None and frozen is not None
        reported |= _club(networks, frozen, features, valid_B)
        share = valid_B.sum(dtype=jnp.float32) / jnp.where(weight == 0, 1.0, weight)
        extra = reported["compression"] * share + _mean(reported["compression_fit"], valid_B, weight)
    if config.compression == "variational":
        assert networks is not None and networks.bottleneck is not None and features.z_free is not None
        mean_BxC, log_std_BxC = networks.bottleneck(z_BxD)
        noise = 0.0 if bottleneck_key is None else jax.random.normal(bottleneck_key, mean_BxC.shape, jnp.float32)
        z_BxD = mean_BxC + jnp.exp(log_std_BxC) * noise
        reported["compression"] = _divergence(*networks.bottleneck(features.z_free))
        # Divided by beta, because the bottleneck, like all networks of the term, receives its full gradient.
        extra = config.compression_weight / beta * _mean(reported["compression"], valid_B, weight)
    if not config.scored:
        reported["mi"] = UNSCORED[config.estimator].loss(networks, z_BxD, v_BxE, critic_key)
        return Losses(extra + _mean(reported["mi"], valid_B, weight), reported, state)
    assert networks is not None and networks.critic is not None
    estimator = config.score_estimator()
    if config.conditional:
        assert counterfactual_BxM is not None
        valid_BxM = valid_B[:, None] & jnp.pad(counterfactual_BxM, ((0, 0), (1, 0)), constant_values=True)
        found, state = contrast.within_examples(estimator, networks.critic, z_BxD, v_BxE, valid_BxM, critic_key, state)
        return Losses(_mean(found["mi"], valid_B, weight), found, state)
    if config.z_feature in VOCABULARY_FEATURES:
        z_BxD, v_BxE = jnp.exp(z_BxD), jnp.exp(v_BxE)
    found, state = contrast.over_batch(estimator, networks.critic, z_BxD, v_BxE, valid_B, critic_key, state)
    return Losses(extra + found["mi"], reported | found, state)


def _mean(x_B: Array, valid_B: Array, weight: Array) -> Array:
    return jnp.where(valid_B, x_B, 0.0).sum() / jnp.where(weight == 0, 1.0, weight)


def _released(networks: Networks | None, z_BxV: Array, v_BxV: Array, key: Array | None) -> Array:
    return barber_agakov.released_loss(jnp.exp(z_BxV), jnp.exp(v_BxV))


def _vocabulary(networks: Networks | None, z_BxV: Array, v_BxV: Array, key: Array | None) -> Array:
    return barber_agakov.vocabulary_loss(z_BxV, v_BxV)


def _head(networks: Networks | None, z_BxV: Array, v_BxD: Array, key: Array | None) -> Array:
    assert networks is not None and networks.head_mlp is not None and networks.head is not None
    return barber_agakov.vocabulary_loss(z_BxV, networks.head(networks.head_mlp(v_BxD, key)))


def _gaussian(networks: Networks | None, z_BxD: Array, v_BxD: Array, key: Array | None) -> Array:
    assert networks is not None and networks.gaussian is not None
    # Entries of unit variance, because the scale of raw states would determine the scale of the loss.
    return barber_agakov.gaussian_loss(normalize(z_BxD, "layer"), *networks.gaussian(v_BxD, key))


@dataclasses.dataclass(frozen=True)
class Unscored:
    """An estimator without a critic: its loss by example [B], the features that it takes, the default first."""

    loss: Callable[[Networks | None, Array, Array, Array | None], Array]
    features: tuple[str, ...]
    learns: bool  # whether it has a network
    v_feature: str = ""  # of the rationale side; "": as the label side


UNSCORED = {
    "released": Unscored(_released, ("vocab_max",), learns=False),
    "barber_agakov": Unscored(_vocabulary, VOCABULARY_FEATURES, learns=False),
    "barber_agakov_head": Unscored(_head, VOCABULARY_FEATURES, learns=True, v_feature="decoder_mean"),
    "barber_agakov_gaussian": Unscored(_gaussian, STATE_FEATURES, learns=True),
}


def term_estimators() -> tuple[str, ...]:
    """Names that config.mi.estimator may have."""
    return (*scored(), CONDITIONAL, CONSISTENCY, *UNSCORED)


def _club(networks: Networks, frozen: Networks, features: Features, valid_B: Array) -> dict[str, Array]:
    """I(X;Z) by CLUB with its q(z|x): the fit trains q only, the penalty the student only."""
    assert networks.club is not None and frozen.club is not None
    assert features.x is not None and features.z_free is not None
    z_BxD = normalize(features.z_free, "layer")
    log_q_BxB = barber_agakov.gaussian_log_q(z_BxD, *frozen.club(features.x))
    fit_B = barber_agakov.gaussian_loss(z_BxD, *networks.club(features.x))
    return {"compression": bounds.club(log_q_BxB, valid_B).value, "compression_fit": fit_B}


def _divergence(mean_BxC: Array, log_std_BxC: Array) -> Array:
    """KL(N(mean, std²) ‖ N(0, 1)) in nats [B], whose mean bounds I(X;Z̃) from above (Alemi et al. 2017)."""
    return (0.5 * (mean_BxC**2 + jnp.exp(2.0 * log_std_BxC) - 1.0) - log_std_BxC).sum(axis=-1)
