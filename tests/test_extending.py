"""The examples of docs/extending.md, run from the text of the page as one study."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import runs
from paths import REPOSITORY

from cotmi_jax.data.counterfactuals import RULES, counterfactuals
from cotmi_jax.data.example import Pair
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.sources.registered import SOURCES
from cotmi_jax.data.tasks import OBJECTIVES
from cotmi_jax.evaluation.job import score
from cotmi_jax.evaluation.metrics import METRICS
from cotmi_jax.mi import ESTIMATORS
from cotmi_jax.models.student import NETWORKS
from cotmi_jax.objectives.token_loss import TOKEN_LOSSES
from cotmi_jax.training.job import train

quick_compilation = runs.quick_compilation
PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
STUDY = {
    "data.dataset": "doubling",
    "data.vocabulary": str(VOCABULARY_PATH),
    "data.packing": False,
    "objective.name": "answer_in_rationale",
    "mi.estimator": "tempered",
    "mi.settings": "temperature=0.2",
    "objective.token_loss": "label_smoothing",
    "model.network": "bag",
    "optimizer.learning_rate": 0.1,
    "steps": 12,
    "eval.metrics": "macro_f1",
}

LATER = """
from cotmi_jax.evaluation.metrics import Score, register_metric


@register_metric("words", reads_rationales=True)
def words(predictions):
    counts = [len(prediction["predicted_rationale"].split()) for prediction in predictions]
    return {"words": Score(value=sum(counts) / len(counts), interval=None, n=len(counts))}
"""


@pytest.fixture(autouse=True)
def registries_as_before() -> Iterator[None]:
    tables = SOURCES, RULES, OBJECTIVES, METRICS, ESTIMATORS, TOKEN_LOSSES, NETWORKS
    with contextlib.ExitStack() as stack:
        for table in tables:
            stack.enter_context(mock.patch.dict(table))  # type: ignore[arg-type]
        yield


def test_the_page_has_seven_examples_of_at_most_twenty_lines() -> None:
    lines = [sum(1 for line in block.splitlines() if line.strip()) for block in BLOCKS]
    assert len(lines) == 7 and max(lines) <= 20


def test_the_rule_of_the_page_makes_counterfactual_pairs() -> None:
    for block in BLOCKS[:2]:
        exec(block, {})
    example = next(iter(SOURCES["doubling"].read().splits["train"]))
    pairs = counterfactuals(example, 3, 0)
    assert sorted(pairs) == [Pair("19", "10 and 10 make 19."), Pair("21", "10 and 10 make 21.")]


@pytest.mark.slow
def test_the_examples_of_the_page_train_a_student_that_is_evaluated(tmp_path: Path) -> None:
    study = tmp_path / "study.py"
    study.write_text("\n".join(BLOCKS))
    workdir = tmp_path / "run"
    config = runs.tiny_config(STUDY | {"extensions": str(study)})
    assert train(config, str(workdir)) == 12
    lines = runs.read_metrics(workdir)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert np.isfinite(losses).all() and np.mean(losses[-3:]) < np.mean(losses[:3])
    assert any("train/mi" in line for line in lines)  # the objective's spec asks for the term
    record = json.loads((workdir / "run.json").read_text())
    assert record["config"]["extensions"] == str(study) and record["student"]["d_model"] == 8
    assert 0 <= next(line["valid/macro_f1"] for line in lines if "valid/macro_f1" in line) <= 1

    later = tmp_path / "later.py"
    later.write_text(LATER)
    result = score(
        str(workdir),
        "test",
        checkpoint="latest",
        output=str(tmp_path / "scores"),
        information=False,
        metrics="macro_f1,words",
        extensions=str(later),
    )
    scores = json.loads((tmp_path / "scores" / "metrics.json").read_text())["metrics"]
    assert scores.keys() == {"accuracy", "macro_f1", "words"} and scores["words"]["n"] == 10
    low, high = scores["macro_f1"]["interval"]
    assert 0 <= low <= scores["macro_f1"]["value"] <= high <= 1
    assert [prediction["id"] for prediction in result.predictions] == [f"doubling/test/{n}" for n in range(50, 60)]
