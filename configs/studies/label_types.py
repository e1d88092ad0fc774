"""Rationales help more where the student is trained on the teacher's labels than where it is trained on gold labels.

Cost: 80 runs of T5-small, 10,000 steps of 64 examples. Needs the release and T5's weights.

    python -m cotmi_jax.study --config=configs/studies/label_types.py --workdir=studies/label_types
    python -m cotmi_jax.report studies/label_types --output=label_types.html
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant
from cotmi_jax.study.grid import Settings, arms, axis, product, seeds

ARMS: dict[str, Settings] = {name: {"objective.name": name} for name in ("standard", "dss")}


def get_config(arg: str = "") -> ConfigDict:
    """The set-up of a run without a recipe of its own; here every run has one."""
    return variant(base(), arg)


def sweep() -> list[Settings]:
    """Seeds × sets × label types × objectives, at size small."""
    sets = axis("recipe", ["svamp", "cqa", "esnli", "anli1"])
    small = axis("model.init", ["google/t5-v1_1-small"])
    return product(seeds(5), small, sets, axis("data.label_type", ["gt", "llm"]), arms(ARMS))
