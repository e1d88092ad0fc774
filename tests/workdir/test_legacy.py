"""A workdir of an earlier revision is evaluated and resumed as by that revision (make_legacy_workdir.py)."""

import hashlib
import json
import tarfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import runs

from cotmi_jax.compilation_cache import default_folder
from cotmi_jax.evaluation.job import score
from cotmi_jax.training.job import train
from cotmi_jax.workdir.checkpoint import contents, find
from cotmi_jax.workdir.record import read_run

quick_compilation, full_held_out = runs.quick_compilation, runs.full_held_out


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked archive."""
    folder = tmp_path_factory.mktemp("legacy")
    with tarfile.open(Path(__file__).with_name("legacy_workdir.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder


def assert_equal(actual: Any, expected: Any, name: str, *, exact: bool) -> None:
    """Bit-equal on the processor and with the JAX that made the archive, else close."""
    assert type(actual) is type(expected), name
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), name
        for key in expected:
            assert_equal(actual[key], expected[key], f"{name}/{key}", exact=exact)
    elif isinstance(expected, list):
        assert len(actual) == len(expected), name
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_equal(*pair, f"{name}/{index}", exact=exact)
    elif isinstance(expected, float | np.ndarray):
        np.testing.assert_allclose(
            actual, expected, rtol=0.0 if exact else 1e-4, atol=0.0 if exact else 1e-6, err_msg=name
        )
    else:
        assert actual == expected, name


def untimed(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without timings."""
    return [{name: value for name, value in line.items() if not name.startswith(runs.TIMINGS)} for line in lines]


def test_an_earlier_workdir_is_evaluated_and_resumed_bit_for_bit(legacy: Path) -> None:
    expected = json.loads((legacy / "expected.json").read_text())
    exact = (expected["jax"], expected["processor"]) == (jax.__version__, default_folder().name)
    workdir = legacy / "run"
    scored = score(str(workdir), "valid", checkpoint="latest", information=False)
    metrics = {
        name: scored.metrics[name] for name in expected["metrics"]
    }  # those that are new since have no value there
    # A formula of two counts, which scipy rounds otherwise in the last bit.
    assert metrics.pop("interval") == pytest.approx(expected["metrics"].pop("interval"), rel=1e-12)
    assert_equal(json.loads(json.dumps(metrics)), expected["metrics"], "metrics", exact=exact)
    predictions = json.loads(json.dumps(scored.predictions[: len(expected["predictions"])]))
    assert_equal(predictions, expected["predictions"], "predictions", exact=exact)
    assert train(read_run(workdir)[0], str(workdir)) == 6
    assert_equal(untimed(runs.read_metrics(workdir)), untimed(expected["lines"]), "lines", exact=exact)
    found = {name: value for name, value in contents(find(workdir, "latest")) if isinstance(value, np.ndarray)}
    with np.load(legacy / "expected.npz") as arrays:
        assert_equal({name: found[name] for name in arrays}, dict(arrays), "step 6", exact=exact)
    assert found.keys() == expected["digests"].keys()  # the optimizer's state too
    if exact:
        assert {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in found.items()} == expected[
            "digests"
        ]
