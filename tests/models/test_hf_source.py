"""Finding checkpoints: directories, the cache, the hub, and the remedy if none has it."""

import fnmatch
import shutil
import socket
import threading
import time
from pathlib import Path
from unittest import mock

import huggingface_hub
import huggingface_hub.constants
import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.models import hf_source
from cotmi_jax.models.hf import load_hf, resolve_source


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A directory with the files of a checkpoint, whose contents are not read here."""
    directory = tmp_path / "student"
    directory.mkdir()
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        (directory / name).write_text("{}")
    return directory


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and the hub offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def fill_cache(cache: Path, name: str, files: dict[str, bytes]) -> Path:
    """Store files as the hub's client does: blobs by hash, a snapshot of links, a reference to the commit."""
    root, commit = cache / f"models--{name.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    for folder in ("blobs", "refs", f"snapshots/{commit}"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(commit)
    for number, (file, contents) in enumerate(files.items()):
        (root / "blobs" / f"{number:040x}").write_bytes(contents)
        (root / "snapshots" / commit / file).symlink_to(f"../../blobs/{number:040x}")
    return root / "snapshots" / commit


def contents_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_a_directory_is_used_directly(checkpoint: Path) -> None:
    assert resolve_source(str(checkpoint)) == resolve_source(checkpoint) == checkpoint


@pytest.mark.parametrize("vocabulary", [{}, {"spiece.model": b"pieces"}, {"tokenizer.json": b"{}"}])
def test_cached_name_needs_no_network(vocabulary: dict[str, bytes], checkpoint: Path, cache: Path) -> None:
    snapshot = fill_cache(cache, "owner/student", contents_of(checkpoint) | vocabulary)
    assert resolve_source("owner/student", cache) == snapshot
    with pytest.raises(UserError, match=f"^{snapshot}/config.json: model_type = missing"):
        load_hf("owner/student", cache)


def test_an_unreachable_name_is_refused_with_a_remedy(checkpoint: Path, cache: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(UserError) as raised:
            resolve_source(name, cache)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    for _ in range(2):  # neither an empty cache nor an incomplete one is used
        message = refused("owner/student")
        assert "hf download owner/student --local-dir DIR" in message and "HF_HOME" in message
        shutil.rmtree(cache, ignore_errors=True)
        fill_cache(cache, "owner/student", {"config.json": (checkpoint / "config.json").read_bytes()})
    for name in ("runs/my/student", "/no/such/place", "-x", "a..b"):
        assert "no such directory" in refused(name)


def test_a_name_that_the_hub_does_not_have_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, folder: Path) -> Path:
        raise huggingface_hub.errors.RepositoryNotFoundError("404", response=mock.Mock(status_code=404))

    monkeypatch.setattr(hf_source, "_download", download)
    with pytest.raises(UserError, match="the hub has no model of this name that you may read .HTTP 404.: correct"):
        resolve_source("owner/studnet", cache)


def test_a_host_that_never_answers_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind some firewalls, which accept connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hf_source, "_TIMEOUT", 0.5)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        hang_up = threading.Timer(30, server.close)  # without a time limit the test fails instead of hanging
        hang_up.daemon = True
        hang_up.start()
        start = time.monotonic()
        with pytest.raises(UserError, match="the hub cannot be reached"):
            resolve_source("owner/student", tmp_path)
        assert time.monotonic() - start < 20


@pytest.mark.parametrize("pickled_only", [False, True])
def test_download_takes_pickles_only_without_safetensors(
    pickled_only: bool, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, cache = tmp_path / "hub", tmp_path / "cache"
    shutil.copytree(checkpoint, hub)
    for name in ("spiece.model", "pytorch_model.bin", "tf_model.h5", "README.md", "model.fp16.safetensors", "run.py"):
        (hub / name).write_bytes(b"")
    if pickled_only:
        (hub / "model.safetensors").unlink()

    def download(name: str, *, cache_dir: Path, allow_patterns: list[str]) -> str:
        wanted = {n: c for n, c in contents_of(hub).items() if any(fnmatch.fnmatch(n, p) for p in allow_patterns)}
        shutil.rmtree(cache_dir, ignore_errors=True)
        return str(fill_cache(cache_dir, name, wanted))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: None)
    found = {path.name for path in resolve_source("owner/student", cache).iterdir()}
    weights = "pytorch_model.bin" if pickled_only else "model.safetensors"
    assert found == {"config.json", "generation_config.json", "spiece.model", weights}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)  # from now on only the cache is available
    assert resolve_source("owner/student", cache).is_dir()
