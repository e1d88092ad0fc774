"""Token losses of a user's own: value and gradient are those of the plain form under chunks, pooling and meshes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from cotmi_jax.errors import UserError
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.objectives.token_loss import TOKEN_LOSSES, find_token_loss, register_token_loss
from cotmi_jax.objectives.token_scan import scan_tokens
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.training.step import loss_and_grads

B, T, D, V = 4, 10, 6, 16
LENGTHS = np.array((10, 7, 1, 4))


def z_loss(logits_BxLxV: Array, targets_BxL: Array) -> Array:
    """Cross-entropy plus the squared log-partition (PaLM, section 5)."""
    log_sum_BxL = jax.nn.logsumexp(logits_BxLxV, axis=-1)
    target_BxL = jnp.take_along_axis(logits_BxLxV, targets_BxL[..., None], axis=-1)[..., 0]
    return log_sum_BxL - target_BxL + 0.1 * log_sum_BxL**2


def cross_entropy(logits_BxLxV: Array, targets_BxL: Array) -> Array:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits_BxLxV), targets_BxL[..., None], axis=-1)[..., 0]


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with mock.patch.dict(TOKEN_LOSSES):
        yield


def operands() -> tuple[Array, Array, Array, Array]:
    draw = np.random.default_rng(0)
    states, head = draw.normal(size=(B, T, D)), draw.normal(size=(D, V))
    mask_BxT = np.arange(T) < LENGTHS[:, None]
    return (
        jnp.asarray(states, jnp.float32),
        jnp.asarray(head, jnp.float32),
        jnp.asarray(draw.integers(0, V, (B, T)), jnp.int32),
        jnp.asarray(mask_BxT),
    )


def weighted(loss_BxT: Array, mask_BxT: Array, pooled: Array | None) -> Array:
    weight = jnp.sin(1.0 + jnp.arange(loss_BxT.size, dtype=jnp.float32)).reshape(loss_BxT.shape)
    total = jnp.where(mask_BxT, weight * loss_BxT, 0.0).sum()
    return total if pooled is None else total + jnp.cos(pooled).sum()


def scanned(chunk: int, token_loss: Any, pool: Any, states: Array, head: Array, targets: Array, mask: Array) -> Array:
    result = scan_tokens(
        states,
        targets,
        lambda states: states @ head,
        mask_BxT=mask,
        member_BxNxT=None if pool is None else mask[:, None],
        pool=pool,
        chunk=chunk,
        token_loss=token_loss,
    )
    return weighted(result.loss_BxT, mask, result.log_pooled_BxNxV)


def plain(token_loss: Callable, pool: Any, states: Array, head: Array, targets: Array, mask: Array) -> Array:
    logits = jnp.where(mask[..., None], states, 0.0) @ head
    pooled = None
    if pool is not None:
        pooled = jnp.where(mask[..., None], jax.nn.log_softmax(logits), -jnp.inf).max(axis=1, keepdims=True)
    return weighted(token_loss(logits, targets), mask, pooled)


@pytest.mark.parametrize("pool", [None, "max"])
@pytest.mark.parametrize("chunk", [3, 64])
def test_value_and_gradient_are_those_of_the_plain_form(chunk: int, pool: str | None) -> None:
    differentiate = functools.partial(jax.value_and_grad, argnums=(0, 1))
    value, grads = differentiate(functools.partial(scanned, chunk, z_loss, pool))(*operands())
    expected, expected_grads = differentiate(functools.partial(plain, z_loss, pool))(*operands())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    helpers.assert_trees_close(grads, expected_grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)])
def test_a_mesh_gives_the_gradients_of_one_device_and_of_the_closed_form(sizes: tuple[int, int, int]) -> None:
    batch = tuple(jnp.tile(each, (2,) + (1,) * (each.ndim - 1)) if each.shape[0] == B else each for each in operands())
    closed = jax.grad(functools.partial(scanned, 4, None, "max"), argnums=(0, 1))(*batch)
    with jax.set_mesh(make_mesh(*sizes)):
        own = jax.jit(jax.grad(functools.partial(scanned, 4, cross_entropy, "max"), argnums=(0, 1)))(*batch)
    helpers.assert_trees_close(own, closed, rtol=1e-4, atol=1e-5)


def test_training_minimizes_the_token_loss_and_evaluation_reports_the_cross_entropy() -> None:
    register_token_loss("twice")(lambda logits, targets: 2.0 * cross_entropy(logits, targets))
    student = helpers.toy_student()
    batch, params = helpers.random_batch(3, 8), {"student": helpers.numpy_params(student)}
    usual, twice = Objective("dss"), Objective("dss", token_loss="twice")
    expected, found = (loss_and_grads(student, each, params, batch, None, 1) for each in (usual, twice))
    np.testing.assert_allclose(found.loss, 2.0 * expected.loss, rtol=1e-6)
    helpers.assert_trees_close(found.grads, jax.tree.map(lambda x: 2.0 * x, expected.grads), rtol=1e-5, atol=1e-7)
    scores = [each.evaluate(student.bind(params["student"]), batch).terms for each in (usual, twice)]
    helpers.assert_trees_close(*scores, rtol=0, atol=0)


def test_a_token_loss_of_another_shape_is_an_error() -> None:
    with pytest.raises(UserError, match=r"a token loss gives float32\[\] for targets \[4, 4\]: it must be one float"):
        scanned(4, lambda logits, targets: z_loss(logits, targets).mean(), None, *operands())


def test_names() -> None:
    with pytest.raises(UserError, match=r"unknown objective.token_loss 'focal': choose one of cross_entropy, or name"):
        Objective("dss", token_loss="focal")
    with pytest.raises(UserError, match="'cross_entropy' is built in"):
        register_token_loss("cross_entropy")
    register_token_loss("z_loss")(z_loss)
    assert find_token_loss("z_loss") is z_loss and find_token_loss("cross_entropy") is None
