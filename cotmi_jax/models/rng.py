"""Keys from one seed: named streams, with one key per step. Checkpoints hold no random state."""

import zlib
from typing import Literal

import jax
from jax import Array

Stream = Literal["init", "dropout", "mi"]


def stream_key(seed: int, stream: Stream) -> Array:
    """The key of a named stream. CRC-32 of the name, since Python's hash of a string differs from run to run."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))


def step_key(stream: Array, step: Array | int) -> Array:
    """The stream's key at a step."""
    return jax.random.fold_in(stream, step)


def train_streams(seed: int) -> dict[Stream, Array]:
    """The streams a training step draws from."""
    return {"dropout": stream_key(seed, "dropout"), "mi": stream_key(seed, "mi")}
