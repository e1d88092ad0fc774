"""Checkpoints of a workdir through orbax: {state, data position, config} of the latest steps, and the best student.

{workdir}/checkpoints/{step}/{params,mi,optimizer,data,config}     the latest few, to resume from
{workdir}/best/{step}/{params,config,metrics}                      the best on the valid split, to evaluate
{workdir}/{checkpoints,best}/{step}/checksums.json                 of all their files (checksums.py)

params are the student's; mi, the networks and the state of the mutual-information term, is saved if it has any.
"""

import contextlib
import dataclasses
import errno
import functools
import math
import sys
from collections.abc import Collection, Iterator
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
from cotmi_jax.parallel.distributed import is_main_process
from cotmi_jax.parallel.sharding import PyTree
from cotmi_jax.workdir.checksums import (
    MARK,
    files_of,
    has_checksums,
    items_of,
    verify,
    write_checksums,
)
from cotmi_jax.workdir.orbax_noise import silence_abandoned_operations
from cotmi_jax.workdir.storage_errors import as_system_error, first_line, is_damage

Json = dict[str, Any]
LATEST, BEST = "checkpoints", "best"
_AGAIN = "make it readable, then give the same command"
_GROUP_BYTES = 1 << 30  # bytes read at a time when a checkpoint is verified on the host


@dataclasses.dataclass(frozen=True)
class Saved:
    """One checkpoint on disk."""

    directory: Path
    step: int

    def __str__(self) -> str:
        return str(self.directory / str(self.step))


