"""The table of benchmarks: its rows, its file of results, and every suite at its smallest size."""

import contextlib
import importlib
import io
import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import runs
from paths import REPOSITORY

from benchmarks import compile as compile_suite
from benchmarks import decode, mi_term, run, table, train_step
from benchmarks.revisions import revisions
from benchmarks.table import Options, Row, Spent
from cotmi_jax.errors import UserError

quick_compilation = runs.quick_compilation


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Options]:
    """Replaces the suites by two of one row each; the second cannot run. The options of every call."""
    found: list[Options] = []

    def fast(options: Options) -> list[Row]:
        found.append(options)
        return [Row.of("speed", "examples/s", [4.0, 6.0, 10.0], [2.0, 2.0, 4.0], command="python -m a", peer_name="b")]

    def absent(options: Options) -> list[Row]:
        raise UserError("no data: set COTMI_DATA_ROOT")

    for name, rows in (("fast", fast), ("absent", absent)):
        module = types.ModuleType(f"suite_{name}")
        module.rows = rows  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(run, "SUITES", {"fast": "suite_fast", "absent": "suite_absent"})
    return found


def test_a_row_compares_the_sides_round_by_round() -> None:
    row = Row.of("speed", "examples/s", [4.0, 6.0, 10.0], [2.0, 2.0, 4.0], command="c").to_json()
    assert (row["ours"], row["peer"], row["ratio"], row["interval"], row["n"]) == (6.0, 2.0, 2.5, [2.0, 3.0], 3)
    row = Row.of("speed", "examples/s", [4.0], command="c", note="no torch: pip install -e '.[torch]'").to_json()
    assert (row["ours"], row["peer"], row["ratio"], row["n"]) == (4.0, None, None, 0)
    assert "pip install" in table.markdown({"x": table.environment() | {"rows": [row]}})
    with pytest.raises(ValueError):
        Row.of("speed", "examples/s", [4.0, 6.0], [2.0], command="c")


