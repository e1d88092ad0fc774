"""Files that grow line by line, such as metrics, in a bucket, where nothing can be appended to."""

import pathlib
import tempfile
import time

from cotmi_jax.files import Path, replace_file, told, writing

_SECONDS = 30.0  # between copies; Cloud Storage takes one a second of an object, and each is the whole of it


class Mirror:
    """A local folder to write in, whose files are copied to a remote one every half a minute and when asked."""

    def __init__(self, place: Path):
        self._place = place
        self._scratch = tempfile.TemporaryDirectory(prefix="cotmi_jax_")
        self.folder = pathlib.Path(self._scratch.name)
        self._copied: dict[pathlib.Path, int] = {}  # bytes of every file that are there
        self._last = 0.0  # so that the first copy is made at once

    def fetch(self, name: str) -> None:
        """Bring over what an earlier start left, if it did."""
        with told(f"cannot read {self._place / name}"):
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
            with writing(target):
                replace_file(target, content)
            self._copied[path] = len(content)
        self._last = time.monotonic()

    def close(self) -> None:
        """Copy everything, and clear the local folder away."""
        try:
            self.copy(now=True)
        finally:
            self._scratch.cleanup()
