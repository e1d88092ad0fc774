"""The mutual-information term improves T5 students of chain-of-thought distillation on the papers' four sets.

The MI paper's accuracies of standard, single task, DSS and MI, T5-base, gold labels: svamp 62.63 / 63.00 / 65.50 /
68.00, cqa 62.19 / 61.37 / 63.29 / 63.88, esnli 88.38 / 88.88 / 89.51 / 89.50, anli1 43.58 / 43.50 / 49.58 / 51.20%.
Here each has five seeds, for T5-base and T5-small, and MI is once the loss of the paper's code and once InfoNCE.

Cost: 200 runs of 10,000 steps of 64 examples; --dry_run --topology=v5e-8 states the hours. Needs the release
(COTMI_DATA_ROOT) and T5's weights from the hub, or a cache of them.

    python -m cotmi_jax.study --config=configs/studies/main_table.py --workdir=studies/main_table
    python -m cotmi_jax.report studies/main_table --output=main_table.html
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant
from cotmi_jax.study.grid import Settings, arms, axis, product, seeds

ARMS: dict[str, Settings] = {
    "standard": {"objective.name": "standard"},
    "single_task": {"objective.name": "single_task"},
    "dss": {"objective.name": "dss"},
    "cotmi, released": {"objective.name": "cotmi", "mi.estimator": "released", "data.packing": False},
    "cotmi, infonce": {"objective.name": "cotmi"},
}


def get_config(arg: str = "") -> ConfigDict:
    """The set-up of a run without a recipe of its own; here every run has one."""
    return variant(base(), arg)


def sweep() -> list[Settings]:
    """Seeds × sizes × sets × objectives."""
    sizes = axis("model.init", ["google/t5-v1_1-base", "google/t5-v1_1-small"])
    return product(seeds(5), sizes, axis("recipe", ["svamp", "cqa", "esnli", "anli1"]), arms(ARMS))
