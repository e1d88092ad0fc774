"""A run that is stopped in any way and resumed equals one that was never stopped; conditions that refuse a resume."""

import functools
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import runs

from cotmi_jax.data import run_data as inputs
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.training import job
from cotmi_jax.training.job import train
from cotmi_jax.workdir.metrics import MetricWriter
from cotmi_jax.workdir.record import read_run, record_start, run_record

quick_compilation = runs.quick_compilation


def assert_same_run(workdir: Path) -> None:
    """The run in workdir equals one that never stopped, except for its starts and timings."""
    straight = runs.trained()
    runs.assert_same(runs.read_state(workdir), runs.read_state(straight))
    assert runs.read_metrics(workdir) == runs.read_metrics(straight)
    for folder in ("checkpoints", "best"):
        assert runs.steps_in(workdir / folder) == runs.steps_in(straight / folder)
    (best,) = runs.steps_in(straight / "best")
    for item in ("metrics/metrics", "config/metadata"):
        assert (workdir / "best" / str(best) / item).read_text() == (straight / "best" / str(best) / item).read_text()
    shown, expected = runs.read_tensorboard(workdir), runs.read_tensorboard(straight)
    assert {name: shown[name] for name in shown if not name.startswith(runs.TIMINGS)} == {
        name: expected[name] for name in expected if not name.startswith(runs.TIMINGS)
    }
    assert json.loads((workdir / "run.json").read_text()) == json.loads((straight / "run.json").read_text())


def starts(workdir: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (workdir / "starts.jsonl").read_text().splitlines()]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_of_trained(tmp_path: Path, *, latest: int = 6) -> Path:
    """A copy of the complete run, or of what it was after step 4."""
    workdir = tmp_path / "run"
    shutil.copytree(runs.trained(), workdir)
    if latest == 4:
        shutil.rmtree(workdir / "checkpoints" / "6")
    return workdir


# Stopped and started again.


@pytest.mark.slow
def test_an_interrupt_at_a_checkpoint_step_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.trained()
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "write", runs.signalling_write(3, signal.SIGINT))
        assert train(runs.tiny_config(), str(tmp_path)) == 4
    assert signal.getsignal(signal.SIGINT) is handler
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "interrupted after step 4 of 6: the same command resumes from there"
    assert runs.steps_in(tmp_path / "checkpoints") == [2, 4]
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 2, 3, 3, 4]
    assert train(runs.tiny_config(), str(tmp_path)) == 6
    assert starts(tmp_path) == [0, 4]
    assert_same_run(tmp_path)


@pytest.mark.slow
def test_weights_and_the_phases_of_alpha_resume_where_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The interrupt is in the first phase of alpha; the last begins after the resume."""
    config = runs.tiny_config(
        {
            "objective.alpha_schedule": "1@0.67,0.5@1",
            "mi.warmup_steps": 0,
            "mi.ramp_steps": 0,
            "data.rationale_weights": "correct",
            "data.token_weights": "numbers=3",
        }
    )
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert train(config, str(straight)) == 6
    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "write", runs.signalling_write(2, signal.SIGINT))
        assert train(config, str(stopped)) == 3
    assert train(config, str(stopped)) == 6
    assert starts(stopped) == [0, 3]
    metrics = runs.read_metrics(stopped)
    assert [line["train/alpha"] for line in metrics if "train/alpha" in line] == [1, 1, 1, 1, 0.5, 0.5]
    assert metrics == runs.read_metrics(straight)
    runs.assert_same(runs.read_state(stopped), runs.read_state(straight))


@pytest.mark.slow
def test_sigterm_between_checkpoints_saves_first_and_reports_how_to_resume(tmp_path: Path) -> None:
    runs.trained()  # compiles
    flags = [*runs.config_flags(runs.tiny_config()), f"--workdir={tmp_path}"]
    before = functools.partial(runs.signal_after, 2, signal.SIGTERM)
    result = runs.command("train", *flags, devices=8, before=before)
    assert result.code == 0, result.err
    assert result.out == "interrupted after step 3 of 6: the same command resumes from there\n"
    assert "Traceback" not in result.err
    assert runs.steps_in(tmp_path / "checkpoints") == [2, 3]
    assert train(runs.tiny_config(), str(tmp_path)) == 6
    assert starts(tmp_path) == [0, 3]
    assert_same_run(tmp_path)


@pytest.mark.slow
def test_sigkill_costs_no_more_than_the_steps_since_the_last_checkpoint(tmp_path: Path) -> None:
    runs.trained()
    flags = [*runs.config_flags(runs.tiny_config()), f"--workdir={tmp_path}"]
    result = runs.command("train", *flags, devices=8, before=functools.partial(runs.signal_after, 5, signal.SIGKILL))
    assert result.code == -signal.SIGKILL
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 2, 3, 3, 4, 5]
    assert train(runs.tiny_config(), str(tmp_path)) == 6
    assert starts(tmp_path)[-1] in (2, 4)  # saving does not hold up the steps: 4 may not have been complete
    assert_same_run(tmp_path)


@pytest.mark.slow
def test_a_run_without_any_checkpoint_starts_afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its best checkpoint may be of other data: the first evaluation replaces it, however good it was."""
    workdir = copy_of_trained(tmp_path)
    shutil.rmtree(workdir / "checkpoints")
    best = job._best_so_far
    monkeypatch.setattr(job, "_best_so_far", lambda saved, experiment: (2.0, 0.0) if saved else best(None, experiment))
    assert train(runs.tiny_config(), str(workdir)) == 6
    assert starts(workdir) == [0, 0]
    assert_same_run(workdir)


