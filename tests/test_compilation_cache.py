"""Compiled programs are stored in the given folder, reused by the next process, and change no result."""

import functools
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
import runs

from cotmi_jax import compilation_cache as compilation
from cotmi_jax.compilation_cache import default_folder, use_compilation_cache
from cotmi_jax.errors import UserError

QUICK = {"objective.name": "standard", "model.scan_layers": True}  # to compile
SETTINGS = (
    *("jax_compilation_cache_dir", "jax_enable_compilation_cache"),
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Restores JAX's settings."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def cache_folder() -> str | None:
    return jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]


def count_hits(file: Path) -> None:
    """Have a command's process count requests to the cache and hits."""
    counts: Counter[str] = Counter()

    def listen(event: str, **_: str) -> None:
        counts[event.rpartition("/")[2]] += 1
        file.write_text(json.dumps(counts))

    jax.monitoring.register_event_listener(listen)


@pytest.mark.slow
def test_the_second_process_compiles_nothing_and_gets_bit_equal_results(tmp_path: Path) -> None:
    folder, config = tmp_path / "programs", runs.tiny_config({"eval.every": 0, "steps": 2} | QUICK)
    config.compilation_cache = str(folder)
    flags, counts, files = runs.config_flags(config), {}, {}
    for name in ("first", "second"):
        before = functools.partial(count_hits, tmp_path / f"{name}.json")
        result = runs.command("train", *flags, f"--workdir={tmp_path / name}", before=before)
        assert result.code == 0, result.err
        assert "SIGILL" not in result.err and "cache" not in result.err  # XLA and JAX have nothing to report
        counts[name] = json.loads((tmp_path / f"{name}.json").read_text())
        files[name] = {path.name for path in folder.iterdir()}
    assert any(name.startswith("jit_step-") for name in files["first"])
    requests = counts["second"]["compile_requests_use_cache"]
    assert counts["second"]["cache_hits"] == requests >= len(files["first"]) and "cache_misses" not in counts["second"]
    assert files["second"] == files["first"]
    first, second = (runs.read_state(tmp_path / name) for name in ("first", "second"))
    runs.assert_same(first, second)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("train", (f"--config={runs.RECIPE}", "--workdir=run", "--config.compilation_cache=")),
        ("evaluate", ("--workdir=run", "--compilation_cache=")),
        ("predict", ("--model=run", "--compilation_cache=")),
    ],
)
def test_every_command_that_compiles_stores_programs_in_the_given_folder(
    name: str, flags: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    *others, last = flags
    result = runs.command(name, *others, f"{last}{tmp_path}/file/programs")
    runs.assert_refused(result, f"cannot write to the compilation cache {tmp_path}/file/programs: Not a directory")


def test_the_folder_is_the_given_one_else_that_of_jax_else_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COTMI_CACHE", str(tmp_path / "cache"))
    use_compilation_cache("")
    assert cache_folder() == str(default_folder()) and default_folder().is_dir()
    assert default_folder().parent == tmp_path / "cache" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    use_compilation_cache("")
    assert cache_folder() == str(tmp_path / "own")
    use_compilation_cache(str(tmp_path / "asked"))
    assert cache_folder() == str(tmp_path / "asked")
    monkeypatch.setattr(compilation, "as_path", str)
    monkeypatch.setattr(compilation, "check_writable", lambda place: None)
    use_compilation_cache("gs://bucket/programs")
    assert cache_folder() == "gs://bucket/programs"
    assert jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    use_compilation_cache("none")
    assert not jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]


def test_different_processors_have_different_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    here = default_folder()
    monkeypatch.setattr(compilation.platform, "machine", lambda: "riscv64")
    assert default_folder() != here


def test_an_unwritable_default_is_reported_and_an_unwritable_choice_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("COTMI_CACHE", str(tmp_path / "file"))
    use_compilation_cache("")
    assert cache_folder() is None
    assert capsys.readouterr().err.startswith("compiled programs are not stored: cannot write to ")
    monkeypatch.setenv("COTMI_CACHE", "s3://bucket")
    use_compilation_cache("")
    assert "not stored: s3://bucket: give a local path" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot write to the compilation cache .*file/here: Not a directory"):
        use_compilation_cache(str(tmp_path / "file" / "here"))
