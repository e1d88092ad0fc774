"""Prefetches batches with tf.data, in order, around the pure function `make_batch`. Imports tensorflow."""

import threading
from collections.abc import Generator, Iterator

import numpy as np
import tensorflow as tf

from cotmi_jax.data.order import TrainOrder
from cotmi_jax.data.packing import PackShape, make_batch
from cotmi_jax.data.tokens import Batch, TokenizedSplit
from cotmi_jax.errors import UserError
from cotmi_jax.parallel.process_rows import ALL_ROWS, ProcessRows

tf.config.set_visible_devices([], "GPU")  # tensorflow runs on the CPU; JAX uses the accelerator


def train_batches(
    split: TokenizedSplit,
    order: TrainOrder,
    start: int,
    stop: int,
    *,
    shape: PackShape | None = None,
    process_rows: ProcessRows = ALL_ROWS,
) -> Generator[Batch, None, None]:
    """The rows of the batches of steps start…stop−1 that a process supplies. Starting at a late step costs nothing.

    Close it, if not all are taken, before the interpreter ends.
    """

    def make(step: int) -> Batch:
        return make_batch(split, order, step, shape, process_rows)

    example = make(start)
    flat = tf.nest.flatten(example)
    dtypes = [leaf.dtype for leaf in flat]
    errors: dict[int, UserError] = {}
    stopped = tf.Variable(False, trainable=False)
    ends = threading.Event()

    def leaves(step: np.ndarray) -> list[np.ndarray]:
        if ends.is_set():
            return flat
        try:
            return tf.nest.flatten(make(int(step)))
        except UserError as error:  # tf.data would wrap it in an OpError
            errors[int(step)] = error
            raise

    def to_batch(step: tf.Tensor) -> Batch:
        return tf.nest.pack_sequence_as(example, tf.numpy_function(leaves, [step], dtypes, stateful=False))

    steps = tf.data.Dataset.range(start, stop).take_while(lambda _: tf.logical_not(stopped))
    batches = steps.map(to_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    iterator = batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    try:
        yield from iterator
    except tf.errors.OpError:
        if errors:
            first = min(errors)
            raise UserError(f"step {first + 1}: {errors[first]}") from None
        raise
    finally:
        # The destructor of the iterator waits for calls of `leaves` that run. At the end of the interpreter, to which a
        # traceback can keep it, these do not run any more, and it would wait forever.
        ends.set()
        stopped.assign(True)
        _exhaust(iterator)


def _exhaust(iterator: Iterator[Batch]) -> None:
    """Take what is left, and is of no use."""
    while True:
        try:
            next(iterator)
        except StopIteration:
            return
        except tf.errors.OpError:  # of a batch that nobody wants
            continue