def test_results_are_kept_and_not_measured_again(
    calls: list[Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.json"
    arguments = ["--suite=fast", f"--json={results}", "--rounds=5", "--baseline=v1"]
    assert run.main(arguments) == 0
    assert calls == [Options(rounds=5, baseline="v1")]
    found = json.loads(results.read_text())["suites"]["fast"]
    assert found["rows"][0]["ratio"] == 2.5
    assert found["machine"] and found["date"] and found["versions"]["jax"] and found["revision"]
    assert run.main(arguments) == 0
    assert len(calls) == 1
    assert "| speed | examples/s | 6 | 2 | **2.50** (2.00 to 3.00) | 3 | b |" in capsys.readouterr().out
    assert run.main([*arguments, "--fresh"]) == 0
    assert len(calls) == 2
    assert run.main(["--suite=fast", f"--json={results}"]) == 2
    assert "has the suite fast with other options: give --fresh" in capsys.readouterr().err


def test_a_suite_that_cannot_run_stops_no_other(calls: list[Options], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--suite=absent,fast"]) == 1
    out, err = capsys.readouterr()
    assert "absent: no data: set COTMI_DATA_ROOT" in err
    assert "| speed |" in out and calls


def test_the_table_is_written_between_the_markers(
    calls: list[Options], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    begin, end = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert run.main(["--suite=fast", f"--markdown={page}"]) == 0
    text = page.read_text()
    assert text.startswith(f"before\n{begin}\n\n| | unit |") and text.endswith(f"{end}\nafter\n") and "old" not in text
    page.write_text("no markers")
    assert run.main(["--suite=fast", f"--markdown={page}"]) == 2
    assert "the document needs one line <!-- benchmarks: begin -->" in capsys.readouterr().err
    assert (REPOSITORY / "docs" / "performance.md").read_text().count(begin) == 1


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "results.json"
    broken.write_text('{"suites": []}')
    for arguments, message in (
        (["--suite=train,fly"], "there is no suite 'fly': choose from train,"),
        ([f"--json={broken}"], "is no results file of benchmarks.run"),
    ):
        assert run.main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and message in err and err.count("\n") == 1


def test_suites_that_the_table_names_exist() -> None:
    for module in run.SUITES.values():
        assert callable(importlib.import_module(module).rows)


def test_a_failed_command_is_a_user_error() -> None:
    spent = table.spend([sys.executable, "-c", "print(sum(range(10**6)))"])
    assert spent.output == "499999500000\n" and 0.0 < spent.cpu_seconds and 0.0 < spent.peak_gib
    with pytest.raises(UserError, match="exit code 3, see its message above"):
        table.spend([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_baseline_is_a_worktree_of_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    monkeypatch.setattr("benchmarks.revisions.ROOT", repository)

    def git(*arguments: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        done = subprocess.run(["git", "-C", str(repository), *author, *arguments], capture_output=True, check=True)
        return done.stdout.decode()

    git("init", "-q")
    for text in ("old", "new"):
        (repository / "file").write_text(text)
        git("add", "file")
        git("commit", "-q", "-m", text)
    with revisions("") as folders:
        assert folders == {"ours": repository}
    with revisions("HEAD~1") as folders:
        assert (folders["ours"] / "file").read_text() == "new"
        assert (folders["baseline"] / "file").read_text() == "old"
    assert not folders["baseline"].exists() and git("worktree", "list").count("\n") == 1
    with pytest.raises(UserError, match="--baseline=nothing is no revision"), revisions("nothing"):
        pass


def in_process(module: str, *arguments: str) -> dict[str, Any]:
    """What table.run_json returns, without a process of its own."""
    argv, out = sys.argv, io.StringIO()
    sys.argv = ["python", *arguments]
    try:
        with contextlib.redirect_stdout(out):
            assert not importlib.import_module(module).main()
    finally:
        sys.argv = argv
    return json.loads(out.getvalue()[out.getvalue().index("{") :])


def spend_in_forks(arguments: list[str], *, folder: Path, environment: dict[str, str]) -> Spent:
    """What table.spend returns, from the tests' servers of commands, with made-up costs."""
    done = runs.command(arguments[2].removeprefix("cotmi_jax."), *arguments[3:])
    assert done.code == 0, done
    return Spent(1.0, 2.0, 0.5, done.out)


@pytest.mark.slow
@pytest.mark.parametrize("suite", ["train", "evaluate", "input"])
def test_a_suite_at_its_smallest_size(suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train_step", "quickstart", "evaluate", "input"):
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(module, "run_json", in_process)
        if hasattr(module, "spend"):
            monkeypatch.setattr(module, "spend", spend_in_forks)
        if hasattr(module, "missing"):  # importing torch takes longer than the rest of this test
            monkeypatch.setattr(module, "missing", lambda *packages: list(packages))
    found = run.run_suite(suite, Options(rounds=1, quick=True, examples=4))
    for row in found["rows"]:
        assert row["command"].startswith("python -m benchmarks.")
        assert row["peer"] is None
        of_revisions = suite == "evaluate" or "quickstart" in row["what"]
        assert ("give --baseline=REVISION" if of_revisions else "pip install -e '.[torch]'") in row["note"]


def test_the_rows_of_commands_that_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    cost = {"bytes": 2e9, "random_bits": 5e8, "flops": 3e12, "seconds": 0.02}
    report = {
        "device": "TPU v5e",
        "memory": {"total": 2.0 * 2**30},
        "flops_model": 1.97e12,
        "roofline": {"total": cost},
    }
    old = report | {"memory": {"total": 4.0 * 2**30}}
    monkeypatch.setattr(compile_suite, "run_json", lambda *arguments: {"small": {"ours": report, "baseline": old}})
    memory, moved, operations, roofline = compile_suite.rows(Options(baseline="v1"))
    assert (memory.ours, memory.peer, memory.ratios, memory.peer_name) == (2.0, 4.0, (0.5,), "revision v1")
    assert (moved.ours, operations.ours, roofline.ours) == (2.0, 3.0, 20.0)
    assert "MFU 50%" in roofline.note  # 1.97 TFLOP take 10 ms at 197 TFLOP/s

    name = mi_term.DEFAULT
    step = {"seconds": [1.02, 1.01], "extra_temporaries_gb": 0.0}
    report = {"set-up": {"preset": "tiny", "batch_size": 8}, name: step, mi_term.BASELINE: {"seconds": [1.0, 1.0]}}
    monkeypatch.setattr(mi_term, "run_json", lambda *arguments: report)
    (row,) = mi_term.rows(Options(quick=True))
    assert row.ratios == (1.02, 1.01)


def test_the_rows_of_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def report(module: str, *arguments: str) -> dict[str, Any]:
        asked.append(arguments)
        setup = {"preset": "tiny", "dataset": "arithmetic", "examples": 8, "max_tokens": 4}
        return {
            "set-up": setup,
            "jax": {"seconds": [1.0, 2.0]},
            "transformers": {"seconds": [4.0, 4.0], "name": "transformers 5"},
        }

    monkeypatch.setattr(decode, "run_json", report)
    monkeypatch.setattr(decode, "missing", lambda *packages: [name for name in packages if name == "ctranslate2"])
    greedy, absent, *beam = decode.rows(Options(rounds=2, quick=True))
    assert [arguments[-3:] for arguments in asked] == [("--sides", "jax", "transformers")] * 2
    assert (greedy.ours, greedy.peer, greedy.ratios) == (6.0, 2.0, (4.0, 2.0))
    assert absent.peer is None and "pip install -e '.[torch,engines]'" in absent.note
    assert [row.what for row in beam] == ["generation, beam 4, tiny, arithmetic, 4 tokens"] * 2


def test_step_on_a_device_that_is_absent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train_step", "--device=gpu", "--dtype=bfloat16", "--side=jax"])
    assert train_step.main() == 2
    err = capsys.readouterr().err
    assert err == "error: --device=gpu: JAX finds none on this machine, only cpu\n"
