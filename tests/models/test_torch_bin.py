"""Reading torch.save files: the values that torch wrote, and no code that a file names is executed."""

import functools
import os
import pickle
import random
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from paths import REPOSITORY

from cotmi_jax.errors import UserError
from cotmi_jax.models.torch_bin import open_torch_bin


def read_all(path: Path) -> dict[str, np.ndarray]:
    with open_torch_bin(path) as tensors:
        values = {name: tensor.read() for name, tensor in tensors.items()}
        assert {name: tensor.shape for name, tensor in tensors.items()} == {n: v.shape for n, v in values.items()}
    return values


def write_archive(
    path: Path, pickled: bytes, storages: dict[str, bytes], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"model/data/{key}", data)


class Call:
    """Pickles as a call of any importable function."""

    def __init__(self, function: object, *arguments: object):
        self.reduced = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.reduced


# Opcodes by hand: pickle.Pickler only writes names that can be imported.
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x06tQ"


def view(offset: int, shape: bytes, strides: bytes) -> bytes:
    """A state dict of one tensor `w` on a storage of six floats."""
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K%c" % offset + shape + strides + b"\x89NtR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


SIX = np.arange(6, dtype=np.float32).tobytes()


def test_hand_written_archive_is_read(tmp_path: Path) -> None:
    write_archive(tmp_path / "a.bin", view(1, b"K\x02K\x02\x86", b"K\x02K\x01\x86"), {"0": SIX})
    np.testing.assert_array_equal(read_all(tmp_path / "a.bin")["w"], [[1, 2], [3, 4]])


def test_values_equal_those_torch_wrote(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base = torch.randn(4, 6)
    state = OrderedDict(
        full=base,
        transposed=base.T,
        strided=base[1:, ::2],
        repeated=torch.randn(6, 2)[:, :1].expand(6, 2),
        half=torch.randn(3).half(),
        brain=torch.randn(2, 3).bfloat16().T,
        scalar=torch.tensor(2.5),
        empty=torch.zeros(0, 3),
        parameter=torch.nn.Parameter(torch.randn(2)),
    )
    torch.save(state, tmp_path / "a.bin")
    values = read_all(tmp_path / "a.bin")
    assert list(values) == list(state)
    for name, value in values.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(value, state[name].detach().float().numpy(), err_msg=name)


def test_state_dict_of_a_module_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    state = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).state_dict()
    assert state._metadata  # an attribute of the OrderedDict, which the pickle sets
    torch.save(state, tmp_path / "a.bin")
    assert read_all(tmp_path / "a.bin").keys() == state.keys()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("how", ["system", "eval", "exec", "getattr", "partial"])
