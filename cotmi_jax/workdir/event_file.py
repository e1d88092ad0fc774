"""Event files that TensorBoard reads: protocol buffers in TFRecord frames, written without tensorflow or torch.

The packages that write such files import one of the two where it is installed, which takes seconds at every start.
Only the messages that a run needs are encoded here. Field numbers are those of event.proto, summary.proto and
tensor.proto in tensorflow.
"""

import re
import socket
import struct
import time

import google_crc32c
import numpy as np

from cotmi_jax.files import Path


def _varint(value: int) -> bytes:
    """An integer from 0 on, seven bits a byte."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    with np.errstate(over="ignore"):  # beyond float32 it is infinite, as protocol buffers round it
        return _varint(field << 3 | 5) + np.array(value, "<f4").tobytes()


def _bytes(field: int, *parts: bytes) -> bytes:
    """A text, a file, or the fields of a message."""
    value = b"".join(parts)
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _tagged(name: str, *fields: bytes) -> bytes:
    """A Summary with one value. Characters that a tag must not have become _; slashes group tags."""
    tag = re.sub(r"[^-/\w.]", "_", name, flags=re.ASCII).lstrip("/")
    return _bytes(1, _bytes(1, tag.encode()), *fields)


def scalar(name: str, value: float) -> bytes:
    """A Summary with a number, rounded to float32."""
    return _tagged(name, _float(2, value))


def text(name: str, content: str) -> bytes:
    """A Summary with a text in Markdown, under the tag {name}/text_summary: a tensor of one string, for plugin text."""
    one_string = (_int(1, 7), _bytes(2, _bytes(2, _int(1, 1))), _bytes(8, content.encode()))  # type 7, shape [1]
    return _tagged(f"{name}/text_summary", _bytes(8, *one_string), _bytes(9, _bytes(1, _bytes(1, b"text"))))


def image(name: str, png: bytes) -> bytes:
    """A Summary with an image as its PNG file, in RGBA (colorspace 4)."""
    width, height = struct.unpack(">II", png[16:24])  # of the header chunk, the first of every PNG file
    return _tagged(name, _bytes(4, _int(1, height), _int(2, width), _int(3, 4), _bytes(4, png)))


def _masked_crc(content: bytes) -> bytes:
    """The checksum of a TFRecord: CRC-32C, rotated and shifted so that it can protect data that hold checksums."""
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


class EventFile:
    """A new event file in a folder that exists. All methods raise OSError where it cannot be written."""

    def __init__(self, folder: Path):
        # TensorBoard reads files in order of their names, so that the nanoseconds order two starts within a second.
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{now}"
        self._file = open(folder / name, "xb")
        self._write(_bytes(3, b"brain.Event:2"))

    def _write(self, *fields: bytes) -> None:
        event = _double(1, time.time()) + b"".join(fields)
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))

    def start(self, step: int) -> None:
        """A session starts, the first step of which this is: TensorBoard drops earlier events from this step on."""
        self._write(_int(2, step), _bytes(7, _int(1, 1)))

    def summary(self, step: int, summary: bytes) -> None:
        """What `scalar`, `text` or `image` made, at a step."""
        self._write(_int(2, step), _bytes(5, summary))

    def flush(self) -> None:
        """Return once the operating system has all events."""
        self._file.flush()

    def close(self) -> None:
        """Flush, and close the file."""
        self._file.close()
