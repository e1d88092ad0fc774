"""A student out of a workdir: what is no workdir, and one too large for a device."""

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


def shrink_devices(monkeypatch: pytest.MonkeyPatch, *, parts: float) -> None:
    """Devices half of whose memory holds one of so many parts of the student that runs.trained() trained."""
    student = load_trained(str(runs.trained()), "best").student
    memory = 2 * 4 * parameter_count(student.config)[1] / parts
    device = Accelerator("small", ("cpu",), 1e12, memory)
    monkeypatch.setattr(load, "find_accelerator", lambda kind: device)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[]", "run.json is not a run's record"),
        (b'{"config": {}}', "run.json is not a run's record"),
        (b"{", "run.json is not JSON"),
        (b"\xff\xfe{", "run.json is not JSON"),
        (None, "no run.json in"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        read_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot read .*file/run.json: Not a directory; give the --workdir"):
        read_run(tmp_path / "file")


def test_a_student_is_split_over_as_many_devices_as_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_trained(str(runs.trained()), "best")
    assert dict(whole.mesh.shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    shrink_devices(monkeypatch, parts=2.5)
    split = load_trained(str(runs.trained()), "best")
    assert dict(split.mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4}

    def held(params: Any) -> int:
        return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(params))

    assert held(split.params) < 0.3 * held(whole.params)
    jax.tree.map(np.testing.assert_array_equal, split.params, whole.params)


@pytest.mark.slow
def test_a_split_student_is_scored_as_a_whole_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def scored(name: str) -> Any:
        return score(str(runs.trained()), "test", output=str(tmp_path / name), information=False)

    whole = scored("whole")
    shrink_devices(monkeypatch, parts=8)
    split = scored("split")
    assert split.predictions == whole.predictions
    for term, value in whole.metrics["loss"].items():
        assert split.metrics["loss"][term] == pytest.approx(value, rel=1e-4), term


def test_a_student_that_no_number_of_them_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink_devices(monkeypatch, parts=8.5)
    with pytest.raises(UserError, match="8 devices of 0 GiB do not hold 0 GiB of parameters in 50% of their memory"):
        load_trained(str(runs.trained()), "best")
