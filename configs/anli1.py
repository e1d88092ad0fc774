"""ANLI round 1, adversarial natural-language inference with PaLM's rationales, as the papers train it.

Expected result (accuracy on the 1,000 test pairs, T5-base, gold labels): standard 43.58%, single task 43.50%, DSS
49.58%, MI 51.20%; one run's standard error is 1.6 points. Cost: 10,000 steps of 64 examples of two tasks.

    python -m cotmi_jax.train --config=configs/anli1.py --workdir=runs/anli1
    python -m cotmi_jax.evaluate --workdir=runs/anli1 --split=test

The recipe trains DSS. Flags of the other objectives, and of training without internet access: configs/README.md.
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg "smoke" shrinks it."""
    config = base()
    config.data.dataset = "anli1"
    config.model.init = "google/t5-v1_1-base"
    return variant(config, arg)
