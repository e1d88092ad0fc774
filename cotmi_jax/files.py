"""Writing files so that a kill leaves the old one or the new one, never a part; what to do where one cannot be."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from cotmi_jax.errors import UserError

_CURES = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there") | dict.fromkeys(
    (errno.EACCES, errno.EPERM, errno.EROFS), "make it writable"
)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a run's files at `path`: an OSError becomes a UserError with the path and the way out."""
    try:
        yield
    except OSError as error:
        code = error.errno or errno.EIO
        reason = error.strerror or os.strerror(code)
        cure = _CURES.get(code, "see that the folder is there and can be reached")
        raise UserError(
            f"cannot write {path}: {reason}: {cure}, and the same command goes on from the last checkpoint"
        ) from error


@contextlib.contextmanager
def ended_by(*ends: Callable[[], None]) -> Iterator[None]:
    """Call every one of `ends`, in order, however the body ends.

    What ended the body comes first: a UserError of an end is raised only where nothing was before, else it is a note.
    """
    first: BaseException | None = None
    try:
        yield
    except BaseException as error:
        first = error
    for end in ends:
        try:
            end()
        except UserError as error:
            if first is None:
                first = error
            else:
                first.add_note(str(error))
    if first is not None:
        raise first


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file in one move, text as UTF-8, on disk when this returns. OSError as of writing."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
