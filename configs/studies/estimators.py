"""No estimator of the mutual-information term improves the student over dss at an equal weight.

Cost: 65 runs of the quickstart, about 3 minutes each on two CPU cores.

    python -m cotmi_jax.study --config=configs/studies/estimators.py --workdir=studies/estimators
    python -m cotmi_jax.report studies/estimators --output=estimators.html
"""

from ml_collections import ConfigDict

from cotmi_jax.config import variant
from cotmi_jax.recipes import load_recipe
from cotmi_jax.study.grid import Evaluation, Settings, arms, product, seeds

EVALUATION = Evaluation(metrics="agreement,steps", information=False)
BOUNDS = ("infonce", "nwj", "tuba", "interpolated", "dv", "mine", "js", "smile")
OTHERS = ("barber_agakov_head", "barber_agakov_gaussian", "released", "conditional")
ARMS: dict[str, Settings] = {"dss": {"objective.name": "dss"}} | {
    name: {"objective.name": "cotmi", "mi.estimator": name} for name in (*BOUNDS, *OTHERS)
}


def get_config(arg: str = "") -> ConfigDict:
    """The quickstart, stopped before labels are perfect."""
    config = load_recipe("quickstart")
    config.steps, config.eval.every = 300, 150
    config.objective.beta = 0.01
    config.data.packing = False  # equal batches in all runs
    config.mi.warmup_steps = config.mi.ramp_steps = 50
    config.mi.monitor.every = 0
    return variant(config, arg)


def sweep() -> list[Settings]:
    """Seeds × estimators."""
    return product(seeds(5), arms(ARMS))
