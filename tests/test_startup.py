"""What commands import: neither tensorflow nor torch but where they are needed, since each takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from paths import REPOSITORY

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.hf import save_hf
from cotmi_jax.models.student import StudentDef

# Packages that no part of the package may import here: packages of these names record that they were imported.
ABSENT = ("tensorflow", "torch", "transformers", "tensorboardX", "matplotlib")
RECORD = """import os
open(os.environ["IMPORTED"], "a").write(__name__ + "\\n")
raise ImportError(__name__)
"""
# Commands in a process each, forked off one that has imported what all need.
COMMANDS = """import json, os, runpy, sys
import cotmi_jax.inference.load
for name, *arguments in json.load(sys.stdin):
    if not os.fork():
        sys.stdin, sys.argv = open("line"), [name, *arguments]
        runpy.run_module("cotmi_jax." + name, run_name="__main__", alter_sys=True)
    assert os.wait()[1] == 0, name
"""


def imported(program: str, folder: Path, stdin: str = "") -> list[str]:
    """The packages of ABSENT that a program in a fresh process imports or tries to import."""
    for name in ABSENT:
        (folder / "packages" / name).mkdir(parents=True)
        (folder / "packages" / name / "__init__.py").write_text(RECORD)
    record = folder / "imported"
    record.touch()
    (folder / "line").write_text("How many pens?\n")
    paths = os.pathsep.join([str(folder / "packages"), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": paths, "IMPORTED": str(record), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, input=stdin, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return record.read_text().split()


def test_training_imports_tensorflow_only_for_its_pipeline(tmp_path: Path) -> None:
    program = "import cotmi_jax.training.job, cotmi_jax.workdir.trackers, cotmi_jax.report.tensorboard"
    assert imported(program, tmp_path / "job") == []
    program = "try: import cotmi_jax.data.pipeline\nexcept ImportError: pass"
    assert imported(program, tmp_path / "pipeline") == ["tensorflow"]


@pytest.mark.slow
def test_predict_evaluate_export_and_describe_import_neither_tensorflow_nor_torch(tmp_path: Path) -> None:
    student, rows = tmp_path / "student", tmp_path / "rows"
    size = Vocabulary(VOCABULARY_PATH).size
    config = T5Config(size, d_model=8, d_kv=4, d_ff=8, num_encoder_layers=1, num_decoder_layers=1, num_heads=2)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), StudentDef.of(config).shapes)
    save_hf(params, config, student, vocabulary_file=VOCABULARY_PATH)
    rows.mkdir()
    for split in ("train", "test"):
        line = '{"input": "Ann has 3 pens.", "label": "3", "rationale": "It says so."}\n'
        (rows / f"{split}.jsonl").write_text(2 * line)
    data, cache = f"--dataset=jsonl:{rows}", "--compilation_cache=none"
    accuracy = "--metrics=accuracy"  # without plots, which matplotlib draws
    commands = [
        ["predict", f"--model={student}", "--max_tokens=2", cache],
        ["evaluate", f"--model={student}", data, f"--output={tmp_path}/scores", "--max_tokens=2", cache, accuracy],
        ["export", f"--model={student}", f"--output={tmp_path}/exported"],
        ["describe", data, f"--vocabulary={VOCABULARY_PATH}"],
    ]
    assert imported(COMMANDS, tmp_path, json.dumps(commands)) == []
    assert (tmp_path / "scores" / "tensorboard").is_dir() and (tmp_path / "exported" / "config.json").is_file()
