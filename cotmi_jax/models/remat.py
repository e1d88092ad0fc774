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
    """What `auto` stands for. A CPU recomputes in loops only: elsewhere XLA's CPU compiler merges most of the second
    computation with the first."""
    large = parameter_count(config)[1] >= _LARGE
    return "dots" if current_platform() != "cpu" or (large and config.scan_layers) else "none"


def step_compiler_options(parameters: int) -> dict[str, str]:
    """XLA's compiler options for a training step on the current mesh; `parameters`: how many the student has.

    XLA's default order of a CPU program lets independent instructions run at the same time. It holds more temporaries,
    since it recomputes before the results are needed. Single instructions of large students occupy every core anyway:
    their step takes the order that holds the fewest temporaries.
    """
    if current_platform() != "cpu" or parameters < _LARGE:
        return {}
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
