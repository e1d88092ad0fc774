"""The student as a network apart from its parameters."""

import dataclasses
import functools

from flax import nnx

from cotmi_jax.models.config import T5Config
from cotmi_jax.models.module import ModuleDef, Params, count_parameters
from cotmi_jax.models.t5 import T5

__all__ = ["Params", "StudentDef", "count_parameters"]


def _build(config: T5Config, rngs: nnx.Rngs) -> T5:
    return T5(config, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class StudentDef(ModuleDef[T5]):
    """A T5 of a certain shape. Begins as published ones did (normal, scaled by fan-in) but for position biases."""

    config: T5Config

    @classmethod
    def of(cls, config: T5Config) -> "StudentDef":
        """Trace the module; nothing is allocated."""
        traced = ModuleDef.trace(functools.partial(_build, config))
        return cls(traced.build, traced.graph, traced.shapes, traced.axes, config)
