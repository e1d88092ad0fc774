"""The card of an exported student: what it states, from where, and that the hub's library reads it."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from cotmi_jax.config import base
from cotmi_jax.errors import UserError
from cotmi_jax.inference.load import TrainedStudent
from cotmi_jax.report.model_card import model_card

METRICS = {
    "dataset": "arithmetic",
    "split": "test",
    "metrics": {
        "accuracy": {"value": 0.75, "interval": [0.5, 0.9], "n": 12},
        "length": {"value": 3.5, "interval": None, "n": 12},
    },
}


@pytest.fixture
def trained() -> TrainedStudent:
    """A student of which only the config is read."""
    config = base()
    config.update_from_flattened_dict({"objective.name": "cotmi", "data.dataset": "arithmetic", "steps": 6})
    nothing: Any = None
    return TrainedStudent(nothing, {}, nothing, nothing, config, 6)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """The record of a run, with evaluations of its last checkpoint and of an earlier one."""
    (tmp_path / "run.json").write_text(json.dumps({"data": {"train": {"examples": 20}}}))
    for folder, dataset, split, step in (
        ("test", "arithmetic", "test", 6),
        ("valid", "arithmetic", "valid", 3),
        ("svamp/test", "svamp", "test", 6),  # of other data than the run's
    ):
        (tmp_path / "evaluation" / folder).mkdir(parents=True)
        content = METRICS | {"dataset": dataset, "split": split, "checkpoint": {"which": "latest", "step": step}}
        (tmp_path / "evaluation" / folder / "metrics.json").write_text(json.dumps(content))
    return tmp_path


def test_the_card_states_data_objective_and_the_scores_of_its_checkpoint(
    trained: TrainedStudent, workdir: Path
) -> None:
    text = model_card("owner/student", "t5", trained, workdir, license="apache-2.0")
    card = huggingface_hub.ModelCard(text)
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert [(r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in card.data.eval_results] == [
        (dataset, "test", *metric)
        for dataset in ("svamp", "arithmetic")
        for metric in (("accuracy", 0.75), ("length", 3.5))
    ]
    for line in (
        "| data | arithmetic |",
        "| train examples | 20 |",
        "| objective | cotmi |",
        "| β, estimator of I(Z;V) | 0.1, infonce |",
        "| checkpoint | step 6 of 6 |",
        "| arithmetic | test | accuracy | 0.7500 | 0.5000 to 0.9000 | 12 |",
        "| arithmetic | test | length | 3.5000 |  | 12 |",
        "- explain: `explain: TEXT`",
        "@inproceedings{chen2024learning,",
    ):
        assert line in text.splitlines(), line
    assert "valid" not in text  # it was another checkpoint that was evaluated there


def test_scores_of_another_decoding_are_labelled(trained: TrainedStudent, workdir: Path) -> None:
    folder = workdir / "evaluation" / "test-beam"
    folder.mkdir()
    content = METRICS | {"checkpoint": {"which": "latest", "step": 6}, "decoding": {"method": "beam"}}
    (folder / "metrics.json").write_text(json.dumps(content))
    text = model_card("owner/student", "t5", trained, workdir, license="apache-2.0")
    assert text.count("| arithmetic | test | accuracy |") == 1
    assert "| arithmetic | test (beam) | accuracy | 0.7500 |" in text


def test_what_is_not_known_is_not_stated(trained: TrainedStudent, workdir: Path) -> None:
    shutil.rmtree(workdir / "evaluation")
    (workdir / "run.json").write_text("{}")  # of an older version
    text = model_card("student", "t5", trained, workdir, license=None)
    assert "This checkpoint was not evaluated before its export." in text and "examples | not rec" in text
    assert "## License\n\nNot stated." in text
    assert huggingface_hub.ModelCard(text).data.license is None
    converted = TrainedStudent(trained.student, trained.params, trained.mesh, trained.vocabulary, None, None)
    text = model_card("student", "t5", converted, None, license=None)
    assert "## Training" not in text and "## Scores" not in text


@pytest.mark.parametrize("content", ["{}", '{"checkpoint": {"step": 6}, "metrics": 3}', "[]", "{"])
def test_scores_that_evaluate_did_not_write_are_refused(trained: TrainedStudent, workdir: Path, content: str) -> None:
    (workdir / "evaluation" / "test" / "metrics.json").write_text(content)
    with pytest.raises(UserError, match=r"test/metrics\.json.*remove the file"):
        model_card("student", "t5", trained, workdir, license=None)
