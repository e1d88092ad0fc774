"""Location of a checkpoint: a directory, a bucket, the Hugging Face cache, or the hub."""

import atexit
import functools
import os.path
import shutil
import tempfile
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from cotmi_jax.data.vocabulary import FILES, has_tokenizer
from cotmi_jax.errors import UserError, one_line
from cotmi_jax.files import as_path, copy_file, is_remote, user_error_on_failure
from cotmi_jax.models.hf_weights import has_weights

_FILES = ["config.json", "generation_config.json", *FILES, "special_tokens_map.json"]
_SAFETENSORS = ["model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]
_PICKLES = ["pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json"]
_WEIGHTS = _SAFETENSORS + _PICKLES
_TIMEOUT = 10.0  # seconds; the hub's own client has none
# The root of the HTTP library's exceptions: which library that is depends on huggingface_hub's release.
HTTP_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]


def resolve_source(source: str | Path, cache_dir: Path | None = None) -> Path:
    """Directory of a checkpoint given as a directory or as a name on the hub, such as "google/flan-t5-small".

    A directory in a bucket (gs://…) is copied to this machine. A name is looked up in the cache first (cache_dir, or
    under HF_HOME), so that a student does not change while it is in use, and downloaded if the cache lacks it. Raises
    UserError with the remedy if neither has it.
    """
    if is_remote(source):
        return _fetch(str(source))
    if os.path.isdir(source):  # False, unlike Path.is_dir, for a name longer than any file has
        return Path(source)
    name = one_line(str(source), 300)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(
            f"{name}: no such directory, and not a valid name on the hub (owner/name): give one of the two"
        ) from error
    cached = _cached(name, cache_dir)
    if cached is not None and has_tokenizer(cached):
        return cached
    try:
        return _download(name, cache_dir)
    except (OSError, HTTP_ERROR) as error:
        if cached is not None:  # complete except for a vocabulary, which not every checkpoint has
            return cached
        code = getattr(getattr(error, "response", None), "status_code", None)
        if code in (401, 403, 404):
            raise UserError(
                f"{name}: no such directory, and the hub has no model of this name that you may read (HTTP {code}): "
                "correct it; for a private or gated model accept its terms and run `hf auth login`, or set HF_TOKEN"
            ) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{name}: neither a directory nor in the cache, and the hub cannot be reached ({reason}): on another "
            f"machine run `hf download {name} --local-dir DIR` and give DIR, or set HF_HOME to a cache that has it"
        ) from error


@functools.cache
def _fetch(url: str) -> Path:
    """A local copy of a directory in a bucket, removed when this process ends."""
    place = as_path(url)
    with user_error_on_failure(f"cannot read {url}"):
        files = [file for file in place.iterdir() if any(file.match(pattern) for pattern in _FILES + _WEIGHTS)]
        if not files:
            raise UserError(f"{url}: no files of a checkpoint: give the folder of a Hugging Face checkpoint")
        directory = Path(tempfile.mkdtemp(prefix="cotmi_jax_"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        for file in files:
            copy_file(file, directory / file.name)
    return directory


def _cached(name: str, cache_dir: Path | None) -> Path | None:
    """Snapshot of the main branch in the cache if it has a configuration and all weights, else None."""
    found = huggingface_hub.try_to_load_from_cache(name, "config.json", cache_dir=cache_dir)
    if not isinstance(found, str):  # None, or a marker that the hub has no such file
        return None
    return Path(found).parent if has_weights(Path(found).parent) else None


def _download(name: str, cache_dir: Path | None) -> Path:
    huggingface_hub.HfApi().model_info(name, timeout=_TIMEOUT)  # fails after _TIMEOUT where the download would hang
    directory = Path(huggingface_hub.snapshot_download(name, cache_dir=cache_dir, allow_patterns=_FILES + _SAFETENSORS))
    if has_weights(directory):
        return directory
    return Path(huggingface_hub.snapshot_download(name, cache_dir=cache_dir, allow_patterns=_FILES + _PICKLES))
