"""Which checkpoint a start goes on from where some are damaged, and where the damaged ones go.

{workdir}/damaged/{checkpoints,best}-{step}     moved there: that step can be saved again, nothing is lost
"""

import dataclasses
import itertools
from collections.abc import Callable

import jax

from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, make_folder, move_folder, user_error_on_write
from cotmi_jax.parallel.distributed import gather
from cotmi_jax.workdir.checkpoint import BEST, LATEST, Saved, damage, steps_saved

DAMAGED = "damaged"
_MARK = "commit_success.txt"  # by which orbax knows a complete checkpoint in a bucket


@dataclasses.dataclass(frozen=True)
class Choice:
    """The newest intact checkpoints (None: none), and the newer ones that cannot be read, each with the reason."""

    latest: Saved | None
    best: Saved | None
    damaged: tuple[tuple[Saved, str], ...]


def _newest_intact(directory: Path) -> tuple[Saved | None, list[tuple[Saved, str]]]:
    damaged: list[tuple[Saved, str]] = []
    for step in reversed(steps_saved(directory)):
        checkpoint = Saved(directory, step)
        reason = next(filter(None, gather(damage(checkpoint, jax.process_index(), jax.process_count()) or "")), None)
        if reason is None:
            return checkpoint, damaged
        damaged.append((checkpoint, reason))
    return None, damaged


def choose(workdir: Path) -> Choice:
    """What a start goes on from; every process has to ask. Writes nothing; reads the chosen checkpoints once, on the
    hosts, each of which reads a part.

    Without any checkpoint a run begins anew; one whose checkpoints are all damaged does not, as that would be hours
    lost without a word.

    Raises:
      UserError: every checkpoint to go on from is damaged, or one is out of reach.
    """
    latest, damaged = _newest_intact(workdir / LATEST)
    if latest is None and damaged:
        reasons = "; ".join(f"{checkpoint.step}: {reason}" for checkpoint, reason in damaged)
        raise UserError(
            f"every checkpoint in {workdir / LATEST} is damaged ({reasons}): put an intact one there, or start a "
            "fresh run in another --workdir"
        )
    best, damaged_best = _newest_intact(workdir / BEST)
    return Choice(latest, best, (*damaged, *damaged_best))


def _free_place(workdir: Path, checkpoint: Saved) -> Path:
    name = f"{checkpoint.directory.name}-{checkpoint.step}"
    places = (workdir / DAMAGED / (name if count == 1 else f"{name}.{count}") for count in itertools.count(1))
    return next(place for place in places if not place.exists())


def set_aside(workdir: Path, choice: Choice, say: Callable[[str], None]) -> None:
    """Move the damaged checkpoints of a choice out of the way, with a warning for each. Raises UserError."""
    for checkpoint, reason in choice.damaged:
        with user_error_on_write(workdir / DAMAGED):
            make_folder(workdir / DAMAGED)
            place = _free_place(workdir, checkpoint)
            move_folder(checkpoint.directory / str(checkpoint.step), place, _MARK)
        if checkpoint.directory.name == LATEST:
            instead = f"resuming from {choice.latest}"
        else:
            instead = f"the best is {choice.best}" if choice.best else "the best is sought among the steps that follow"
        say(f"warning: checkpoint {checkpoint} is damaged ({reason}), moved to {place}: {instead}")
