"""The pickle of a state dict, interpreted without Python's unpickler: nothing that it names is resolved or called.

`pickletools` of the standard library parses the instructions. Those that torch.save writes for a state dict build
dicts, lists, tuples, texts and numbers here; six names are known, and stand for descriptions of tensors. So time and
memory are in proportion to the length of the pickle.
"""

import io
import math
import pickletools
import re
from typing import BinaryIO, NamedTuple, TypeGuard

from cotmi_jax.errors import one_line, shown

MAX_BYTES = 1 << 22
_MAX_INSTRUCTIONS = 300_000  # a tensor takes about 40, so 7,000 tensors; the largest published T5s have 560
_MAX_RANK = 8  # axes of a tensor; those of T5 have two
_STORAGES = {"FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16"}
_STATE_DICT, _TENSOR = "collections.OrderedDict", "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_NAMES = {_STATE_DICT, _TENSOR, _PARAMETER, *(f"torch.{name}" for name in _STORAGES)}
# What an honest file may hold that is no state dict of float tensors: other types of tensor, a whole module.
_OF_TORCH = re.compile(r"torch\.\w+Storage|torch\._utils\._rebuild_\w+|torch\.nn\.modules(\.\w+)+")
_VALUES = {"BINUNICODE", "SHORT_BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


class Storage(NamedTuple):
    """The values of one or more tensors: the entry of the archive that holds them, and their type and number."""

    key: str
    dtype: str
    length: int  # elements


class View(NamedTuple):
    """A strided view of a storage; offset and strides in elements, all checked to be within it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class RefusedPickleError(Exception):
    """Why a pickle is not read, with the remedy, to follow the name of the file."""


class _Global(NamedTuple):
    """A name that the pickle mentions."""

    name: str


def unlike_torch(why: str) -> RefusedPickleError:
    """The error for a file that is intact, as its checksums show, but not as torch.save writes it."""
    return RefusedPickleError(
        f"refused as malicious, or written by another program than torch.save ({one_line(why)}): take the checkpoint "
        "from a source that you trust"
    )


def _known(name: str) -> _Global:
    if name in _NAMES:
        return _Global(name)
    if _OF_TORCH.fullmatch(name):
        raise RefusedPickleError(
            f"refused, its pickle names {shown(name)}, which no state dict of float tensors needs: if you trust it, "
            "load it with torch and save it as safetensors"
        )
    raise RefusedPickleError(
        f"refused as possibly malicious, its pickle names {shown(name)}, which it can make torch.load call and which "
        "no state dict needs: take the checkpoint, as safetensors, from a source that you trust"
    )


class _Machine:
    """The stack and the memo of a pickle."""

    def __init__(self, size: int):
        self._size = size
        self._stack: list[object] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def run(self, file: BinaryIO) -> object:
        """The value of the next pickle of a file."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count == _MAX_INSTRUCTIONS:
                raise unlike_torch(f"its pickle has more than {_MAX_INSTRUCTIONS} instructions")
            self._step(opcode.name, argument)
        (value,) = self._stack
        return value

    def _step(self, name: str, argument: object) -> None:
        stack = self._stack
        match name:
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                index = len(self._memo) if argument is None else argument
                assert isinstance(index, int)
                if index > self._size:  # Python's unpickler allocates memory for all indices up to the largest
                    raise unlike_torch(f"index {index} of a pickle of {self._size} bytes")
                self._memo[index] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                assert isinstance(argument, int)
                stack.append(self._memo[argument])
            case "MARK":
                self._marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(self._pop_marked()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self._pop(int(name[-1]))))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "GLOBAL":
                stack.append(_known(str(argument).replace(" ", ".")))
            case "STACK_GLOBAL":
                stack.append(_known(".".join(str(part) for part in self._pop(2) if isinstance(part, str))))
            case "BINPERSID":
                stack.append(_storage(*self._pop(1)))
            case "REDUCE":
                stack.append(_reduced(*self._pop(2)))
            case "BUILD":
                self._pop(1)  # attributes of a state dict are versions, which are of no use here
                if not isinstance(stack[-1], dict):
                    raise unlike_torch("it sets attributes of something other than a state dict")
            case "SETITEM":
                self._set_items(self._pop(2))
            case "SETITEMS":
                self._set_items(self._pop_marked())
            case "APPEND":
                self._extend(self._pop(1))
            case "APPENDS":
                self._extend(self._pop_marked())
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in _VALUES:
                stack.append(argument)
            case _ if name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            case _:
                raise unlike_torch(f"instruction {name}")

    def _pop(self, number: int) -> list[object]:
        if len(self._stack) - (self._marks[-1] if self._marks else 0) < number:
            raise unlike_torch("an instruction lacks its operands")
        items = self._stack[-number:]
        del self._stack[-number:]
        return items

    def _pop_marked(self) -> list[object]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _set_items(self, items: list[object]) -> None:
        target = self._stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            # The hash of tuples that share tuples takes exponential time.
            if not isinstance(target, dict) or not isinstance(key, str | int):
                raise unlike_torch("an item is set that has no name, or of something other than a dict")
            target[key] = value

    def _extend(self, items: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise unlike_torch("something other than a list is extended")
        target += items


def _storage(pid: object) -> Storage:
    match pid:
        case ("storage", _Global(name), str(key), str(), int(length), *_) if length >= 0:
            dtype = _STORAGES.get(name.removeprefix("torch."))
            if dtype is not None:
                return Storage(key, dtype, length)
    raise unlike_torch(f"persistent id {shown(pid)} is no storage")


def _reduced(function: object, arguments: object) -> object:
    match function, arguments:
        case _Global(name), () if name == _STATE_DICT:
            return {}
        case _Global(name), (Storage() as storage, offset, shape, strides, *_) if name == _TENSOR:
            return _view(storage, offset, shape, strides)
        case _Global(name), (View() as view, *_) if name == _PARAMETER:
            return view
    raise unlike_torch(f"a call of {shown(function)} with {shown(arguments)}")


def _view(storage: Storage, offset: object, shape: object, strides: object) -> View:
    start = (offset,)
    if not (_is_sizes(start) and _is_sizes(shape) and _is_sizes(strides) and len(shape) == len(strides)):
        raise unlike_torch("a tensor is described by something other than a storage and sizes")
    last = start[0] + sum((axis - 1) * stride for axis, stride in zip(shape, strides, strict=True))
    # numpy limits the size of an empty array too, by its other axes.
    if (last >= storage.length) if 0 not in shape else math.prod(axis or 1 for axis in shape) >= 2**60:
        raise unlike_torch(f"a tensor of shape {shown(shape)} reaches beyond its storage of {shown(storage.length)}")
    if math.prod(shape) > storage.length:  # a stride of 0 repeats values, and can ask for any memory
        raise RefusedPickleError(
            f"refused, a tensor of shape {shown(shape)} repeats values of its storage of {shown(storage.length)}: save "
            "its .contiguous()"
        )
    return View(storage, start[0], shape, strides)


def _is_sizes(value: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(value, tuple) and len(value) <= _MAX_RANK and all(type(n) is int and n >= 0 for n in value)


def read_pickle(file: BinaryIO, size: int) -> object:
    """The value of the next pickle of a file of `size` bytes: of a state dict, a dict from name to View.

    Raises RefusedPickleError if it is malformed, or has anything that the pickle of a state dict does not have.
    """
    try:
        return _Machine(size).run(file)
    except (ValueError, LookupError) as error:  # of pickletools for malformed instructions, or of a stack that is empty
        raise unlike_torch(f"malformed pickle: {error}") from error


def read_state_dict(pickled: bytes) -> dict[str, View]:
    """The tensors of a pickled state dict by name. Raises RefusedPickleError."""
    views = read_pickle(io.BytesIO(pickled), len(pickled))
    if not isinstance(views, dict):
        raise RefusedPickleError(f"contains a {type(views).__name__}, not a state dict: save model.state_dict()")
    for name, view in views.items():
        if not isinstance(name, str) or not isinstance(view, View):
            raise RefusedPickleError(f"entry {shown(name)} is not a tensor: save model.state_dict() alone")
    return views
