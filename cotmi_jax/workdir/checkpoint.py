"""Checkpoints of a workdir through orbax: {state, data position, config} of the latest steps, and the best student.

{workdir}/checkpoints/{step}/{params,mi,optimizer,data,config}     the latest few, to resume from
{workdir}/best/{step}/{params,config,metrics}                      the best on the valid split, to evaluate

params are the student's; mi, the networks and the state of the mutual-information term, is saved if it has any.
"""

import contextlib
import dataclasses
import errno
import functools
import json
import math
from collections.abc import Iterator
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from cotmi_jax.errors import UserError
from cotmi_jax.files import (
    Path,
    check_described,
    failures,
    is_remote,
    run_all,
    user_error_on_failure,
    user_error_on_write,
)
from cotmi_jax.models.student import Params
from cotmi_jax.parallel.sharding import PyTree
from cotmi_jax.workdir.orbax_noise import silence_abandoned_operations
from cotmi_jax.workdir.storage_errors import as_system_error, first_line, is_damage

Json = dict[str, Any]
LATEST, BEST = "checkpoints", "best"
_ITEMS_FILE = "_CHECKPOINT_METADATA"  # in which orbax lists what a checkpoint holds
_AGAIN = "make it readable, then give the same command"
_GROUP_BYTES = 1 << 30  # bytes read at a time when a checkpoint is verified on the host


@dataclasses.dataclass(frozen=True)
class Saved:
    """One checkpoint on disk."""

    directory: Path
    step: int

    def __str__(self) -> str:
        return str(self.directory / str(self.step))


def _manager(directory: Path, keep: int) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        create=True,
        cleanup_tmp_directories=True,  # of checkpoints whose writing a kill interrupted
    )
    with _writing(directory):
        return ocp.CheckpointManager(directory, options=options)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Like files.user_error_on_write, also for system errors that tensorstore raises as ValueError."""
    with user_error_on_write(path):
        try:
            yield
        except ValueError as error:
            system_error = as_system_error(error, path)
            if system_error is None:
                raise
            raise system_error from error


class Checkpoints:
    """Writes a run's checkpoints, asynchronously: save returns once the arrays are copied off the devices.

    An error while one is written is raised, as UserError, by the next check, save, save_best, wait or close. The
    incomplete one keeps its temporary name and is not used as a checkpoint; earlier ones are kept.
    """

    def __init__(self, workdir: Path, *, keep: int):
        silence_abandoned_operations()
        self.workdir = workdir
        check_described(workdir / LATEST)  # BEST is in the same bucket
        self._latest = _manager(workdir / LATEST, keep)
        self._best = _manager(workdir / BEST, 1)
        self._folders = ((self._latest, workdir / LATEST), (self._best, workdir / BEST))

    def save(self, trees: dict[str, PyTree], step: int, data: Json, config: Json) -> None:
        """Save everything needed to resume after `step`; does nothing if that step is saved already.

        Waits until the best student is on disk: a run that resumes after its step could not save it again.
        """
        with _writing(self.workdir / BEST):
            self._best.wait_until_finished()
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items |= {"data": ocp.args.JsonSave(data), "config": ocp.args.JsonSave(config)}
        _save(self._latest, self.workdir / LATEST, step, items)

    def save_best(self, params: Params, step: int, metrics: Json, config: Json) -> None:
        """Replace the best student, which may be of a later step if steps are repeated after a resume."""
        with _writing(self.workdir / BEST):
            for later in self._best.all_steps():
                if later >= step:  # a repeated step is better: orbax keeps only the highest step
                    self._best.delete(later)
        items = {"params": ocp.args.StandardSave(params)}
        items |= {"metrics": ocp.args.JsonSave(metrics), "config": ocp.args.JsonSave(config)}
        _save(self._best, self.workdir / BEST, step, items)

    def check(self) -> None:
        """Raise the error of a checkpoint whose writing has ended. Does not wait."""
        for manager, directory in self._folders:
            if not manager.is_saving_in_progress():
                with _writing(directory):
                    manager.wait_until_finished()

    def wait(self) -> None:
        """Return once everything is on disk."""
        for manager, directory in self._folders:
            with _writing(directory):
                manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then close both managers, even where one folder cannot be written."""

        def close(manager: ocp.CheckpointManager, directory: Path) -> None:
            with _writing(directory):
                manager.close()

        with run_all(*(functools.partial(close, *each) for each in self._folders)):
            pass


