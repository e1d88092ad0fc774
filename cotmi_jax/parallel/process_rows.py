"""Which part of every batch a process feeds. Plain numpy."""

import dataclasses

import numpy as np

from cotmi_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Feed:
    """Number `number` of `count` equal feeds of a batch; processes that hold the same rows share one.

    parts: the parts of the batch that its devices hold, in rising order, where all feeds together hold
    count · len(parts) of them. On a pod they need not lie side by side: a mesh follows the links between its chips.
    """

    number: int = 0
    count: int = 1
    parts: tuple[int, ...] = (0,)

    def size(self, total: int) -> int:
        """How many of `total` examples or rows it feeds. Raises UserError for an uneven split."""
        if total % (self.count * len(self.parts)):
            raise UserError(
                f"a batch of {total} does not divide into the {self.count * len(self.parts)} parts that "
                f"{self.count} hosts feed: change config.batch_size, config.eval.batch_size or config.mesh"
            )
        return total // self.count

    def rows(self, total: int) -> np.ndarray:
        """Which of `total` rows those are, int64, in rising order. Raises UserError as size does."""
        each = self.size(total) // len(self.parts)
        return (np.array(self.parts, np.int64)[:, None] * each + np.arange(each)).reshape(-1)


WHOLE = Feed()  # of a process that is alone
