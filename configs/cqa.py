"""CommonsenseQA (CoS-E v1.11) with PaLM's rationales, as the papers train it.

Expected result (accuracy on the 1,221 test questions, T5-base, gold labels): standard 62.19%, single task 61.37%, DSS
63.29%, MI 63.88%; one run's standard error is 1.4 points. Cost: 10,000 steps of 64 examples of two tasks, packed into
26 rows of 256 input and 96 target tokens.

    python -m cotmi_jax.train --config=configs/cqa.py --workdir=runs/cqa
    python -m cotmi_jax.evaluate --workdir=runs/cqa --split=test

The recipe trains DSS. Flags of the other objectives, and of training without internet access: configs/README.md.
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg "smoke" shrinks it."""
    config = base()
    config.data.dataset = "cqa"
    config.model.init = "google/t5-v1_1-base"
    return variant(config, arg)
