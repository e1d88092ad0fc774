"""A workdir of an earlier revision is evaluated and resumed as by that revision (make_legacy_workdir.py).

The results are equal within rounding, not bit for bit: revisions sum in another order. The run has no dropout, since
its masks are those of a revision's generator of random bits.
"""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs

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


def assert_close(actual: Any, expected: Any, name: str) -> None:
    """Equal types, keys, counts and texts; numbers within rounding."""
    assert type(actual) is type(expected), name
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), name
        for key in expected:
            assert_close(actual[key], expected[key], f"{name}/{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), name
        for index, pair in enumerate(zip(actual, expected, strict=True)):
            assert_close(*pair, f"{name}/{index}")
    elif isinstance(expected, float | np.ndarray):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-6, err_msg=name)
    else:
        assert actual == expected, name


def untimed(lines: list[dict[str, float]]) -> list[dict[str, float]]:
    """Lines of metrics.jsonl without timings."""
    return [{name: value for name, value in line.items() if not name.startswith(runs.TIMINGS)} for line in lines]


@pytest.mark.slow
def test_an_earlier_workdir_is_evaluated_and_resumed(legacy: Path) -> None:
    expected = json.loads((legacy / "expected.json").read_text())
    workdir = legacy / "run"
    scored = score(str(workdir), "valid", checkpoint="latest", information=False)
    metrics = {
        name: scored.metrics[name] for name in expected["metrics"]
    }  # those that are new since have no value there
    assert_close(json.loads(json.dumps(metrics)), expected["metrics"], "metrics")
    known = expected["predictions"]
    scored_now = zip(scored.predictions[: len(known)], known, strict=True)
    predictions = [{name: now[name] for name in before} for now, before in scored_now]  # type: ignore[literal-required]
    assert_close(json.loads(json.dumps(predictions)), known, "predictions")
    assert train(read_run(workdir)[0], str(workdir)) == 6
    lines, known = untimed(runs.read_metrics(workdir)), untimed(expected["lines"])
    shown = [{name: line[name] for name in line if name in before} for line, before in zip(lines, known, strict=True)]
    assert_close(shown, known, "lines")  # without metrics that are new since
    found = {name: value for name, value in contents(find(workdir, "latest")) if isinstance(value, np.ndarray)}
    with np.load(legacy / "expected.npz") as arrays:
        assert_close({name: found[name] for name in arrays}, dict(arrays), "step 6")
    # The optimizer's state too.
    assert {name: [str(array.dtype), *array.shape] for name, array in found.items()} == expected["arrays"]