def test_a_complete_run_is_reported_and_unchanged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workdir = copy_of_trained(tmp_path)
    before = files(workdir)
    capsys.readouterr()
    assert train(runs.tiny_config(), str(workdir)) == 6
    assert capsys.readouterr() == (f"{workdir} is complete: 6 of 6 steps\n", "")
    assert files(workdir) == before


def test_a_state_is_restored_equally_on_any_mesh() -> None:
    workdir = runs.trained()
    runs.assert_same(runs.read_state(workdir, data=2, fsdp=2, tensor=2), runs.read_state(workdir, data=8))


@pytest.mark.parametrize(
    "content",
    [
        b'{"step": 1}\n{"step": 2}\n{"step": 2, "valid": 1}\n{"step": 3}\n{"step": 4}\n',
        b'{"step": 1}\n{"step": 2}\n{"step": 2, "valid": 1}\n{"step": 3}\n{"st',
        b'{"step": 1}\n{"step": 2}\n{"step": 2, "valid": 1}\n{"step": 3}',
        b'{"step": 1}\n{"step": 2}\n{"step": 2, "valid": 1}\n',
    ],
)
def test_metrics_resume_after_the_step_that_was_saved(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    writer = MetricWriter(tmp_path, start=2)
    writer.write(3, {"loss": 0.5})
    writer.close()
    assert runs.read_metrics(tmp_path) == [
        {"step": 1},
        {"step": 2},
        {"step": 2, "valid": 1},
        {"step": 3, "loss": 0.5},
    ]


@pytest.mark.parametrize("start", [0, 2])
def test_tensorboard_shows_repeated_steps_once(tmp_path: Path, start: int) -> None:
    for begin, end in ((0, 4), (start, 5)):
        time.sleep(1.1 if begin == start and end == 5 else 0.0)  # files are named by the second
        writer = MetricWriter(tmp_path, start=begin)
        for step in range(begin + 1, end + 1):
            writer.write(step, {"loss": 1.0 / step})
        writer.close()
    assert [step for step, _ in runs.read_tensorboard(tmp_path)["loss"]] == [1, 2, 3, 4, 5]


# Changes between starts that are allowed, and those that are refused.


def test_another_config_is_refused_with_its_keys_and_changes_nothing(tmp_path: Path) -> None:
    workdir = copy_of_trained(tmp_path, latest=4)
    before = files(workdir)
    changes = {"optimizer.learning_rate": 3e-3, "seed": 1, "log.every": 2, "steps": 8}
    with pytest.raises(UserError) as error:
        train(runs.tiny_config(changes), str(workdir))
    keys = "optimizer.learning_rate: 0.01 → 0.003; seed: 0 → 1; steps: 6 → 8"
    assert str(error.value).startswith(f"{workdir} holds a run of another config ({keys}): ")
    assert files(workdir) == before


def test_paths_intervals_and_devices_may_change(tmp_path: Path) -> None:
    vocabulary = shutil.copyfile(VOCABULARY_PATH, tmp_path / "moved.model")
    changes = {"log.every": 3, "checkpoint.keep": 5, "checkpoint.every": 5, "mesh.fsdp": 2, "mesh.tensor": 2}
    changes |= {"data.vocabulary": str(vocabulary), "data.root": "/elsewhere"}
    assert train(runs.tiny_config(changes), str(copy_of_trained(tmp_path))) == 6


def test_a_key_missing_in_the_record_gets_its_default(tmp_path: Path) -> None:
    workdir = copy_of_trained(tmp_path)
    record = json.loads((workdir / "run.json").read_text())
    del record["config"]["data"]["packing"], record["config"]["mi"]["compression"], record["config"]["extensions"]
    (workdir / "run.json").write_text(json.dumps(record))
    config, *_ = read_run(workdir)
    assert config.data.packing is True and config.mi.compression.name == "none" and config.steps == 6
    with pytest.raises(UserError, match=r"another config \(data.packing: True → False\)"):
        train(runs.tiny_config({"data.packing": False}), str(workdir))
    assert train(runs.tiny_config(), str(workdir)) == 6


def test_a_recorded_key_that_is_no_longer_declared_refuses_the_run(tmp_path: Path) -> None:
    workdir = copy_of_trained(tmp_path)
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["model"]["novelty"] = 3
    (workdir / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"another config \(model.novelty: 3 → absent\)"):
        train(runs.tiny_config(), str(workdir))


@pytest.mark.parametrize("split", ["train", "valid"])
def test_changed_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str) -> None:
    workdir = copy_of_trained(tmp_path, latest=4)
    before = files(workdir)
    load = inputs.load_data

    def changed(config: Any) -> Any:
        loaded = load(config)
        first, *rest = loaded.corpus.splits[split]
        object.__setattr__(first, "rationale", first.rationale + " So.")
        return loaded

    monkeypatch.setattr(inputs, "load_data", changed)
    with pytest.raises(UserError, match=rf"data is not what {workdir}/checkpoints/4 was trained on"):
        train(runs.tiny_config(), str(workdir))
    assert files(workdir) == before