def _save(
    manager: ocp.CheckpointManager, directory: Path, step: int, items: dict[str, ocp.args.CheckpointArgs]
) -> None:
    if manager.latest_step() == step:
        return
    with _writing(directory):
        if (
            not is_remote(directory) and not directory.exists()
        ):  # orbax would create it, below the mount point of a lost disk
            raise FileNotFoundError(errno.ENOENT, "", str(directory))
        manager.save(step, args=ocp.args.Composite(**items))


def steps_saved(directory: Path) -> list[int]:
    """The steps of the complete checkpoints in a folder, in order. Raises UserError where it cannot be listed."""
    with user_error_on_failure(f"checkpoints in {directory} cannot be read", _AGAIN):
        try:
            paths = list(directory.iterdir())  # glob would ignore a missing permission
        except FileNotFoundError:
            return []
        # Orbax renames a directory to its bare number when it is complete; in a bucket it writes a marker into it.
        numbered = [path for path in paths if path.name.isdigit()]
        return sorted(int(path.name) for path in numbered if ocp.utils.is_checkpoint_finalized(path))


def saved(workdir: Path, which: Literal["latest", "best"] | int) -> Saved | None:
    """The latest or best checkpoint of a workdir, or that of a step; None where there is none."""
    directory = workdir / (BEST if which == "best" else LATEST)
    steps = steps_saved(directory)
    if not steps or (isinstance(which, int) and which not in steps):
        return None
    return Saved(directory, which if isinstance(which, int) else steps[-1])


def find(workdir: Path, which: Literal["latest", "best"] | int) -> Saved:
    """Like saved; raises UserError where there is none."""
    found = saved(workdir, which)
    if found is None:
        what = f"checkpoint of step {which}" if isinstance(which, int) else f"{which} checkpoint"
        hint = "; if it never evaluated its valid split, give --checkpoint=latest" if which == "best" else ""
        raise UserError(f"no {what} in {workdir}: give the --workdir of a run that saved one{hint}")
    return found


class UnreadableError(Exception):
    """A checkpoint is damaged; the message names the unreadable item."""


@contextlib.contextmanager
def _reading(checkpoint: Saved, item: str = "") -> Iterator[None]:
    """Raise exceptions of tensorstore and orbax for missing, truncated or foreign files as UnreadableError.

    Raises UserError if files cannot be accessed, since their content is then unknown.
    """
    silence_abandoned_operations()
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        source = error
        while type(source) is Exception and isinstance(source.__cause__, Exception):  # orbax wraps errors of arrays
            source = source.__cause__
        if not isinstance(source, (ValueError, KeyError, *failures())) and type(source) is not Exception:
            raise
        if not is_damage(source):
            raise UserError(f"checkpoint {checkpoint} cannot be accessed ({first_line(source)}): {_AGAIN}") from error
        raise UnreadableError(f"{item}: " * bool(item) + first_line(source)) from error


def _leaves(directory: Path, process: int, processes: int) -> Iterator[tuple[str, np.ndarray]]:
    """This process's groups of the arrays of a tree on disk, on the host, whatever mesh they were saved from."""
    handler = ocp.PyTreeCheckpointHandler()
    stored, shape = jax.tree_util.tree_flatten_with_path(handler.metadata(directory).tree)
    sizes = [math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize for _, leaf in stored]
    to_host = jax.tree.unflatten(shape, [ocp.RestoreArgs(restore_type=np.ndarray)] * len(stored))
    start = number = 0
    while start < len(stored):
        stop, size = start + 1, sizes[start]
        while stop < len(stored) and size + sizes[stop] <= _GROUP_BYTES:
            size += sizes[stop]
            stop += 1
        if number % processes == process:
            wanted = [leaf if start <= index < stop else ocp.PLACEHOLDER for index, (_, leaf) in enumerate(stored)]
            arguments = ocp.args.PyTreeRestore(item=jax.tree.unflatten(shape, wanted), restore_args=to_host)
            arrays = jax.tree.leaves(handler.restore(directory, args=arguments))
            for index in range(start, stop):
                yield f"{directory.name}{jax.tree_util.keystr(stored[index][0])}", arrays[index]
        start, number = stop, number + 1


