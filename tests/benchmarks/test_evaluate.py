"""The benchmark of evaluate: what it runs of each revision, on rows or on the student's own data, and its ratios."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from benchmarks import evaluate
from benchmarks.table import Spent


@contextlib.contextmanager
def two_revisions(baseline: str) -> Iterator[dict[str, Path]]:
    yield {"ours": Path("/ours"), "baseline": Path("/theirs")}


caches: list[str] = []  # of the commands of `measured`


def measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *flags: str
) -> tuple[Any, list[list[str]]]:
    """The report, and the commands; ours takes 3 s and 2 GiB, the baseline 2 s and 1 GiB."""
    commands: list[list[str]] = []
    caches.clear()

    def spend(command: Sequence[str], *, folder: Path, environment: dict[str, str]) -> Spent:
        commands.append([*command])
        caches.append(environment["COTMI_CACHE"])
        output = Path(next(each for each in command if each.startswith("--output=")).removeprefix("--output="))
        output.mkdir(exist_ok=True)
        line = {"predicted_label": "a b", "predicted_rationale": "c"}
        (output / "predictions.jsonl").write_text(json.dumps(line) + "\n")
        return Spent(3.0, 6.0, 2.0, "") if folder == Path("/ours") else Spent(2.0, 4.0, 1.0, "")

    monkeypatch.setattr(evaluate, "revisions", two_revisions)
    monkeypatch.setattr(evaluate, "spend", spend)
    with mock.patch.object(sys, "argv", ["evaluate", "--student=runs/it", "--rounds=2", "--baseline=abc", *flags]):
        assert evaluate.main() == 0
    return json.loads(capsys.readouterr().out), commands


def test_a_student_is_scored_on_its_own_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    report, commands = measured(monkeypatch, capsys, "--own_data")
    assert len(commands) == 6 and all("--workdir=runs/it" in command for command in commands)
    assert not any(each.startswith(("--dataset", "--model")) for command in commands for each in command)
    assert report["ratio"]["ours"] == {"cpu_seconds": 1.5, "seconds": 1.5, "peak_gib": 2.0}
    assert (report["examples"], report["label_words"], report["ours"]["seconds"]) == (1, 2, [3.0, 3.0])
    with mock.patch.object(sys, "argv", ["evaluate", "--own_data"]), pytest.raises(SystemExit, match="2"):
        evaluate.main()


def test_rows_of_a_data_set_have_choices_and_clusters(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    written: list[str] = []
    write = Path.write_text
    monkeypatch.setattr(Path, "write_text", lambda path, text: (written.append(text), write(path, text))[1])
    _, commands = measured(monkeypatch, capsys, "--dataset=arithmetic", "--examples=3")
    (rows,) = {text for text in written if '"rationale": ' in text}
    lines = [json.loads(each) for each in rows.splitlines()]
    assert len(lines) == 3 and all(each["cluster"] for each in lines)
    assert all("--model=runs/it" in each and "--noinformation" in each for each in commands)


def test_one_side_of_ours_computes_what_the_baseline_does(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    written: dict[str, str] = {}
    write = Path.write_text
    monkeypatch.setattr(
        Path, "write_text", lambda path, text: (written.setdefault(path.name, text), write(path, text))[1]
    )
    report, commands = measured(monkeypatch, capsys, "--dataset=deduction", "--examples=3", "--cold")
    with_choices, without = (
        [json.loads(line) for line in written[name].splitlines()] for name in ("test.jsonl", "no_choices.jsonl")
    )
    assert all(each.pop("choices") for each in with_choices) and with_choices == without
    files = [command[-1].rpartition("/")[2] for command in commands]
    assert files == ["test.jsonl", "test.jsonl", "no_choices.jsonl"] * 2
    assert report["ratio"]["no_choices"]["seconds"] == 1.5 and len(report["no_choices"]["seconds"]) == 2
    assert len(set(caches)) == 6  # each compiles
