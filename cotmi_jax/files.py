"""Files and folders, on disk or in a bucket of Google Cloud Storage, by one kind of path.

What a user may name as gs://BUCKET/… goes through `as_path`, whose Path behaves as pathlib's in both places. A bucket
holds objects only: a folder is there while an object's name begins with it, an object appears whole or not at all, and
nothing is appended to one.
"""

import contextlib
import errno
import functools
import importlib.util
import json
import logging
import os
import pathlib
import secrets
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotmi_jax.errors import UserError

GCS_INSTALLED = importlib.util.find_spec("gcsfs") is not None
if GCS_INSTALLED:
    # One client for all of gs://, orbax's and TensorFlow Datasets' files too: left alone, epath imports tensorflow.
    os.environ.setdefault("EPATH_USE_TF", "0")

if TYPE_CHECKING:
    from pathlib import Path as Path  # epath has no types, and promises the methods of this one
else:
    from etils.epath import Path as Path  # for others to take from here

_REMOTE = "gs://"
_REMEDIES: dict[int | None, str] = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there")
_REMEDIES |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable")


def is_remote(path: "str | os.PathLike[str]") -> bool:
    """Whether a path is one in a bucket."""
    return os.fspath(path).startswith(_REMOTE)


def absolute(text: str) -> str:
    """The text of a path that means the same from any folder; of a URL, whatever its kind, itself."""
    return text if "://" in text else str(pathlib.Path(text).expanduser().absolute())


def as_path(text: str) -> Path:
    """The path that a user means. UserError for URLs other than gs://BUCKET…, and for a bucket that cannot be used."""
    scheme, found, rest = text.partition("://")
    if not found:
        return Path(text).expanduser()
    bucket = rest.partition("/")[0]
    if scheme != "gs" or not bucket:
        raise UserError(f"{text}: give a local path, or gs://BUCKET/PATH")
    if not GCS_INSTALLED:
        raise UserError(f"{text}: gs:// needs gcsfs: pip install -e '.[gcs]' (in the repository), or give a local path")
    _check_bucket(bucket)
    return Path(text)


@functools.cache
def _check_bucket(bucket: str) -> None:
    """Ask for one name in a bucket, once: what is wrong with credentials or network is wrong everywhere in it."""
    import fsspec

    # Listings are not to be remembered: tensorstore and other hosts write too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    for name in ("gcsfs", "gcsfs.retry"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # a traceback before every error is not for the user
    remedy = "check the name, log in (gcloud auth application-default login), or give a local path"
    with user_error_on_failure(f"{_REMOTE}{bucket} cannot be used", remedy):
        try:
            fsspec.filesystem("gcs", finalize_on_close=True).call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
        except FileNotFoundError as error:
            raise OSError("there is no such bucket") from error


def check_described(path: Path) -> None:
    """Ask a bucket what it is, as orbax does when it first lists or deletes checkpoints. Raises UserError."""
    if is_remote(path):
        from google.cloud import storage

        remedy = (
            "it takes the permission storage.buckets.get (docs/data.md), and $GOOGLE_CLOUD_PROJECT outside Google Cloud"
        )
        with user_error_on_failure(f"{path} cannot hold checkpoints", remedy):
            storage.Client().get_bucket(str(path).removeprefix(_REMOTE).partition("/")[0])


def failures() -> tuple[type[Exception], ...]:
    """What a file operation raises for reasons outside this program."""
    if "gcsfs" not in sys.modules:
        return (OSError,)
    import aiohttp
    from gcsfs.retry import HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return (OSError, HttpError, GoogleAPIError, GoogleAuthError, aiohttp.ClientError)


def reason(error: Exception) -> str:
    """Why a file operation failed, in one line."""
    if isinstance(error, FileNotFoundError):  # from a bucket it carries no message
        return "No such file or directory"
    if isinstance(error, OSError) and error.errno and type(error).__module__ == "builtins":
        return error.strerror or os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or repr(error)