def contents(checkpoint: Saved, process: int = 0, processes: int = 1) -> Iterator[tuple[str, np.ndarray | Json]]:
    """All items that a checkpoint's metadata lists, by name, read as they were written: JSON, then arrays on the host.

    It depends on no shape, mesh or device, and holds at most a gigabyte, or one array, at a time. Each of several
    processes yields its groups of arrays, but all JSON, since orbax synchronizes the processes there.

    Raises UnreadableError, or UserError if files cannot be accessed.
    """
    place = checkpoint.directory / str(checkpoint.step)
    with _reading(checkpoint, _ITEMS_FILE):
        handlers = json.loads((place / _ITEMS_FILE).read_text())["item_handlers"]
    written_as_json = {item: handler.endswith("JsonCheckpointHandler") for item, handler in handlers.items()}
    for item in sorted(handlers, key=lambda item: (not written_as_json[item], item)):
        with _reading(checkpoint, item):
            if written_as_json[item]:
                yield item, _read(checkpoint, ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]
            else:
                yield from _leaves(place / item, process, processes)


def damage(checkpoint: Saved, process: int = 0, processes: int = 1) -> str | None:
    """Why a checkpoint cannot be read; None if it can. Reads the `contents` of this process.

    A flipped bit within an array's data is not noticed: the format has no checksum there.
    """
    try:
        for _ in contents(checkpoint, process, processes):
            pass
    except UnreadableError as error:
        return str(error)
    return None


def _read(checkpoint: Saved, args: ocp.args.Composite) -> Any:
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(checkpoint.directory, options=options) as manager:
        return manager.restore(checkpoint.step, args=args)


def _restore_intact(checkpoint: Saved, args: ocp.args.Composite) -> Any:
    """Restore; UnreadableError where the checkpoint is damaged, UserError where anything else prevents it."""
    try:
        with _reading(checkpoint):
            return _read(checkpoint, args)
    except UnreadableError as error:
        if checkpoint.step not in steps_saved(checkpoint.directory):
            raise UserError(
                f"checkpoint {checkpoint} was removed while it was read, as a run that is still training replaces its "
                "checkpoints: give the same command again"
            ) from error
        reason = damage(checkpoint)
        if reason is None:  # a wrong shape, for example: the files are intact
            raise UserError(f"checkpoint {checkpoint} is intact, but not what is to be restored ({error})") from error
        raise UnreadableError(reason) from error


def _restore(checkpoint: Saved, args: ocp.args.Composite) -> Any:
    """Restore; if the checkpoint is damaged, the UserError names the other checkpoints."""
    try:
        return _restore_intact(checkpoint, args)
    except UnreadableError as error:
        workdir = checkpoint.directory.parent
        others = [Saved(workdir / folder, step) for folder in (BEST, LATEST) for step in steps_saved(workdir / folder)]
        there = ", ".join(str(other) for other in others if other != checkpoint)
        hint = f"there are {there} (--checkpoint=best, latest or a step)" if there else "there is no other"
        raise UserError(f"checkpoint {checkpoint} is damaged ({error}): {hint}") from error


def restore_json(checkpoint: Saved, item: Literal["config", "data", "metrics"]) -> Json:
    """One JSON item of a checkpoint."""
    return _restore(checkpoint, ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]


def restore_params(checkpoint: Saved, abstract: PyTree) -> Params:
    """Only the parameters, each leaf sharded as its abstract array specifies, on any mesh."""
    return _restore(checkpoint, ocp.args.Composite(params=ocp.args.StandardRestore(abstract)))["params"]


def _trees(abstract: dict[str, PyTree]) -> dict[str, ocp.args.CheckpointArgs]:
    return {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}


def restore_items(checkpoint: Saved, abstract: dict[str, PyTree]) -> dict[str, PyTree]:
    """The named trees of a checkpoint, each leaf sharded as its abstract array specifies, on any mesh."""
    items = _restore(checkpoint, ocp.args.Composite(**_trees(abstract)))
    return {name: items[name] for name in abstract}


def restore_run(checkpoint: Saved, abstract: dict[str, PyTree]) -> dict[str, PyTree]:
    """restore_items of a checkpoint of LATEST; also reads its JSON. Raises UnreadableError if any item is damaged."""
    json_items = {"data": ocp.args.JsonRestore(), "config": ocp.args.JsonRestore()}
    items = _restore_intact(checkpoint, ocp.args.Composite(**_trees(abstract), **json_items))
    return {name: items[name] for name in abstract}
