"""Mutual information: features of a task, critics, and estimators between the features of two tasks. Values in nats.

`estimate(x, y, estimator=…, critic=…)` reads the mutual information of two arrays; see docs/mutual_information.md.
"""

from cotmi_jax.mi.estimate import Estimate, estimate
from cotmi_jax.mi.estimators import ESTIMATORS, Estimator, Setting, register_estimator
from cotmi_jax.mi.networks import CriticConfig

__all__ = ["ESTIMATORS", "CriticConfig", "Estimate", "Estimator", "Setting", "estimate", "register_estimator"]
