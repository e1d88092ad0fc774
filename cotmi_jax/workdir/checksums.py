"""CRC-32C checksums of the files of a checkpoint, written before it counts as complete and compared when it is read.

{checkpoint}/checksums.json    {"step": …, "items": {…}, "files": {path: [bytes, checksum as 8 hexadecimal digits]}}

They cover all files of the items. `items` repeats what orbax lists in _CHECKPOINT_METADATA, which orbax changes once
more when it completes a checkpoint. A file on disk is read back by the first process once all processes have written
theirs, normally from the system's cache. Objects in a bucket are not read: Cloud Storage states their checksums.
"""

import base64
import errno
import functools
import json
import os
import stat
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import google_crc32c

from cotmi_jax.errors import one_line, shown
from cotmi_jax.files import Path, is_remote, list_objects, parse_json, read_regular, replace_file

CHECKSUMS_FILE = "checksums.json"
METADATA_FILE = "_CHECKPOINT_METADATA"  # in which orbax lists the items of a checkpoint
MARK = {"checksums": CHECKSUMS_FILE}  # custom metadata of orbax, by which a loss of CHECKSUMS_FILE is noticed
_BLOCK = 1 << 20  # bytes read at a time: the library holds Python's lock for the 0.1 ms that it computes
_MAX_JSON_BYTES = 1 << 26  # some 500,000 files
_THREADS = 4  # files read concurrently
_LISTING_SECONDS, _POLL_SECONDS = 60.0, 0.05  # how long the items of a checkpoint are waited for


class ChecksumError(ValueError):
    """A checkpoint is not what was written; the message names the item and the file."""


class _File(NamedTuple):
    """A file of an item. checksum: that of an object in a bucket; None for a file on disk."""

    name: str
    size: int
    checksum: str | None


class _Record(NamedTuple):
    """The content of CHECKSUMS_FILE; files: name → size and checksum."""

    step: int
    items: dict[str, str]
    files: dict[str, tuple[int, str]]


def _raise(error: OSError) -> None:
    raise error


def _shown(name: str) -> str:
    """A file's name in a message, after its item."""
    item, _, rest = name.partition("/")
    return f"{one_line(item, 40)}: {one_line(rest)}"


def files_of(place: Path) -> Iterator[_File]:
    """The files of all items. Raises ChecksumError for a FIFO or a device, which a read may wait for without end."""
    if is_remote(place):
        for name, fields in list_objects(place).items():
            if "/" in name:
                yield _File(name, int(fields["size"]), base64.b64decode(fields["crc32c"]).hex())
        return
    for item in (entry for entry in place.iterdir() if entry.is_dir()):
        for folder, _, names in os.walk(item, onerror=_raise):
            for name in names:
                path = os.path.join(folder, name)
                relative, status = os.path.relpath(path, place), os.stat(path)
                if not stat.S_ISREG(status.st_mode):
                    raise ChecksumError(f"{_shown(relative)} is not a file")
                yield _File(relative, status.st_size, None)


def _checksum(place: Path, file: _File) -> str:
    if file.checksum is not None:
        return file.checksum
    value = 0
    with open(place / file.name, "rb") as content:
        while block := content.read(_BLOCK):
            value = google_crc32c.extend(value, block)
    return f"{value:08x}"


def _checksums(place: Path, files: list[_File]) -> Iterator[tuple[_File, str]]:
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from zip(files, pool.map(functools.partial(_checksum, place), files), strict=True)


def _read_json(place: Path, name: str) -> dict[str, Any]:
    try:
        found = parse_json(read_regular(place / name, _MAX_JSON_BYTES))
    except FileNotFoundError as error:
        raise ChecksumError(f"{name}: lost") from error
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG, errno.EISDIR, errno.ELOOP):
            raise ChecksumError(f"{name}: {error.strerror}") from error
        raise
    except ValueError as error:
        raise ChecksumError(f"{name}: not JSON ({one_line(str(error))})") from error
    if not isinstance(found, dict):
        raise ChecksumError(f"{name}: no JSON object")
    return found


def items_of(place: Path) -> dict[str, str]:
    """Item → class of its handler, as orbax lists them. Raises ChecksumError, and OSError where it has no access."""
    items = _read_json(place, METADATA_FILE).get("item_handlers")
    if not isinstance(items, dict) or not all(isinstance(each, str) for each in items.values()):
        raise ChecksumError(f"{METADATA_FILE}: it lists no items")
    return items


def has_checksums(place: Path) -> bool:
    """Whether a checkpoint was written with checksums, even if they are lost since. Raises as items_of does."""
    return _read_json(place, METADATA_FILE).get("custom_metadata") == MARK or (place / CHECKSUMS_FILE).exists()


def _listed_items(place: Path) -> dict[str, str]:
    """items_of a checkpoint that is being written: orbax lists its items in a thread, not in order with their files."""
    deadline = time.monotonic() + _LISTING_SECONDS
    while True:
        try:
            return items_of(place)
        except ChecksumError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_SECONDS)


def write_checksums(place: Path, step: int) -> None:
    """Add the checksums of the files that a checkpoint has now. Raises what `files.failures` lists."""
    files = {file.name: (file.size, checksum) for file, checksum in _checksums(place, list(files_of(place)))}
    record = _Record(step, _listed_items(place), files)
    replace_file(place / CHECKSUMS_FILE, json.dumps(record._asdict(), indent=0) + "\n")


def _read_record(place: Path) -> _Record:
    record = _read_json(place, CHECKSUMS_FILE)
    try:
        files = {name: (int(size), str(checksum)) for name, (size, checksum) in record["files"].items()}
        return _Record(record["step"], record["items"], files)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ChecksumError(f"{CHECKSUMS_FILE}: it does not list sizes and checksums") from error


def verify(place: Path, step: int, items: Collection[str] | None, process: int, processes: int) -> None:
    """Compare a checkpoint, or some of its items, with its record. Files that were added since have no effect.

    Each of several processes compares names and sizes of all files, but the content of its share of them only.

    Raises:
      ChecksumError: it is not what was written.
      What `files.failures` lists: a file cannot be accessed.
    """
    record = _read_record(place)
    if record.step != step:
        raise ChecksumError(f"{CHECKSUMS_FILE}: it is the checkpoint of step {shown(record.step)}")
    if record.items != items_of(place):
        raise ChecksumError(f"{METADATA_FILE}: it lists other items than were written")
    wanted = [name for name in record.files if items is None or name.partition("/")[0] in items]
    found = {file.name: file for file in files_of(place)}
    for name in wanted:
        if name not in found:
            raise ChecksumError(f"{_shown(name)} is lost")
        if found[name].size != record.files[name][0]:
            raise ChecksumError(f"{_shown(name)} has {found[name].size} bytes, {record.files[name][0]} were written")
    by_size = sorted((found[name] for name in wanted), key=lambda file: (-file.size, file.name))
    for file, checksum in _checksums(place, by_size[process::processes]):
        if checksum != record.files[file.name][1]:
            raise ChecksumError(
                f"{_shown(file.name)} was altered (CRC-32C {checksum}, written with {record.files[file.name][1]})"
            )
