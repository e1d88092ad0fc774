"""The mutual-information term makes the confidences of a student better calibrated.

By Brier score and smooth calibration error of the label among the choices, with their noise floor (docs/evaluation.md).

Cost: 40 runs of T5-small, 10,000 steps of 64 examples. Needs the release and T5's weights.

    python -m cotmi_jax.study --config=configs/studies/calibration.py --workdir=studies/calibration
    python -m cotmi_jax.report studies/calibration --output=calibration.html
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant
from cotmi_jax.study.grid import Evaluation, Settings, arms, axis, product, seeds

EVALUATION = Evaluation(metrics="calibration,label_scores,ranked_accuracy", information=False)
ARMS: dict[str, Settings] = {
    "standard": {"objective.name": "standard"},
    "dss": {"objective.name": "dss"},
    "cotmi, infonce": {"objective.name": "cotmi"},
    "cotmi, placebo": {"objective.name": "cotmi", "mi.placebo": True},
}


def get_config(arg: str = "") -> ConfigDict:
    """The set-up of a run without a recipe of its own; here every run has one."""
    return variant(base(), arg)


def sweep() -> list[Settings]:
    """Seeds × sets with choices × objectives, at size small."""
    small = axis("model.init", ["google/t5-v1_1-small"])
    return product(seeds(5), small, axis("recipe", ["cqa", "esnli"]), arms(ARMS))
