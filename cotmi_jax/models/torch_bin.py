"""Tensors of a `torch.save` file, read without torch and without executing code that the file names.

The format since torch 1.6 is a zip archive of uncompressed entries: `data.pkl`, a pickle of the state dict in which
every storage is a persistent id, and `data/<key>`, the raw bytes of each storage. A pickle may name any callable of the
process; the unpickler here resolves three of them and the three float storage types, to functions of its own that only
describe a tensor, and refuses the rest.
"""

import contextlib
import functools
import io
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

import ml_dtypes
import numpy as np

from cotmi_jax.errors import UserError

_STORAGES = {"FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"}
_DTYPES = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# What zipfile and pickle are documented or were observed to raise on malformed input.
_MALFORMED = (
    zipfile.BadZipFile,
    pickle.UnpicklingError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
)


class StoredTensor(NamedTuple):
    """A tensor of an open weight file: its shape, and a function that reads its values as float32."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


class _Storage(NamedTuple):
    key: str
    dtype: str
    length: int  # elements


class _View(NamedTuple):
    """A strided view of a storage; offset and strides in elements, all checked to be within it."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDict(dict[str, object]):
    """In place of OrderedDict, without attributes: a state dict's are versions, but any could replace a method."""

    def __setstate__(self, state: object) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Resolves names to bound methods and strings only: a pickle cannot set attributes of these."""

    def __init__(self, data: bytes, path: Path):
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        match f"{module}.{name}":
            case "collections.OrderedDict":
                return self._state_dict
            case "torch._utils._rebuild_tensor_v2":
                return self._view
            case "torch._utils._rebuild_parameter":
                return self._parameter
        raise UserError(
            f"{self._path}: refused, its pickle names {f'{module}.{name}'!r}, which no state dict of float tensors "
            "needs: if you trust it, load it with torch and save it as safetensors"
        )

    def persistent_load(self, pid: object) -> _Storage:
        match pid:
            case ("storage", str(dtype), str(key), str(), int(length)) if dtype in _DTYPES and length >= 0:
                return _Storage(key, dtype, length)
        raise pickle.UnpicklingError(f"persistent id {pid!r} is no storage")

    def _state_dict(self, *items: object) -> _StateDict:
        return _StateDict(*items)

    def _view(self, storage: object, offset: object, shape: object, strides: object, *_: object) -> _View:
        start = (offset,)
        if not (isinstance(storage, _Storage) and _is_sizes(start) and _is_sizes(shape) and _is_sizes(strides)):
            raise pickle.UnpicklingError("a tensor is described by something other than a storage and sizes")
        last = start[0] + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        if 0 not in shape and last >= storage.length:
            raise pickle.UnpicklingError(f"a tensor of shape {shape} reaches beyond its storage")
        return _View(storage, start[0], shape, strides)

    def _parameter(self, view: object, *_: object) -> object:
        return view


def _is_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and all(type(size) is int and size >= 0 for size in value)


@contextlib.contextmanager
def open_torch_bin(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """Tensors by name, readable within the context. Raises UserError with the file if it cannot be read."""
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(path))
            names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            if len(names) != 1:
                raise pickle.UnpicklingError(f"{len(names)} entries are called data.pkl")
            prefix = names[0].removesuffix("data.pkl")
            if f"{prefix}byteorder" in archive.namelist() and _entry(archive, f"{prefix}byteorder") != b"little":
                raise UserError(f"{path}: written on a big-endian machine: load it with torch and save as safetensors")
            views = _Unpickler(_entry(archive, names[0]), path).load()
        except _MALFORMED as error:
            raise UserError(f"{path}: {_diagnosis(path)} ({error})") from error
        yield _tensors(archive, prefix, views, path)


def _tensors(archive: zipfile.ZipFile, prefix: str, views: object, path: Path) -> dict[str, StoredTensor]:
    if not isinstance(views, dict):
        raise UserError(f"{path}: contains a {type(views).__name__}, not a state dict: save model.state_dict()")

    @functools.lru_cache(maxsize=1)  # tensors next to each other often share a storage, which may be most of the file
    def storage(source: _Storage) -> np.ndarray:
        return np.frombuffer(_entry(archive, f"{prefix}data/{source.key}"), _DTYPES[source.dtype], source.length)

    def read(view: _View) -> np.ndarray:
        if 0 in view.shape:
            return np.zeros(view.shape, np.float32)
        try:
            flat = storage(view.storage)[view.offset :]
        except _MALFORMED as error:
            raise UserError(f"{path}: {_diagnosis(path)} ({error})") from error
        strides = [stride * flat.itemsize for stride in view.strides]
        return np.lib.stride_tricks.as_strided(flat, view.shape, strides, writeable=False).astype(np.float32)

    for name, view in views.items():
        if not isinstance(name, str) or not isinstance(view, _View):
            raise UserError(f"{path}: entry {name!r} is not a tensor: save model.state_dict() alone")
    return {name: StoredTensor(view.shape, functools.partial(read, view)) for name, view in views.items()}


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Contents of an entry, its checksum verified. torch never compresses; a compressed entry may be a zip bomb."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise zipfile.BadZipFile(f"entry {name} is compressed")
    return archive.read(name)


def _diagnosis(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80":
        return "in the format of torch before 1.6, which is not supported: load it with torch and save it again"
    return "corrupt or truncated: download it again" if start == b"PK" else "not a torch.save file"
