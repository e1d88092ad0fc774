"""Huge pages for the memory of a command that computes on CPU. Imports nothing that is slow.

XLA allocates the temporaries of a program at every execution, and glibc returns large ones to the system after it, so
that every step maps its memory anew in pages of 4 KiB. Huge pages (2 MiB) take a fraction of these page faults. glibc
reads the setting, GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (glibc manual, "Memory Allocation Tunables"), when a process
starts: the command is therefore executed once more, in the same process.
"""

import glob
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from cotmi_jax.errors import UserError
from cotmi_jax.parallel.accelerators import may_have_tpu

VARIABLE = "COTMI_HUGE_PAGES"
_TUNABLES, _SETTING = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_PACKAGES = ("cotmi_jax", "benchmarks")
_GPU_FILES = ("/dev/nvidia[0-9]*", "/dev/kfd")
_OLDEST_GLIBC = (2, 35)


def use_huge_pages() -> None:
    """Execute this command again with huge pages, where that is possible and they are not in use.

    It does nothing where the process was not started as a command, a debugger or tracer is attached, the machine has an
    accelerator, or the system gives no huge pages. COTMI_HUGE_PAGES=0 turns it off; with 1 the reason is printed where
    it is not possible.

    Raises UserError for another value of COTMI_HUGE_PAGES.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted not in ("", "0", "1"):
        raise UserError(f"{VARIABLE}={wanted[:100]}: give 0 for no huge pages, or 1 to print why there are none")
    if wanted == "0" or _SETTING in os.environ.get(_TUNABLES, ""):
        return
    obstacle = find_obstacle(os.environ, sys.orig_argv)
    if obstacle is None:
        obstacle = _execute_again()
    elif wanted != "1":
        return
    print(f"huge pages are not used: {obstacle}", file=sys.stderr)


def find_obstacle(environment: Mapping[str, str], command: Sequence[str], root: Path = Path("/")) -> str | None:
    """Why huge pages cannot be used; None if they can. command: sys.orig_argv. root: of the file system."""
    if not _is_own_command(command):
        return "this process was not started as a command of this package"
    if sys.gettrace() is not None:
        return "a debugger or tracer is attached"
    if "cpu" not in environment.get("JAX_PLATFORMS", "") and (
        may_have_tpu(environment, root) or any(glob.glob(f"{root}{pattern}") for pattern in _GPU_FILES)
    ):
        return "this machine has an accelerator (JAX_PLATFORMS=cpu: compute on CPU)"
    library = _c_library()
    if library is None or library < _OLDEST_GLIBC:
        return f"the C library is {'another' if library is None else 'glibc {}.{}'.format(*library)}, not glibc 2.35"
    setting = root / "sys/kernel/mm/transparent_hugepage/enabled"
    mode = setting.read_text().strip() if setting.exists() else "not there"
    # With [always] the system gives huge pages unasked, and glibc's setting has no effect.
    return None if "[madvise]" in mode else f"{setting} is {mode}, not madvise"


def _c_library() -> tuple[int, int] | None:
    """The version of glibc; None for another C library."""
    try:
        described = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except ValueError:  # the name is glibc's own
        return None
    found = re.fullmatch(r"glibc (\d+)\.(\d+).*", described)
    return (int(found[1]), int(found[2])) if found else None


def _is_own_command(command: Sequence[str]) -> bool:
    """Whether a process can be executed again: python -m PACKAGE.MODULE …, or the script cotmi."""
    if "-m" in command[:-1]:
        return command[command.index("-m") + 1].partition(".")[0] in _PACKAGES
    return Path(command[1] if len(command) > 1 else "").name == "cotmi"


def _execute_again() -> str:
    """Does not return, unless the system refuses; then why."""
    tunables = ":".join(filter(None, (os.environ.get(_TUNABLES), f"{_SETTING}=1")))
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, _TUNABLES: tunables})
    except OSError as error:
        return str(error)
