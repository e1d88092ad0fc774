"""Files and folders, on disk or in a bucket of Google Cloud Storage, with one type of path.

Every path that a user may give as gs://BUCKET/… is made by `as_path`; its Path has pathlib's methods for both. A bucket
holds objects only: a folder exists while an object's name begins with its path, an object is written atomically, and it
cannot be appended to.
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
import stat
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cotmi_jax.errors import UserError, one_line

GCS_INSTALLED = importlib.util.find_spec("gcsfs") is not None
if GCS_INSTALLED:
    # One client for all gs:// paths, also those of orbax and TensorFlow Datasets: by default epath imports tensorflow.
    os.environ.setdefault("EPATH_USE_TF", "0")

if TYPE_CHECKING:
    from pathlib import Path as Path  # epath has no type annotations; its Path has the methods of pathlib's
else:
    from etils.epath import Path as Path  # re-exported

MAX_JSON_BYTES = 1 << 20  # of a file that is parsed at once: its values take up to 25 times as much memory
_REMOTE = "gs://"
_REMEDIES: dict[int | None, str] = dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room there")
_REMEDIES |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "make it writable")


def is_remote(path: "str | os.PathLike[str]") -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(_REMOTE)


def absolute(text: str) -> str:
    """The absolute form of a path; a URL of any scheme is returned unchanged."""
    return text if "://" in text else str(pathlib.Path(text).expanduser().absolute())


def as_path(text: str) -> Path:
    """The path that a user gave. UserError for URLs other than gs://BUCKET…, and for a bucket that cannot be used."""
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
    """Request one object name of a bucket, once: faults of credentials or network concern every object in it."""
    import fsspec

    # Listings must not be cached: tensorstore and other hosts write to the bucket too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    for name in ("gcsfs", "gcsfs.retry"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # else gcsfs logs a traceback before every error
    remedy = "check the name, log in (gcloud auth application-default login), or give a local path"
    with user_error_on_failure(f"{_REMOTE}{bucket} cannot be used", remedy):
        try:
            fsspec.filesystem("gcs", finalize_on_close=True).call("GET", "b/{}/o", bucket, maxResults=1, json_out=True)
        except FileNotFoundError as error:
            raise OSError("there is no such bucket") from error


def check_described(path: Path) -> None:
    """Query the kind of a bucket, as orbax does when it first lists or deletes checkpoints. Raises UserError."""
    if is_remote(path):
        from google.cloud import storage

        remedy = (
            "grant the permission storage.buckets.get (docs/data.md); outside Google Cloud set $GOOGLE_CLOUD_PROJECT"
        )
        with user_error_on_failure(f"{path} cannot hold checkpoints", remedy):
            storage.Client().get_bucket(str(path).removeprefix(_REMOTE).partition("/")[0])


def failures() -> tuple[type[Exception], ...]:
    """The exceptions of file operations whose cause is outside this program."""
    if "gcsfs" not in sys.modules:
        return (OSError,)
    import aiohttp
    from gcsfs.retry import HttpError
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return (OSError, HttpError, GoogleAPIError, GoogleAuthError, aiohttp.ClientError)


def reason(error: Exception) -> str:
    """Why a file operation failed, in one line."""
    if isinstance(error, FileNotFoundError):  # that of a bucket has no message
        return "No such file or directory"
    if isinstance(error, OSError) and error.errno and type(error).__module__ == "builtins":
        return error.strerror or os.strerror(error.errno)
    return " ".join(str(error).split())[:200] or repr(error)


@contextlib.contextmanager
def user_error_on_failure(what: str, remedy: str = "") -> Iterator[None]:
    """Raise failures of file operations in the body as UserError with `what`, the reason and the remedy."""
    try:
        yield
    except failures() as error:
        raise UserError(f"{what}: {reason(error)}" + (f"; {remedy}" if remedy else "")) from error


@contextlib.contextmanager
def user_error_on_write(path: Path) -> Iterator[None]:
    """Raise failures of writing a run's files at `path` as UserError with the path, the reason and the remedy."""
    try:
        yield
    except failures() as error:
        remedy = _REMEDIES.get(getattr(error, "errno", None), "check that the folder exists and can be reached")
        raise UserError(
            f"cannot write {path}: {reason(error)}: {remedy}, and the same command resumes from the last checkpoint"
        ) from error