class _Folder:
    """A folder of checkpoints with its manager, which adds checksums to each before it counts as complete."""

    def __init__(self, directory: Path, keep: int):
        self.directory, self._step = directory, -1
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,  # of checkpoints whose writing a kill interrupted
            async_options=ocp.AsyncOptions(post_finalization_callback=self._add_checksums),
        )
        with _writing(directory):
            self.manager = ocp.CheckpointManager(directory, options=options)

    def save(self, step: int, items: dict[str, ocp.args.CheckpointArgs]) -> None:
        """Save items in the background; does nothing if that step is saved already."""
        if self.manager.latest_step() == step:
            return
        with _writing(self.directory):
            if (
                not is_remote(self.directory) and not self.directory.exists()
            ):  # orbax would create it, below the mount point of a lost disk
                raise FileNotFoundError(errno.ENOENT, "", str(self.directory))
            self.manager.wait_until_finished()  # as the manager does; from here on no callback reads the step
            self._step = step
            self.manager.save(step, args=ocp.args.Composite(**items), custom_metadata=MARK)

    def _add_checksums(self) -> None:
        """Called in the background, by the first process only, once all files are written."""
        temporary = self.directory / f"{self._step}{ocp.utils.TMP_DIR_SUFFIX}"  # renamed when it is complete
        place = self.directory / str(self._step)  # where a marker is written instead, as in a bucket
        write_checksums(place if is_remote(place) or not temporary.exists() else temporary, self._step)

    def wait(self) -> None:
        """Return once everything is on disk."""
        with _writing(self.directory):
            self.manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then close the manager."""
        with _writing(self.directory):
            self.manager.close()


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
        self._latest, self._best = _Folder(workdir / LATEST, keep), _Folder(workdir / BEST, 1)

    def save(self, trees: dict[str, PyTree], step: int, data: Json, config: Json) -> None:
        """Save everything needed to resume after `step`; does nothing if that step is saved already.

        Waits until the best student is on disk: a run that resumes after its step could not save it again.
        """
        self._best.wait()
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._latest.save(step, items | {"data": ocp.args.JsonSave(data), "config": ocp.args.JsonSave(config)})

    def save_best(self, params: Params, step: int, metrics: Json, config: Json) -> None:
        """Replace the best student, which may be of a later step if steps are repeated after a resume."""
        with _writing(self._best.directory):
            for later in self._best.manager.all_steps():
                if later >= step:  # a repeated step is better: orbax keeps only the highest step
                    self._best.manager.delete(later)
        items = {"params": ocp.args.StandardSave(params)}
        self._best.save(step, items | {"metrics": ocp.args.JsonSave(metrics), "config": ocp.args.JsonSave(config)})

    def check(self) -> None:
        """Raise the error of a checkpoint whose writing has ended. Does not wait."""
        for folder in (self._latest, self._best):
            if not folder.manager.is_saving_in_progress():
                folder.wait()

    def wait(self) -> None:
        """Return once everything is on disk."""
        for folder in (self._latest, self._best):
            folder.wait()

    def close(self) -> None:
        """Wait, then close both managers, even where one folder cannot be written."""
        with run_all(self._latest.close, self._best.close):
            pass


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
    with _reading(checkpoint):
        handlers = items_of(place)
    written_as_json = {item: handler.endswith("JsonCheckpointHandler") for item, handler in handlers.items()}
    for item in sorted(handlers, key=lambda item: (not written_as_json[item], item)):
        with _reading(checkpoint, item):
            if written_as_json[item]:
                yield item, _read(checkpoint, ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]
            else:
                yield from _leaves(place / item, process, processes)


@functools.cache
def _say_unchecked(workdir: Path) -> None:
    if is_main_process():
        print(
            f"{workdir} has checkpoints of an earlier version, without checksums: values altered in them since are not "
            "noticed",
            file=sys.stderr,
        )


def _verify(checkpoint: Saved, items: Collection[str] | None = None, process: int = 0, processes: int = 1) -> bool:
    """Compare the checksums of a checkpoint, or of some of its items; False, and a notice, where it has none.

    Several processes divide the files. Raises UnreadableError, or UserError if files cannot be accessed.
    """
    place = checkpoint.directory / str(checkpoint.step)
    with _reading(checkpoint):
        if has_checksums(place):
            verify(place, checkpoint.step, items, process, processes)
            return True
        for _ in files_of(place):
            pass  # raises where one is no file
    _say_unchecked(checkpoint.directory.parent)
    return False


def damage(checkpoint: Saved, process: int = 0, processes: int = 1) -> str | None:
    """Why a checkpoint is damaged; None if it is intact. Several processes divide the work.

    With checksums its files are compared with them. Without, as in workdirs of earlier versions, all `contents` are
    read: altered values within an array are then not noticed.
    """
    try:
        if not _verify(checkpoint, None, process, processes):
            for _ in contents(checkpoint, process, processes):
                pass
    except UnreadableError as error:
        return str(error)
    return None


def _read(checkpoint: Saved, args: ocp.args.Composite) -> Any:
    options = ocp.CheckpointManagerOptions(read_only=True)
    with ocp.CheckpointManager(checkpoint.directory, options=options) as manager:
        return manager.restore(checkpoint.step, args=args)


def _restore_intact(checkpoint: Saved, args: ocp.args.Composite, *, verified: bool = False) -> Any:
    """Restore; UnreadableError where the checkpoint is damaged, UserError where anything else prevents it.

    The files of the items are first compared with their checksums, unless they are `verified`.
    """
    try:
        if not verified:
            _verify(checkpoint, args.keys(), jax.process_index(), jax.process_count())
        return _restore_or_name_damage(checkpoint, args)
    except UnreadableError as error:
        if checkpoint.step in steps_saved(checkpoint.directory):
            raise
        raise UserError(
            f"checkpoint {checkpoint} was removed while it was read, as a run that is still training replaces its "
            "checkpoints: give the same command again"
        ) from error


def _restore_or_name_damage(checkpoint: Saved, args: ocp.args.Composite) -> Any:
    try:
        with _reading(checkpoint):
            return _read(checkpoint, args)
    except UnreadableError as error:
        reason = damage(checkpoint)
        if reason is None:  # a wrong shape, for example: the files are intact
            raise UserError(f"checkpoint {checkpoint} is intact, but not what is to be restored ({error})") from error
        raise UnreadableError(reason) from error


def _restore(checkpoint: Saved, args: ocp.args.Composite, *, verified: bool = False) -> Any:
    """Like _restore_intact; if the checkpoint is damaged, the UserError names the other checkpoints."""
    try:
        return _restore_intact(checkpoint, args, verified=verified)
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


def restore_items(checkpoint: Saved, abstract: dict[str, PyTree], *, verified: bool = False) -> dict[str, PyTree]:
    """The named trees of a checkpoint, each leaf sharded as its abstract array specifies, on any mesh.

    verified: its checksums are compared already.
    """
    items = _restore(checkpoint, ocp.args.Composite(**_trees(abstract)), verified=verified)
    return {name: items[name] for name in abstract}


def restore_run(checkpoint: Saved, abstract: dict[str, PyTree]) -> dict[str, PyTree]:
    """restore_items of a checkpoint of LATEST; also reads its JSON. Raises UnreadableError if any item is damaged."""
    json_items = {"data": ocp.args.JsonRestore(), "config": ocp.args.JsonRestore()}
    items = _restore_intact(checkpoint, ocp.args.Composite(**_trees(abstract), **json_items))
    return {name: items[name] for name in abstract}
