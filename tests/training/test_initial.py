"""The initial checkpoint of a run: the best student of another run, and parameters that are not finite."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.errors import UserError
from cotmi_jax.models.hf import save_hf
from cotmi_jax.training.job import train
from cotmi_jax.training.loop import Run
from cotmi_jax.training.preemption import Interrupt
from cotmi_jax.training.state import TrainState
from cotmi_jax.workdir.checkpoint import find
from cotmi_jax.workdir.record import read_run, recorded_initial

quick_compilation = runs.quick_compilation
pytestmark = pytest.mark.slow  # all need a complete run


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> list[TrainState]:
    """The states with which runs start; they take no step."""
    found: list[TrainState] = []
    runs.trained()  # which takes its steps

    def steps(run: Run, start: int, interrupt: Interrupt) -> int:
        found.append(jax.device_get(run.state))
        run.save(start)
        return start

    monkeypatch.setattr(Run, "steps", steps)
    return found


def start_from(source: Path, workdir: Path, changes: Mapping[str, Any] | None = None) -> None:
    train(runs.tiny_config({"model.init": str(source), "seed": 3} | dict(changes or {})), str(workdir))


def test_a_run_starts_from_the_best_student_of_another(tmp_path: Path, states: list[TrainState]) -> None:
    other = runs.trained()
    start_from(other, tmp_path / "run", {"model.preset": "xl", "model.dropout": 0.0, "mesh.fsdp": 2})
    (state,) = states
    runs.assert_same({"student": state.params["student"]}, runs.read_params(other))
    assert int(state.step) == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(state.opt_state))
    _, student, vocabulary = read_run(tmp_path / "run")
    assert student.d_model == read_run(other)[1].d_model and student.dropout == 0.0  # preset has no effect
    assert vocabulary.fingerprint == Vocabulary(VOCABULARY_PATH).fingerprint
    expected = {"workdir": str(other), "checkpoint": "best", "step": find(other, "best").step}
    assert recorded_initial(tmp_path / "run") == expected
    # On a resume the other run is not read; it may be gone.
    start_from(other, tmp_path / "run", {"model.preset": "xl", "model.dropout": 0.0})
    assert recorded_initial(tmp_path / "run") == expected


def test_a_run_of_another_vocabulary_or_network_is_refused(tmp_path: Path) -> None:
    vocabulary = tmp_path / "other.model"
    vocabulary.write_bytes(VOCABULARY_PATH.read_bytes() + b"\x12\x00")
    with pytest.raises(UserError, match="other.model is not that of config.model.init .*: leave config.data.vocab"):
        start_from(runs.trained(), tmp_path / "run", {"data.vocabulary": str(vocabulary)})
    with pytest.raises(UserError, match="config.model.vocab_size 7 but .* has [0-9]+ embeddings: set it to 0"):
        start_from(runs.trained(), tmp_path / "run", {"model.vocab_size": 7})
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(runs.trained() / "spiece.model", other)
    shutil.copy(runs.trained() / "run.json", other)
    with pytest.raises(UserError, match="config.model.init .*/other has no best checkpoint: give a run that"):
        start_from(other, tmp_path / "run")
    record = json.loads((other / "run.json").read_text())
    record["config"]["model"]["network"] = "mlp"
    (other / "run.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match="config.model.network is 'mlp': choose one of t5"):
        start_from(other, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_parameter_that_is_not_finite_is_named(tmp_path: Path, states: list[TrainState]) -> None:
    params = jax.tree.map(np.array, runs.read_params(runs.trained())["student"])
    params["encoder"]["final_norm"]["scale"][0] = np.nan
    save_hf(params, read_run(runs.trained())[1], tmp_path / "hf", vocabulary_file=VOCABULARY_PATH)
    with pytest.raises(UserError, match="/hf: encoder/final_norm/scale has values that are not finite: give an intact"):
        start_from(tmp_path / "hf", tmp_path / "run")
    assert not states and not (tmp_path / "run" / "run.json").exists()


def test_a_run_with_a_constant_learning_rate_is_extended_to_what_a_longer_run_gives(tmp_path: Path) -> None:
    changes = {"optimizer.schedule": "constant", "objective.name": "standard", "eval.every": 0, "checkpoint.every": 9}
    for name, stops in (("extended", (3, 5)), ("straight", (5,))):
        for steps in stops:
            assert train(runs.tiny_config(changes | {"steps": steps}), str(tmp_path / name)) == steps
    runs.assert_same(runs.read_state(tmp_path / "extended"), runs.read_state(tmp_path / "straight"))
    assert runs.read_metrics(tmp_path / "extended") == runs.read_metrics(tmp_path / "straight")
