"""tf.data around the pure batch function: batches are made ahead of the step, in order. Imports tensorflow."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from cotmi_jax.data.tokens import Batch, TokenizedSplit, TrainOrder, gather, host_share

tf.config.set_visible_devices([], "GPU")  # tensorflow feeds; the accelerator is JAX's


def train_batches(
    split: TokenizedSplit, order: TrainOrder, start: int, stop: int, *, process: int = 0, processes: int = 1
) -> Iterator[Batch]:
    """This process's share of the batches of steps start…stop−1. Starting late costs nothing: a step names its rows."""
    host_share(order.rows(start), process, processes)  # here, since what tf.data's threads raise is no UserError
    example = gather(split, np.zeros(1, np.int64))
    dtypes = [leaf.dtype for leaf in tf.nest.flatten(example)]

    def make(step: np.ndarray) -> list[np.ndarray]:
        return tf.nest.flatten(gather(split, host_share(order.rows(int(step)), process, processes)))

    def to_batch(step: tf.Tensor) -> Batch:
        return tf.nest.pack_sequence_as(example, tf.numpy_function(make, [step], dtypes, stateful=False))

    steps = tf.data.Dataset.range(start, stop)
    batches = steps.map(to_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
