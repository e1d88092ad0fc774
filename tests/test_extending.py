"""The examples of docs/extending.md, run from the text of the page as one study."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import runs
from paths import REPOSITORY

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.sources.registered import SOURCES
from cotmi_jax.data.tasks import OBJECTIVES
from cotmi_jax.evaluation.job import score
from cotmi_jax.models.student import NETWORKS
from cotmi_jax.training.job import train

quick_compilation = runs.quick_compilation
PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)
STUDY = {
    "data.dataset": "doubling",
    "data.vocabulary": str(VOCABULARY_PATH),
    "data.packing": False,
    "objective.name": "answer_in_rationale",
    "model.network": "bag",
    "optimizer.learning_rate": 0.1,
    "steps": 12,
}


@pytest.fixture(autouse=True)
def registries_as_before() -> Iterator[None]:
    tables = SOURCES, OBJECTIVES, NETWORKS
    before = [dict(table) for table in tables]
    yield
    for table, entries in zip(tables, before, strict=True):
        table.clear()
        table.update(entries)  # type: ignore[arg-type]


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
    result = score(str(workdir), "test", checkpoint="latest", output=str(tmp_path / "scores"), information=False)
    assert [prediction["id"] for prediction in result.predictions] == [f"doubling/test/{n}" for n in range(50, 60)]
