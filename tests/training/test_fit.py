"""Students that are trained in memory on a half of some examples and score the other half."""

from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
import runs

from cotmi_jax.data.example import Example
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.data.vocabulary import Vocabulary
from cotmi_jax.evaluation.probe import CrossFitted
from cotmi_jax.parallel.mesh import make_mesh
from cotmi_jax.training import fit

quick_compilation = runs.quick_compilation
STEPS = 40
LABELS = ("3", "5")


def cross_fitted(texts: list[str], labels: list[str], group_N: np.ndarray) -> CrossFitted:
    config = runs.tiny_config({"optimizer.learning_rate": 1e-2, "optimizer.schedule": "constant"})
    examples = [
        Example(f"s/test/{n}", text, label, "") for n, (text, label) in enumerate(zip(texts, labels, strict=True))
    ]
    mesh = make_mesh(data=8, fsdp=1, tensor=1)
    with jax.set_mesh(mesh):
        return fit.cross_fit(config, Vocabulary(VOCABULARY_PATH), mesh, examples, group_N, STEPS, 16)


@pytest.mark.slow
def test_a_rule_is_learned_and_what_only_the_group_tells_is_not() -> None:
    """The first name determines the label of the first half; of the second half only its group does, of four examples.

    A student that had seen examples of the groups that it scores would know theirs.
    """
    draw = np.random.default_rng(0)
    group_N = np.repeat(np.arange(60), 4)
    of_group = draw.integers(0, 2, 60)[group_N]
    by_rule = draw.integers(0, 2, len(group_N))
    rule = np.arange(len(group_N)) % 2 == 0
    label = [LABELS[a if first else b] for a, b, first in zip(by_rule, of_group, rule, strict=True)]
    texts = [
        f"{('Tom', 'Mia')[a]} has cards." if first else f"Ben has {group + 10} cards."
        for a, group, first in zip(by_rule, group_N, rule, strict=True)
    ]
    found = cross_fitted(texts, label, group_N)
    assert found.exact_N[rule].mean() > 0.95 and found.log_p_N[rule].mean() > -0.3
    assert 0.25 < found.exact_N[~rule].mean() < 0.75 and found.log_p_N[~rule].mean() < -0.5


def test_every_example_is_scored_by_a_student_that_saw_no_example_of_its_group() -> None:
    fitted: list[tuple[Any, ...]] = []

    class Recorder:
        def __init__(self, *arguments: Any):
            pass

        def fit(self, train: np.ndarray, validation: np.ndarray, fold: int) -> Any:
            fitted.append((set(train), set(validation)))

        def scores(self, params: Any, rows: np.ndarray) -> Any:
            fitted[-1] += (set(rows),)
            return rows.astype(float), rows % 2 == 0

    group_N = np.random.default_rng(0).integers(0, 30, 90)
    group_N[:30] = np.arange(30)
    with mock.patch.object(fit, "_Fitter", Recorder):
        found = cross_fitted(["a"] * 90, ["3"] * 90, group_N)
    assert (found.log_p_N == np.arange(90)).all() and (found.exact_N == (np.arange(90) % 2 == 0)).all()
    assert len(fitted) == 2
    for parts in fitted:
        groups = [{int(group_N[row]) for row in rows} for rows in parts]
        assert all(groups) and sum(map(len, groups)) == 30 == len(set.union(*groups))
