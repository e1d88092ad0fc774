"""The papers' common set-up without a data set's settings: the defaults of every key, all set by flags.

A study starts its runs with this recipe and a flag for each key that differs from its default, so that a command states
its run completely. Expected result and cost: those of the flags.

    python -m cotmi_jax.train --config=configs/base.py --config.data.dataset=arithmetic --workdir=runs/defaults
"""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant


def get_config(arg: str = "") -> ConfigDict:
    """The recipe; arg "smoke" shrinks it."""
    return variant(base(), arg)
