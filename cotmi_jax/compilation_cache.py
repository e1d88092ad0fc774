"""Persistent cache of compiled programs, so that only the first start compiles."""

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

_MIN_SECONDS = 0.0  # all programs are stored: loading takes a fraction of even the shortest compilation


def _processor() -> str:
    """Identifier of this machine's kind of processor, whose instructions a program compiled for CPU uses.

    XLA loads a program compiled for another kind of CPU with only a log line, and the process may then end by SIGILL.
    """
    described = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        described += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:8]}"


def default_folder() -> Path:
    """The default folder of compiled programs: a subfolder, per kind of processor, of the folder of prepared tokens."""
    return as_path(absolute(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)) / "xla" / _processor()


def use_compilation_cache(folder: str) -> None:
    """Store compiled programs in a folder, which may be gs://; call before anything is compiled.

    "": JAX's own setting if there is one (JAX_COMPILATION_CACHE_DIR), else the default folder; if that cannot be
    written, this is reported and nothing is stored. "none": no cache. The files in the folder are executed: other users
    must not have write access. It grows with every new configuration and may be deleted.

    Raises UserError if the given folder cannot be written.
    """
    if folder == "none":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if not folder and jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    if folder:
        path = as_path(absolute(folder))
        with user_error_on_failure(f"cannot write to the compilation cache {path}", "name another folder, or none"):
            check_writable(path)
    else:
        try:
            path = default_folder()
            with user_error_on_failure(f"cannot write to {path}"):
                check_writable(path)
        except UserError as error:
            print(f"compiled programs are not stored: {error}", file=sys.stderr)
            return
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)