def test_code_in_a_pickle_is_refused_and_not_run(how: str, protocol: int, nested: bool, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    code = f"open({str(marker)!r}, 'w')"
    attack = {
        "system": Call(os.system, f"touch {marker}"),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "getattr": Call(getattr, OrderedDict(), "keys"),
        "partial": Call(functools.partial, print),
    }[how]
    payload = OrderedDict(deep=[({"x": (attack,)},)]) if nested else attack
    write_archive(tmp_path / "evil.bin", pickle.dumps(payload, protocol), {})
    with pytest.raises(UserError, match=r"evil\.bin: refused as possibly malicious, its pickle names ") as raised:
        read_all(tmp_path / "evil.bin")
    assert "\n" not in str(raised.value)
    assert not marker.exists()


@pytest.mark.parametrize("target", [b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_parameter\n", STORAGE])
def test_a_pickle_cannot_set_attributes_of_the_reader(target: bytes, tmp_path: Path) -> None:
    """The BUILD opcode with a pair sets attributes of the object on the stack."""
    for attribute in (b"__defaults__", b"__call__", b"key"):
        set_attribute = b"(N}X%c\x00\x00\x00" % len(attribute) + attribute + b"ctorch\nFloatStorage\nstb"
        write_archive(tmp_path / "evil.bin", b"\x80\x02" + target + set_attribute + b".", {})
        with pytest.raises(UserError, match="evil.bin: refused as malicious.*attribute"):
            read_all(tmp_path / "evil.bin")


def test_attributes_of_a_state_dict_are_dropped(tmp_path: Path) -> None:
    pickled = b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsctorch\nFloatStorage\nsb."
    write_archive(tmp_path / "odd.bin", pickled, {})
    assert read_all(tmp_path / "odd.bin") == {}


@pytest.mark.parametrize(
    ("offset", "shape", "strides"),
    [
        (0, b"K\x03K\x03\x86", b"K\x03K\x01\x86"),  # nine elements of six
        (5, b"K\x02\x85", b"K\x01\x85"),
        (6, b")", b")"),
        (0, b"K\x02\x85", b"J\xff\xff\xff\xff\x85"),  # a negative stride
        (0, b"K\x02K\x02\x86", b"K\x01\x85"),
        (0, b"\x88\x85", b"K\x01\x85"),  # True is not a size
    ],
)
def test_view_outside_its_storage_is_refused(offset: int, shape: bytes, strides: bytes, tmp_path: Path) -> None:
    write_archive(tmp_path / "bad.bin", view(offset, shape, strides), {"0": SIX})
    with pytest.raises(UserError, match="bad.bin: refused as malicious"):
        read_all(tmp_path / "bad.bin")


def test_short_missing_or_compressed_storage_is_refused(tmp_path: Path) -> None:
    pickled = view(0, b"K\x06\x85", b"K\x01\x85")
    for storages, compression in (({"0": SIX[:-1]}, 0), ({}, 0), ({"0": SIX}, zipfile.ZIP_DEFLATED)):
        write_archive(tmp_path / "bad.bin", pickled, storages, compression)
        with pytest.raises(UserError, match="bad.bin: refused as malicious"):
            read_all(tmp_path / "bad.bin")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """Truncated, or with a byte of the pickle changed: a result or a UserError, no other exception."""
    pickled = view(1, b"K\x02K\x02\x86", b"K\x02K\x01\x86")
    write_archive(tmp_path / "good.bin", pickled, {"0": SIX})
    whole = (tmp_path / "good.bin").read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "cut.bin").write_bytes(whole[:length])
        with pytest.raises(UserError, match="cut.bin"):
            read_all(tmp_path / "cut.bin")
    changed = whole.replace(SIX, SIX[:-1] + b"\x01")
    (tmp_path / "cut.bin").write_bytes(changed)
    with pytest.raises(UserError, match="cut.bin: corrupt.*CRC"):
        read_all(tmp_path / "cut.bin")
    draw = random.Random(0)
    refused = 0
    for _ in range(600):
        damaged = bytearray(pickled)
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
        write_archive(tmp_path / "hit.bin", bytes(damaged), {"0": SIX})
        try:
            read_all(tmp_path / "hit.bin")
        except UserError as error:
            assert "hit.bin" in str(error)
            refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    ("contents", "complaint"),
    [(b"", "not a torch.save file"), (b"GIF89a", "not a torch.save file"), (b"\x80\x02abc", "refused as malicious")],
)
def test_files_of_other_formats_are_refused(contents: bytes, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "other.bin").write_bytes(contents)
    with pytest.raises(UserError, match=f"other.bin: .*{complaint}"):
        read_all(tmp_path / "other.bin")


def test_old_format_and_other_contents_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = tmp_path / "a.bin"
    torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(UserError, match="a.bin: .*before 1.6"):
        read_all(path)
    for contents, complaint in (
        ({"w": torch.ones(2), "step": 3}, "'step' is not a tensor"),
        ({"model": {"w": torch.ones(2)}}, "'model' is not a tensor"),
        ([torch.ones(2)], "contains a list"),
        ({"w": torch.ones(2, dtype=torch.int64)}, "torch.LongStorage"),
        (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
        ({"w": torch.ones(3, 1).expand(3, 5)}, "repeats values of its storage of 3: save its .contiguous"),
    ):
        torch.save(contents, path)
        with pytest.raises(UserError, match=f"a.bin: .*{complaint}"):
            read_all(path)


def test_big_endian_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_archive(path, view(0, b"K\x06\x85", b"K\x01\x85"), {"0": SIX})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/byteorder", "big")
    with pytest.raises(UserError, match="big-endian"):
        read_all(path)


def test_a_shared_storage_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    whole = torch.arange(12.0)
    torch.save({str(i): whole[i * 3 :][:3] for i in range(4)}, tmp_path / "a.bin")
    reads: list[int] = []
    original = zlib.crc32

    def counted(content: memoryview) -> int:
        reads.append(len(content))
        return original(content)

    monkeypatch.setattr(zlib, "crc32", counted)
    values = read_all(tmp_path / "a.bin")
    np.testing.assert_array_equal(np.concatenate(list(values.values())), np.arange(12.0))
    assert reads.count(whole.nbytes) == 1


def test_reading_needs_no_torch(tmp_path: Path) -> None:
    """Neither the reader nor the pickle imports torch, which may be missing."""
    write_archive(tmp_path / "a.bin", view(1, b"K\x02K\x02\x86", b"K\x02K\x01\x86"), {"0": SIX})
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path\n"
        "from cotmi_jax.models.torch_bin import open_torch_bin\n"
        f"with open_torch_bin(Path({str(tmp_path / 'a.bin')!r})) as t: print(t['w'].read().sum())"
    )
    root = REPOSITORY
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout.strip() == "10.0"
