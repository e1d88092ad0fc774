"""Copies a folder of growing files to a bucket, whose objects cannot be appended to."""

import pathlib
import tempfile
import time

from cotmi_jax.files import Path, replace_file, user_error_on_failure, user_error_on_write

_SECONDS = 30.0  # between copies; Cloud Storage accepts one write per second of an object, each with all its content


class Mirror:
    """A local folder whose files are copied to a remote one every 30 seconds and on request."""

    def __init__(self, place: Path):
        self._place = place
        self._scratch = tempfile.TemporaryDirectory(prefix="cotmi_jax_")
        self.folder = pathlib.Path(self._scratch.name)
        self._copied: dict[pathlib.Path, int] = {}  # copied bytes of every file
        self._last = 0.0  # so that the first copy is made immediately

    def fetch(self, name: str) -> None:
        """Copy the file of an earlier start from the workdir, if there is one."""
        with user_error_on_failure(f"cannot read {self._place / name}"):
            if (self._place / name).exists():
                (self.folder / name).write_bytes((self._place / name).read_bytes())

    def copy(self, *, now: bool) -> None:
        """Copy the files that have grown. Raises UserError where that fails."""
        if not now and time.monotonic() - self._last < _SECONDS:
            return
        for path in self.folder.rglob("*"):
            if path.is_dir() or path.stat().st_size == self._copied.get(path):
                continue
            content, target = path.read_bytes(), self._place / str(path.relative_to(self.folder))
            with user_error_on_write(target):
                replace_file(target, content)
            self._copied[path] = len(content)
        self._last = time.monotonic()

    def close(self) -> None:
        """Copy everything, and remove the local folder."""
        try:
            self.copy(now=True)
        finally:
            self._scratch.cleanup()
