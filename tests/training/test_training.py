"""Training runs: every objective lowers the loss, the files of a workdir, and errors that end a run."""

import dataclasses
import functools
import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helpers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

from cotmi_jax.config import flatten
from cotmi_jax.data import run_data as inputs
from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.tokens import TokenizedSplit
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.evaluator import Evaluator
from cotmi_jax.experiment import Experiment, make_objective
from cotmi_jax.models.config import T5Config, preset
from cotmi_jax.models.hf import save_hf
from cotmi_jax.models.student import StudentDef
from cotmi_jax.objectives.objective import Objective
from cotmi_jax.training import loop
from cotmi_jax.training.job import train
from cotmi_jax.training.state import TrainState
from cotmi_jax.workdir.metrics import MetricWriter
from cotmi_jax.workdir.record import read_run

quick_compilation = runs.quick_compilation

COEFFICIENTS = {
    "standard": {"predict": 1.0},
    "single_task": {"predict": 1.0},
    "dss": {"predict": 0.5, "explain": 0.5},
    "cotmi": {"predict": 0.5, "explain": 0.5, "mi": 0.1},
}


@functools.cache
def small_student() -> tuple[Path, T5Config, dict]:
    """A checkpoint in Hugging Face's form with a T5 that compiles fast, its shape and its parameters."""
    config = helpers.small_config(vocab_size=512, d_model=32, num_encoder_layers=1, num_decoder_layers=1)
    params = jax.tree.map(np.array, helpers.numpy_params(StudentDef.of(config)))
    save_hf(params, config, runs.scratch() / "student", vocabulary_file=VOCABULARY_PATH)
    return runs.scratch() / "student", config, params


def small_run(changes: dict[str, Any]) -> ConfigDict:
    """Runs of the small student; but for the objective they all take the same compiled step."""
    fixed = {"model.init": str(small_student()[0]), "model.dropout": 0.0, "optimizer.schedule": "constant"}
    return runs.tiny_config(fixed | {"data.size": 8, "eval.every": 0} | changes)


# Objectives.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "label_type"),
    [("standard", "gt"), ("standard", "llm"), ("single_task", "llm"), ("dss", "gt"), ("cotmi", "gt"), ("cotmi", "llm")],
)
def test_every_objective_learns(objective: str, label_type: str, tmp_path: Path) -> None:
    changes = {"objective.name": objective, "data.label_type": label_type, "steps": 8, "checkpoint.every": 8}
    train(small_run(changes), str(tmp_path))
    lines = runs.read_metrics(tmp_path)
    losses = [line["train/loss"] for line in lines]
    assert len(losses) == 8 and np.isfinite(losses).all()
    assert losses[-1] < 0.9 * losses[0]  # every batch is the whole split
    for step, line in enumerate(lines):
        coefficients = dict(COEFFICIENTS[objective])
        if "mi" in coefficients:
            coefficients["mi"] = 0.1 if step else 0.05  # it rises for a step
            assert line["train/beta"] == pytest.approx(coefficients["mi"])
        total = sum(factor * line[f"train/{name}"] for name, factor in coefficients.items())
        np.testing.assert_allclose(line["train/loss"], total, rtol=1e-5)


@pytest.mark.slow
def test_label_type_llm_trains_on_teacher_labels_and_evaluates_gold_labels() -> None:
    gold, teacher = (Experiment.of(runs.tiny_config({"data.label_type": kind}), None) for kind in ("gt", "llm"))
    labels = {"gt": "label", "llm": "teacher_label"}
    for kind, made in (("gt", gold), ("llm", teacher)):
        examples = inputs.load_data(made.config).corpus.splits["train"]
        targets = made.data.train.tasks["predict"].targets
        for row, example in enumerate(examples):
            ids = targets.flat[targets.offsets[row] : targets.offsets[row + 1]]
            assert made.vocabulary.decode(ids) == getattr(example, labels[kind])
    assert gold.data.train.fingerprint() != teacher.data.train.fingerprint()
    assert gold.data.valid.fingerprint() == teacher.data.valid.fingerprint()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mi.estimator": "released"},
            "released includes the padding of padded batches: set config.data.packing to False",
        ),
        (
            {"objective.name": "single_task", "data.empty_rationale": "keep"},
            "cannot learn a label alone; set it to drop",
        ),
    ],
)
def test_incompatible_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(runs.tiny_config(changes))


