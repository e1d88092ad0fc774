"""Batches of a split for evaluation, by length, on a mesh. Imports no tensorflow."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from cotmi_jax.data.order import IntArray, eval_batches
from cotmi_jax.data.tokens import MULTIPLE, Batch, TokenizedSplit, gather
from cotmi_jax.parallel.batch import make_process_rows, put_batch

# About as many padded tokens as are evaluated in the time of compiling for another shape: a small student on CPU needs
# some seconds for either, an accelerator is faster by orders of magnitude.
_COMPILATION_TOKENS = {"cpu": 1 << 14}
_COMPILATION_TOKENS_ACCELERATOR = 1 << 18


class PlacedBatch(NamedTuple):
    """A padded batch on the mesh, and the place of each of its rows among those asked for; −1 is padding."""

    batch: Batch
    places: IntArray


def by_length(
    split: TokenizedSplit, rows_N: IntArray, batch_size: int, mesh: Mesh, *, sort: bool = True
) -> Iterator[PlacedBatch]:
    """Every row once, in batches of few shapes (data.order.eval_batches); sort False: in order, in one shape."""
    platform = mesh.devices.flat[0].platform
    plan = eval_batches(
        split.eval_lengths(rows_N),
        batch_size,
        weights_C=(len(split.tasks), *[1] * len(split.tasks)),
        min_saving=_COMPILATION_TOKENS.get(platform, _COMPILATION_TOKENS_ACCELERATOR),
        multiple=MULTIPLE,
        sort=sort,
    )
    for places, lengths in plan:
        rows = np.where(places < 0, -1, rows_N[places])
        local = rows[make_process_rows(mesh).indices(len(rows))]
        yield PlacedBatch(put_batch(gather(split, local, lengths=lengths), mesh), places)
