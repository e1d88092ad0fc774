"""Batches of evaluation by length: every row once, few shapes, less padding, and the same on all processes."""

from collections.abc import Sequence

import numpy as np
import pytest

from cotmi_jax.data.order import MAX_EVAL_SHAPES, EvalBatch, eval_batches

BATCH = 16


def lengths_of(size: int, seed: int = 0) -> np.ndarray:
    """Inputs with a long tail, and the targets of two tasks, which do not depend on them."""
    draw = np.random.default_rng(seed)
    inputs = 8 + draw.gamma(3.0, 8.0, size)
    return np.stack([inputs, 2 + draw.integers(0, 4, size), 4 + draw.gamma(4.0, 6.0, size)], axis=1).astype(np.int64)


def batches_of(lengths: np.ndarray, weights: Sequence[int] = (2, 1, 1), **changes: int) -> list[EvalBatch]:
    return eval_batches(lengths, BATCH, **({"weights_C": weights, "min_saving": 1, "multiple": 8} | changes))


def cost(batches: Sequence[EvalBatch]) -> int:
    return sum(len(batch.rows) * int(np.dot((2, 1, 1), batch.lengths)) for batch in batches)


@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 250, 1000])
def test_every_row_is_in_one_batch_and_fits_its_shape(size: int) -> None:
    lengths = lengths_of(size)
    batches = batches_of(lengths)
    assert len(batches) == -(-size // BATCH) and all(batch.rows.shape == (BATCH,) for batch in batches)
    rows = np.concatenate([np.zeros(0, np.int64), *(batch.rows for batch in batches)])
    assert sorted(rows[rows >= 0]) == list(range(size)) and (rows < 0).sum() == len(rows) - size
    assert sum((batch.rows < 0).any() for batch in batches) <= 1
    for batch in batches:
        assert (lengths[batch.rows[batch.rows >= 0]] <= batch.lengths).all() and not np.any(np.mod(batch.lengths, 8))


def test_shapes_are_few_and_shorter_than_those_of_the_split() -> None:
    lengths = lengths_of(1000)
    batches, in_order = batches_of(lengths), batches_of(lengths, sort=False)
    shapes = {batch.lengths for batch in batches}
    assert 3 <= len(shapes) <= MAX_EVAL_SHAPES
    assert {batch.lengths for batch in in_order} == {tuple(-(-lengths.max(axis=0) // 8) * 8)}
    np.testing.assert_array_equal(np.concatenate([batch.rows for batch in in_order])[:1000], np.arange(1000))
    assert cost(batches) < 0.6 * cost(in_order)
    tokens = int((lengths @ (2, 1, 1)).sum())
    assert cost(batches) < 1.45 * tokens < cost(in_order)
    sizes = [int(np.dot((2, 1, 1), batch.lengths)) for batch in batches]
    assert sizes == sorted(sizes, reverse=True)  # what does not fit in memory fails first


def test_a_shape_is_added_only_if_it_saves_its_compilation() -> None:
    lengths = lengths_of(1000)
    whole = cost(batches_of(lengths, sort=False))
    for min_saving in (1, 5_000, 20_000, 10**9):
        batches = batches_of(lengths, min_saving=min_saving)
        num_shapes = len({batch.lengths for batch in batches})
        assert whole - cost(batches) >= (num_shapes - 1) * min_saving
    assert num_shapes == 1


def test_the_batches_are_a_function_of_the_lengths_alone() -> None:
    lengths = lengths_of(300)
    for one, two in zip(batches_of(lengths), batches_of(lengths.copy()), strict=True):
        np.testing.assert_array_equal(one.rows, two.rows)
        assert one.lengths == two.lengths
    assert {batch.lengths for batch in batches_of(np.full((64, 3), 9))} == {(16, 16, 16)}