def test_a_resumed_run_needs_neither_its_initial_checkpoint_nor_its_vocabulary_file(tmp_path: Path) -> None:
    workdir = copy_of_trained(tmp_path)
    config = runs.tiny_config({"data.vocabulary": str(tmp_path / "gone.model")})
    assert train(config, str(workdir)) == 6


def test_a_fresh_start_writes_the_given_vocabulary(tmp_path: Path) -> None:
    """A run that never saved may start again with another vocabulary file, which replaces that of its workdir."""
    config, student, vocabulary = read_run(runs.trained())
    (tmp_path / "spiece.model").write_bytes(b"of the former start")
    record = run_record(config, student, Vocabulary(VOCABULARY_PATH))
    record_start(tmp_path, record, Vocabulary(VOCABULARY_PATH), 0)
    assert (tmp_path / "spiece.model").read_bytes() == VOCABULARY_PATH.read_bytes()
    record_start(tmp_path, record, Vocabulary(tmp_path / "spiece.model"), 4)  # as a resumed run does
    assert (tmp_path / "spiece.model").read_bytes() == VOCABULARY_PATH.read_bytes()
    other = Vocabulary(Path("bytes"))  # of another kind: the former file would be preferred
    record_start(tmp_path, run_record(config, student, other), other, 0)
    _, _, found = read_run(tmp_path)
    assert found.path == tmp_path / "tokenizer_config.json" and found.decode(found.encode(["ï"])[0]) == "ï"


def test_an_incomplete_checkpoint_is_not_resumed_from(tmp_path: Path) -> None:
    workdir = copy_of_trained(tmp_path)
    shutil.copytree(workdir / "checkpoints" / "6", workdir / "checkpoints" / "8.orbax-checkpoint-tmp")
    assert train(runs.tiny_config(), str(workdir)) == 6
