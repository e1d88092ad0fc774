"""Event files: every kind of event as TensorBoard's own reader decodes it."""

import math
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from cotmi_jax.files import as_path
from cotmi_jax.workdir.event_file import EventFile, scalar, text

LONG = "é" * 100_000  # lengths of several bytes


def read(folder: Path) -> list[Any]:
    """The events of the only file in a folder; raises if a checksum does not match."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader")
    (path,) = folder.iterdir()
    return list(loader.LegacyEventFileLoader(str(path)).Load())


def test_events_are_those_that_tensorboard_reads(tmp_path: Path) -> None:
    events = EventFile(as_path(str(tmp_path)))
    events.start(301)
    for name, value in {"train/loss": -0.1, "/a b:c": 1e300, "nan": math.nan, "zero": 0.0}.items():
        events.summary(2**40, scalar(name, value))
    events.summary(0, text("valid/examples", LONG))
    events.close()
    version, start, *summaries, texts = read(tmp_path)
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (301, start.session_log.START)
    assert abs(start.wall_time - tmp_path.stat().st_mtime) < 60
    assert {event.step for event in summaries} == {2**40}
    shown = {value.tag: value.simple_value for event in summaries for value in event.summary.value}
    assert math.isnan(shown.pop("nan"))
    assert shown == {"train/loss": struct.unpack("f", struct.pack("f", -0.1))[0], "a_b_c": math.inf, "zero": 0.0}
    (value,) = texts.summary.value
    assert (value.tag, value.metadata.plugin_data.plugin_name) == ("valid/examples/text_summary", "text")
    assert (value.tensor.dtype, [each.size for each in value.tensor.tensor_shape.dim]) == (7, [1])
    assert value.tensor.string_val[0].decode() == LONG


def test_the_frames_have_the_checksums_of_the_tfrecord_format(tmp_path: Path) -> None:
    EventFile(as_path(str(tmp_path))).close()
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert len(content) == length + 16
    for data, stored in ((content[:8], content[8:12]), (content[12:-4], content[-4:])):
        crc = google_crc32c.value(data)
        masked = (crc >> 15) + (crc << 17 & 0xFFFFFFFF) + 0xA282EAD8
        assert struct.unpack("<I", stored)[0] == masked % 2**32


def test_two_starts_write_a_file_each(tmp_path: Path) -> None:
    for _ in range(2):
        EventFile(as_path(str(tmp_path))).close()
    assert len(list(tmp_path.iterdir())) == 2
