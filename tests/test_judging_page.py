"""docs/judging.md: its judge commands on evaluated workdirs and a fake server, its rubric, its flags and keys."""

import json
import re
import shlex
import textwrap
from pathlib import Path

import pytest
import runs
from fake_teacher import FakeTeacher
from judged import make_run, number_of
from paths import REPOSITORY

from cotmi_jax.teacher.rubric import load_rubric

PAGE = (REPOSITORY / "docs" / "judging.md").read_text(encoding="utf-8")


def shell_lines() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]


def judge(text: str, sample: int) -> str:
    return "Better: 1" if "explanation_1" in text else f"Score: {1 + (number_of(text) + sample) % 5}"


@pytest.mark.slow
def test_the_judge_commands_run_and_their_results_have_the_keys_of_the_page(tmp_path: Path) -> None:
    workdirs = {f"runs/{path.name}": str(path) for path in (tmp_path / "demo", tmp_path / "demo-1")}
    make_run(tmp_path / "demo", size=60)
    make_run(tmp_path / "demo-1", lambda number: f"{number} + 10 = {number + 10}.", size=60, seed=1)
    commands = [line.removeprefix("python -m cotmi_jax.judge ") for line in shell_lines() if "cotmi_jax.judge" in line]
    assert len(commands) == 3
    with FakeTeacher(judge) as server:
        server.model = "Qwen/Qwen3-8B"
        printed = []
        for command in commands:
            line = re.sub(r"runs/[\w-]+", lambda match: workdirs[match[0]], command)
            result = runs.command("judge", *shlex.split(line.replace("http://localhost:8000/v1", server.url)))
            assert result.code == 0, f"{command}\n{result.err}"
            printed.append(result.out)
    assert len(server.requests) == 50 + 2 * 50
    assert "50 requests about 50 of 50 items" in printed[0] and "50 of 60 in test (seed 0): 50 judged" in printed[1]
    lines = {line.split("  ")[0] for line in "\n".join(printed[1:]).splitlines()}
    found: set[str] = set()
    for path in (tmp_path / "demo/evaluation/test").glob("judge-Qwen-Qwen3-8B-*.json"):
        result = json.loads(path.read_text())
        found |= result["values"].keys() | result["not_available"].keys()
    tables = re.findall(r"^\| ([^|]+) \| (`[^|]+) \|", PAGE, flags=re.MULTILINE)
    assert {key for _, keys in tables for key in re.findall(r"`(\w+)`", keys)} == found
    rows = {name for names, _ in tables for name in names.split(", ")} - {
        "mean score",
        "B is better",
        "tie",
        "if shorter",
    }
    assert rows <= lines, rows - lines


def test_the_rubric_of_the_page_is_valid(tmp_path: Path) -> None:
    block = PAGE.partition("    [absolute]\n")[2].partition("\n`{input}`")[0]
    (tmp_path / "own.toml").write_text(textwrap.dedent("    [absolute]\n" + block))
    assert "recipe" in load_rubric(str(tmp_path / "own.toml"), "absolute").instructions
    assert (
        load_rubric(str(tmp_path / "own.toml"), "pairwise")
        .text("Q", "G", "one", "two")
        .endswith("First explanation: one\nSecond explanation: two")
    )


def test_every_flag_of_the_page_exists() -> None:
    modules = {"judge": ("judge", "teacher/request_flags"), "train": ("train", "config"), "evaluate": ("evaluate",)}
    sources = {
        name: "".join((REPOSITORY / f"cotmi_jax/{file}.py").read_text("utf-8") for file in files)
        for name, files in modules.items()
    }
    text = re.sub(r"```bash.*?```", "", PAGE, flags=re.DOTALL)
    checked = [("judge", flag) for flag in re.findall(r"--([a-z_]+)", text)]
    for line in shell_lines():
        if found := re.search(r"cotmi_jax\.(\w+)", line):
            checked += [(found[1], flag) for flag in re.findall(r"--([a-z_]+)(?![a-z_.]*\.)", line)]
    assert len(checked) > 20
    for command, flag in checked:
        assert f'"{flag}"' in sources[command] or flag == "config", (command, flag)
