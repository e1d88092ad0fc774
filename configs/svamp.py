"""SVAMP, arithmetic word problems with PaLM's rationales, as the papers train it.

Expected result (accuracy on the 200 test problems, T5-base, gold labels): standard 62.63%, single task 63.00%, DSS
65.50%, MI 68.00%; one run's standard error is 3.4 points. Cost: 10,000 steps of 64 examples of two tasks, packed into
18 rows of 328 input and 208 target tokens.

    python -m cotmi_jax.train --config=configs/svamp.py --workdir=runs/svamp
    python -m cotmi_jax.evaluate --workdir=runs/svamp --split=test

The recipe trains DSS. Flags of the other objectives, and of training without internet access: configs/README.md.
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg "smoke" shrinks it."""
    config = base()
    config.data.dataset = "svamp"
    config.model.init = "google/t5-v1_1-base"
    return variant(config, arg)
