"""The studies of configs/studies: they load, each run of theirs can be trained, and :smoke has the same arms."""

import re
from pathlib import Path

import pytest

from cotmi_jax.config import flatten, smoke
from cotmi_jax.errors import UserError
from cotmi_jax.recipes import packaged_configs
from cotmi_jax.study.plan import load_plan

FILES = list(packaged_configs("studies").values())


def test_there_are_the_studies_of_the_papers_and_the_first() -> None:
    expected = {"main_table", "label_types", "data_efficiency", "alpha_beta", "estimators", "calibration", "first"}
    assert expected == {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_study_states_claim_cost_and_command_and_gives_runs(file: Path) -> None:
    plan, small = load_plan(str(file)), load_plan(f"{file}:smoke")
    text = file.read_text()
    assert plan.claim.endswith(".") and f"--config=configs/studies/{file.name}" in text
    assert re.search(rf"Cost: {len(plan.runs)} runs", text), len(plan.runs)
    assert {run.arm for run in small.runs} == {run.arm for run in plan.runs}
    assert {run.seed for run in small.runs} == {run.seed for run in plan.runs} == set(range(5))
    for run in small.runs:
        assert flatten(smoke(run.config.copy_and_resolve_references())) == flatten(run.config)
        assert run.config.model.init == "random"


def test_the_main_table_has_four_sets_two_sizes_and_the_papers_objectives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cotmi_jax.study.plan.make_objective", lambda config: None)  # tested above
    plan = load_plan("main_table")
    labels = {run.label for run in plan.runs}
    assert len(labels) == 200 and "cqa-t5_v1_1_base-dss-seed0" in labels
    assert {run.config.data.dataset for run in plan.runs} == {"svamp", "cqa", "esnli", "anli1"}
    assert {run.config.objective.name for run in plan.runs} == {"standard", "single_task", "dss", "cotmi"}


def test_a_study_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(UserError, match="no study file main_tabel: did you mean main_table?"):
        load_plan("main_tabel")
