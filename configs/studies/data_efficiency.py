"""With rationales a student needs fewer train examples for the same accuracy.

Accuracy against the fraction of train that is kept (data.subsample, drawn with the seed).

Cost: 100 runs of T5-small, 10,000 steps of 64 examples. Needs the release and T5's weights.

    python -m cotmi_jax.study --config=configs/studies/data_efficiency.py --workdir=studies/data_efficiency
    python -m cotmi_jax.report studies/data_efficiency --output=data_efficiency.html
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant
from cotmi_jax.study.grid import Settings, arms, axis, product, seeds

ARMS: dict[str, Settings] = {name: {"objective.name": name} for name in ("standard", "dss")}


def get_config(arg: str = "") -> ConfigDict:
    """The set-up of a run without a recipe of its own; here every run has one."""
    return variant(base(), arg)


def sweep() -> list[Settings]:
    """Seeds × sets × fractions × objectives, at size small."""
    sets = axis("recipe", ["cqa", "esnli"])
    small = axis("model.init", ["google/t5-v1_1-small"])
    return product(seeds(5), small, sets, axis("data.subsample", [0.125, 0.25, 0.5, 0.75, 1.0]), arms(ARMS))