@contextlib.contextmanager
def run_all(*ends: Callable[[], None]) -> Iterator[None]:
    """Call all of `ends`, in order, when the body ends, also by an exception.

    The first exception is raised, of the body or of an end. Later ones are added to it as notes, with their tracebacks
    unless they are UserErrors.
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
    """Make a folder and its parents; in a bucket, do nothing. Raises OSError."""
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def check_writable(folder: Path) -> None:
    """Make a folder and write to it. Raises what `failures` lists."""
    make_folder(folder)
    probe = folder / f".writable.{secrets.token_hex(4)}"  # a name of its own, since other hosts probe concurrently
    probe.touch()
    probe.unlink()


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file atomically, text as UTF-8, flushed to disk: a kill leaves the old content or the new one.

    The file has the mode that the umask gives. A symbolic link at `path` is replaced; what it points to is unchanged.
    Raises what `failures` lists.
    """
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        path.write_bytes(data)
        return
    # Under a predictable name, another user of the folder could have made a link through which this writes.
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    file = open(temporary, "xb")
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_file(source: Path, target: Path) -> None:
    """Copy a large file, on disk or in a bucket, in blocks. Raises what `failures` lists."""
    with source.open("rb") as source_file, target.open("wb") as target_file:
        shutil.copyfileobj(source_file, target_file, 1 << 24)


def list_objects(folder: Path) -> dict[str, dict[str, Any]]:
    """The objects below a folder in a bucket: name relative to it → `size`, `crc32c` (base64) and other fields.

    Raises what `failures` lists.
    """
    import fsspec

    root = str(folder).removeprefix(_REMOTE).rstrip("/") + "/"
    found = fsspec.filesystem("gcs", finalize_on_close=True).find(root, detail=True)
    return {name.removeprefix(root): fields for name, fields in found.items()}


def move_folder(source: Path, target: Path, mark: str) -> None:
    """Move a folder to a path that does not exist; its file `mark`, if it has one, marks it as complete.

    In a bucket all objects are copied before any is deleted, and the mark is deleted first: a kill leaves a complete
    source, or one that is not marked as complete. Raises what `failures` lists.
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


def read_regular(path: Path, max_bytes: int | None = None) -> bytes:
    """Content of a regular file on disk, or of an object in a bucket.

    Raises what `failures` lists: OSError also for a directory, a FIFO and a device, which a read may wait for without
    end, for a name that no file can have, and for a content of more than max_bytes.
    """
    if is_remote(path):
        content: bytes = path.read_bytes()
    else:
        try:
            file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
        except ValueError as error:  # a null character, or half of a surrogate pair
            raise OSError(errno.EINVAL, "no file can have this name") from error
        with file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            content = file.read(-1 if max_bytes is None else max_bytes + 1)
    if max_bytes is not None and len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes")
    return content


def parse_json(text: str | bytes, *, unique_keys: bool = False) -> Any:
    """The value of a JSON text, bytes as UTF-8. Raises ValueError for any text that is not one.

    Unlike json.loads, which raises RecursionError where lists are nested deeply. With unique_keys, an object that has a
    key twice is an error; else the last value counts.
    """
    try:
        return json.loads(
            text.decode() if isinstance(text, bytes) else text, object_pairs_hook=_unique if unique_keys else None
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key is given twice")
    return fields


def read_json(path: Path, remedy: str, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError with the file, the fault and the remedy, whatever else is there."""
    place = one_line(str(path), 300)
    with user_error_on_failure(place, remedy):
        content = read_regular(path, max_bytes)
    try:
        fields = parse_json(content)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}, line {error.lineno}: not JSON ({error.msg}); {remedy}") from error
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({one_line(str(error))}); {remedy}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{place}: contains a {type(fields).__name__}, must be an object; {remedy}")
    return fields


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file that grows by lines: [] if it does not exist, without a last line that a kill cut.

    Raises what `failures` lists, and UserError for a line that is no JSON object.
    """
    lines = []
    complete = read_regular(path).split(b"\n")[:-1] if path.exists() else []
    for number, line in enumerate(complete, 1):
        try:
            found = parse_json(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number}: no JSON object ({one_line(str(error))}): remove the line"
            ) from error
        if not isinstance(found, dict):
            start = one_line(line.decode(), 50)
            raise UserError(f"{path}, line {number}: no JSON object ({start}): remove the line")
        lines.append(found)
    return lines


def append_line(path: Path, line: str) -> None:
    """Add a line to a small text file; a last line that a kill or a full disk cut is removed, as readers ignore it.

    Raises what `failures` lists, also where a FIFO or a device is in its place.
    """
    if is_remote(path):
        replace_file(path, (path.read_text() if path.exists() else "") + line + "\n")
        return
    with open(path, "a", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666)) as lines:
        if not stat.S_ISREG(os.fstat(lines.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        complete, newline, _ = read_regular(path).rpartition(b"\n")
        lines.truncate(len(complete + newline))
        lines.write(line + "\n")


CACHE_VARIABLE = "COTMI_CACHE"
DEFAULT_CACHE = "~/.cache/cotmi_jax"
