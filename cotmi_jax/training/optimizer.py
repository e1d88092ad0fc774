"""Optimizers and learning-rate schedules from a config."""

import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cotmi_jax.errors import UserError
from cotmi_jax.models.module import Params

OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("linear", "cosine", "constant")


def make_schedule(config: ConfigDict, steps: int) -> optax.Schedule:
    """Learning rate of each step: linear warm-up from peak / warmup_steps, then the named decay, to 0 at `steps`.

    The papers use "linear" without warm-up (MI paper, section 4).
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if warmup >= steps:
        raise UserError(f"optimizer.warmup_steps {warmup} must be below the {steps} steps: lower it")
    if config.schedule == "linear":
        decay = optax.linear_schedule(peak, 0.0, steps - warmup)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, steps - warmup)
    elif config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    else:
        raise UserError(f"unknown optimizer.schedule {config.schedule!r}: choose one of {', '.join(SCHEDULES)}")
    if not warmup:
        return decay
    # The rate of step 0 is above 0, since a step with rate 0 would waste a batch.
    rise = optax.linear_schedule(peak / warmup, peak, warmup - 1)
    return optax.join_schedules([rise, decay], [warmup])


def make_optimizer(config: ConfigDict, steps: int) -> optax.GradientTransformation:
    """Clipping by global norm (clip_norm 0: none), then AdamW (Loshchilov and Hutter 2019) or Adafactor (Shazeer and
    Stern 2018) without momentum and without scaling by the parameters' norm, so that learning_rate means the same.

    A scanned stack of layers is one parameter for Adafactor: its update clipping uses the stack's root mean square.
    """
    schedule = make_schedule(config, steps)
    if config.name == "adamw":
        core = optax.adamw(
            schedule, b1=config.beta1, b2=config.beta2, weight_decay=config.weight_decay, mu_dtype=jnp.float32
        )
    elif config.name == "adafactor":
        # Decay is added here, before the learning rate, as AdamW does: optax.adafactor's own is not scaled by the rate.
        core = optax.chain(
            optax.adafactor(None, multiply_by_parameter_scale=False),
            optax.add_decayed_weights(-config.weight_decay),
            optax.scale_by_learning_rate(schedule, flip_sign=False),
        )
    else:
        raise UserError(f"unknown optimizer.name {config.name!r}: choose one of {', '.join(OPTIMIZERS)}")
    if config.clip_norm < 0:
        raise UserError(f"optimizer.clip_norm is {config.clip_norm}: a norm, or 0 for no clipping")
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), core) if config.clip_norm else core


def with_networks(
    student: optax.GradientTransformation, networks: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Independent optimizers for two groups of parameters, {"student": …, "mi": …}; "mi" may be absent.

    The groups have separate gradient norms: the critic's gradient must not clip the student's steps.
    optax.partition gives the same updates, but wraps its states in PartitionState, MaskedState and MaskedNode: another
    tree than that of checkpoints, and the conversion in both directions would be longer than this function.
    """
    groups = {"student": student, "mi": networks}

    def init(params: Params) -> tuple:
        return tuple(group.init({name: params[name]}) for name, group in groups.items() if name in params)

    def update(grads: Params, states: tuple, params: Params | None = None) -> tuple[Params, tuple]:
        assert params is not None
        updates, after = {}, []
        present = [name for name in groups if name in params]  # transformations may have reordered the keys of params
        for name, state in zip(present, states, strict=True):
            changes, new = groups[name].update({name: grads[name]}, state, {name: params[name]})
            updates[name] = changes[name]
            after.append(new)
        return updates, tuple(after)

    return optax.GradientTransformation(init, update)


def make_optimizers(config: ConfigDict) -> optax.GradientTransformation:
    """The student's optimizer of config.optimizer, and Adam at a constant rate for the networks of config.mi."""
    if config.mi.learning_rate <= 0.0:
        raise UserError(f"config.mi.learning_rate is {config.mi.learning_rate}: it must be above 0")
    # A bound does not depend on some offsets of its critic, whose gradients are only rounding errors. With Adam's usual
    # epsilon of 1e-8 their updates would have the full learning rate.
    networks = optax.adam(config.mi.learning_rate, eps=1e-6)
    return with_networks(make_optimizer(config.optimizer, config.steps), networks)
