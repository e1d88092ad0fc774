"""Chooses the checkpoint that a start resumes from, and moves damaged ones out of the way.

{workdir}/damaged/{checkpoints,best}-{step}     damaged checkpoints; that step can then be saved again
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

import jax

from cotmi_jax.errors import UserError
from cotmi_jax.files import Path, make_folder, move_folder, user_error_on_write
from cotmi_jax.parallel.distributed import all_gather_text
from cotmi_jax.parallel.sharding import PyTree
from cotmi_jax.workdir.checkpoint import BEST, LATEST, Saved, UnreadableError, damage, restore_run, steps_saved

DAMAGED = "damaged"
_MARK = "commit_success.txt"  # orbax's marker of a complete checkpoint in a bucket


@dataclasses.dataclass(frozen=True)
class Choice:
    """The newest intact checkpoints (None: none), and the newer ones that cannot be read, each with the reason."""

    latest: Saved | None
    best: Saved | None
    damaged: tuple[tuple[Saved, str], ...]
    items: dict[str, PyTree] | None = dataclasses.field(default=None, compare=False)  # trees of latest, if restored


def _verify(checkpoint: Saved) -> None:
    """Verify all of a checkpoint, divided among the processes. All raise UnreadableError if one finds damage."""
    found = all_gather_text(damage(checkpoint, jax.process_index(), jax.process_count()) or "")
    reason = next(filter(None, found), None)
    if reason is not None:
        raise UnreadableError(reason)


def _newest_intact(
    directory: Path, read: Callable[[Saved], dict[str, PyTree] | None]
) -> tuple[Saved | None, dict[str, PyTree] | None, list[tuple[Saved, str]]]:
    """The newest checkpoint that `read` can read, what it returned, and the newer ones that it cannot read."""
    damaged: list[tuple[Saved, str]] = []
    for step in reversed(steps_saved(directory)):
        checkpoint = Saved(directory, step)
        try:
            return checkpoint, read(checkpoint), damaged
        except UnreadableError as error:
            damaged.append((checkpoint, str(error)))
    return None, None, damaged


def choose(workdir: Path, abstract: dict[str, PyTree] | None = None) -> Choice:
    """The checkpoints that a start resumes from; every process must call it. Writes nothing.

    With `abstract`, the trees to restore, a run of one process reads the latest checkpoint once, by restoring it.
    Several processes must agree on one that all can read before they restore it together: they verify it on their
    hosts first. The best checkpoint is not restored, but only verified.

    A run without any checkpoint starts from step 0. One whose checkpoints are all damaged aborts rather than silently
    restarting from step 0.

    Raises:
      UserError: every checkpoint to resume from is damaged, or one cannot be accessed.
    """
    read: Callable[[Saved], dict[str, PyTree] | None] = _verify
    if abstract is not None and jax.process_count() == 1:
        read = functools.partial(restore_run, abstract=abstract)
    latest, items, damaged = _newest_intact(workdir / LATEST, read)
    if latest is None and damaged:
        reasons = "; ".join(f"{checkpoint.step}: {reason}" for checkpoint, reason in damaged)
        raise UserError(
            f"every checkpoint in {workdir / LATEST} is damaged ({reasons}): put an intact one there, or start a "
            "fresh run in another --workdir"
        )
    best, _, damaged_best = _newest_intact(workdir / BEST, _verify)
    return Choice(latest, best, (*damaged, *damaged_best), items)


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
            instead = f"the best is {choice.best}" if choice.best else "the best is chosen among later steps"
        say(f"warning: checkpoint {checkpoint} is damaged ({reason}), moved to {place}: {instead}")
