"""The training step: a pure function of (state, batch, key), jitted over the mesh. Imports no tensorflow."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax
from jax import Array

from cotmi_jax.models.student import Params, StudentDef
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.objectives.terms import Term, Terms
from cotmi_jax.sharding import PyTree
from cotmi_jax.training.rng import step_key
from cotmi_jax.training.state import StateDef, TrainState

Metrics = dict[str, Array]
Step = Callable[[TrainState, Mapping, Array], tuple[TrainState, Metrics]]


def split_micro_batches(batch: PyTree, num: int) -> PyTree:
    """[B, …] → [num, B/num, …] with every num-th row together, so that a sharded batch axis stays where it is."""
    return jax.tree.map(lambda x: jnp.swapaxes(x.reshape(x.shape[0] // num, num, *x.shape[1:]), 0, 1), batch)


def loss_and_grads(
    student: StudentDef, objective: Objective, params: Params, batch: Mapping, key: Array | None, micro_batches: int
) -> tuple[Array, Terms, Params]:
    """The loss of a batch, its terms and its gradient, exact under any number of micro-batches.

    Every micro-batch divides its sums by the weights of the whole batch, so that gradients simply add up. Only dropout
    masks depend on the number of micro-batches, and the estimator `released`: the padding that enters its maximum ends
    with the longest example of the micro-batch, as it would in the release.
    """
    weights = objective.weights(batch, student.config.pad_id)
    coefficients = objective.coefficients

    def loss(params: Params, part: Mapping, key: Array | None) -> tuple[Array, Terms]:
        terms = objective.terms(student.bind(params["student"]), part, key)
        total = sum(factor * Term(terms[name].sum, weights[name]).mean for name, factor in coefficients.items())
        return jnp.asarray(total), terms

    grad = jax.value_and_grad(loss, has_aux=True)
    if micro_batches == 1:
        (value, terms), grads = grad(params, batch, key)
        return value, terms, grads

    def accumulate(total: PyTree, part: tuple[Mapping, Array]) -> tuple[PyTree, None]:
        micro_batch, index = part
        result = grad(params, micro_batch, None if key is None else jax.random.fold_in(key, index))
        return jax.tree.map(jnp.add, total, result), None

    parts = split_micro_batches(batch, micro_batches)
    shapes = jax.eval_shape(grad, params, jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    ((value, terms), grads), _ = jax.lax.scan(accumulate, zeros, (parts, jnp.arange(micro_batches)))
    return value, terms, grads


def make_train_step(
    state_def: StateDef, objective: Objective, schedule: optax.Schedule, *, micro_batches: int = 1
) -> Step:
    """Jitted (state, batch, dropout stream key) → (state, metrics). The state is donated; metrics are float32 scalars.

    Metrics: `loss`, the mean of every term (nats, or a share for accuracies), `grad_norm` before clipping,
    `learning_rate`. Compiled once: batches have one shape and the state leaves as it came.
    """
    student, optimizer = state_def.student, state_def.optimizer

    def step(state: TrainState, batch: Mapping, dropout_stream: Array) -> tuple[TrainState, Metrics]:
        key = step_key(dropout_stream, state.step) if student.config.dropout else None
        loss, terms, grads = loss_and_grads(student, objective, state.params, batch, key, micro_batches)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        metrics = {name: term.mean for name, term in terms.items()} | {
            "loss": loss,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
        }
        return TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(state_def.shardings, None))
