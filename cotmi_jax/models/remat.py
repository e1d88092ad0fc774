"""What a layer's forward pass saves for its backward pass, and what is computed again (Chen et al. 2016)."""

from collections.abc import Callable

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from cotmi_jax.models.config import Remat
from cotmi_jax.parallel.mesh import current_platform

_SAVED = "saved"


def saved(x: Array) -> Array:
    """The same array, marked as one that remat "dots" saves."""
    return checkpoint_name(x, _SAVED)


def rematerialize(layer: Callable, remat: Remat, *, looped: bool) -> Callable:
    """The function of a layer, whose backward pass recomputes what `remat` leaves out. looped: it is a loop's body."""
    if remat == "auto":
        remat = "none" if current_platform() == "cpu" else "dots"
    if remat == "none":
        return layer
    policy = jax.checkpoint_policies.save_only_these_names(_SAVED) if remat == "dots" else None
    # XLA cannot merge the two computations of a loop's body, which are in two loops: no barrier has to prevent it, and
    # the barrier would copy what is saved.
    return jax.checkpoint(layer, policy=policy, prevent_cse=not looped)