# Files of a run.


def test_metrics_hold_every_step_once() -> None:
    lines = runs.read_metrics(runs.trained(), timings=True)
    train_lines = [line for line in lines if "train/loss" in line]
    valid_lines = [line for line in lines if "valid/accuracy" in line]
    assert len(lines) == len(train_lines) + len(valid_lines)
    assert [line["step"] for line in train_lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in valid_lines] == [3, 6]
    terms = {"loss", "predict", "explain", "mi", "predict_token_accuracy", "explain_token_accuracy"}
    for line in train_lines:
        assert {f"train/{name}" for name in terms | {"grad_norm", "learning_rate"}} <= line.keys()
        assert all(math.isfinite(value) for value in line.values())
    assert all(line["train/examples_per_second"] > 0 for line in train_lines[1:])
    assert all(0 <= line["train/input_wait"] <= 1 for line in train_lines[1:])
    rates = [line["train/learning_rate"] for line in train_lines]
    np.testing.assert_allclose(rates, [1e-2 * (6 - step) / 6 for step in range(6)], rtol=1e-6)


def test_tensorboard_shows_the_same_numbers() -> None:
    shown = runs.read_tensorboard(runs.trained())
    lines = runs.read_metrics(runs.trained(), timings=True)
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line.items():
            if name != "step":
                expected.setdefault(name, []).append((line["step"], np.float32(value)))
    assert shown == expected
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(runs.trained() / "tensorboard"))
    events.Reload()
    (config,) = events.Tensors("config/text_summary")
    assert b"    model.preset = tiny\n" in config.tensor_proto.string_val[0]
    examples = events.Tensors("valid/examples/text_summary")
    assert [event.step for event in examples] == [3, 6]
    assert len(examples[0].tensor_proto.string_val[0].splitlines()) == 2 + runs.tiny_config().log.examples


def test_a_run_records_its_config_and_its_starts() -> None:
    workdir, config = runs.trained(), runs.tiny_config()
    record = json.loads((workdir / "run.json").read_text())
    assert record["config"] == config.to_dict()
    shape = preset("tiny", "v1.1", vocab_size=512)
    student = {"vocab_size": 512, "d_model": shape.d_model, "gated": True, "dropout": 0.1, "scan_layers": False}
    assert {name: record["student"][name] for name in student} == student
    counts = {"without_rationale": 0, "share_without_rationale": 0.0, "lost_labels": 0}
    for split, examples in (("train", config.data.size), ("valid", runs.HELD_OUT)):
        unknown = {"input": 0, "label": 0, "rationale": 0}
        assert record["data"][split] == counts | {"examples": examples, "unknown": unknown}
    (start,) = [json.loads(line) for line in (workdir / "starts.jsonl").read_text().splitlines()]
    assert start["step"] == 0 and start["time"].endswith("+00:00")
    assert (
        start["versions"]["jax"] == jax.__version__
        and {"flax", "optax", "orbax-checkpoint"} <= start["versions"].keys()
    )
    assert start["revision"] is None or len(start["revision"].rstrip("+")) == 40
    assert isinstance(start["command"], list) and start["command"]
    assert start["machine"].endswith(" cores")  # on CPU
    assert (workdir / "spiece.model").read_bytes() == VOCABULARY_PATH.read_bytes()
    restored, shape, vocabulary = read_run(workdir)
    assert flatten(restored) == flatten(config) and vocabulary.path == workdir / "spiece.model"


def test_the_latest_checkpoints_are_kept_and_hold_different_states() -> None:
    assert runs.steps_in(runs.trained() / "checkpoints") == [4, 6]
    assert runs.steps_in(runs.trained() / "best") in ([3], [6])
    earlier, later = (runs.read_state(runs.trained(), step) for step in (4, 6))
    assert (int(earlier.step), int(later.step)) == (4, 6)
    moved = [np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (earlier, later)), strict=True)]
    assert all(moved)


