"""A student that reads word problems and writes the equation and the worked solution, from nothing, on a laptop."""

from ml_collections import ConfigDict

from cotmi_jax.config import base, variant


def get_config(arg: str = "") -> ConfigDict:
    """The recipe."""
    config = base()
    config.steps = 600
    config.data.dataset = "arithmetic"
    config.model.preset = "tiny"
    config.model.dropout = 0.0
    config.model.scan_layers = False
    config.optimizer.learning_rate = 2e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.optimizer.beta2 = 0.98
    config.eval.every = 200
    return variant(config, arg)
