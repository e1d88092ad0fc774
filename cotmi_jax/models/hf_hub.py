"""Uploads an exported checkpoint to the Hugging Face hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from cotmi_jax.errors import UserError, one_line
from cotmi_jax.models.hf_source import HTTP_ERROR

_TIMEOUT = 10.0  # seconds; the hub's own client has none
_LOGIN = "create a token with write access at huggingface.co/settings/tokens and run `hf auth login`, or set HF_TOKEN"


def check_access(name: str) -> None:
    """Check name, network and token before anything is exported. Raises UserError with the remedy."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub={one_line(name)}: not a name on the hub: give owner/name") from error
    api = huggingface_hub.HfApi()
    try:
        api.model_info(name, timeout=_TIMEOUT)  # fails after _TIMEOUT where the requests below would hang
    except RepositoryNotFoundError:
        pass  # it is created below; a token that is refused is reported by the next request
    except (OSError, HTTP_ERROR) as error:
        raise _failure(name, error) from error
    try:
        api.whoami()
    except LocalTokenNotFoundError as error:
        raise UserError(f"--push_to_hub={name}: no token: {_LOGIN}") from error
    except (OSError, HTTP_ERROR) as error:
        raise _failure(name, error) from error


def push(folder: Path, name: str, *, private: bool) -> str:
    """Upload a folder as a model, which is created if it does not exist. Returns its address. Raises UserError."""
    api = huggingface_hub.HfApi()
    try:
        created = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=created.repo_id, folder_path=folder, commit_message="Upload a student with cotmi_jax")
    # RuntimeError is that of hf_xet, which transfers large files, ValueError that of metadata which the hub refuses.
    except (OSError, HTTP_ERROR, RuntimeError, ValueError) as error:
        reason = _failure(name, error)
        raise UserError(f"{reason}; {folder} is complete: `hf upload {name} {folder} .` uploads it") from error
    return str(created)


def _failure(name: str, error: Exception) -> UserError:
    code = getattr(getattr(error, "response", None), "status_code", None)
    what = f"--push_to_hub={name}: "
    if code in (401, 403):
        return UserError(f"{what}the hub refuses the token ({code}): {_LOGIN}")
    reason = one_line(" ".join(str(error).split()) or type(error).__name__, 200)
    if code is not None or isinstance(error, ValueError):
        answer = "the hub refuses the upload" if code is None else f"the hub answers {code}"
        return UserError(f"{what}{answer} ({reason}): correct what it names, or try again later")
    return UserError(f"{what}the hub cannot be reached ({reason}): check the network and HF_ENDPOINT")