@pytest.fixture
def scripted_scores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[float, float]]]:
    """Replaces the results of evaluations, which must be of valid, by the accuracies and label losses of a list."""
    script: list[tuple[float, float]] = []

    def evaluate(
        self: Evaluator, params: Any, split: TokenizedSplit, examples: tuple[Example, ...], *rest: Any, **options: Any
    ) -> tuple[dict[str, float], list[dict[str, Any]]]:
        assert options == {"limit": 12, "rationales": False, "confidences": False}
        assert (split.size, len(examples), examples[0].id) == (runs.HELD_OUT, runs.HELD_OUT, "arithmetic/valid/0")
        accuracy, loss = script.pop(0)
        texts = dict.fromkeys(("input", "label", "predicted_label", "rationale", "predicted_rationale"), "")
        predictions = [{"id": str(index), "correct": index < round(10 * accuracy)} | texts for index in range(10)]
        return {"predict": loss, "explain": 1.0, "mi": 1.0}, predictions

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    yield script
    assert script == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([(0.1, 2.0), (0.5, 2.0), (0.4, 1.0), (0.5, 3.0)], 2),  # accuracy comes first, then the label loss
        ([(0.0, 3.0), (0.0, 2.0), (0.0, 1.0), (0.0, 1.0)], 3),  # of equals the first
    ],
)
def test_the_best_student_on_valid_is_kept(
    scripted_scores: list, scores: list[tuple[float, float]], best: int, tmp_path: Path
) -> None:
    scripted_scores += scores
    train(small_run({"steps": 4, "eval.every": 1, "checkpoint.every": 1, "checkpoint.keep": 3}), str(tmp_path))
    assert runs.steps_in(tmp_path / "checkpoints") == [2, 3, 4]
    assert runs.steps_in(tmp_path / "best") == [best]
    metrics = json.loads((tmp_path / "best" / str(best) / "metrics" / "metrics").read_text())
    assert (metrics["valid/accuracy"], metrics["valid/predict"]) == scores[best - 1]
    runs.assert_same(runs.read_params(tmp_path, "best")["student"], runs.read_state(tmp_path, best).params["student"])


@pytest.mark.slow
@pytest.mark.parametrize(("select_by", "best"), [("accuracy", 2), ("label_loss", 4), ("loss", 4)])
def test_a_resumed_run_keeps_its_best_score(
    scripted_scores: list, select_by: str, best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_run({"steps": 4, "eval.every": 1, "eval.select_by": select_by})
    scripted_scores += [(0.1, 2.0), (0.5, 2.0), (0.4, 1.5), (0.4, 1.4)]
    with monkeypatch.context() as patch:
        patch.setattr(MetricWriter, "write", runs.signalling_write(2, signal.SIGTERM))
        assert train(config, str(tmp_path)) == 3
    assert train(config, str(tmp_path)) == 4
    assert runs.steps_in(tmp_path / "best") == [best]


def test_the_loss_that_selects_is_weighted_as_in_training() -> None:
    objective = Objective("dss", alpha=0.25)
    assert loop.quality({"accuracy": 1.0, "predict": 0.1, "explain": 0.5}, "loss", objective) == (-0.4, 0.0)
    assert loop.quality({"accuracy": 0.9, "predict": 0.1, "explain": 0.5}, "accuracy", objective) == (0.9, -0.1)
    assert loop.quality({"accuracy": 0.9, "predict": 0.1, "explain": 0.5}, "label_loss", objective) == (-0.1, 0.9)
    assert loop.quality({"accuracy": 0.9, "predict": 0.1, "log_score": -0.3}, "log_score", objective) == (-0.3, 0.9)


def test_selection_by_log_score_needs_choices_that_hold_the_label() -> None:
    example = Example("own/valid/3", "Is it?", "yes", "", choices=("yes", "no"))
    loop.check_selection("log_score", [example, dataclasses.replace(example, label="yes ")])
    for changed, message in ((("maybe", "no"), "2 choices, without its label"), ((), "0 choices, without its label")):
        with pytest.raises(
            UserError, match=f"^config.eval.select_by is log_score, and example own/valid/3 .*{message}"
        ):
            loop.check_selection("log_score", [example, dataclasses.replace(example, choices=changed)])
    loop.check_selection("accuracy", [dataclasses.replace(example, choices=())])


Step = Callable[..., tuple[TrainState, dict[str, Any]]]


def wrap_step(monkeypatch: pytest.MonkeyPatch, wrap: Callable[[Step], Step]) -> None:
    make = loop.make_train_step
    monkeypatch.setattr(loop, "make_train_step", lambda *args, **kwargs: wrap(make(*args, **kwargs)))


@pytest.mark.slow
def test_training_starts_from_the_initial_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TrainState] = []

    def watched(step: Step) -> Step:
        return lambda state, *rest: (seen.append(jax.device_get(state)), step(state, *rest))[1]

    wrap_step(monkeypatch, watched)
    train(small_run({"steps": 1}), str(tmp_path))
    _, config, params = small_student()
    runs.assert_same(seen[0].params["student"], params)
    assert seen[0].step == 0 and not any(np.any(leaf) for leaf in jax.tree.leaves(seen[0].opt_state))
    _, student, _ = read_run(tmp_path)
    assert student == dataclasses.replace(config, dropout=0.0, scan_layers=False)  # execution is the run's own


