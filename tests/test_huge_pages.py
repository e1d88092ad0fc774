"""Huge pages: when a command is executed again with them, and that nothing else about the command changes."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest
from paths import REPOSITORY

from cotmi_jax import huge_pages
from cotmi_jax.errors import UserError
from cotmi_jax.huge_pages import find_obstacle, use_huge_pages

COMMAND = ["/usr/bin/python3", "-m", "cotmi_jax.train", "--config=cqa"]
# A script that is executed again wherever it runs.
SCRIPT = """import os, sys
from cotmi_jax import huge_pages
huge_pages.find_obstacle = lambda *_: None
huge_pages.use_huge_pages()
print(os.getpid(), os.environ["GLIBC_TUNABLES"], sys.warnoptions, sys.argv[1:], sys.stdin.read(), flush=True)
if "die" in sys.argv: os.kill(os.getpid(), 15)
sys.exit(7)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A file system without accelerator, whose huge pages are given on request."""
    setting = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    setting.parent.mkdir(parents=True)
    setting.write_text("always [madvise] never\n")
    return tmp_path


@pytest.fixture(autouse=True)
def untraced(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a command: coverage of the tests is a tracer."""
    monkeypatch.setattr(huge_pages.sys, "gettrace", lambda: None)
    monkeypatch.setattr(huge_pages.os, "confstr", lambda name: "glibc 2.36")
    for name in ("COTMI_HUGE_PAGES", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (COMMAND, True),
        (["python", "-X", "dev", "-m", "cotmi_jax", "train"], True),
        (["python", "/venv/bin/cotmi", "predict", "--model=x"], True),
        (["python", "-m", "benchmarks.train_step"], True),
        (["python", "-m", "pdb", "-m", "cotmi_jax.train"], False),
        (["python", "-c", "from cotmi_jax import train"], False),
        (["python", "-m", "pytest"], False),
        (["python", "-"], False),
        (["python"], False),
    ],
)
def test_only_commands_of_the_package_are_executed_again(command: list[str], expected: bool, root: Path) -> None:
    assert (find_obstacle({}, command, root) is None) == expected


@pytest.mark.parametrize(
    ("mode", "environment", "library", "expected"),
    [
        ("always madvise [never]", {}, "glibc 2.36", "enabled is always madvise [never], not madvise"),
        ("[always] madvise never", {}, "glibc 2.36", "enabled is [always] madvise never, not madvise"),
        (None, {}, "glibc 2.36", "enabled is not there, not madvise"),
        ("[madvise]", {"TPU_NAME": "local"}, "glibc 2.36", "accelerator"),
        ("[madvise]", {"TPU_NAME": "local", "JAX_PLATFORMS": "cpu"}, "glibc 2.36", None),
        ("[madvise]", {}, "glibc 2.34", "the C library is glibc 2.34, not"),
        ("[madvise]", {}, "glibc 2.100", None),
        ("[madvise]", {}, None, "the C library is another, not"),
    ],
)
def test_obstacles_are_named(
    mode: str | None,
    environment: Mapping[str, str],
    library: str | None,
    expected: str | None,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(huge_pages.os, "confstr", lambda name: library)
    setting = root / "sys/kernel/mm/transparent_hugepage/enabled"
    setting.unlink() if mode is None else setting.write_text(mode)
    found = find_obstacle(environment, COMMAND, root)
    assert found == expected if expected is None else expected in str(found)


def test_a_gpu_and_a_debugger_are_obstacles(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huge_pages, "_GPU_FILES", ("/sys/kernel/mm/transparent*",))
    assert "accelerator" in str(find_obstacle({}, COMMAND, root))
    monkeypatch.setattr(huge_pages.sys, "gettrace", lambda: print)
    assert "debugger" in str(find_obstacle({}, COMMAND, root))


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    executed: list[Mapping[str, str]] = []
    monkeypatch.setattr(huge_pages.os, "execve", lambda path, arguments, environment: executed.append(environment))
    with mock.patch.object(huge_pages, "find_obstacle", lambda *_: "a reason"):
        use_huge_pages()
        assert capsys.readouterr().err == ""
        monkeypatch.setenv("COTMI_HUGE_PAGES", "1")
        use_huge_pages()
        assert capsys.readouterr().err == "huge pages are not used: a reason\n" and not executed
    monkeypatch.setattr(huge_pages, "find_obstacle", lambda *_: None)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    use_huge_pages()
    assert [each["GLIBC_TUNABLES"] for each in executed] == ["glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"]
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")  # the user's own setting
    use_huge_pages()
    monkeypatch.delenv("GLIBC_TUNABLES")
    monkeypatch.setenv("COTMI_HUGE_PAGES", "0")
    use_huge_pages()
    assert len(executed) == 1
    monkeypatch.setenv("COTMI_HUGE_PAGES", "yes")
    with pytest.raises(UserError, match="COTMI_HUGE_PAGES=yes: give 0 .* or 1"):
        use_huge_pages()


def test_a_refused_execution_is_reported_and_the_command_continues(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(7, "Argument list too long")

    monkeypatch.setattr(huge_pages, "find_obstacle", lambda *_: None)
    monkeypatch.setattr(huge_pages.os, "execve", refuse)
    use_huge_pages()
    assert capsys.readouterr().err == "huge pages are not used: [Errno 7] Argument list too long\n"


@pytest.mark.parametrize(("argument", "code"), [("a b", 7), ("die", -signal.SIGTERM)])
def test_process_arguments_input_and_exit_code_stay(argument: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "cotmi").write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", str(tmp_path / "cotmi"), argument, "--x="]
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    output, _ = process.communicate("piped", timeout=60)
    assert output == f"{process.pid} glibc.malloc.hugetlb=1 ['ignore'] {[argument, '--x=']} piped\n"
    assert process.returncode == code
