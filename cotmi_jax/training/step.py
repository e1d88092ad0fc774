"""The training step: a pure function of (state, batch, keys), jitted over the mesh. Imports no tensorflow."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

from cotmi_jax.data.tasks import PREDICT
from cotmi_jax.mi.bounds import MineState
from cotmi_jax.models.module import ModuleDef, count_parameters
from cotmi_jax.models.remat import step_compiler_options
from cotmi_jax.models.rng import Stream, step_key
from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives.mi_term import Features
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.objectives.terms import Term, Terms, is_packed
from cotmi_jax.parallel.sharding import PyTree
from cotmi_jax.training.state import StateDef, TrainState

Metrics = dict[str, Array]
Step = Callable[[TrainState, Mapping, Mapping[Stream, Array]], tuple[TrainState, Metrics]]


class Gradient(NamedTuple):
    """The loss of a batch, its terms, its gradient, and the estimator's state after it."""

    loss: Array
    terms: Terms
    grads: Params
    mi: MineState | None


class MITermInputs(NamedTuple):
    """Inputs of the mutual-information term in addition to batch and parameters."""

    networks: ModuleDef | None = None
    key: Array | None = None  # for dropout and noise of its networks; None: neither
    state: MineState | None = None
    ramp: Array | float = 1.0  # factor of its coefficients, in [0, 1]
    token_factor: float = 1.0  # of the token terms' coefficients: 0 leaves the gradient of the term alone


def split_micro_batches(batch: PyTree, num: int) -> PyTree:
    """[B, …] → [num, B/num, …] with every num-th row together, so that a sharded batch axis is not resharded."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // num, num, *x.shape[1:]), 0, 1), batch)


def merge_micro_batches(stacked: PyTree) -> PyTree:
    """The inverse of split_micro_batches."""
    return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), stacked)


class _LossFunctions:
    """The functions of a micro-batch that are differentiated; terms are divided by the weights of the full batch."""

    def __init__(
        self,
        student: StudentDef,
        objective: Objective,
        batch: Mapping,
        mi_inputs: MITermInputs,
        coefficients: Mapping[str, Array | float],
    ):
        self.student, self.objective, self.mi_inputs, self.coefficients = student, objective, mi_inputs, coefficients
        self.weights = objective.weights(batch, student.config.pad_id)

    def token_loss(
        self, params: Params, micro_batch: Mapping, key: Array | None
    ) -> tuple[Array, tuple[Terms, Features | None]]:
        """The loss of the token terms, and the features of cotmi."""
        networks = self.mi_inputs.networks
        bound = None if networks is None else networks.bind(params["mi"])
        student = self.student.bind(params["student"])
        terms, features, _ = self.objective.compute(student, bound, micro_batch, key, ramp=self.mi_inputs.ramp)
        factors = self.coefficients
        loss = sum(factors[task] * Term(terms[task].sum, self.weights[task]).mean for task in self.objective.tasks)
        return self.mi_inputs.token_factor * jnp.asarray(loss), (terms, features)

    def mi_loss(
        self, params: Params, features: Features, batch: Mapping, key: Array | None
    ) -> tuple[Array, tuple[Terms, MineState | None]]:
        """The mutual-information term of features."""
        networks, student = self.mi_inputs.networks, self.student.bind(params["student"])
        bound = frozen = None
        if networks is not None:
            bound, frozen = networks.bind(params["mi"]), networks.bind(jax.lax.stop_gradient(params["mi"]))
        total, terms, state = self.objective.mi_loss(
            student, bound, frozen, features, batch, self.weights["mi"], key, self.mi_inputs.state, self.mi_inputs.ramp
        )
        return total, (terms, state)

    def total_loss(
        self, params: Params, batch: Mapping, key: Array | None, mi_key: Array | None
    ) -> tuple[Array, tuple[Terms, MineState | None]]:
        """token_loss plus mi_loss."""
        loss, (terms, features) = self.token_loss(params, batch, key)
        if features is None:
            return loss, (terms, self.mi_inputs.state)
        total, (more, state) = self.mi_loss(params, features, batch, mi_key)
        return loss + total, (terms | more, state)

    def logged_loss(self, terms: Terms) -> Array:
        """The loss as the sum of the terms, with this step's coefficients."""
        total = jnp.float32(0.0)
        for name, factor in self.coefficients.items():
            ramp = 1.0 if name in self.objective.tasks else self.mi_inputs.ramp
            total = total + factor * ramp * Term(terms[name].sum, self.weights[name]).mean
        return total


