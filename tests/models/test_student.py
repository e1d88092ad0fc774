"""A network registered in a user's file is trained, recorded, evaluated and generates; what it lacks is refused."""

import json
import math
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import runs
from helpers import assert_cached_logits_equal_teacher_forcing, random_ids
from ml_collections import ConfigDict
from paths import REPOSITORY

from cotmi_jax.aot.programs import default_shape, programs
from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.job import score
from cotmi_jax.experiment import Experiment, check_packing
from cotmi_jax.extensions import load_extensions
from cotmi_jax.inference.lines import Line
from cotmi_jax.inference.load import load_workdir
from cotmi_jax.inference.predictor import Predictor
from cotmi_jax.models.config import T5Config
from cotmi_jax.models.decoding import Decoding
from cotmi_jax.models.flops import step_flops
from cotmi_jax.models.student import NETWORKS, StudentDef, find_network, register_student
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.training.job import train
from cotmi_jax.training.throughput import Work

quick_compilation = runs.quick_compilation
PAGE = (REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
(STUDY,) = re.findall(r"^```python\n((?:(?!```).)*register_student\(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


@pytest.fixture(autouse=True)
def networks_as_before() -> Iterator[None]:
    with mock.patch.dict(NETWORKS):
        yield


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """The student example of docs/extending.md in a file of its own."""
    path = tmp_path / "study.py"
    path.write_text(STUDY)
    return path


@pytest.fixture
def bag(study: Path) -> StudentDef:
    """The network of that example, registered, with a vocabulary of 32."""
    load_extensions(str(study))
    return StudentDef.of(find_network("bag").make_config(ConfigDict(), 32))


@pytest.mark.slow
def test_a_registered_network_trains_scores_and_generates(study: Path, tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    config = runpy.run_path(str(runs.RECIPE))["get_config"]("smoke")
    changes = {"extensions": str(study), "model.network": "bag", "data.packing": False, "data.cache": "none"}
    config.update_from_flattened_dict(changes | {"objective.name": "dss", "mi.monitor.every": 0})
    assert train(config, str(workdir)) == 4
    record = json.loads((workdir / "run.json").read_text())
    assert record["config"]["model"]["network"] == "bag" and record["student"]["d_model"] == 8
    losses = [line["train/loss"] for line in runs.read_metrics(workdir) if "train/loss" in line]
    assert losses and all(math.isfinite(loss) for loss in losses)
    score(str(workdir), "valid", checkpoint="latest", output=str(tmp_path / "scores"), information=False)
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["n"] == runs.HELD_OUT
    trained = load_workdir(workdir, "latest")
    assert type(trained.student.config).__name__ == "BagConfig"
    for decoding in (Decoding("greedy", max_tokens=4), Decoding("beam", max_tokens=4, num_beams=2)):
        predictor = Predictor(
            trained.student,
            trained.params,
            trained.vocabulary,
            trained.objective,
            trained.mesh,
            task="predict",
            decoding=decoding,
        )
        ((_, answers),) = next(predictor.answers([Line(1, "1 + 1?")], 8))
        assert answers[0].keys() == {"label"}
    refused = runs.command("export", f"--model={workdir}", f"--output={tmp_path / 'hf'}")
    runs.assert_refused(refused, "is a BagConfig, but only a T5 can be exported", "load_workdir")


def test_cached_logits_of_a_registered_network_equal_those_of_teacher_forcing(bag: StudentDef) -> None:
    draw = np.random.default_rng(0)
    inputs, targets = random_ids(draw, (7, 2, 4), 7), random_ids(draw, (5, 3, 1), 5)
    assert_cached_logits_equal_teacher_forcing(bag, bag.init(jax.random.key(0)), inputs, targets)


def test_packing_is_refused_unless_a_network_supports_it(bag: StudentDef) -> None:
    config = runs.tiny_config({"model.network": "bag"})
    with pytest.raises(UserError, match="'bag' is not registered with supports_packing: set config.data.packing"):
        Experiment.of(config, None)
    register_student("bag", type(bag.config), find_network("bag").make_config, bag.build, supports_packing=True)
    check_packing(config)


def test_flops_and_aot_are_refused_for_other_networks_than_t5(bag: StudentDef) -> None:
    with pytest.raises(UserError, match="FLOPs of BagConfig are not known, .* examples/s instead of MFU"):
        step_flops(bag.config, rows=1, input_length=8.0, target_length=4.0)
    assert Work.of(bag.config, 2, np.array([[5, 3], [4, 2]])) == Work(examples=2, tokens=14, flops=None)
    config = runs.tiny_config({"model.network": "bag", "data.packing": False})
    mesh = make_mesh()
    with pytest.raises(UserError, match="network is 'bag', but aot compiles only t5: set config.model.network to t5"):
        programs(config, mesh, default_shape(config, mesh))


def test_names_and_configs_of_networks_are_checked() -> None:
    with pytest.raises(UserError, match="'t5' is the package's own"):
        register_student("t5", T5Config, NETWORKS["t5"].make_config, NETWORKS["t5"].build)
    with pytest.raises(UserError, match="T5Config belongs to 't5'"):
        register_student("mine", T5Config, NETWORKS["t5"].make_config, NETWORKS["t5"].build)
    with pytest.raises(UserError, match="is not a dataclass"):
        register_student("mine", dict, NETWORKS["t5"].make_config, NETWORKS["t5"].build)
    with pytest.raises(UserError, match="no student is registered for dict"):
        StudentDef.of({})  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"config.model.network is 'none': choose one of t5"):
        find_network("none")
