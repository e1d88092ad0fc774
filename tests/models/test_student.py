"""A network that a user's file registers is trained, recorded, scored, and generates through the package's own code."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from paths import REPOSITORY

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.job import score
from cotmi_jax.inference.load import load_workdir
from cotmi_jax.inference.predictor import Answerer
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.decoding import Decoding
from cotmi_jax.models.student import NETWORKS, StudentDef, find_network, register_student
from cotmi_jax.training.job import train

quick_compilation = runs.quick_compilation
PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
(STUDY,) = re.findall(r"^```python\n((?:(?!```).)*register_student\(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def only_registered_here() -> Iterator[None]:
    before = dict(NETWORKS)
    yield
    NETWORKS.clear()
    NETWORKS.update(before)


def test_a_registered_network_trains_scores_and_generates(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study, workdir = tmp_path / "study.py", tmp_path / "run"
    study.write_text(STUDY)
    changes = {"extensions": str(study), "model.network": "bag", "data.packing": False}
    config = runs.tiny_config(changes)
    assert train(config, str(workdir)) == 6
    record = json.loads((workdir / "run.json").read_text())
    assert record["config"]["model"]["network"] == "bag" and record["student"]["d_model"] == 8
    losses = [line["train/loss"] for line in runs.read_metrics(workdir) if "train/loss" in line]
    assert losses and all(math.isfinite(loss) for loss in losses)
    score(str(workdir), "valid", checkpoint="latest", output=str(tmp_path / "scores"), information=False)
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["n"] == runs.HELD_OUT
    trained = load_workdir(workdir, "latest")
    assert type(trained.student.config).__name__ == "BagConfig"
    for decoding in (Decoding("greedy", max_tokens=4), Decoding("beam", max_tokens=4, num_beams=2)):
        answerer = Answerer(
            trained.student,
            trained.params,
            trained.vocabulary,
            trained.objective,
            trained.mesh,
            task="predict",
            decoding=decoding,
        )
        outputs, _ = answerer._write(["1 + 1?"], 8)
        assert len(outputs) == 1


def test_names_and_configs_of_networks_are_checked() -> None:
    with pytest.raises(UserError, match="'t5' is the package's own"):
        register_student("t5", T5Config, NETWORKS["t5"].make_config, NETWORKS["t5"].build)
    with pytest.raises(UserError, match="T5Config belongs to 't5'"):
        register_student("mine", T5Config, NETWORKS["t5"].make_config, NETWORKS["t5"].build)
    with pytest.raises(UserError, match="is no dataclass"):
        register_student("mine", dict, NETWORKS["t5"].make_config, NETWORKS["t5"].build)
    with pytest.raises(UserError, match="no student is registered for dict"):
        StudentDef.of({})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"config.model.network is 'none': choose one of t5"):
        find_network("none")
