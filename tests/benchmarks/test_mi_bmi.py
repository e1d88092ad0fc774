"""Tasks of the bmi benchmark against closed forms computed by other means; the benchmark's table and resumption."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import digamma
from scipy.stats import multivariate_normal, multivariate_t, norm

from benchmarks import mi_bmi
from benchmarks.bmi_tasks import (
    Samples,
    Task,
    _digamma_of_half,
    rotate_by_norm,
    sparse,
    spiral,
    student,
    swiss_roll,
    tasks,
)
from cotmi_jax.mi.nonparametric import ksg

TASKS = {task.name: task for task in tasks()}
SIZE = 4000


def gaussian_log_ratio(task: Task, correlation: float, everywhere: bool) -> tuple[np.ndarray, Samples]:
    """log p(x,y)/p(x)p(y) of samples by scipy: correlation between all dimensions, or of the first two pairs."""
    x, y = task.sample(SIZE, 0)
    dims = x.shape[1]
    matrix = np.full((2 * dims, 2 * dims), correlation) if everywhere else np.zeros((2 * dims, 2 * dims))
    np.fill_diagonal(matrix, 1.0)
    for i in range(0 if everywhere else 2):
        matrix[i, dims + i] = matrix[dims + i, i] = correlation
    joint = multivariate_normal(cov=matrix).logpdf(np.concatenate([x, y], axis=1))
    sides = (multivariate_normal(cov=matrix[:dims, :dims]).logpdf(side) for side in (x, y))
    return joint - sum(sides), (x, y)


def assert_mean_is(values: np.ndarray, truth: float) -> None:
    assert abs(values.mean() - truth) <= 4 * values.std() / len(values) ** 0.5


@pytest.mark.parametrize("dims", [5, 25])
@pytest.mark.parametrize(("kind", "correlation"), [("dense", 0.5), ("sparse", 0.8)])
def test_gaussian_tasks_have_their_densities_information(kind: str, correlation: float, dims: int) -> None:
    """The mean log density ratio of the samples is the information, and its value in closed form is another's."""
    task = TASKS[f"{kind} {dims}×{dims}"]
    ratio, _ = gaussian_log_ratio(task, correlation, kind == "dense")
    assert_mean_is(ratio, task.truth)
    assert task.truth == pytest.approx(
        {"dense5": 0.593, "dense25": 1.292}.get(f"{kind}{dims}", -math.log(0.36)), abs=5e-4
    )


@pytest.mark.parametrize(("dims", "freedom", "truth"), [(1, 1, 0.2242), (5, 2, 0.4482)])
def test_student_tasks_have_their_densities_information(dims: int, freedom: int, truth: float) -> None:
    x, y = student(dims, freedom).sample(SIZE, 0)
    joint, side = (multivariate_t(shape=np.eye(size), df=freedom) for size in (2 * dims, dims))
    assert_mean_is(joint.logpdf(np.concatenate([x, y], axis=1)) - side.logpdf(x) - side.logpdf(y), truth)
    assert student(dims, freedom).truth == pytest.approx(truth, abs=1e-4)


def test_digamma_of_halves_is_that_of_scipy() -> None:
    np.testing.assert_allclose([_digamma_of_half(n) for n in range(1, 12)], digamma(np.arange(1, 12) / 2), rtol=1e-12)


@pytest.mark.parametrize("name", ["additive 1×1, noise 0.1", "swiss roll 2×1", "student 1×1, 1 df"])
def test_tasks_of_few_dimensions_have_the_information_that_ksg_finds(name: str) -> None:
    task = TASKS[name]
    x, y = task.sample(SIZE, 0)
    if "student" in name:  # ksg of heavy tails needs bounded values
        x, y = np.arctan(x), np.arctan(y)
    assert ksg(x, y) == pytest.approx(task.truth, abs=0.05)


