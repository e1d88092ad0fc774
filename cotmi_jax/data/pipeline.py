"""tf.data around the pure batch functions: batches are made ahead of the step, in order. Imports tensorflow."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from cotmi_jax.data.tokens import Batch, TokenizedSplit, TrainOrder, eval_rows, gather, host_share

tf.config.set_visible_devices([], "GPU")  # tensorflow feeds; the accelerator is JAX's


def _stream(split: TokenizedSplit, rows_BatchesxB: tf.data.Dataset) -> Iterator[Batch]:
    """Gather each vector of rows into a batch, a few batches ahead."""
    example = gather(split, np.zeros(1, np.int64))
    leaves = tf.nest.flatten(example)

    def make(rows: np.ndarray) -> list[np.ndarray]:
        return tf.nest.flatten(gather(split, rows))

    def to_batch(rows: tf.Tensor) -> list[tf.Tensor]:
        tensors = tf.numpy_function(make, [rows], [leaf.dtype for leaf in leaves], stateful=False)
        return tf.nest.pack_sequence_as(example, tensors)

    dataset = rows_BatchesxB.map(to_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def train_batches(
    split: TokenizedSplit, order: TrainOrder, start: int, stop: int, *, process: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """This process's share of the batches of steps start…stop−1. Starting late costs nothing: a step names its rows."""

    def rows(step: np.ndarray) -> np.ndarray:
        return host_share(order.rows(int(step)), process, processes)

    steps = tf.data.Dataset.range(start, stop)
    return _stream(split, steps.map(lambda step: tf.numpy_function(rows, [step], tf.int64, stateful=False)))


def eval_batches(split: TokenizedSplit, batch_size: int) -> Iterator[Batch]:
    """Every example of the split exactly once, in order; the last batch is filled with invalid rows."""
    return _stream(split, tf.data.Dataset.from_tensor_slices(np.stack(eval_rows(split.size, batch_size))))
