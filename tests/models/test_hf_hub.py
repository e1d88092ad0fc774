"""Uploads against a fake of the hub's protocol, and what is said where they cannot be made."""

import socket
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import huggingface_hub.constants
import pytest

from cotmi_jax.errors import UserError
from cotmi_jax.models import hf_hub
from cotmi_jax.models.hf_hub import check_access, push


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    with fake_hub.running() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        # Large files then go through git's protocol for them, which the fake speaks, not through the hub's own.
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in (("config.json", b"{}"), ("README.md", b"# card"), ("model.safetensors", bytes(5000))):
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.mark.parametrize("private", [False, True])
def test_a_folder_is_uploaded(hub: fake_hub.FakeHub, folder: Path, private: bool) -> None:
    check_access("owner/student")
    assert push(folder, "owner/student", private=private) == f"{hub.url}/owner/student"
    assert hub.private is private
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    check_access("owner/student")  # it exists now


def refused(name: str = "owner/student") -> str:
    with pytest.raises(UserError) as raised:
        check_access(name)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_the_hub_refuses_is_one_line(
    hub: fake_hub.FakeHub, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "--push_to_hub=a/b/c: not a name on the hub: give owner/name" in refused("a/b/c")
    monkeypatch.setenv("HF_TOKEN", "of another")
    assert "the hub refuses the token (401): create a token" in refused()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    assert "no token: create a token" in refused() or "refuses the token (401)" in refused()
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    hub.yaml_errors = [{"message": '"license" must be one of those listed'}]
    with pytest.raises(UserError, match=r'refuses the upload \(Invalid metadata in README.md. - "license" must be one'):
        push(folder, "owner/student", private=False)
    hub.status = 403
    with pytest.raises(UserError, match=rf"refuses the token \(403\).*; {folder} is complete: `hf upload owner/st"):
        push(folder, "owner/student", private=False)
    hub.status = 418
    assert "the hub answers 418" in refused()
    assert not hub.files


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # accepts connections and never answers
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        monkeypatch.setattr(hf_hub, "_TIMEOUT", 0.2)
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "127.0.0.1")
        assert "the hub cannot be reached" in refused() and "check the network and HF_ENDPOINT" in refused()
    assert "the hub cannot be reached" in refused()
