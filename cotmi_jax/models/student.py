"""A T5 apart from its parameters: the graph, the abstract parameters with their logical axes, and how to join them."""

import dataclasses
from typing import Any

import jax
from flax import nnx
from jax import Array

from cotmi_jax.models.config import T5Config
from cotmi_jax.models.t5 import T5

Params = dict[str, Any]  # nested, with array leaves


@dataclasses.dataclass(frozen=True)
class StudentDef:
    """Everything about a student but the values of its parameters, which are a plain nested dict of float32 arrays."""

    config: T5Config
    graph: nnx.GraphDef
    shapes: Params  # leaves: jax.ShapeDtypeStruct
    axes: Params  # leaves: tuple of logical axis names

    @classmethod
    def of(cls, config: T5Config) -> "StudentDef":
        """Trace the module; nothing is allocated."""
        graph, state = nnx.split(nnx.eval_shape(lambda: T5(config, rngs=nnx.Rngs(0))))
        axes: Params = {}
        for path, variable in nnx.to_flat_state(state):
            node = axes
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = variable.get_metadata()["axes"]
        return cls(config, graph, nnx.to_pure_dict(state), axes)

    def init(self, key: Array) -> Params:
        """Random parameters as T5 begins (normal, scaled by fan-in; unit embeddings) but for position biases."""
        return nnx.to_pure_dict(nnx.split(T5(self.config, rngs=nnx.Rngs(params=key)))[1])

    def bind(self, params: Params) -> T5:
        """The callable student."""
        return nnx.merge(self.graph, params)


def count_parameters(params: Params) -> int:
    """Number of scalars in the leaves, which may be abstract."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
