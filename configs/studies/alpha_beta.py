"""The weights of the label task (alpha) and of the mutual-information term (beta) matter little between wide limits.

Cost: 75 runs of the quickstart, about 3 minutes each on two CPU cores.

    python -m cotmi_jax.study --config=configs/studies/alpha_beta.py --workdir=studies/alpha_beta
    python -m cotmi_jax.report studies/alpha_beta --output=alpha_beta.html
"""

from ml_collections import ConfigDict

from cotmi_jax.config import variant
from cotmi_jax.recipes import load_recipe
from cotmi_jax.study.grid import Evaluation, Settings, axis, product, seeds

EVALUATION = Evaluation(metrics="agreement,steps", information=False)


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart with the term, stopped before labels are perfect."""
    config = load_recipe("quickstart")
    config.steps, config.eval.every = 300, 150
    config.objective.name = "cotmi"
    config.data.packing = False  # equal batches in all runs
    config.mi.warmup_steps = config.mi.ramp_steps = 50
    config.mi.monitor.every = 0
    return variant(config, arg)


def sweep() -> list[Settings]:
    """Seeds × alpha × beta; beta 0 is dss."""
    betas = axis("objective.beta", [0.0, 0.01, 0.03, 0.1, 0.3])
    return product(seeds(5), axis("objective.alpha", [0.15, 0.3, 0.5]), betas)
