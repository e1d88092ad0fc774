"""What a start of a run depends on besides its data: settings, the code of extensions, revision, package versions."""

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path as LocalPath
from typing import Any

from ml_collections import ConfigDict

from cotmi_jax.config import shared_settings
from cotmi_jax.extensions import extension_names
from cotmi_jax.files import Path, absolute, as_path, read_regular, user_error_on_failure

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy", "ml-collections")


def revision() -> str | None:
    """The git revision of the package's source, with + where it was changed; None outside a checkout.

    A package that is installed within the folder of another repository is not tracked by it.
    """
    here = LocalPath(__file__)
    git = ["git", "-C", str(here.parent)]
    command = [*git, "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", here.name], capture_output=True, check=True)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    return {name: metadata.version(name) for name in _PACKAGES}


def file_digest(path: Path) -> str:
    """SHA-256 of a file. Raises UserError where it cannot be read."""
    with user_error_on_failure(f"{path} cannot be read", "restore it"):
        return hashlib.sha256(read_regular(path)).hexdigest()


def extension_digests(extensions: str) -> dict[str, str | None]:
    """SHA-256 of each file of config.extensions, by its name there; None for an importable module."""
    return {
        name: file_digest(as_path(absolute(name))) if name.endswith(".py") else None
        for name in extension_names(extensions)
    }


def _source_digest() -> str:
    """Of the package's Python files: two checkouts of one revision may have different changes."""
    digest, package = hashlib.sha256(), LocalPath(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def start_facts(config: ConfigDict) -> dict[str, Any]:
    """What all processes of a run must have in common, as JSON values by name.

    config: as it was given to this process. Left out are the keys that may differ by host. Of extensions the content
    of the files counts, not where they are.
    """
    facts: dict[str, Any] = {f"config.{key}": value for key, value in shared_settings(config).items()}
    return facts | {"config.extensions": extension_contents(config.extensions)} | code_facts()


def extension_contents(extensions: str) -> list[str]:
    """What config.extensions names, wherever its files are: their names with SHA-256, and modules."""
    return [
        name if digest is None else f"{LocalPath(name).name} with SHA-256 {digest[:12]}"
        for name, digest in extension_digests(extensions).items()
    ]


def code_facts() -> dict[str, Any]:
    """The code and packages of this process, as JSON values by name."""
    facts = {"revision": revision(), "the source code of cotmi_jax": _source_digest()[:12]}
    return facts | {"Python": platform.python_version()} | versions()
