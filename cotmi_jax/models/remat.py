"""What a layer's forward pass saves for its backward pass, and what is computed again (Chen et al. 2016)."""

from collections.abc import Callable

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from cotmi_jax.models.config import Remat, T5Config
from cotmi_jax.models.meshes import parameter_count
from cotmi_jax.parallel.mesh import current_platform

_SAVED = "saved"
# Parameters from which a CPU saves memory. Operations of smaller students are short: they gain from running at the same
# time, and recomputing takes longer than the memory that it spares.
_LARGE = 10_000_000


def saved(x: Array) -> Array:
    """The same array, marked as one that remat "dots" saves."""
    return checkpoint_name(x, _SAVED)


def rematerialize(layer: Callable, config: T5Config) -> Callable:
    """The function of a layer of this student, whose backward pass recomputes what `config.remat` leaves out."""
    remat = _choose(config) if config.remat == "auto" else config.remat
    if remat == "none":
        return layer
    policy = jax.checkpoint_policies.save_only_these_names(_SAVED) if remat == "dots" else None
    # XLA cannot merge the two computations of a loop's body, which are in two loops: no barrier has to prevent it, and
    # the barrier would copy what is saved.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not config.scan_layers)


def _choose(config: T5Config) -> Remat:
    """Of layers that are not in a loop, XLA's CPU compiler merges most of what is recomputed with the first time."""
    large = parameter_count(config)[1] >= _LARGE
    return "dots" if current_platform() != "cpu" or (large and config.scan_layers) else "none"


def step_compiler_options(parameters: int) -> dict[str, str]:
    """XLA's options for a training step on the current mesh of a student with so many parameters.

    On a CPU, XLA's default order lets independent instructions run at the same time and holds more temporaries, as it
    computes again what remat left out before it is needed. For large students, whose single instructions occupy every
    core, it is the order that holds the fewest.
    """
    if current_platform() != "cpu" or parameters < _LARGE:
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
