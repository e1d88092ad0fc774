"""Hostile files: what a stranger could publish as a checkpoint. Each generator yields names and contents of one file.

Every content has to be refused with one line, within a time and a memory that the size of the file bounds, and no code
may run. `mutant` damages a valid file at random, which may leave it valid.
"""

import io
import itertools
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

Attacks = Iterator[tuple[str, bytes]]

SIX = struct.pack("<6f", *range(6))  # the values of the only storage, "0", of the torch files here


def zip_archive(entries: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive with the entries, under the folder that torch.save makes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(f"model/{name}", content)
    return file.getvalue()


def torch_file(pickled: bytes, storage: bytes = SIX) -> bytes:
    """A torch.save file with a pickle and the storage "0"."""
    return zip_archive({"data.pkl": pickled, "data/0": storage})


# Instructions of pickles by hand, since pickle.Pickler writes only what can be imported.


def _text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _tuple(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def _sizes(*sizes: int) -> bytes:
    return _tuple(*(_integer(size) for size in sizes))


def tensor(
    shape: bytes = _sizes(2, 3), strides: bytes = _sizes(3, 1), offset: int = 0, length: int = 6, key: str = "0"
) -> bytes:
    """Instructions that leave a tensor on the stack, of the storage "0" unless stated otherwise."""
    storage = _tuple(_text("storage"), b"ctorch\nFloatStorage\n", _text(key), _text("cpu"), _integer(length))
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n"
        + _tuple(storage + b"Q", _integer(offset), shape, strides, b"\x89N")
        + b"R"
    )


def state_dict(name: bytes = _text("shared.weight"), value: bytes | None = None) -> bytes:
    """The pickle of a dict with one item, a tensor unless stated otherwise."""
    return b"\x80\x02}" + name + (tensor() if value is None else value) + b"s."


# Names that a pickle can have a loader call. The last ones look as if torch needed them.
_CALLED = (
    *(
        "os system",
        "posix system",
        "nt system",
        "subprocess Popen",
        "builtins eval",
        "builtins exec",
        "__builtin__ eval",
    ),
    *(
        "builtins getattr",
        "builtins __import__",
        "importlib import_module",
        "runpy run_path",
        "pty spawn",
        "code interact",
    ),
    *(
        "functools partial",
        "operator attrgetter",
        "types FunctionType",
        "marshal loads",
        "pickle loads",
        "codecs decode",
    ),
    *("shutil rmtree", "pathlib Path.write_text", "webbrowser open", "socket create_connection", "ctypes CDLL"),
    *("numpy load", "numpy.core.multiarray _reconstruct", "copyreg _reconstructor", "logging.config fileConfig"),
    *("cotmi_jax.files replace_file", "torch load", "torch.hub load", "torch.storage _load_from_bytes"),
    *("torch.serialization load", "torch.utils.collect_env run", "torch.jit load", "collections OrderedDict.__init__"),
    *("torch FloatStorage.from_file", "torch._utils _rebuild_tensor_v2.__globals__", "collections namedtuple"),
)


def gadgets(marker: Path) -> Attacks:
    """Torch files that have torch.load run code, mostly `touch MARKER`."""
    argument = _tuple(_text(f"touch {marker}"))
    for called in _CALLED:
        module, name = called.split(" ")
        yield called, torch_file(state_dict(value=f"c{module}\n{name}\n".encode() + argument + b"R"))
        modern = _text(module) + _text(name) + b"\x93" + argument + b"R"
        yield f"{called}, protocol 4", torch_file(b"\x80\x04" + modern + b".")
        yield f"{called}, named only", torch_file(f"c{module}\n{name}\n.".encode())
    touch, system = _text(f"touch {marker}"), b"cos\nsystem\n"
    for instruction, pickled in {
        "INST": b"(" + touch + b"ios\nsystem\n.",
        "OBJ": b"(" + system + touch + b"o.",
        "NEWOBJ": system + argument + b"\x81.",
        "NEWOBJ_EX": system + argument + b"}\x92.",
        "EXT1": b"\x82\x01" + argument + b"R.",
        "PERSID": f"P{touch!r}\n.".encode(),
        "BUILD of a name": b"ctorch\nFloatStorage\n}" + _text("__setstate__") + system + b"sb.",
        "BUILD of a tensor": tensor() + b"(N}" + _text("read") + system + b"stb.",
        "REDUCE of a text": _text("os.system") + argument + b"R.",
        "REDUCE of a tensor": tensor() + argument + b"R.",
        "items for a call": b"ccollections\nOrderedDict\n((" + system + argument + b"RNtltR.",
        "a name in a persistent id": _tuple(_text("storage"), system, _text("0"), _text("cpu"), _integer(6)) + b"Q.",
    }.items():
        yield instruction, torch_file(b"\x80\x04" + pickled)
    yield "before torch 1.6", b"\x80\x02" + system + argument + b"R."


def pickle_bombs() -> Attacks:
    """Torch files whose pickle asks for memory or time that does not depend on its length."""
    doubled = b")" + 40 * b"q\x00h\x00\x86"  # a tuple of 2^40 leaves
    shape = b"(" + 20_000 * b"K\x01" + b"tq\x01"  # of 20,000 axes, which 5,000 tensors share
    tensors = b"".join(_text(str(i)) + tensor(b"h\x01", b"h\x01") + b"s" for i in range(5_000))
    for name, pickled in {
        "memo index 2^28": state_dict(name=_text("shared.weight") + b"r\x00\x00\x00\x10"),
        "memo index 2^31": state_dict(name=_text("shared.weight") + b"r\xff\xff\xff\x7f"),
        "hash of shared tuples": state_dict(name=doubled),
        "shared tuples as a value": state_dict(value=doubled),
        "shared tuples as a persistent id": state_dict(value=doubled + b"Q"),
        "shared tuples as arguments": state_dict(value=b"ctorch._utils\n_rebuild_tensor_v2\n" + doubled + b"R"),
        "nested tuples": state_dict(value=b")" + 100_000 * b"\x85"),
        "nested lists": state_dict(value=b"]" * 100_000 + b"a" * 99_999),
        "a dict that contains itself": b"\x80\x02}q\x00" + _text("a") + b"h\x00s.",
        "4 million instructions": b"\x80\x02" + 4_000_000 * b"N" + b".",
        "4 million marks": b"\x80\x02" + 4_000_000 * b"(" + b".",
        "a long shape, often": b"\x80\x02}" + _text("a") + shape + b"s" + tensors + b".",
        "stride 0": state_dict(value=tensor(_sizes(1 << 20, 1 << 20), _sizes(0, 0))),
        "stride 0 beside an empty axis": state_dict(value=tensor(_sizes(1 << 62, 0, 1 << 62), _sizes(0, 0, 0))),
        "sizes of 2,000 bits": state_dict(value=tensor(_sizes(1 << 2000), _sizes(1 << 2000), 1 << 2000, 1 << 2001)),
        "a storage of 2^62": state_dict(value=tensor(_sizes(1 << 31, 1 << 31), _sizes(1 << 31, 1), length=1 << 62)),
        "a storage that is missing": state_dict(value=tensor(key="1" * 100_000)),
        "a name of 4 MB": state_dict(name=_text("a" * 4_000_000)),
        "a name with control characters": state_dict(name=_text("\n\x1b[2J\u202e\ud800" * 1000)),
        "a global of 4 MB": b"\x80\x02c" + 4_000_000 * b"a" + b"\nb\n.",
        "an integer of 4 MB": b"\x80\x02\x8b" + struct.pack("<i", 4_000_000) + 4_000_000 * b"\x7f" + b".",
        "4,000 digits": state_dict(value=b"I" + 4_000 * b"9" + b"\n"),
        "a million digits": state_dict(value=b"L" + 1_000_000 * b"9" + b"L\n"),
        "a text of 2^31 bytes": b"\x80\x02}X\xff\xff\xff\x7fabc.",
        "bytes of 2^62": b"\x80\x05\x96" + struct.pack("<Q", 1 << 62) + b"abc.",
        "a frame of 2^62": b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N.",
        "no end": b"\x80\x02}",
        "an empty stack": b"\x80\x02s.",
        "no mark": b"\x80\x02t.",
    }.items():
        yield name, torch_file(pickled)
    yield "a pickle of 5 MB", torch_file(state_dict(value=5_000_000 * b"N"))


def _edited(archive: bytes, signature: bytes, offset: int, field: bytes, *, last: bool = True) -> bytes:
    """The archive with a field of its last (or first) record of a kind overwritten."""
    at = (archive.rindex if last else archive.index)(signature) + offset
    return archive[:at] + field + archive[at + len(field) :]


def archives() -> Attacks:
    """Torch files whose zip archive is not as torch.save writes it."""
    good = torch_file(state_dict())
    entry, local, end = b"PK\1\2", b"PK\3\4", b"PK\5\6"
    sizes = struct.pack("<II", 1 << 30, 1 << 30)
    yield "compressed", zip_archive({"data.pkl": state_dict(), "data/0": bytes(1 << 22)}, zipfile.ZIP_DEFLATED)
    yield "compressed pickle", zip_archive({"data.pkl": 1_000_000 * b"N", "data/0": SIX}, zipfile.ZIP_DEFLATED)
    yield "stored size 2^30", _edited(good, entry, 20, sizes)
    yield "a pickle of size 2^30", _edited(good, entry, 20, sizes, last=False)
    yield "size differs", _edited(good, entry, 24, struct.pack("<I", 1 << 30))
    yield "encrypted method", _edited(good, entry, 10, struct.pack("<H", 99))
    yield "checksum", _edited(good, entry, 16, bytes(4))
    yield "offset 2^31", _edited(good, entry, 42, struct.pack("<I", 1 << 31))
    yield "offset of another entry", _edited(good, entry, 42, bytes(4))
    yield "local header", _edited(good, local, 0, b"PK\3\5")
    yield "directory of 2^31 bytes", _edited(good, end, 12, struct.pack("<I", 1 << 31))
    yield "directory at 2^31", _edited(good, end, 16, struct.pack("<I", 1 << 31))
    yield "directory cut", _edited(good, end, 12, struct.pack("<I", 50))
    yield "two pickles", zip_archive({"data.pkl": state_dict(), "a/data.pkl": state_dict(), "data/0": SIX})
    yield "no pickle", zip_archive({"data/0": SIX})
    yield "big-endian", zip_archive({"data.pkl": state_dict(), "data/0": SIX, "byteorder": b"big"})
    record = good[good.index(entry) : good.rindex(entry)]
    many = good[: good.index(entry)] + 200_000 * record + good[good.rindex(entry) : good.index(end)]
    length = struct.pack("<I", len(many) - good.index(entry))
    yield "200,000 entries", many + good[good.index(end) :][:12] + length + good[good.index(end) :][16:]
    long = zip_archive({"a" * 65_000: b"", "data.pkl": state_dict(value=tensor(key="b" * 60_000)), "data/0": SIX})
    yield "names of 65,000", long
    yield "not an archive", b"GIF89a"
    yield "empty", b""


def _header(header: Mapping[str, object] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _described(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def safetensors_files() -> Attacks:
    """Files of the safetensors format with a header that is false, ambiguous or large."""
    one = _described([1], 0, 4)
    text = json.dumps(one)
    headers: dict[str, dict[str, object]] = {  # with four bytes of data
        "overlap": {"a": one, "b": one},
        "hole": {"a": _described([], 2, 4, "F16")},
        "beyond the file": {"a": _described([100], 0, 400)},
        "backwards": {"a": _described([1], 4, 0)},
        "negative": {"a": _described([-1], 0, 4)},
        "2^80 values": {"a": _described([1 << 40, 1 << 40], 0, 4)},
        "2^64 bytes": {"a": _described([1 << 62], 0, 1 << 64)},
        "an empty axis": {"a": one, "b": _described([0, 1 << 62], 4, 4)},
        "more values than bytes": {"a": _described([2], 0, 4)},
        "another type": {"shared.weight": _described([4], 0, 4, "I8")},
        "no type": {"a": _described([1], 0, 4, "F33")},
        "wrong types": {"a": {"dtype": 1, "shape": "2", "data_offsets": {}}},
        "no tensors": {},
        "metadata": {"__metadata__": {"a": 1}},
        "control characters": {"\n\x1b[2J\u202e" * 1000: one},
        "a name of a million": {"a" * 1_000_000: one},
    }
    for name, header in headers.items():
        yield name, _header(header, bytes(4))
    yield (
        "two of a name",
        _header(f'{{"a": {text}, "a": {json.dumps(_described([2], 0, 4, "F16"))}}}'.encode(), bytes(4)),
    )
    yield "nested", _header(200_000 * b"[")
    yield "nested metadata", _header(b'{"__metadata__":' + 200_000 * b'{"a":')
    yield "5,000 digits", _header(b'{"a":{"dtype":"F32","shape":[' + 5_000 * b"9" + b"]}}")
    yield "not UTF-8", _header(b'{"\xff": 1}')
    yield "a list", _header(b"[1]")
    yield "header of 2^62", _header({"a": one}, bytes(4), length=1 << 62)
    yield "header of 90 MB", _header({"a": one}, bytes(4), length=90_000_000)
    yield "no data", _header({"a": one})
    yield "header beyond the file", _header({"a": one}, length=10_000)
    tensors = ",".join(f'"{i:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(15_000))
    yield "15,000 tensors", _header(f"{{{tensors}}}".encode())
    yield "30,000 tensors", _header(f"{{{tensors},{tensors}}}".encode())
    yield "a pointer of Git LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 242043056\n"
    yield "empty", b""


def broken_json() -> Attacks:
    """What is no JSON object, or one beyond the limits of Python's parser."""
    yield "nested lists", b'{"a": ' + 200_000 * b"["
    yield "nested objects", 200_000 * b'{"a":'
    yield "5,000 digits", b'{"a": ' + 5_000 * b"9" + b"}"
    yield "not UTF-8", b'{"a": "\xff"}'
    yield "cut", b'{"a": "'
    yield "a list", b"[1]"
    yield "a number", b"1"
    yield "empty", b""
    yield "zeros", bytes(1000)
    yield "1 MB of lists", b'{"a": [' + 340_000 * b"[]," + b"1]}"
    yield "2 MB of lists", b'{"a": [' + 680_000 * b"[]," + b"1]}"


def indices() -> Attacks:
    """model.safetensors.index.json files that name what is no file of the checkpoint."""
    yield from broken_json()
    for name, weight_map in {
        "parent": {"a": "../model.safetensors"},
        "absolute": {"a": "/etc/passwd"},
        "folder": {"a": "a/model.safetensors"},
        "dots": {"a": ".."},
        "backslash": {"a": "..\\missing.safetensors"},
        "itself": {"a": "model.safetensors.index.json"},
        "a number": {"a": 1},
        "null": {"a": None},
        "a list": {"a": ["model.safetensors"]},
        "a null character": {"a": "a\0.safetensors"},
        "half a character": {"a": "\ud800.safetensors"},
        "5,000 characters": {"a": 5_000 * "a" + ".safetensors"},
        "control characters": {"\n\x1b[2J\u202e" * 1000: "\n\x1b[2J.safetensors"},
        "missing": {"a": "model-2.safetensors"},
        "30,000 missing": {str(i): f"{i}.bin" for i in range(30_000)},
        "empty": {},
    }.items():
        yield name, json.dumps({"weight_map": weight_map}).encode()
    for value in ("a", 1, None, [], [["a", "b"]]):
        yield f"weight_map {value!r}", json.dumps({"weight_map": value}).encode()
    yield "no weight_map", b"{}"


def tokenizers(valid: Mapping[str, object]) -> Attacks:
    """tokenizer.json files that differ from a valid one."""
    yield from broken_json()

    def edited(**fields: object) -> bytes:
        return json.dumps({**valid, **fields}).encode()

    doubled = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    long = {"type": "Replace", "pattern": {"Regex": "."}, "content": "a" * 100_000}
    yield "40 steps that double", edited(normalizer={"type": "Sequence", "normalizers": 40 * [doubled]})
    nested: object = {"type": "Sequence", "normalizers": [doubled, doubled]}
    for _ in range(5):
        nested = {"type": "Sequence", "normalizers": [nested, nested]}
    yield "nested steps that double", edited(normalizer=nested)
    yield "a long replacement", edited(normalizer=long)
    yield "a decoder that doubles", edited(decoder={"type": "Sequence", "decoders": 40 * [doubled]})
    model = valid["model"]
    assert isinstance(model, dict)
    yield "no unk", edited(model={**model, "unk_id": None})
    yield "unk beyond the vocabulary", edited(model={**model, "unk_id": 10**9})
    yield "unk of 5,000 digits", edited(model=0).replace(b": 0", b': {"unk_id": ' + 5_000 * b"9" + b"}")
    yield "no vocabulary", edited(model={**model, "vocab": [], "unk_id": None})
    yield "wrong types", edited(model={**model, "vocab": {"a": "b"}})
    yield "another model", edited(model={"type": "Torch"})
    yield "no special tokens", edited(added_tokens=[], model={**model, "vocab": [["a", 0.0]], "unk_id": 0})


_SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads")


def configs(valid: Mapping[str, object]) -> Attacks:
    """config.json files of another network than that of a valid one, or of none."""
    yield from broken_json()

    def edited(**fields: object) -> bytes:
        return json.dumps({**valid, **fields}).encode()

    value: object
    for field in (*_SIZES, "relative_attention_num_buckets"):
        for value in (0, -1, 10**7, 2**31, 2**63, 10**400, True, 6.0, float("nan"), float("inf"), "6", [6], {"a": 6}):
            yield f"{field} = {value!r:.20}", edited(**{field: value})
        if field != "num_decoder_layers":
            yield f"{field} = None", edited(**{field: None})
    yield "every size", edited(**dict.fromkeys(_SIZES, 10**6))
    others: dict[tuple[str, ...], tuple[object, ...]] = {
        ("layer_norm_epsilon", "dropout_rate"): (-1, 2, 10**400, float("nan"), float("inf"), True, "0.1", None, []),
        ("pad_token_id", "eos_token_id"): (-1, 2**31, 10**400, 0.5, True, "1", [1, 2]),
        ("relative_attention_max_distance",): (-1, 2**31, 10**400, 0.5, True, "1", [1, 2]),
        ("model_type", "feed_forward_proj"): ("bert", "", "\n\x1b[2J" * 1000, 1, None, ["t5"], {"t5": 1}),
    }
    for names, values in others.items():
        for field, value in itertools.product(names, values):
            yield f"{field} = {value!r:.20}", edited(**{field: value})
    deep: object = 1
    for _ in range(900):
        deep = [deep]
    yield "a nested value", edited(is_decoder=deep)
    yield "an unknown field", edited(**{"\n\x1b[2J\u202e" * 1000: 1})
    tied = {"model_type": "mt5", "tie_word_embeddings": True, "feed_forward_proj": "gated-gelu"}
    yield "a release of 5,000 digits", edited(**tied, transformers_version=5_000 * "9")
    yield "a nested release", edited(**tied, transformers_version=deep)


# What can be in place of a file: each makes it at the path.
PLACES: dict[str, Callable[[Path], None]] = {
    "folder": lambda path: path.mkdir(),
    "loop of links": lambda path: path.symlink_to(path.name),
    "FIFO": lambda path: os.mkfifo(path),
    "endless device": lambda path: path.symlink_to("/dev/zero"),
    "terminal": lambda path: path.symlink_to("/dev/tty"),
    "link to nothing": lambda path: path.symlink_to("missing"),
}


def mutant(valid: bytes, draw: random.Random) -> bytes:
    """A valid file with a bit or byte changed, a part cut out, repeated or overwritten with numbers at the limits."""
    start = draw.randrange(len(valid))
    end = min(len(valid), start + draw.choice((1, 2, 4, 8, 64)))
    match draw.choice(("bit", "byte", "limit", "cut", "end", "repeat")):
        case "bit":
            return valid[:start] + bytes([valid[start] ^ 1 << draw.randrange(8)]) + valid[start + 1 :]
        case "byte":
            return valid[:start] + draw.randbytes(1) + valid[start + 1 :]
        case "limit":
            return valid[:start] + draw.choice((b"\xff", b"\0", b"\x7f", b"9")) * (end - start) + valid[end:]
        case "cut":
            return valid[:start] + valid[end:]
        case "end":
            return valid[:start]
        case _:
            return valid[:end] + draw.choice((1, 1000)) * valid[start:end] + valid[end:]
