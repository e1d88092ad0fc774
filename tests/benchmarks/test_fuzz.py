"""A short form of benchmarks/fuzz.py, and that it notices what it is to find."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import fuzz
from cotmi_jax.errors import UserError


def refuse(message: str) -> None:
    raise UserError(message)


@pytest.mark.slow
def test_no_file_does_more_than_be_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The attacks on checkpoints are those of tests/models/test_hostile.py.
    passed = fuzz.fuzz(10, 0, tmp_path / "failed", ["data", "teacher", "workdir", "launchers"])
    out, err = capsys.readouterr()
    assert passed, err
    header, *lines = out.splitlines()
    assert header.split() == ["target", "cases", "refused", "read", "failed"]
    counts = {line[:20].strip(): [int(count.replace(",", "")) for count in line[20:].split()] for line in lines}
    assert len(counts) > 10 and all(total >= 10 and failed == 0 for total, _, _, failed in counts.values())
    assert counts["launchers"][2] > 5  # quoted arguments are accepted
    assert not (tmp_path / "failed").exists()


@pytest.mark.parametrize(
    ("defect", "outcome"),
    [
        (lambda: {}["a"], "KeyError: \"'a'\""),
        (lambda: bytearray(1 << 30), "MemoryError: ''"),
        (lambda: [None for _ in range(10**8)], "MemoryError: ''"),
        (lambda: refuse("a\nb"), "a message of 3 characters: 'a\\nb'"),
        (lambda: refuse("no such file"), "refused"),
        (lambda: None, "read"),
    ],
)
def test_a_case_fails_unless_it_is_read_or_refused_in_one_line(
    defect: Callable[[], object], outcome: str, tmp_path: Path
) -> None:
    assert fuzz.Target("t", tmp_path / "file", defect, (b"a",)).outcome(b"content") == outcome