# The test split.


class WithoutTest(dict):
    """Splits that may be counted but whose test split must not be read."""

    def __getitem__(self, split: str) -> tuple[Example, ...]:
        assert split != "test", "the test split was read"
        return super().__getitem__(split)

    def items(self) -> Any:
        raise AssertionError("all splits were read")

    values = items


@pytest.mark.slow
def test_training_never_reads_the_test_split(
    scripted_scores: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = inputs.load_data

    @functools.wraps(load)
    def guarded(config: Any) -> Any:
        loaded = load(config)
        object.__setattr__(loaded.corpus, "splits", WithoutTest(loaded.corpus.splits))
        return loaded

    monkeypatch.setattr(inputs, "load_data", guarded)
    config = small_run({"steps": 2, "eval.every": 1})
    scripted_scores += [(0.0, 1.0), (0.1, 1.0)]
    assert train(config, str(tmp_path)) == 2
    with pytest.raises(AssertionError, match="test split was read"):
        guarded(config).corpus.splits["test"]


def test_a_data_set_may_lack_its_test_split_whose_content_changes_nothing(tmp_path: Path) -> None:
    root = runs.write_svamp(tmp_path)
    config = runs.tiny_config({"data.dataset": "svamp", "data.root": str(root)})
    config.data.vocabulary = str(VOCABULARY_PATH)
    honest = Experiment.of(config, None)
    assert "test" in inputs.load_data(config).corpus.splits
    gold, said = root / "svamp" / "svamp_test.json", root / "svamp" / "llm" / "test_CoT_0.json"
    train_rows = (root / "svamp" / "svamp_train.json").read_text().splitlines()[: len(gold.read_text().splitlines())]
    gold.write_text("\n".join(train_rows).replace("+", "*"))
    lying = Experiment.of(config, None)
    gold.unlink(), said.unlink()
    lacking = Experiment.of(config, None)
    for other in (lying, lacking):
        assert other.data.prepared.fingerprint == honest.data.prepared.fingerprint
        assert other.student == honest.student


# Losses that are not finite.


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_its_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaking(step: Step) -> Step:
        def broken(state: TrainState, *rest: Any) -> tuple[TrainState, dict[str, Any]]:
            state, metrics = step(state, *rest)
            return state, metrics | ({"loss": jnp.float32(jnp.nan)} if state.step == 3 else {})

        return broken

    wrap_step(monkeypatch, breaking)
    with pytest.raises(UserError) as error:
        train(small_run({"checkpoint.every": 2}), str(tmp_path))
    message = str(error.value)
    assert message.startswith("step 3: loss is nan, mi_negative is ") and "\n" not in message
    assert f"the last checkpoint, {tmp_path}/checkpoints/2," in message
    assert runs.steps_in(tmp_path / "checkpoints") == [2]
    assert int(runs.read_state(tmp_path).step) == 2
    assert [line["step"] for line in runs.read_metrics(tmp_path)] == [1, 2]


@pytest.mark.slow
def test_a_first_loss_that_is_not_finite_ends_the_run_before_anything_is_saved(tmp_path: Path) -> None:
    _, config, params = small_student()
    broken = params | {"head": np.full_like(params["head"], 3e38)}  # finite, but its products are not
    save_hf(broken, config, tmp_path / "broken", vocabulary_file=VOCABULARY_PATH)
    changes = {"model.init": str(tmp_path / "broken"), "eval.every": 1, "checkpoint.every": 1}
    with pytest.raises(UserError, match=r"step 1: .*loss is nan.*the last checkpoint, none yet"):
        train(small_run(changes), str(tmp_path / "run"))
    assert runs.steps_in(tmp_path / "run" / "checkpoints") == runs.steps_in(tmp_path / "run" / "best") == []
    assert runs.read_metrics(tmp_path / "run") == []
