"""The commands as users start them: what they print and write, and one-line errors for invalid input."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import runs

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH, make_arithmetic
from cotmi_jax.models.hf import load_hf
from cotmi_jax.workdir.record import read_run

quick_compilation = runs.quick_compilation

SMOKE = f"--config={runs.RECIPE}:smoke"
PROBLEMS = [example.input for example in make_arithmetic(seed=3, num_train=3, num_valid=0, num_test=0).splits["train"]]


def json_lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


# Training.


@pytest.mark.slow
def test_the_smoke_recipe_trains_and_prints_only_the_expected_lines(tmp_path: Path) -> None:
    """In a fresh process, unlike the other tests here: imports must not print anything either."""
    quicker = ["--config.objective.name=standard", "--config.eval.every=0"]
    cache = tmp_path / "cache"  # its own: another test may have prepared the same data
    quick_compile = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "cotmi_jax.train", SMOKE, f"--workdir={tmp_path / 'run'}", *quicker],
        cwd=runs.REPOSITORY,
        env=os.environ | quick_compile | {"COTMI_CACHE": str(cache)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    data, batches, student, unknown, *steps, summary = done.stderr.splitlines()
    assert data == f"data arithmetic: 64 train, 500 valid; tokens now in {cache}"
    assert batches.startswith("batches of 8 (input→target tokens): packed into ")
    assert student.startswith("student: ") and student.endswith("; starting")
    assert unknown.startswith("no train/mfu: ") and summary.startswith("steps 1 to 4 in ")
    assert [line.split()[:2] for line in steps] == [["step", f"{step}/4"] for step in (1, 2, 3, 4)]
    assert read_run(tmp_path / "run")[0].model.preset == "tiny"
    assert list(cache.glob("xla/*/jit_step-*"))  # for the next start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--config=nowhere.py"], ["nowhere.py"]),
        ([f"--config={VOCABULARY_PATH}"], ["--config"]),
        ([f"--config={runs.REPOSITORY / 'pyproject.toml'}"], ["--config", "pyproject.toml"]),
        ([f"--config={runs.RECIPE}:quick"], ["unknown config variant 'quick'"]),
        ([SMOKE, "--config.modle.preset=tiny"], ["--config has no key", "modle"]),
        ([SMOKE, "--config.model.pre=tiny"], ["--config has no key", "pre"]),
        ([SMOKE, "--config.steps=many"], ["--config.steps", "many"]),
        ([SMOKE, "--config.steps=1.5"], ["--config.steps", "1.5"]),
        ([SMOKE, "--config.model.scan_layers=perhaps"], ["--config.model.scan_layers", "perhaps"]),
        ([SMOKE, "--config.steps=0"], ["config.steps is 0"]),
        ([SMOKE, "--steps=3"], ["steps"]),
        ([SMOKE, "again"], ["unexpected argument 'again'"]),
        ([SMOKE, "--config.data.dataset=mathqa"], ["dataset = 'mathqa'", "choose one of"]),
        ([SMOKE, "--config.objective.name=dds"], ["unknown objective 'dds'", "choose one of"]),
        ([SMOKE, "--config.mi.estimator=nce"], ["unknown mi.estimator 'nce'", "choose one of"]),
        ([SMOKE, "--config.objective.alpha=2"], ["objective.alpha is 2.0"]),
        ([SMOKE, "--config.data.label_type=gold"], ["unknown label type 'gold'"]),
        ([SMOKE, "--config.data.subsample=0"], ["subsample = 0.0"]),
        ([SMOKE, "--config.seed=-1"], ["config.seed is -1"]),
        ([SMOKE, "--config.model.preset=huge"], ["unknown T5 preset 'huge'"]),
        ([SMOKE, "--config.model.vocab_size=64"], ["430 pieces but the model has 64 embeddings"]),
        ([SMOKE, "--config.data.vocabulary=nowhere.model"], ["no vocabulary at nowhere.model"]),
        ([SMOKE, f"--config.data.vocabulary={__file__}"], ["test_cli.py is not a SentencePiece model"]),
        ([SMOKE, "--config.optimizer.name=sgd"], ["unknown optimizer.name 'sgd'"]),
        ([SMOKE, "--config.optimizer.schedule=step"], ["unknown optimizer.schedule 'step'"]),
        ([SMOKE, "--config.mesh.fsdp=2"], ["does not cover 1 devices"]),
        ([SMOKE, "--config.model.init=./nowhere"], ["./nowhere"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_training_refuses(flags: list[str], parts: list[str]) -> None:
    runs.assert_refused(runs.command("train", *flags, "--workdir=run"), *parts)


@pytest.mark.parametrize("key", ["batch_size", "eval.batch_size"])
def test_a_batch_that_does_not_divide_over_the_devices_is_refused(key: str) -> None:
    result = runs.command("train", SMOKE, f"--config.{key}=12", "--workdir=run", devices=8)
    runs.assert_refused(result, f"config.{key}", "12", "8 devices")


def test_missing_required_flags_are_named() -> None:
    runs.assert_refused(runs.command("train", "--workdir=run"), "--config must have a value")
    runs.assert_refused(runs.command("train", SMOKE), "--workdir must have a value")
    runs.assert_refused(runs.command("evaluate"), "--workdir must have a value")
    runs.assert_refused(runs.command("predict"), "--model must have a value")
    runs.assert_refused(runs.command("export", "--model=run"), "--output must have a value")
    runs.assert_refused(runs.command("describe"), "--dataset must have a value")


def test_a_workdir_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    occupied.write_text("a file")
    for workdir in (occupied, occupied / "run"):
        runs.assert_refused(runs.command("train", SMOKE, f"--workdir={workdir}"), f"--workdir {workdir}: ")
    assert occupied.read_text() == "a file"


def test_a_traceback_is_shown_with_the_traceback_flag() -> None:
    result = runs.command("train", SMOKE, "--workdir=run", "--config.steps=0", "--traceback")
    assert result.code != 0 and "Traceback" in result.err and "config.steps is 0" in result.err


# Data files.


def break_line(root: Path) -> None:
    path = root / "svamp" / "svamp_train.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:-4], *lines[3:]]))


def empty_rationale(root: Path) -> None:
    path = root / "svamp" / "llm" / "train_CoT_0.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps([*said[:4], "The answer is (3).", *said[5:]]))


def wrong_label(root: Path) -> None:
    folder = root / "esnli"
    (folder / "llm").mkdir(parents=True)
    rows = [{"premise": "A boy hums.", "hypothesis": "A boy sings.", "label": label} for label in (0, 7, 2)]
    (folder / "esnli_train.json").write_text("\n".join(map(json.dumps, rows)))
    (folder / "llm" / "train_CoT_0.json").write_text(json.dumps(["He hums. Answer: neutral"] * 3))


@pytest.mark.parametrize(
    ("name", "damage", "parts"),
    [
        (
            "svamp",
            lambda root: (root / "svamp" / "svamp_train.json").unlink(),
            ["svamp/svamp_train.json: No such file"],
        ),
        ("svamp", lambda root: (root / "svamp/llm/train_CoT_0.json").unlink(), ["llm/train_CoT_0.json: No such file"]),
        ("svamp", lambda root: shutil.rmtree(root / "svamp"), ["holds neither svamp/ nor dss/svamp/"]),
        ("svamp", break_line, ["svamp/svamp_train.json:3: broken JSON"]),
        ("svamp", empty_rationale, ["svamp/svamp_train.json:5: ", "no rationale for example svamp/train/4"]),
        ("esnli", wrong_label, ["esnli/esnli_train.json:2: label = 7", "entailment"]),
    ],
    ids=["no rows", "no completions", "no set", "broken line", "empty rationale", "wrong label"],
)
def test_training_refuses_data(tmp_path: Path, name: str, damage: Callable[[Path], None], parts: list[str]) -> None:
    root = runs.write_svamp(tmp_path)
    damage(root)
    flags = [SMOKE, f"--config.data.dataset={name}", f"--config.data.root={root}", "--workdir=run"]
    runs.assert_refused(runs.command("train", *flags, f"--config.data.vocabulary={VOCABULARY_PATH}"), *parts)


def test_training_needs_a_data_root_for_sets_that_are_files() -> None:
    result = runs.command("train", SMOKE, "--config.data.dataset=svamp", "--workdir=run")
    runs.assert_refused(result, "no data root", "COTMI_DATA_ROOT")


# Evaluating.


@pytest.mark.slow
def test_evaluation_needs_only_the_workdir_and_scores_every_example_once(tmp_path: Path) -> None:
    workdir = tmp_path / "moved"
    shutil.copytree(runs.trained(), workdir)
    result = runs.command("evaluate", f"--workdir={workdir}", "--examples=2", "--noinformation", devices=8)
    assert (result.code, result.err) == (0, "")
    folder = workdir / "evaluation" / "test"
    metrics, predictions = json.loads((folder / "metrics.json").read_text()), folder / "predictions.jsonl"
    rows = json_lines(predictions.read_text())
    assert [row["id"] for row in rows] == [f"arithmetic/test/{n}" for n in range(runs.HELD_OUT)]
    assert metrics["n"] == runs.HELD_OUT and metrics["split"] == "test"
    (best,) = runs.steps_in(workdir / "best")
    assert metrics["checkpoint"] == {"which": "best", "step": best}
    assert metrics["accuracy"] == sum(row["correct"] for row in rows) / runs.HELD_OUT
    assert metrics["loss"].keys() == {"predict", "explain", "predict_token_accuracy", "explain_token_accuracy"}
    assert "information" not in metrics  # test_mi_monitor.py tests the default, with it
    assert f"{runs.HELD_OUT} examples, checkpoint of step {best}" in result.out and result.out.count("problem") == 2
    plots = ["reliability.{png,svg}", "risk_coverage.{png,svg}"]
    written = ["metrics.json", "predictions.jsonl", *plots, "tensorboard/"]
    assert result.out.endswith(f"written: {folder}/{', '.join(written)}\n")
    drawn = {plot.partition(".")[0] + suffix for plot in plots for suffix in (".png", ".svg")}
    assert {path.name for path in folder.iterdir()} == {"metrics.json", "predictions.jsonl", "tensorboard", *drawn}


@pytest.mark.slow
def test_another_split_checkpoint_and_folder_may_be_chosen(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(runs.trained(), workdir)
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["eval"]["batch_size"] = 7  # as of a run on fewer devices: here it is rounded up
    (workdir / "run.json").write_text(json.dumps(record))
    flags = [f"--workdir={workdir}", "--split=train", "--checkpoint=4", f"--output={tmp_path / 'scores'}"]
    result = runs.command("evaluate", *flags, devices=8)
    assert (result.code, result.err) == (0, "")
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert (metrics["split"], metrics["n"], metrics["checkpoint"]) == ("train", 20, {"which": "4", "step": 4})
    assert not (workdir / "evaluation").exists()


@pytest.mark.slow
def test_a_mixture_is_scored_component_by_component(tmp_path: Path) -> None:
    """A run is evaluated as if it had been trained on two files of its own."""
    workdir = tmp_path / "run"
    shutil.copytree(runs.trained(), workdir)
    for name, count in (("mine", 4), ("other", 3)):
        (tmp_path / name).mkdir()
        rows = [{"input": f"{name} {n}?", "label": "yes", "rationale": "So."} for n in range(count)]
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["data"]["dataset"] = f"jsonl:{tmp_path}/mine=3,jsonl:{tmp_path}/other"
    (workdir / "run.json").write_text(json.dumps(record))
    result = runs.command("evaluate", f"--workdir={workdir}", "--noinformation", devices=8)
    assert (result.code, result.err) == (0, "")
    metrics = json.loads((workdir / "evaluation" / "test" / "metrics.json").read_text())
    assert {name: part["n"] for name, part in metrics["components"].items()} == {"jsonl:mine": 4, "jsonl:other": 3}
    assert "label accuracy, jsonl:other" in result.out and metrics["n"] == 7


def test_evaluation_refuses(tmp_path: Path) -> None:
    workdir = f"--workdir={runs.trained()}"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    for flags, part in (
        ([f"--workdir={tmp_path / 'empty'}"], f"no run.json in {tmp_path / 'empty'}"),
        ([f"--workdir={tmp_path / 'nowhere'}"], f"no run.json in {tmp_path / 'nowhere'}"),
        ([workdir, "--checkpoint=3"], f"no checkpoint of step 3 in {runs.trained()}"),
        ([workdir, "--checkpoint=newest"], "--checkpoint=newest: give best, latest or a step"),
        ([workdir, "--split=dev"], "--split"),
        ([workdir, "--examples=-1"], "--examples"),
    ):
        runs.assert_refused(runs.command("evaluate", *flags), part)


def test_evaluation_refuses_a_workdir_without_checkpoints(tmp_path: Path) -> None:
    for name in ("run.json", "spiece.model"):
        shutil.copyfile(runs.trained() / name, tmp_path / name)
    for which in ("best", "latest"):
        result = runs.command("evaluate", f"--workdir={tmp_path}", f"--checkpoint={which}")
        runs.assert_refused(
            result, f"no {which} checkpoint in {tmp_path}", *["--checkpoint=latest"] * (which == "best")
        )


def test_a_damaged_checkpoint_is_a_one_line_error(tmp_path: Path) -> None:
    shutil.copytree(runs.trained(), tmp_path / "run")
    for checkpoint in (*(tmp_path / "run" / "best").iterdir(), tmp_path / "run" / "checkpoints" / "4"):
        runs.truncate(runs.largest(checkpoint / "params"))
    (best,) = runs.steps_in(tmp_path / "run" / "best")
    for name, flag in (("evaluate", "workdir"), ("predict", "model")):
        result = runs.command(name, f"--{flag}={tmp_path / 'run'}")
        damaged, other = (tmp_path / "run" / name for name in (f"best/{best}", "checkpoints/6"))
        runs.assert_refused(result, f"checkpoint {damaged} is damaged (params: ", f"there are {tmp_path}", str(other))


# Predicting and exporting.


@pytest.fixture(scope="module")
def exported() -> Path:
    output = runs.scratch() / "exported" / "student"
    result = runs.command("export", f"--model={runs.trained()}", f"--output={output}")
    assert result == (0, f"written: {output}\n", "")
    return output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "fields"),
    [("predict", ["label"]), ("explain", ["rationale"]), ("both", ["label", "rationale"]), ("raw", ["output"])],
)
def test_a_workdir_and_its_export_give_equal_predictions(exported: Path, task: str, fields: list[str]) -> None:
    asked = "".join(f"{problem}\n" for problem in PROBLEMS)
    answers = []
    for model in (runs.trained(), exported):
        result = runs.command("predict", f"--model={model}", f"--task={task}", "--max_tokens=8", stdin=asked)
        assert (result.code, result.err) == (0, "")
        answers.append(json_lines(result.out))
    assert answers[0] == answers[1]
    assert [answer["input"] for answer in answers[0]] == PROBLEMS
    assert all(list(answer) == ["input", *fields] for answer in answers[0])


def test_an_export_is_the_best_student_with_its_vocabulary(exported: Path) -> None:
    assert (exported / "spiece.model").read_bytes() == VOCABULARY_PATH.read_bytes()
    assert (
        f"| checkpoint | step {runs.steps_in(runs.trained() / 'best')[0]} of 6 |"
        in (exported / "README.md").read_text()
    )
    transformers = pytest.importorskip("transformers")
    assert transformers.T5Config.from_pretrained(exported).d_model == read_run(runs.trained())[1].d_model
    runs.assert_same(load_hf(exported)[1], runs.read_params(runs.trained(), "best")["student"])


def test_exporting_refuses(exported: Path, tmp_path: Path) -> None:
    model = f"--model={runs.trained()}"
    (tmp_path / "file").write_text("a file")
    before = sorted(exported.iterdir())
    for flags, part in (
        ([model, f"--output={exported}"], f"{exported} exists and is not empty"),
        ([model, f"--output={tmp_path / 'file'}"], f"{tmp_path / 'file'} exists"),
        (
            [model, f"--output={tmp_path / 'file' / 'student'}"],
            f"cannot write --output {tmp_path / 'file' / 'student'}",
        ),
        ([f"--model={tmp_path}", f"--output={tmp_path / 'student'}"], f"{tmp_path}"),
    ):
        runs.assert_refused(runs.command("export", *flags), part)
    assert sorted(exported.iterdir()) == before and not (tmp_path / "student").exists()


def test_an_empty_line_is_refused_after_earlier_lines_are_answered() -> None:
    flags = [f"--model={runs.trained()}", "--task=predict", "--max_tokens=8"]
    result = runs.command("predict", *flags, stdin=f"{PROBLEMS[0]}\n\n{PROBLEMS[1]}\n")
    runs.assert_refused(result, "line 2 of the input is empty")
    assert [answer["input"] for answer in json_lines(result.out)] == PROBLEMS[:1]


def test_predicting_refuses(tmp_path: Path) -> None:
    model = f"--model={runs.trained()}"
    for flags, part in (
        ([f"--model={tmp_path}"], f"{tmp_path}"),
        ([f"--model={tmp_path / 'nowhere'}"], "nowhere"),
        ([model, "--task=solve"], "--task"),
        ([model, "--method=best"], "--method"),
        ([model, "--max_tokens=0"], "max_tokens 0"),
        ([model, "--method=sample", "--temperature=0"], "temperature 0.0"),
        ([model, "--batch_size=0"], "--batch_size"),
        ([model, "--checkpoint=5"], "no checkpoint of step 5"),
    ):
        runs.assert_refused(runs.command("predict", *flags, stdin="3 pens\n"), part)


def test_no_input_gives_no_output() -> None:
    result = runs.command("predict", f"--model={runs.trained()}", "--task=predict")
    assert result == (0, "", "")


def test_an_output_pipe_closed_early_is_no_error() -> None:
    program = "from cotmi_jax import cli; cli.run(lambda: print('x' * 10_000_000))"
    environment = os.environ | {"PYTHONPATH": str(runs.REPOSITORY)}
    piped = f'{sys.executable} -c "{program}" | head -c 1'
    done = subprocess.run(piped, shell=True, capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("x", "")
