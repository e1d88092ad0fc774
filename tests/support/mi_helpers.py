"""A small mutual-information term that several tests share."""

from typing import Any

import jax
import numpy as np

from cotmi_jax.mi.networks import CriticConfig
from cotmi_jax.models.module import Params
from cotmi_jax.objectives.mi_term import MITermConfig
from cotmi_jax.objectives.objective import Objective

BETA = 0.5
CRITIC = CriticConfig(hidden=8, layers=1, dim=8)


def mi_config(estimator: str = "infonce", **changes: Any) -> MITermConfig:
    return MITermConfig(estimator, **({"critic": CRITIC} | changes))


def objective_of(config: MITermConfig, beta: float = BETA) -> Objective:
    return Objective("cotmi", alpha=0.4, beta=beta, mi_term=config)


def differ(one: Params, other: Params) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return any(np.abs(a - b).max() > 1e-4 for a, b in pairs)
