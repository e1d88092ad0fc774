"""The forms of attention: equality with the definition in value and gradient, memory, the choice of a form."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from cotmi_jax.config import base, validate
from cotmi_jax.errors import UserError
from cotmi_jax.models import attention_kernel
from cotmi_jax.models.attention import _plain_by_autodiff, choose_form
from cotmi_jax.models.attention_forms import blocked, plain
from cotmi_jax.models.attention_pattern import Pattern, relative_buckets
from cotmi_jax.models.dropout import weight_dropout

BATCH, QUERIES, KEYS, HEADS, SIZE = 4, 40, 56, 2, 8  # 40 queries are a block of 32 and a part of another
FORMS = {"plain": plain, "by autodiff": _plain_by_autodiff, "blocked": functools.partial(blocked, block=32)}
CASES = {
    "encoder": dict(bidirectional=True, segments="packed"),
    "decoder": dict(causal=True, bidirectional=False, segments="packed"),
    "no segments": dict(causal=True, bidirectional=False),
    "cross": dict(table=False, segments="padded"),
    "batch shards": dict(shards=2, segments="packed"),
}
Operands = tuple[Array, Array, Array, Array]


def make_inputs(case: str) -> tuple[Operands, Pattern]:
    """Query, keys, values and table, and the pattern; every query sees at least one key."""
    draw, case_of = np.random.default_rng(0), dict(CASES[case])
    keys = QUERIES if case_of.get("causal") else KEYS
    shapes = ((BATCH, QUERIES, HEADS, SIZE), (BATCH, keys, HEADS, SIZE), (BATCH, keys, HEADS, SIZE))
    query, key, value = (jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes)
    table = jnp.asarray(draw.normal(size=(case_of.pop("shards", 1), 16, HEADS)), jnp.float32)
    with_table, segments = case_of.pop("table", True), case_of.pop("segments", None)
    if segments == "packed":
        case_of |= {
            "query_segments_BxT": jnp.asarray(np.arange(QUERIES)[None] // (9 + np.arange(BATCH)[:, None]) % 4),
            "key_segments_BxS": jnp.asarray(np.arange(keys)[None] // (9 + np.arange(BATCH)[:, None]) % 4),
        }
    elif segments == "padded":
        case_of |= {
            "query_segments_BxT": jnp.ones((BATCH, QUERIES), jnp.int32),
            "key_segments_BxS": jnp.asarray(np.arange(keys)[None] < 50 - 9 * np.arange(BATCH)[:, None], jnp.int32),
        }
    pattern = Pattern(table_PxNxH=table if with_table else None, max_distance=20, **case_of)  # type: ignore[arg-type]
    return (query, key, value, table), pattern


def definition(operands: Operands, pattern: Pattern, key: Array | None, rate: float) -> Array:
    """Attention by its definition, with a look-up in the table and normalized weights."""
    query, keys, values, table = operands
    distance_TxS = jnp.arange(keys.shape[1])[None, :] - jnp.arange(query.shape[1])[:, None]
    score_BxHxTxS = jnp.einsum("bthk,bshk->bhts", query, keys)
    if pattern.table_PxNxH is not None:
        buckets_TxS = relative_buckets(
            distance_TxS, bidirectional=pattern.bidirectional, num_buckets=16, max_distance=20
        )
        bias_PxHxTxS = jnp.moveaxis(table[:, buckets_TxS], -1, 1)
        score_BxHxTxS += jnp.repeat(bias_PxHxTxS, BATCH // len(table), axis=0)
    seen = jnp.ones((BATCH, 1, *distance_TxS.shape), bool)
    if pattern.causal:
        seen &= (distance_TxS <= 0)[None, None]
    if pattern.query_segments_BxT is not None and pattern.key_segments_BxS is not None:
        seen &= (pattern.query_segments_BxT[:, :, None] == pattern.key_segments_BxS[:, None, :])[:, None]
    weight_BxHxTxS = jax.nn.softmax(jnp.where(seen, score_BxHxTxS, -jnp.inf), axis=-1)
    return jnp.einsum("bhts,bshk->bthk", weight_dropout(weight_BxHxTxS, rate, key), values)


def value_and_grads(function: Any, operands: Operands, key: Array | None) -> tuple[Array, Any]:
    """function(operands, key), and the gradients of a weighted sum of it."""
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(BATCH, QUERIES, HEADS, SIZE)), jnp.float32)

    def loss(operands: Operands, key: Array | None) -> tuple[Array, Array]:
        context = function(operands, key)
        return jnp.vdot(context, weights), context

    (_, context), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(operands, key)
    return context, grads


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.2])
@pytest.mark.parametrize("case", CASES)
def test_forms_equal_the_definition_in_value_and_gradient(case: str, rate: float) -> None:
    operands, pattern = make_inputs(case)
    key = jax.random.key(5) if rate else None
    expected = value_and_grads(lambda each, key: definition(each, pattern, key, rate), operands, key)
    for form in FORMS.values():

        def attend(each: Operands, key: Array | None, form: Any = form) -> Array:
            table = None if pattern.table_PxNxH is None else each[3]
            return form(*each[:3], dataclasses.replace(pattern, table_PxNxH=table), key, rate)

        found = value_and_grads(attend, operands, key)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_a_query_without_keys_gives_finite_values_and_gradients(form: str) -> None:
    operands, pattern = make_inputs("encoder")
    assert pattern.query_segments_BxT is not None
    pattern = dataclasses.replace(pattern, query_segments_BxT=pattern.query_segments_BxT.at[0, 3:7].set(99))
    result = value_and_grads(lambda each, key: FORMS[form](*each[:3], pattern, key, 0.0), operands, None)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result))


def test_the_blocked_form_holds_no_scores_of_all_queries() -> None:
    def largest(form: Any) -> int:
        operands, pattern = make_inputs("encoder")
        grad = jax.grad(lambda query: form(query, *operands[1:3], pattern, jax.random.key(0), 0.1).sum())
        text = jax.jit(grad).lower(operands[0]).as_text()
        return text.count(f"{QUERIES}x{KEYS}x")

    assert largest(FORMS["blocked"]) == 0 < largest(plain)


def test_in_bfloat16_only_the_products_are_rounded() -> None:
    operands, pattern = make_inputs("encoder")
    halves = [each.astype(jnp.bfloat16) for each in operands[:3]]
    contexts = [jax.jit(lambda *x, form=form: form(*x, pattern, None, 0.0))(*halves) for form in FORMS.values()]
    exact = (*(each.astype(jnp.float32) for each in halves), operands[3])
    expected = jax.jit(lambda operands: definition(operands, pattern, None, 0.0))(exact)
    for context in contexts:
        assert context.dtype == jnp.bfloat16
        np.testing.assert_allclose(context.astype(jnp.float32), expected, atol=0.03)


def choose(form: Any, monkeypatch: pytest.MonkeyPatch, reason: str | None) -> str:
    monkeypatch.setattr(attention_kernel, "unsupported", lambda *_: reason)
    query = jnp.zeros((1, 4, 1, 1))
    return choose_form(form, query, query, Pattern())


def test_a_named_form_is_taken_and_auto_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [choose(form, monkeypatch, None) for form in ("auto", "plain", "blocked", "kernel")] == [
        *("plain", "plain", "blocked", "kernel")
    ]


def test_forms_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"attention is kernel, but heads of 16: set it to auto, plain or blocked"):
        choose("kernel", monkeypatch, "heads of 16")
    with pytest.raises(UserError, match="attention is 'fast': choose one of auto, plain, blocked, kernel"):
        choose("fast", monkeypatch, None)
    config = base()
    config.model.attention = "fast"
    with pytest.raises(UserError, match="config.model.attention is 'fast': choose one of auto, plain"):
        validate(config)
