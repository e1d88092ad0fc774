"""The train state: its shapes and shardings are derived before any array is allocated, so it is created sharded."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.tree_util import GetAttrKey, KeyPath

from cotmi_jax.errors import UserError
from cotmi_jax.mi.bounds import MineState
from cotmi_jax.models.module import ModuleDef
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives.mi_term import Networks
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.parallel.sharding import PyTree, abstract_arrays, dict_keys, param_shardings, replicated


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """The arrays that a step updates. params is {"student": …}, and "mi" if the mutual-information term has networks.

    StateDef uses the same tree with shapes or shardings as leaves.
    """

    step: Any  # int32 scalar: optimizer steps taken
    params: Params
    opt_state: PyTree
    mi: Any = None  # MineState, if the estimator has one

    def items(self) -> dict[str, PyTree]:
        """The trees of a checkpoint, by name. Evaluation reads only `params`, the student's parameters."""
        items = {"params": {"student": self.params["student"]}, "optimizer": self.opt_state}
        if "mi" in self.params:
            items["mi"] = {"params": self.params["mi"]} | ({} if self.mi is None else {"state": self.mi._asdict()})
        return items

    @classmethod
    def from_items(cls, items: dict[str, PyTree], step: Array) -> "TrainState":
        """The inverse of items."""
        params, networks = items["params"], items.get("mi", {})
        if networks:
            params = params | {"mi": networks["params"]}
        mi = MineState(**networks["state"]) if "state" in networks else None
        return cls(step, params, items["optimizer"], mi)


def _drop(sharding: NamedSharding, dimension: int) -> NamedSharding:
    spec = list(sharding.spec)
    return NamedSharding(sharding.mesh, PartitionSpec(*spec[:dimension], *spec[dimension + 1 :]))


_COUNTS = (GetAttrKey("count"),)  # scalars of an optimizer: steps taken
_FACTORS = (GetAttrKey("v_row"), GetAttrKey("v_col"))  # Adafactor's moments of rows and of columns
_PLACEHOLDERS = (*_FACTORS, GetAttrKey("v"))  # of shape (1,) where Adafactor does not keep the moment


def _leaf_sharding(path: KeyPath, leaf: jax.ShapeDtypeStruct, by_name: dict, mesh: Mesh) -> NamedSharding:
    """A moment is sharded as its parameter; Adafactor's row and column moments lack one of its two largest dims."""
    if path[-1] in _COUNTS and leaf.shape == ():
        return replicated(mesh)
    shape, sharding = by_name.get(dict_keys(path), (None, None))
    if shape is not None and leaf.shape == shape:
        return sharding
    if shape is not None and leaf.shape == (1,) and any(name in path for name in _PLACEHOLDERS):
        return replicated(mesh)
    if shape is not None and len(leaf.shape) == len(shape) - 1 and any(name in path for name in _FACTORS):
        second, largest = np.argsort(shape)[-2:]
        return _drop(sharding, int(largest if GetAttrKey("v_row") in path else second))
    raise UserError(
        f"optimizer state {jax.tree_util.keystr(path)} of shape {leaf.shape} is no moment of a parameter and no known "
        "scalar: give it a sharding in cotmi_jax/training/state.py"
    )


def optimizer_shardings(opt_state: PyTree, shapes: Params, shardings: Params, mesh: Mesh) -> PyTree:
    """The sharding of every leaf of an abstract optimizer state. UserError names a leaf that is not recognized.

    Without explicit shardings jit(tx.init) would place every moment on one device.
    """
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    placed = jax.tree.leaves(shardings)
    by_name = {dict_keys(path): (leaf.shape, where) for (path, leaf), where in zip(leaves, placed, strict=True)}
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _leaf_sharding(path, leaf, by_name, mesh), opt_state)


@dataclasses.dataclass(frozen=True)
class StateDef:
    """Shapes, shardings and construction of a TrainState on a mesh."""

    student: StudentDef
    networks: ModuleDef[Networks] | None
    optimizer: optax.GradientTransformation
    start: MineState | None  # initial state of the estimator, if it has one
    shapes: TrainState
    shardings: TrainState

    @classmethod
    def of(
        cls,
        student: StudentDef,
        optimizer: optax.GradientTransformation,
        mesh: Mesh,
        objective: Objective | None = None,
    ) -> "StateDef":
        """Derive all shapes and shardings; nothing is allocated. The objective may train networks of its own."""
        networks = objective.networks(student.config) if objective else None
        params, axes = {"student": student.shapes}, {"student": student.axes}
        start = None
        if objective and objective.mi_term and networks is not None:
            params, axes = params | {"mi": networks.shapes}, axes | {"mi": networks.axes}
            start = objective.mi_term.score_estimator().start() if objective.mi_term.scored else None
        opt_state = jax.eval_shape(optimizer.init, params)
        where = param_shardings(params, axes, mesh)
        step = jax.ShapeDtypeStruct((), jnp.int32)
        shapes = TrainState(step, params, opt_state, jax.eval_shape(lambda: start))
        mi_shardings = jax.tree.map(lambda _: replicated(mesh), shapes.mi)
        shardings = TrainState(
            replicated(mesh), where, optimizer_shardings(opt_state, params, where, mesh), mi_shardings
        )
        return cls(student, networks, optimizer, start, shapes, shardings)

    @property
    def abstract(self) -> TrainState:
        """Shapes with their shardings, into which a checkpoint is restored."""
        return abstract_arrays(self.shapes, self.shardings)

    def _complete(self, student: Params, key: Array) -> TrainState:
        params = {"student": student}
        if self.networks is not None:
            params["mi"] = self.networks.init(jax.random.fold_in(key, 1))
        return TrainState(jnp.zeros((), jnp.int32), params, self.optimizer.init(params), self.start)

    def initializer(self) -> Callable[[Array], TrainState]:
        """Jitted key → a fresh state with random parameters, created sharded on the mesh."""
        return jax.jit(lambda key: self._complete(self.student.init(key), key), out_shardings=self.shardings)

    def init(self, key: Array) -> TrainState:
        """A fresh state with random parameters, created sharded on the mesh."""
        return self.initializer()(key)

    def restored(self, items: dict[str, PyTree], step: int) -> TrainState:
        """The state of a checkpoint's trees (TrainState.items), which are sharded already."""
        return TrainState.from_items(items, jax.device_put(jnp.asarray(step, jnp.int32), self.shardings.step))

    def from_student(self, params: Params, key: Array) -> TrainState:
        """A fresh state with given student parameters (host arrays); the key initializes the objective's networks."""
        placed = jax.tree.map(jax.device_put, params, self.shardings.params["student"])
        return jax.jit(self._complete, out_shardings=self.shardings)(placed, key)


def check_finite(params: Params, what: str) -> None:
    """Raises UserError if a parameter has a value that is not finite, naming the first ones."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree))(params)
    leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(finite))
    bad = ["/".join(str(key) for key in dict_keys(path)) for path, is_finite in leaves if not is_finite]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise UserError(f"{what}: {', '.join(bad[:3])}{more} has values that are not finite: give an intact checkpoint")
