"""tf.data around the pure batch function: batches are made ahead of the step, in order. Imports tensorflow."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.packing import PackShape, make_batch
from cotmi_jax.data.tokens import Batch, TokenizedSplit
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.process_rows import ALL_ROWS, ProcessRows

tf.config.set_visible_devices([], "GPU")  # tensorflow feeds; the accelerator is JAX's


def train_batches(
    split: TokenizedSplit,
    order: TrainOrder,
    start: int,
    stop: int,
    *,
    shape: PackShape | None = None,
    process_rows: ProcessRows = ALL_ROWS,
) -> Iterator[Batch]:
    """A feed's share of the batches of steps start…stop−1. Starting late costs nothing: a step names its rows."""

    def of(step: int) -> Batch:
        return make_batch(split, order, step, shape, process_rows)

    example = of(start)
    dtypes = [leaf.dtype for leaf in tf.nest.flatten(example)]
    refused: dict[int, UserError] = {}

    def leaves(step: np.ndarray) -> list[np.ndarray]:
        try:
            return tf.nest.flatten(of(int(step)))
        except UserError as error:  # which tf.data would wrap in an error of its own
            refused[int(step)] = error
            raise

    def to_batch(step: tf.Tensor) -> Batch:
        return tf.nest.pack_sequence_as(example, tf.numpy_function(leaves, [step], dtypes, stateful=False))

    steps = tf.data.Dataset.range(start, stop)
    batches = steps.map(to_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    try:
        yield from batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    except tf.errors.OpError:
        if refused:
            first = min(refused)
            raise UserError(f"step {first + 1}: {refused[first]}") from None
        raise
