"""Scoring elsewhere: a run on other data, a Hugging Face checkpoint as it is, and data without a train split."""

import json
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import helpers
import jax
import pytest
import runs
from paths import REPOSITORY

from cotmi_jax.data.run_data import load_data
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.tasks import task_input
from cotmi_jax.data.tokens import TokenizedSplit
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation import job
from cotmi_jax.evaluation.evaluator import Evaluator, Scores
from cotmi_jax.evaluation.job import score
from cotmi_jax.evaluation.subject import find_subject
from cotmi_jax.inference import load
from cotmi_jax.models.hf import save_hf
from cotmi_jax.models.student import StudentDef
from cotmi_jax.report.terminal import format_scores

quick_compilation = runs.quick_compilation

RELATIONS = ("entailment", "neutral", "contradiction")


def write_nli(root: Path, name: str, split: str, labels: list[int], *, rationales: bool = True) -> None:
    """A split of a set of the release, in its layout."""
    folder = root / "dss" / name
    (folder / "llm").mkdir(parents=True, exist_ok=True)
    rows = [
        {"premise": f"A boy hums {n}.", "hypothesis": "A boy sings.", "label": each} for n, each in enumerate(labels)
    ]
    (folder / f"{name}_{split}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = [f"He hums. So the answer is {RELATIONS[each]}." for each in labels]
    (folder / "llm" / f"{split}_CoT_0.json").write_text(json.dumps(said))


@pytest.fixture
def answers_are_targets() -> Iterator[None]:
    """Replaces the generated texts of a task by its target texts."""
    computed = Evaluator.scores

    def scores(
        self: Evaluator, params: Any, split: TokenizedSplit, decoding: Any, tasks: Sequence[str] = (), **options: Any
    ) -> Scores:
        ragged = {task: split.tasks[task].targets for task in tasks}
        texts = {
            task: [
                self._vocabulary.decode(each.flat[start:end])
                for start, end in zip(each.offsets[:-1], each.offsets[1:], strict=True)
            ]
            for task, each in ragged.items()
        }
        return computed(self, params, split, decoding, **options)._replace(texts=texts)

    with mock.patch.object(Evaluator, "scores", scores):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workdir that need not be trained here."""
    folder = tmp_path_factory.mktemp("run")
    with tarfile.open(REPOSITORY / "tests" / "workdir" / "legacy_workdir.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "run"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face checkpoint without a vocabulary."""
    config = helpers.small_config(vocab_size=512)
    folder = tmp_path_factory.mktemp("hf") / "flan"
    save_hf(jax.device_get(helpers.numpy_params(StudentDef.of(config))), config, folder, vocabulary_file=None)
    return folder


@pytest.mark.slow
def test_a_run_is_scored_on_a_set_that_has_only_a_test_split(
    run: Path, tmp_path: Path, answers_are_targets: None
) -> None:
    write_nli(tmp_path, "anli1", "test", [0, 1, 2, 2, 1])
    result = score(str(run), "test", checkpoint="latest", dataset="anli1", data_settings={"root": str(tmp_path)})
    found = result.metrics
    assert (found["dataset"], found["n"], found["accuracy"], found["objective"]) == ("anli1", 5, 1.0, "cotmi")
    assert (found["model"], found["trained_on"], found["data"]) == (str(run), "arithmetic", "anli1")
    assert result.output == run / "evaluation" / "anli1" / "test"  # not that of the run's own test split
    assert [line["label"] for line in result.predictions][:3] == list(RELATIONS)
    assert "information" not in found and "explain" in found["loss"]
    assert found["labels"]["labels"] == list(RELATIONS) and found["labels"]["macro_f1"]["value"] == 1.0
    # The fixture's texts have no confidences.
    assert all("not_available" in part for part in found["calibration"].values())
    assert f"{run}, trained on arithmetic with cotmi" in " ".join(format_scores(found).split())
    with pytest.raises(UserError, match="anli1_train.json"):
        score(str(run), "valid", checkpoint="latest", dataset="anli1", data_settings={"root": str(tmp_path)})


@pytest.mark.slow
def test_a_checkpoint_is_scored_as_it_is_on_one_file(
    checkpoint: Path, tmp_path: Path, answers_are_targets: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows with a label alone, by the default objective: the label task with its prefix."""
    monkeypatch.chdir(tmp_path)
    rows = [{"input": f"{n} + 2 東", "label": f"( {n} + 2 )"} for n in range(6)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    seen: list[Any] = []
    tokenize = job.tokenize

    def spy(config: Any, *arguments: Any, **settings: Any) -> Any:
        seen.append((config.objective.name, settings["train"]))
        return tokenize(config, *arguments, **settings)

    monkeypatch.setattr(job, "tokenize", spy)
    settings = {"label_kind": "equation"}
    arguments = dict(dataset="jsonl:mine.jsonl", vocabulary=str(VOCABULARY_PATH), data_settings=settings, batch_size=8)
    result = score(str(checkpoint), "test", **arguments)
    found = result.metrics
    assert seen == [("predict", False)] and task_input("x", "predict", "predict") == "predict: x"
    assert found["loss"].keys() == {"predict", "predict_token_accuracy"}
    assert (found["n"], found["accuracy"], found["trained_on"]) == (6, 1.0, None)
    assert found["checkpoint"] == {"which": "best", "step": None}
    assert (found["unknown"]["input"], found["unknown"]["label"]) == (6, 0)
    assert "unknown tokens, input" in format_scores(found) and "unknown tokens, label" not in format_scores(found)
    assert result.predictions[0]["predicted_rationale"] is None
    parts = result.output.relative_to(tmp_path).parts
    assert parts[0] == "evaluation" and parts[1].startswith("flan-") and parts[2].startswith("jsonl-mine-")
    assert "checkpoint of step" not in format_scores(found) and "objective predict" in format_scores(found)
    # Without a prefix, and with rationales, of which no example has one to compare with.
    assert score(str(checkpoint), "test", objective="dss", **arguments).metrics["loss"].keys() == {
        "predict",
        "predict_token_accuracy",
    }


def test_what_does_not_go_together_is_refused(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    workdir = str(run)
    for source, arguments, message in (
        (str(checkpoint), {}, f"no run.json in {checkpoint}: give the workdir of a run, or --dataset"),
        (str(checkpoint), {"dataset": "arithmetic"}, "spiece.model|vocabulary"),
        (str(checkpoint), {"dataset": "arithmetic", "objective": "dds"}, "unknown objective 'dds'"),
        (
            workdir,
            {"dataset": "arithmetic", "objective": "dss"},
            "--objective dss: workdir .* the objective of its training",
        ),
        (
            workdir,
            {"dataset": "arithmetic", "vocabulary": "v"},
            "--vocabulary v: workdir .* the vocabulary of its training",
        ),
        (workdir, {"dataset": "arithmtic"}, "dataset = 'arithmtic': choose one of"),
        (workdir, {"dataset": f"jsonl:{tmp_path / 'absent.jsonl'}"}, "absent.jsonl"),
    ):
        with pytest.raises(UserError, match=message):
            score(source, "test", checkpoint="latest", **arguments)


def test_results_of_different_data_and_models_have_different_folders() -> None:
    trained = load.TrainedStudent(None, None, None, None, None, None)  # type: ignore[arg-type]
    config = runs.tiny_config()

    def output(source: str, dataset: str, name: str, trained_on: str | None) -> Path:
        changed = config.copy_and_resolve_references()
        changed.data.dataset = dataset
        subject = job.Subject(source, trained, changed, None, trained_on, own_data=dataset == trained_on)  # type: ignore
        return subject.default_output(name, "test")

    assert output("/runs/a", "cqa", "cqa", "cqa") == Path("/runs/a/evaluation/test")
    assert output("/runs/a", "svamp", "svamp", "cqa") == Path("/runs/a/evaluation/svamp/test")
    folders = [
        output(source, dataset, name, None)
        for source in ("google/flan-t5-small", "other/flan-t5-small")
        for dataset, name in (("jsonl:/x/a.jsonl", "jsonl:a"), ("jsonl:/y/a.jsonl", "jsonl:a"), ("svamp=2,cqa",) * 2)
    ]
    assert len(set(folders)) == 6
    assert all(len(part) <= 80 for folder in folders for part in folder.parts)


def test_targets_have_the_form_of_the_training_on_another_set_too(run: Path, tmp_path: Path) -> None:
    """consistency reads the answers that rationales state."""
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["data"]["rationale_answer"] = "append"
    (workdir / "run.json").write_text(json.dumps(record))
    assert find_subject(str(workdir), dataset="deduction").config.data.rationale_answer == "append"


def test_a_run_is_scored_without_the_file_of_its_rationale_weights(run: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(run, workdir)
    record = json.loads((workdir / "run.json").read_text())
    record["config"]["data"]["rationale_weights"] = f"jsonl:{tmp_path / 'gone.jsonl'}"
    (workdir / "run.json").write_text(json.dumps(record))
    assert load_data(find_subject(str(workdir)).config).corpus.splits["train"]
