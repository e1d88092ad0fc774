"""Mutual information of two arrays of paired samples: estimators, critics and how they are fitted. Values in nats.

`estimate(x, y, estimator=…, critic=…)` estimates it; see docs/mutual_information.md.
"""

from cotmi_jax.mi.estimate import Estimate, estimate
from cotmi_jax.mi.estimators import ESTIMATORS, Estimator, Setting, register_estimator
from cotmi_jax.mi.networks import CriticConfig

__all__ = ["ESTIMATORS", "CriticConfig", "Estimate", "Estimator", "Setting", "estimate", "register_estimator"]
