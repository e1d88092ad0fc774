"""Weight files of a Hugging Face checkpoint: safetensors or torch pickles, in one file or in shards with an index."""

import contextlib
import functools
import os.path
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from cotmi_jax.errors import UserError, one_line, shown
from cotmi_jax.files import MAX_JSON_BYTES, parse_json, read_json, user_error_on_failure
from cotmi_jax.models.torch_bin import StoredTensor, open_torch_bin

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_PREFERENCE = (SAFETENSORS, SAFETENSORS_INDEX, "pytorch_model.bin", "pytorch_model.bin.index.json")
_FLOATS = ("F32", "F16", "BF16")


def has_weights(directory: Path) -> bool:
    """Whether the directory has all weight files of its preferred format."""
    files = _files(directory)
    return bool(files) and all(os.path.isfile(directory / file) for file in files)


def stored_bytes(directory: Path) -> int:
    """Size of the weight files of the preferred format."""
    return sum((directory / file).stat().st_size for file in _files(directory))


@contextlib.contextmanager
def open_weights(directory: Path) -> Iterator[dict[str, StoredTensor]]:
    """Tensors of a checkpoint by name, readable within the context.

    Raises UserError with the file if one is missing, corrupt or inconsistent with its index.
    """
    files = _files(directory)
    if not files:
        raise UserError(f"{directory}: no weights: it must have one of {', '.join(_PREFERENCE)}")
    for file in files:
        if not os.path.isfile(directory / file):  # False, unlike Path.is_file, for a name longer than any file has
            missing = one_line(str(directory / file), 300)
            raise UserError(f"{missing}: missing, but the index of the weights lists it: download it again")
    with contextlib.ExitStack() as stack:
        tensors: dict[str, StoredTensor] = {}
        for file, listed in files.items():
            path = directory / file
            opener = _open_safetensors if path.suffix == ".safetensors" else open_torch_bin
            found = stack.enter_context(opener(path))
            if listed is not None and found.keys() != listed:
                name = min(found.keys() ^ listed)
                where = "in the file but not in the index" if name in found else "in the index but not in the file"
                raise UserError(
                    f"{path}: tensor {one_line(name)} is {where}: the files belong to different checkpoints"
                )
            tensors |= found
        yield tensors


def _files(directory: Path) -> dict[str, set[str] | None]:
    """Weight files of the preferred format, each with the tensors that an index lists (None: no index), if any."""
    for name in _PREFERENCE:
        path = directory / name
        if os.path.isfile(path):
            return {**_shards(path)} if path.suffix == ".json" else {name: None}
    return {}


def _shards(index: Path) -> dict[str, set[str]]:
    """Names of tensors by the file that holds them."""
    weight_map = read_json(index, "download it again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index}: weight_map = {shown(weight_map)}: must be an object from tensor to file")
    shards: dict[str, set[str]] = {}
    for name, file in weight_map.items():
        # A plain file name: an index must not refer to files outside its directory.
        if not isinstance(file, str) or Path(file).name != file or not file.endswith((".safetensors", ".bin")):
            raise UserError(
                f"{index}: weight_map[{shown(name)}] = {shown(file)}: must name a file in the same directory"
            )
        shards.setdefault(file, set()).add(name)
    return shards


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[dict[str, StoredTensor]]:
    _check_header(path)
    with contextlib.ExitStack() as stack:
        try:
            with user_error_on_failure(str(path), "download it again"):
                file = stack.enter_context(safe_open(path, framework="numpy"))
        except SafetensorError as error:
            reason = one_line(str(error))
            raise UserError(f"{path}: corrupt or truncated: download it again ({reason})") from error

        def read(name: str) -> np.ndarray:
            dtype = file.get_slice(name).get_dtype()
            if dtype not in _FLOATS:
                raise UserError(f"{path}: tensor {one_line(name)} is {dtype}: must be one of {', '.join(_FLOATS)}")
            try:
                return file.get_tensor(name).astype(np.float32)
            except ValueError as error:  # an empty axis, and others beyond numpy's limit
                raise UserError(
                    f"{path}: tensor {one_line(name)}: {one_line(str(error))}: download it again"
                ) from error

        yield {
            name: StoredTensor(tuple(file.get_slice(name).get_shape()), functools.partial(read, name))
            for name in file.keys()
        }


def _check_header(path: Path) -> None:
    """Refuse what safetensors' own reader accepts: a header of up to 100 MB, for which it takes a gigabyte and seconds,
    and one that has a tensor twice, of which every reader may take another.
    """
    with user_error_on_failure(str(path), "download it again"), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length) if length <= MAX_JSON_BYTES else b""
    if length > MAX_JSON_BYTES:
        raise UserError(
            f"{path}: corrupt or truncated: download it again (its header has {length} bytes, more than "
            f"{MAX_JSON_BYTES})"
        )
    try:
        parse_json(header, unique_keys=True)
    except ValueError as error:
        raise UserError(f"{path}: corrupt or truncated: download it again ({one_line(str(error))})") from error