def loss_and_grads(
    student: StudentDef,
    objective: Objective,
    params: Params,
    batch: Mapping,
    key: Array | None,
    micro_batches: int,
    mi_inputs: MITermInputs = MITermInputs(),  # noqa: B008  (an immutable value)
    coefficients: Mapping[str, Array | float] | None = None,
) -> Gradient:
    """The loss of a batch, its terms and its gradient, exact under any number of micro-batches.

    coefficients: of the terms at this step (Objective.coefficients_at); None: those without a schedule.
    Every micro-batch divides its sums by the weights of the full batch, so that gradients add up. A term that contrasts
    an example with all others of the batch takes two passes (GradCache; Gao et al. 2021): the first computes the
    features of all micro-batches, the second differentiates each micro-batch with the gradient of the term with respect
    to its features as cotangent. Only dropout masks and the estimator `released` depend on the number of micro-batches:
    the padding in the maximum of `released` extends to the longest example of the micro-batch, as in the release.
    """
    coefficients = objective.coefficients if coefficients is None else coefficients
    functions = _LossFunctions(student, objective, batch, mi_inputs, coefficients)
    if micro_batches == 1:
        (_, (terms, state)), grads = jax.value_and_grad(functions.total_loss, has_aux=True)(
            params, batch, key, mi_inputs.key
        )
        return Gradient(functions.logged_loss(terms), terms, grads, state)
    # Packed rows are split. An example may be spread over rows: its features are gathered after merging.
    packed = is_packed(batch)
    stacked = split_micro_batches({"rows": batch["rows"]} if packed else batch, micro_batches)
    keys, mi_keys = (_fold_in(each, micro_batches) for each in (key, mi_inputs.key))
    if not (objective.couples_examples or packed and objective.mi_term is not None):
        grads, (terms, _) = _accumulate(functions.total_loss, params, (stacked, keys, mi_keys))
        return Gradient(functions.logged_loss(terms), terms, grads, mi_inputs.state)

    _, features = jax.lax.map(lambda arguments: functions.token_loss(params, *arguments)[1], (stacked, keys))
    features = jax.lax.stop_gradient(merge_micro_batches(features))
    differentiate = jax.value_and_grad(functions.mi_loss, argnums=(0, 1), has_aux=True)
    (_, (more, state)), (mi_grads, feature_grads) = differentiate(params, features, batch, mi_inputs.key)

    def surrogate(
        params: Params, micro_batch: Mapping, key: Array | None, cotangent: Features
    ) -> tuple[Array, tuple[Terms, None]]:
        loss, (terms, features) = functions.token_loss(params, micro_batch, key)
        inner = sum(
            jnp.vdot(x, dx) for x, dx in zip(jax.tree.leaves(features), jax.tree.leaves(cotangent), strict=True)
        )
        return loss + inner, (terms, None)

    cotangents = split_micro_batches(feature_grads, micro_batches)
    grads, (terms, _) = _accumulate(surrogate, params, (stacked, keys, cotangents))
    grads = jax.tree.map(jnp.add, grads, mi_grads)
    return Gradient(functions.logged_loss(terms | more), terms | more, grads, state)


def _fold_in(key: Array | None, num: int) -> Array | None:
    """A key for each of num micro-batches; None stays None."""
    return None if key is None else jax.vmap(lambda index: jax.random.fold_in(key, index))(jnp.arange(num))


def _accumulate(function: Callable, params: Params, stacked: tuple) -> tuple[Params, tuple]:
    """Sums of the gradient and auxiliary output of function(params, *arguments) over arguments stacked along axis 0."""
    grad = jax.grad(function, has_aux=True)

    def add(total: PyTree, arguments: tuple) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, grad(params, *arguments)), None

    shapes = jax.eval_shape(grad, params, *jax.tree.map(lambda x: x[0], stacked))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, stacked)[0]


def _dropout_key(student: StudentDef, state: TrainState, streams: Mapping[Stream, Array]) -> Array | None:
    return step_key(streams["dropout"], state.step) if student.config.dropout else None


def make_gradient_share(
    state_def: StateDef, objective: Objective, *, micro_batches: int = 1
) -> Callable[[TrainState, Mapping, Mapping[Stream, Array]], Array]:
    """Jitted (state, batch, streams' keys) → norm of the gradient of the mutual-information term, with the coefficients
    of this step, over that of the token terms; both of the student's parameters, before clipping.

    It differentiates the batch twice, in addition to the step. The state is that before the step, and is not donated.
    """
    student = state_def.student

    def share(state: TrainState, batch: Mapping, streams: Mapping[Stream, Array]) -> Array:
        key, mi_key = _dropout_key(student, state, streams), step_key(streams["mi"], state.step)
        coefficients = objective.coefficients_at(state.step)

        def norm(ramp: Array, token_factor: float) -> Array:
            mi_inputs = MITermInputs(state_def.networks, mi_key, state.mi, ramp, token_factor)
            found = loss_and_grads(student, objective, state.params, batch, key, micro_batches, mi_inputs, coefficients)
            return optax.tree.norm(found.grads["student"])

        token_norm = norm(jnp.float32(0.0), 1.0)
        return norm(objective.ramp(state.step), 0.0) / jnp.where(token_norm == 0, 1.0, token_norm)

    return jax.jit(share)


def make_train_step(
    state_def: StateDef, objective: Objective, schedule: optax.Schedule, *, micro_batches: int = 1
) -> Step:
    """Jitted (state, batch, streams' keys) → (state, metrics). The state is donated; metrics are float32 scalars.

    Metrics: `loss`, the mean of every term (nats, or a fraction for accuracies), `grad_norm` of the student before
    clipping, `learning_rate`; with a schedule of alpha also the current `alpha`, and where beta is not constant the
    current `beta`. Compiled once: all batches have the same shape, and the state keeps its shapes and shardings. Call
    make_train_step and the step in jax.set_mesh of the state's mesh.
    """
    student, optimizer = state_def.student, state_def.optimizer

    def step(state: TrainState, batch: Mapping, streams: Mapping[Stream, Array]) -> tuple[TrainState, Metrics]:
        key = _dropout_key(student, state, streams)
        ramp = objective.ramp(state.step)
        mi_inputs = MITermInputs(state_def.networks, step_key(streams["mi"], state.step), state.mi, ramp)
        coefficients = objective.coefficients_at(state.step)
        loss, terms, grads, mi = loss_and_grads(
            student, objective, state.params, batch, key, micro_batches, mi_inputs, coefficients
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {name: term.mean for name, term in terms.items()} | {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads["student"]),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        scheduled = objective.alpha_schedule is not None
        if scheduled:
            metrics["alpha"] = coefficients[PREDICT]
        if objective.mi_term is not None and (objective.mi_term.ramps or scheduled):
            metrics["beta"] = objective.beta * ramp
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state, mi), metrics

    return jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(state_def.shardings, None),
        compiler_options=step_compiler_options(count_parameters(student.shapes)),
    )
