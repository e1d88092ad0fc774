"""The rows of every batch that a process supplies. Plain numpy."""

import dataclasses

import numpy as np

from cotmi_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ProcessRows:
    """Rows of a batch are divided into `groups` equal groups; this process supplies group number `group`.

    Processes whose devices hold the same rows share a group.

    shards: the batch shards of this group in rising order, out of groups · len(shards). They need not be adjacent: on a
      pod the order of a mesh follows the links between chips, not the hosts.
    """

    group: int = 0
    groups: int = 1
    shards: tuple[int, ...] = (0,)

    def size(self, total: int) -> int:
        """How many of `total` examples or rows are in a group. Raises UserError for an uneven split."""
        if total % (self.groups * len(self.shards)):
            raise UserError(
                f"a batch of {total} does not divide into {self.groups * len(self.shards)} shards on {self.groups} "
                "hosts: change config.batch_size, config.eval.batch_size or config.mesh"
            )
        return total // self.groups

    def indices(self, total: int) -> np.ndarray:
        """Which of `total` rows are in this group: int64 in rising order. Raises UserError as `size` does."""
        rows = self.size(total) // len(self.shards)  # of a shard
        return (np.array(self.shards, np.int64)[:, None] * rows + np.arange(rows)).reshape(-1)


ALL_ROWS = ProcessRows()  # of a run with a single process