def test_spirals_are_injective_maps_of_the_sparse_task() -> None:
    def undone(x: np.ndarray, plane: int) -> np.ndarray:
        """The opposite rotation, by complex numbers."""
        turned = (x[:, plane] + 1j * x[:, plane + 1]) * np.exp(-1j * (x**2).mean(axis=1))
        x = x.copy()
        x[:, plane], x[:, plane + 1] = turned.real, turned.imag
        return x

    straight, turned = sparse(5).sample(100, 3), spiral(5).sample(100, 3)
    assert not np.allclose(straight[0], turned[0])
    np.testing.assert_allclose(undone(turned[0], 0), straight[0], atol=1e-12)
    np.testing.assert_allclose(undone(turned[1], 1), straight[1], atol=1e-12)
    np.testing.assert_array_equal(rotate_by_norm(0)(straight[0])[:, 2:], straight[0][:, 2:])


def test_the_swiss_roll_never_crosses_itself_and_has_the_margins_of_the_pair() -> None:
    u = np.linspace(0, 1, 200)[:, None]
    radius = np.linalg.norm(swiss_roll(u), axis=1)
    assert (np.diff(radius) > 0).all()  # so that u is a function of the point
    x, y = TASKS["swiss roll 2×1"].sample(SIZE, 0)
    u, v = (np.linalg.norm(x, axis=1) * 21 / (1.5 * math.pi) - 1) / 2, y[:, 0]
    assert np.corrcoef(norm.ppf(u), norm.ppf(v))[0, 1] == pytest.approx(0.75, abs=0.03)


def test_asinh_of_student_is_a_map_of_student() -> None:
    plain, mapped = (TASKS[name].sample(50, 1) for name in ("student 5×5, 2 df", "asinh of student 5×5, 2 df"))
    np.testing.assert_allclose(np.sinh(mapped[0]), plain[0], rtol=1e-9)
    np.testing.assert_allclose(np.sinh(mapped[1]), plain[1], rtol=1e-9)


# --- The benchmark


def test_twelve_tasks_are_measured_once_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fake(task: Task, setting: str, size: int, seed: int) -> dict[str, Any]:
        calls.append(task.name)
        cost = {"seconds": 9.0, "cpu_seconds": 12.4}
        found = {"value": task.truth - 0.02, "standard_error": 0.01, "critics": ["concat", "quadratic", "concat"]}
        return {"task": task.name, "truth": task.truth, **found, **cost}

    monkeypatch.setattr(mi_bmi, "measure", fake)
    page, output = tmp_path / "page.md", tmp_path / "bmi.json"
    page.write_text("Before\n<!-- mi_bmi: begin -->\n<!-- mi_bmi: end -->\nAfter\n")
    arguments = [f"--folder={tmp_path}/runs", f"--json={output}", f"--markdown={page}"]
    assert mi_bmi.main(arguments) == 0 and len(calls) == 12
    assert mi_bmi.main(arguments) == 0 and len(calls) == 12  # resumed
    assert mi_bmi.main([*arguments, "--seed=1", "--tasks=spiral"]) == 0 and len(calls) == 15
    assert mi_bmi.main(arguments) == 0
    assert len(json.loads(output.read_text())["rows"]) == 12
    bmi = mi_bmi.BMI_INFONCE["dense 5×5"]
    line = f"| dense 5×5 | 0.593 | 0.573 ± 0.010 | {bmi:.3f} | -0.020 | -2.0 | 2 concat, 1 quadratic | 12 |"
    assert line in page.read_text() and page.read_text().startswith("Before\n")


@pytest.mark.slow
def test_a_measurement_is_an_estimate_of_the_task() -> None:
    found = mi_bmi.measure(Task("line", 0.0, lambda rng, size: (rng.random((size, 1)),) * 2), "separable", 64, 0)
    assert found["critics"] == ("separable",) and found["cpu_seconds"] > 0 and math.isfinite(found["value"])


@pytest.mark.parametrize("flag", ["--settings=concat 32×2", "--settings=default,best", "--tasks=cube"])
def test_unknown_settings_and_tasks_are_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert mi_bmi.main([flag]) == 2
    assert flag in capsys.readouterr().err
