"""Loading a student from a workdir: invalid workdirs, and students that one device cannot hold."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs

from cotmi_jax.errors import UserError
from cotmi_jax.evaluation.job import score
from cotmi_jax.inference import load
from cotmi_jax.inference.load import load_trained
from cotmi_jax.models.meshes import parameter_count
from cotmi_jax.parallel.accelerators import Accelerator
from cotmi_jax.workdir.record import read_run

quick_compilation = runs.quick_compilation


def shrink_devices(monkeypatch: pytest.MonkeyPatch, *, shards: float) -> None:
    """Reports devices half of whose memory holds 1/shards of the parameters of runs.trained()."""
    student = load_trained(str(runs.trained()), "best").student
    memory = 2 * 4 * parameter_count(student.config)[1] / shards
    device = Accelerator("small", ("cpu",), 1e12, memory, 1e12)
    monkeypatch.setattr(load, "find_accelerator", lambda kind: device)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "run.json: contains a list, must be an object; restore it"),
        (b'{"config": {}}', "run.json is not a run's record"),
        (b"{", "run.json, line 1: not JSON"),
        (b"\xff\xfe{", "run.json: not JSON"),
        (None, "no run.json in"),
    ],
)
def test_an_invalid_run_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no run.json in .*/file: give the --workdir"):
        read_run(tmp_path / "file")


def test_a_student_trained_with_the_kernel_of_tpus_is_read_elsewhere(tmp_path: Path) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(runs.trained(), workdir)
    record = json.loads((workdir / "run.json").read_text())
    record["student"]["attention"] = "kernel"
    (workdir / "run.json").write_text(json.dumps(record))
    assert load_trained(str(workdir), "best").student.config.attention == "auto"  # type: ignore[union-attr]


def test_parameters_are_sharded_over_as_many_devices_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    replicated = load_trained(str(runs.trained()), "best")
    assert dict(replicated.mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    shrink_devices(monkeypatch, shards=2.5)
    sharded = load_trained(str(runs.trained()), "best")
    assert dict(sharded.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4}

    def bytes_per_device(params: Any) -> int:
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))

    assert bytes_per_device(sharded.params) < 0.3 * bytes_per_device(replicated.params)
    jax.tree.map(np.testing.assert_array_equal, sharded.params, replicated.params)


@pytest.mark.slow
def test_a_sharded_student_is_evaluated_as_a_replicated_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def scored(name: str) -> Any:
        return score(str(runs.trained()), "test", output=str(tmp_path / name), information=False)

    replicated = scored("replicated")
    shrink_devices(monkeypatch, shards=8)
    sharded = scored("split")
    confidences = [[each.pop("confidence") for each in found.predictions] for found in (replicated, sharded)]
    assert all(confidences[0]) and confidences[1] == pytest.approx(confidences[0], rel=1e-4)
    for one, other in zip(replicated.predictions, sharded.predictions, strict=True):
        assert other.pop("loss") == pytest.approx(one.pop("loss"), rel=1e-4)
    assert sharded.predictions == replicated.predictions
    assert replicated.metrics["unknown"] == {"input": 0, "label": 0, "rationale": 0}
    assert replicated.metrics["lost_labels"] == 0
    for term, value in replicated.metrics["loss"].items():
        assert sharded.metrics["loss"][term] == pytest.approx(value, rel=1e-4), term


def test_a_student_that_all_devices_together_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_devices(monkeypatch, shards=8.5)
    with pytest.raises(UserError, match="8 devices of 0 GiB do not hold 0 GiB of parameters in 50% of their memory"):
        load_trained(str(runs.trained()), "best")
