"""An earlier revision of this repository as the peer of the present code."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.table import ROOT
from cotmi_jax.errors import UserError


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False)


@contextlib.contextmanager
def revisions(baseline: str) -> Iterator[dict[str, Path]]:
    """Folders of code by side: ours, the present one, and baseline, a temporary git worktree; only ours if it is "".

    Python imports cotmi_jax from the folder in which `python -m` is started. Raises UserError for an unknown revision.
    """
    if not baseline:
        yield {"ours": ROOT}
        return
    found = _git("rev-parse", "--verify", "--quiet", f"{baseline}^{{commit}}")
    if found.returncode:
        raise UserError(f"--baseline={baseline} is no revision of the git repository {ROOT}: see git log")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "baseline"
        made = _git("worktree", "add", "--detach", str(tree), found.stdout.strip())
        if made.returncode:
            raise UserError(f"--baseline={baseline}: git worktree failed: {made.stderr.splitlines()[-1]}")
        try:
            yield {"ours": ROOT, "baseline": tree}
        finally:
            _git("worktree", "remove", "--force", str(tree))