@contextlib.contextmanager
def user_error_on_failure(what: str, remedy: str = "") -> Iterator[None]:
    """Failing file operations as UserError: what, why, and the remedy."""
    try:
        yield
    except failures() as error:
        raise UserError(f"{what}: {reason(error)}" + (f"; {remedy}" if remedy else "")) from error


@contextlib.contextmanager
def user_error_on_write(path: Path) -> Iterator[None]:
    """Around what writes a run's files at `path`: what fails becomes a UserError with the path and the remedy."""
    try:
        yield
    except failures() as error:
        remedy = _REMEDIES.get(getattr(error, "errno", None), "see that the folder is there and can be reached")
        raise UserError(
            f"cannot write {path}: {reason(error)}: {remedy}, and the same command resumes from the last checkpoint"
        ) from error


@contextlib.contextmanager
def run_all(*ends: Callable[[], None]) -> Iterator[None]:
    """Call every one of `ends`, in order, however the body ends.

    What ended the body comes first: an error of an end is raised only where nothing was before, else it is a note, with
    its traceback where it is no UserError.
    """
    first: BaseException | None = None
    try:
        yield
    except BaseException as error:
        first = error
    for end in ends:
        try:
            end()
        except BaseException as error:
            if first is None:
                first = error
            else:
                first.add_note(
                    str(error) if isinstance(error, UserError) else "".join(traceback.format_exception(error))
                )
    if first is not None:
        raise first


def make_folder(path: Path) -> None:
    """Make a folder and those above it, where there are folders. OSError as of making."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder and write to it. OSError as of making and writing."""
    make_folder(folder)
    probe = folder / f".writable.{secrets.token_hex(4)}"  # processes of other hosts do the same at the same time
    probe.touch()
    probe.unlink()


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file in one move, text as UTF-8, on disk when this returns: a kill leaves the old one or the new one.

    OSError as of writing.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)
        return
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a large file, on disk or in a bucket, in blocks. OSError as of reading and writing."""
    with source.open("rb") as reading, target.open("wb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 24)


def move_folder(source: Path, target: Path, mark: str) -> None:
    """Move a folder to where nothing is; its file `mark`, if there, says that it is complete.

    In a bucket everything is copied before anything goes, the mark first: a kill leaves a complete source, or one
    that is not marked as complete. OSError as of renaming, and what else `failures` names.
    """
    if not is_remote(source):
        os.rename(source, target)
        return
    import fsspec

    store = fsspec.filesystem("gcs", finalize_on_close=True)
    root = str(source).removeprefix(_REMOTE)
    names = store.find(root)
    if not names:
        raise FileNotFoundError(errno.ENOENT, "", str(source))
    store.copy(names, [str(target).removeprefix(_REMOTE) + name.removeprefix(root) for name in names])
    first = [name for name in names if name == f"{root}/{mark}"]
    rest = [name for name in names if name not in first]
    for group in filter(None, (first, rest)):
        store.rm(group)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file that grows line by line, none without a file, and without a last line cut by a kill.

    OSError as of reading. UserError for a line that is none.
    """
    lines = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True) if path.exists() else [], 1):
        if not line.endswith("\n"):
            break
        try:
            found = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: no JSON object ({error}): take it out") from error
        if not isinstance(found, dict):
            raise UserError(f"{path}, line {number}: no JSON object ({line.strip()[:50]}): take it out")
        lines.append(found)
    return lines


def append_line(path: Path, line: str) -> None:
    """Add a line to a small text file. OSError as of writing."""
    if is_remote(path):
        replace_file(path, (path.read_text() if path.exists() else "") + line + "\n")
        return
    with path.open("a") as lines:
        lines.write(line + "\n")


CACHE_VARIABLE = "COTMI_CACHE"


DEFAULT_CACHE = "~/.cache/cotmi_jax"
