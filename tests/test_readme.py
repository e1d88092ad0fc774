"""The README's commands, run at smoke size in the order of the page."""

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import runs
from fake_teacher import FakeTeacher
from paths import REPOSITORY

from cotmi_jax.evaluation import counterfactual_monitor, mi_monitor
from cotmi_jax.mi.fitting import FitConfig

quick_compilation = runs.quick_compilation

README = (REPOSITORY / "README.md").read_text()


# A batch whose program the TPU compiler takes 15 seconds of processor time for, not 37.
AOT_SIZE = (
    "--rows=64 --input_length=256 --target_length=128",
    "--rows=8 --input_length=32 --target_length=32",
)


def shell_lines() -> list[str]:
    """The commands of the README's shell blocks, continued lines joined."""
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
    joined = "\n".join(blocks).replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in joined.splitlines() if line.strip()]


def test_named_files_exist() -> None:
    for name in re.findall(r"(?:configs|cotmi_jax|benchmarks|launch)/[\w/]+\.(?:py|sh|md)|docs/\w+\.md", README):
        assert (REPOSITORY / name).is_file(), name


def test_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(shell_lines()), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.slow
def test_commands_run(data_root: Path, tmp_path: Path) -> None:
    """Each line as a shell runs it: recipes at smoke size, from random parameters, workdirs in a temporary folder."""
    demo = "python -m cotmi_jax.train --config=configs/quickstart.py --workdir=runs/demo"
    run = re.compile(r"cotmi_jax\.|> questions\.jsonl|--dry-run")
    commands = [demo, *filter(run.search, shell_lines())]
    assert len(commands) >= 11 and sum(AOT_SIZE[0] in command for command in commands) == 1
    with FakeTeacher() as teacher:
        teacher.model, teacher.reasoning_tokens = "gpt-5-mini-2025-08-07", 192
        variables = {"COTMI_DATA_ROOT": str(data_root), "OPENAI_BASE_URL": teacher.url, "OPENAI_API_KEY": "none"}
        for command in commands:
            run_command(at_smoke_size(command), tmp_path, variables)
    transformers = pytest.importorskip("torch") and pytest.importorskip("transformers")
    assert (
        transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "student_hf").config.d_model
        == runs.STUDENT[0]
    )


def at_smoke_size(command: str) -> str:
    command = re.sub("^launch/", f"{REPOSITORY}/launch/", command)
    if "evaluate" in command:  # the same command on the smallest set: a test of the command, not of the student
        command = command.replace("runs/cqa", "runs/demo")
    command = command.replace(*AOT_SIZE)
    if re.search(r"cotmi_jax\.train(?!.*runs/demo)", command):  # one run measures mutual information
        command += " --config.mi.monitor.every=0"
    if "cotmi_jax.study" in command and "--dry_run" not in command:  # one run of many, of which the report is then
        command += " --only=standard,recipe=quickstart,seed=0"
    command = command.removesuffix(" --open")
    return re.sub(r"--config=\S*?(configs/[\w/]+\.py)(?::smoke)?", rf"--config={REPOSITORY}/\1:smoke", command)


def enter(folder: Path, variables: Mapping[str, str]) -> None:
    """Put a command into a folder and an environment, and have it fit critics in few steps and refits."""
    os.chdir(folder)
    os.environ.update(variables)
    fit = FitConfig(num_pairs=8, steps=20, every=10, patience=1)
    counterfactual_monitor.REFITS, counterfactual_monitor._FIT, mi_monitor._REFITS = 2, fit, 1


def run_command(command: str, folder: Path, variables: Mapping[str, str]) -> None:
    """Run a line in the folder: by the shell, but for its Python command, which is forked with its imports done.

    That of aot sets environment variables of its own before it imports JAX.
    """
    piped, _, last = command.rpartition(" | ")
    python = re.fullmatch(r"python -m cotmi_jax\.(?!aot )(\w+) (.*)", last)
    environment = runs.quick_environment() | variables
    line = re.sub(r"^python", sys.executable, piped if python else command)
    done = subprocess.run(line, shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    if python:
        name, arguments = python.groups()
        before = functools.partial(enter, folder, variables)
        result = runs.command(name, *shlex.split(arguments), stdin=done.stdout, before=before)
        assert result.code == 0, f"{command}\n{result.err}"
