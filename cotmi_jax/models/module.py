"""A network apart from its parameters: the graph, the abstract parameters with their logical axes, how to join them."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
from flax import nnx
from jax import Array

Params = dict[str, Any]  # nested, with array leaves
Module = TypeVar("Module", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class ModuleDef(Generic[Module]):
    """Everything about a network but the values of its parameters, which are a plain nested dict of float32 arrays."""

    build: Callable[[nnx.Rngs], Module]
    graph: nnx.GraphDef
    shapes: Params  # leaves: jax.ShapeDtypeStruct
    axes: Params  # leaves: tuple of logical axis names

    @classmethod
    def trace(cls, build: Callable[[nnx.Rngs], Module]) -> "ModuleDef[Module]":
        """From a constructor whose parameters are made by models.layers.declare; nothing is allocated."""
        graph, state = nnx.split(nnx.eval_shape(lambda: build(nnx.Rngs(0))))
        axes: Params = {}
        for path, variable in nnx.to_flat_state(state):
            node = axes
            for name in path[:-1]:
                node = node.setdefault(name, {})
            node[path[-1]] = variable.get_metadata()["axes"]
        return cls(build, graph, nnx.to_pure_dict(state), axes)

    def init(self, key: Array) -> Params:
        """Random parameters."""
        return nnx.to_pure_dict(nnx.split(self.build(nnx.Rngs(params=key)))[1])

    def bind(self, params: Params) -> Module:
        """The callable network."""
        return nnx.merge(self.graph, params)


def count_parameters(params: Params) -> int:
    """Number of scalars in the leaves, which may be abstract."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
