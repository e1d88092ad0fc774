"""Tensors of a `torch.save` file, read without torch and without executing code that the file names.

The format since torch 1.6 is a zip archive of uncompressed entries: `data.pkl`, a pickle of the state dict in which
every storage is a persistent id, and `data/<key>`, the raw bytes of each storage. The file is mapped into memory, so
that a tensor costs what its own values take, however many tensors share a storage.
"""

import contextlib
import functools
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.files import user_error_on_failure
from cotmi_jax.models.torch_pickle import (
    MAX_BYTES,
    RefusedPickleError,
    Storage,
    View,
    read_pickle,
    read_state_dict,
    unlike_torch,
)

_DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_MAX_DIRECTORY = 1 << 20  # bytes of the archive's list of entries, of which each takes about 100
# What zipfile is documented or was observed to raise on malformed input.
_MALFORMED = (zipfile.BadZipFile, EOFError, LookupError, NotImplementedError, OverflowError, ValueError, struct.error)
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of the name and of the extra field, which follow it


class StoredTensor(NamedTuple):
    """A tensor of an open weight file: its shape, and a function that reads its values as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class _DirectoryFile(io.FileIO):
    """The archive as zipfile reads its list of entries: at once, and with a hundred times its size in memory."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_DIRECTORY:
            raise zipfile.BadZipFile(f"its list of entries has {size} bytes, more than {_MAX_DIRECTORY}")
        return super().read(size) or b""


class _Archive:
    """Uncompressed entries of a zip archive, as arrays of bytes that are mapped into memory."""

    def __init__(self, path: Path):
        with _DirectoryFile(path) as file, zipfile.ZipFile(file) as archive:
            self.entries = {entry.filename: entry for entry in archive.infolist()}
        self._file = np.memmap(path, np.uint8, "r")
        self._intact: set[str] = set()

    def size(self, name: str) -> int:
        """Bytes of an entry. Raises RefusedPickleError if there is no such entry, or one that torch does not write."""
        entry = self.entries.get(name)
        if entry is None:
            raise unlike_torch(f"there is no entry {shown(name)}")
        # torch never compresses; a compressed entry may be a zip bomb.
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
            raise unlike_torch(f"entry {shown(name)} is compressed")
        return entry.file_size

    def read(self, name: str) -> np.ndarray:
        """uint8 [size]: an entry, whose checksum is verified once. Raises BadZipFile, and as `size` does."""
        size, start = self.size(name), self.entries[name].header_offset
        if not 0 <= start <= self._file.size - _LOCAL_HEADER.size:
            raise zipfile.BadZipFile(f"entry {shown(name)} reaches beyond the file")
        signature, *lengths = _LOCAL_HEADER.unpack(self._file[start : start + _LOCAL_HEADER.size].tobytes())
        start += _LOCAL_HEADER.size + sum(lengths)
        if signature != b"PK\3\4" or start + size > self._file.size:
            raise zipfile.BadZipFile(f"entry {shown(name)} reaches beyond the file, or is not where the list has it")
        content = self._file[start : start + size]
        if name not in self._intact:
            if zlib.crc32(content.data) != self.entries[name].CRC:
                raise zipfile.BadZipFile(f"the CRC-32 of entry {shown(name)} differs")
            self._intact.add(name)
        return content


@contextlib.contextmanager
def open_torch_bin(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """Tensors by name, readable within the context. Raises UserError with the file if it cannot be read."""
    with user_error_on_failure(str(path), "download it again"), _as_user_errors(path):
        archive = _Archive(path)
        pickles = [name for name in archive.entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise zipfile.BadZipFile(f"{len(pickles)} entries are called data.pkl")
        prefix = pickles[0].removesuffix("data.pkl")
        if f"{prefix}byteorder" in archive.entries and archive.read(f"{prefix}byteorder").tobytes() != b"little":
            raise UserError(f"{path}: written on a big-endian machine: load it with torch and save as safetensors")
        if archive.size(pickles[0]) > MAX_BYTES:
            raise RefusedPickleError(f"refused, its pickle has more than {MAX_BYTES} bytes: save it as safetensors")
        views = read_state_dict(archive.read(pickles[0]).tobytes())
        for view in views.values():
            _check_storage(archive, prefix, view.storage)

    def read(view: View) -> np.ndarray:
        with _as_user_errors(path):
            values = archive.read(f"{prefix}data/{view.storage.key}")
            if 0 in view.shape:
                return np.zeros(view.shape, np.float32)
            dtype = _DTYPES[view.storage.dtype]
            flat = np.frombuffer(values, dtype, view.storage.length)[view.offset :]
            strides = [stride * dtype.itemsize for stride in view.strides]
            return np.lib.stride_tricks.as_strided(flat, view.shape, strides, writeable=False).astype(np.float32)

    yield {name: StoredTensor(view.shape, functools.partial(read, view)) for name, view in views.items()}


def _check_storage(archive: _Archive, prefix: str, storage: Storage) -> None:
    size, needed = archive.size(f"{prefix}data/{storage.key}"), storage.length * _DTYPES[storage.dtype].itemsize
    if needed > size:
        raise unlike_torch(f"storage {shown(storage.key)} has {size} bytes of {shown(needed)}")


@contextlib.contextmanager
def _as_user_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except RefusedPickleError as error:
        raise UserError(f"{path}: {error}") from error
    except UserError:
        raise
    except _MALFORMED as error:
        raise UserError(f"{path}: {_diagnosis(path)} ({one_line(str(error))})") from error


def _diagnosis(path: Path) -> str:
    """Why a file is no archive of torch."""
    with path.open("rb") as file:
        start = file.read(MAX_BYTES)
    if start[:1] != b"\x80":
        return "corrupt or truncated: download it again" if start[:2] == b"PK" else "not a torch.save file"
    # Before torch 1.6: a magic number, a version, facts of the machine, and the state dict, each a pickle.
    pickles = io.BytesIO(start)
    try:
        for _ in range(4):
            read_pickle(pickles, len(start))
    except RefusedPickleError as error:
        return str(error)
    return (
        "in the format of torch before 1.6, which is not supported: load it with torch.load(…, weights_only=True), "
        "which runs no code of the file, and save it again"
    )
