"""A network without its parameters: the graph, the abstract parameters with their logical axes, and `bind`."""

import dataclasses
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

Params = dict[str, Any]  # nested, with array leaves
Module = TypeVar("Module", bound=nnx.Module)


@dataclasses.dataclass(frozen=True)
class ModuleDef(Generic[Module]):
    """A network without the values of its parameters, which are a nested dict of float32 arrays."""

    build: Callable[[nnx.Rngs], Module]
    graph: nnx.GraphDef
    shapes: Params  # leaves: jax.ShapeDtypeStruct
    axes: Params  # leaves: tuple of logical axis names

    @classmethod
    def trace(cls, build: Callable[[nnx.Rngs], Module]) -> "ModuleDef[Module]":
        """From a constructor whose parameters are made by `declare`; nothing is allocated."""
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
        """The network with these parameters."""
        return nnx.merge(self.graph, params)


def count_parameters(params: Params) -> int:
    """Number of scalars in the leaves, which may be abstract."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def declare(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str, ...], std: float | None) -> nnx.Param[Array]:
    """A float32 parameter with one logical axis name per dimension, drawn from N(0, std²); std None gives ones."""
    assert len(shape) == len(axes), (shape, axes)
    if std is None:
        return nnx.Param(jnp.ones(shape, jnp.float32), axes=axes)
    return nnx.Param(std * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)
