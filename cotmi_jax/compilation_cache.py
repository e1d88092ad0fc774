"""Compiled programs kept on disk, so that a start after the first compiles nothing."""

import hashlib
import os
import platform
import sys

import jax

from cotmi_jax.errors import UserError
from cotmi_jax.files import (
    CACHE_VARIABLE,
    DEFAULT_CACHE,
    Path,
    absolute,
    as_path,
    check_writable,
    user_error_on_failure,
)

_MIN_SECONDS = 0.1  # of compiling: less is not worth a file


def _processor() -> str:
    """This machine's kind of processor: programs for CPU hold its instructions, and another may lack some.

    XLA loads a program compiled for another kind of CPU with only a log line, and then the process may die of SIGILL.
    """
    described = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        described += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


def default_folder() -> Path:
    """The default folder of compiled programs: in the folder of prepared tokens, one for each kind of processor."""
    return as_path(absolute(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)) / "xla" / _processor()


def use_compilation_cache(folder: str) -> None:
    """Keep compiled programs in a folder, which may be gs://; call before anything is compiled.

    "": JAX's own setting where there is one (JAX_COMPILATION_CACHE_DIR), else the default folder; if the default cannot
    be written, this is reported and nothing is kept. "none": compile everything afresh. The files in the folder are
    executed: others must not be able to write to it. It grows with every new configuration and may be removed.

    Raises UserError where a folder that was asked for cannot be written.
    """
    if folder == "none":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not folder and jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    if folder:
        place = as_path(absolute(folder))
        with user_error_on_failure(f"cannot write to the compilation cache {place}", "name another folder, or none"):
            check_writable(place)
    else:
        try:
            place = default_folder()
            with user_error_on_failure(f"cannot write to {place}"):
                check_writable(place)
        except UserError as error:
            print(f"compiled programs are not kept: {error}", file=sys.stderr)
            return
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)
