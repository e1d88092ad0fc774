"""A small mutual-information term that several tests share."""

import dataclasses
from typing import Any

import jax
import numpy as np

from cotmi_jax.config import base
from cotmi_jax.experiment import make_mi_term
from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.models.module import Params
from cotmi_jax.objectives.mi_term import MITermConfig
from cotmi_jax.objectives.objective import Objective

BETA = 0.5
CRITIC = CriticConfig(hidden=8, layers=1, dim=8, normalization="layer")


def mi_config(estimator: str = "infonce", **changes: Any) -> MITermConfig:
    """The defaults of config.mi with a small critic that learns from the first step."""
    defaults = make_mi_term(base().mi)
    learns = dict(critic=CRITIC, warmup_steps=0, ramp_steps=0)
    return dataclasses.replace(defaults, estimator=estimator, **(learns | changes))


def objective_of(config: MITermConfig, beta: float = BETA) -> Objective:
    return Objective("cotmi", alpha=0.4, beta=beta, mi_term=config)


def differ(one: Params, other: Params) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(np.abs(a - b).max() > 1e-4 for a, b in pairs)
