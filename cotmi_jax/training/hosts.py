"""What the processes of a run tell each other before they train together."""

import jax
import numpy as np
from jax.experimental import multihost_utils

_BYTES = 64  # of a message


def gather(text: str) -> list[str]:
    """What each process says, by its number; all of them have to call it. At most 64 bytes of UTF-8, without NUL."""
    if jax.process_count() == 1:
        return [text]
    said = np.zeros(_BYTES, np.uint8)
    encoded = text.encode()
    said[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    return [bytes(row).rstrip(b"\0").decode() for row in np.asarray(multihost_utils.process_allgather(said))]
