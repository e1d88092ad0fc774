"""Study files: the runs that they ask for, their names and hashes, and one-line errors."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags
from paths import REPOSITORY

from cotmi_jax.config import base, flatten
from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.errors import UserError
from cotmi_jax.study import identity
from cotmi_jax.study.grid import arms, axis, product, seeds
from cotmi_jax.study.identity import data_digest, result_settings, run_hash
from cotmi_jax.study.plan import Plan, find_study, load_plan
from cotmi_jax.study.study import matches

HEAD = '''"""A claim of
two lines.

Cost: none.
"""
from cotmi_jax.config import base, variant
from cotmi_jax.study.grid import Evaluation, arms, axis, product, seeds
def get_config(arg=""):
    config = base()
    config.data.dataset = "arithmetic"
    return variant(config, arg)
'''
ARMS = 'arms({"dss": {"objective.name": "dss"}, "infonce .1": {"objective.name": "cotmi", "objective.beta": 0.1}})'


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(runs: str, head: str = HEAD) -> Path:
        file = tmp_path / "mine.py"
        file.write_text(f"{head}\ndef sweep():\n    return {runs}\n")
        return file

    return write


def labels(plan: Plan) -> list[str]:
    return [run.label for run in plan.runs]


def test_axes_combine_in_order_and_do_not_overrule_each_other() -> None:
    runs = product(seeds(2), arms({"a": {"objective.alpha": 0.5}, "b": {}}))
    assert runs[:2] == [{"seed": 0, "arm": "a", "objective.alpha": 0.5}, {"seed": 0, "arm": "b"}] and len(runs) == 4
    with pytest.raises(UserError, match="two axes set objective.alpha, to 0.5 and 0.1: leave one out"):
        product(runs, axis("objective.alpha", [0.1]))


def test_a_study_file_gives_runs_with_readable_names(write: Callable[..., Path]) -> None:
    plan = load_plan(str(write(f'product(seeds(2), axis("data.subsample", [0.1, 1.0]), {ARMS})')))
    assert (plan.name, plan.claim, len(plan.runs)) == ("mine", "A claim of two lines.", 8)
    assert labels(plan)[:3] == ["subsample0.1-dss-seed0", "subsample0.1-infonce_.1-seed0", "subsample1.0-dss-seed0"]
    run = plan.runs[1]
    assert (run.arm, run.seed, run.config.objective.name, run.config.data.subsample) == ("infonce .1", 0, "cotmi", 0.1)
    assert run.settings == {"seed": 0, "data.subsample": 0.1, "objective.name": "cotmi", "objective.beta": 0.1}


def test_runs_may_have_recipes_of_their_own_which_are_watched(write: Callable[..., Path], tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(HEAD.replace("return variant", "config.steps = 70\n    return variant"))
    file = write(f'product([{{"recipe": "quickstart", "eval.every": 7}}, {{"recipe": {str(other)!r}}}], seeds(1))')
    plan = load_plan(str(file))
    assert labels(plan) == ["quickstart-seed0", "other-seed0"] and [run.config.steps for run in plan.runs] == [700, 70]
    assert plan.is_current() and plan.files.keys() == {str(file), str(other), str(REPOSITORY / "configs/quickstart.py")}
    other.write_text(other.read_text().replace("70", "71"))
    assert not plan.is_current()
    assert [run.config.steps for run in load_plan(str(file)).runs] == [700, 71]  # within a second of the edit


def test_smoke_is_the_same_study_at_cpu_size_without_runs_that_are_then_equal(write: Callable[..., Path]) -> None:
    file = write('axis("steps", [500, 900]) + axis("objective.alpha", [0.1])')
    plan = load_plan(f"{file}:smoke")
    assert [run.config.steps for run in plan.runs] == [4, 4] and plan.name == "mine-smoke"
    assert plan.notes == ("1 of 3 runs are left out: at the size of :smoke they equal another one",)


def test_the_flags_of_a_run_give_its_config(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = load_plan(f"{write(f'product(seeds(2), {ARMS})')}:smoke").runs[3]
    assert run.flags()[0] == "--config=base"
    values, command = flags.FlagValues(), ["train", *run.flags()[1:]]
    monkeypatch.setattr("sys.argv", command)  # where config_flags finds the keys
    config_flags.DEFINE_config_dict("config", base(), flag_values=values)
    values(command)
    assert flatten(values.config) == flatten(run.config)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ('axis("learning_rate", [1.0])', "no config key learning_rate: did you mean mi.learning_rate or optimizer"),
        ('axis("steps", ["many"])', "sweep() gives steps=many: steps is 'many', must be a int"),
        ('axis("model.scan_layers", [1])', "model.scan_layers is 1, must be a bool"),
        ('axis("objective.name", ["dds"])', "unknown objective 'dds'"),
        ('axis("batch_size", [0])', "config.batch_size is 0"),
        ('[{"mi.estimator": "consistency", "objective.name": "cotmi"}]', "data.rationale_answer is cut"),
        ('axis("eval.every", [0])', "no run has a best checkpoint: evaluate the latest one"),
        ("[]", "sweep() gives no runs"),
        ("undefined", "mine.py:14: NameError: name 'undefined' is not defined"),
        (
            'seeds(2) + [{"seed": 1, "mi.alpha": 0.5}]',
            "two runs of sweep() have one config, in all that changes results: (arm=dss, seed=1) and (arm=dss, seed=1, "
            "mi.alpha=0.5): leave one out",
        ),
        (
            'axis("data.teacher", ["palm?", "palm!"])',
            "two runs of sweep() have one name, palm: (arm=dss, data.teacher=palm?) and (arm=dss, data.teacher=palm!)",
        ),
    ],
)
def test_a_sweep_that_cannot_be_run_is_refused(write: Callable[..., Path], runs: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        for run in load_plan(str(write(runs))).runs:
            data_digest(run.config)
    assert message in str(error.value).replace("\\", "") and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (HEAD + "(", "mine.py:[0-9]+: SyntaxError"),
        (HEAD[HEAD.index("from") :], "a study file has a docstring"),
        (HEAD + "EVALUATION = 3", "EVALUATION is 3"),
        (HEAD + 'EVALUATION = Evaluation(metrics="nonesuch")', "nonesuch"),
        (HEAD[: HEAD.index("def get_config")], "a run without 'recipe' has the config of get_config"),
    ],
)
def test_a_file_that_is_no_study_is_refused(write: Callable[..., Path], head: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_plan(str(write("seeds(1)", head)))


def test_a_study_is_found_by_path_or_name() -> None:
    with pytest.raises(UserError, match="no study file nowhere; the package's studies are "):
        find_study("nowhere")


# The hash.


def test_the_hash_holds_what_changes_results_and_nothing_else(tmp_path: Path) -> None:
    config = base()
    config.data.dataset, config.data.vocabulary = "arithmetic", str(VOCABULARY_PATH)
    same = {"log.every": 7, "mesh.fsdp": 2, "data.cache": "none", "data.root": "/there", "mi.alpha": 0.5}
    same |= {"objective.beta": 0.7, "eval.rationales": 3, "checkpoint.every": 9, "mi.monitor.every": 0}
    other = {"seed": 1, "steps": 7, "objective.alpha": 0.3, "eval.every": 5, "data.size": 100, "data.version": 2}
    other |= {"data.subsample": 0.5, "data.label_type": "llm", "data.dataset": "arithmetic=2"}
    first = run_hash(config, "code")
    for changes, equal in ((same, True), (other, False)):
        for key, value in changes.items():
            changed = config.copy_and_resolve_references()
            changed.update_from_flattened_dict({key: value})
            assert (run_hash(changed, "code") == first) == equal, key
    assert run_hash(config, "other code") != first
    config.objective.name = "cotmi"  # it has the term
    assert "mi.alpha" not in result_settings(config)
    config.mi.alpha = 0.5
    assert result_settings(config)["mi.alpha"] == 0.5


def test_the_hash_follows_the_content_of_files_not_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hash_of(folder: Path, row: str) -> str:
        for cached in (identity._corpus_digest, identity._file_digest):
            cached.cache_clear()
        folder.mkdir(exist_ok=True)
        (folder / "rows.jsonl").write_text(row)
        config = base()
        config.data.dataset, config.data.vocabulary = f"jsonl:{folder / 'rows.jsonl'}", "bytes"
        return run_hash(config, "code")

    row = '{"input": "1", "label": "2", "rationale": "3"}\n'
    assert hash_of(tmp_path / "a", row) == hash_of(tmp_path / "b", row) != hash_of(tmp_path / "b", row * 2)


def test_the_code_is_that_of_training_and_evaluation(tmp_path: Path) -> None:
    package = tmp_path / "package"
    shutil.copytree(REPOSITORY / "cotmi_jax", package, ignore=shutil.ignore_patterns("__pycache__"))
    first = identity.code_digest()
    assert identity.code_digest(package) == first
    for name, equal in (("study/table.py", True), ("report/plots.py", True), ("objectives/terms.py", False)):
        (package / name).write_text((package / name).read_text() + "\n")
        assert (identity.code_digest(package) == first) == equal, name


def test_only_selects_by_name_and_by_keys(write: Callable[..., Path]) -> None:
    plan = load_plan(str(write(f"product(seeds(3), {ARMS})")))
    selected = {
        only: [run.label for run in plan.runs if matches(run, only)] for only in ("dss", "seed=1", "dss,seed=2")
    }
    assert selected["dss"] == ["dss-seed0", "dss-seed1", "dss-seed2"]
    assert selected["seed=1"] == ["dss-seed1", "infonce_.1-seed1"] and selected["dss,seed=2"] == ["dss-seed2"]
    assert [run.label for run in plan.runs if matches(run, "beta=0.1,objective.name=cotmi,infonce")] == [
        f"infonce_.1-seed{seed}" for seed in range(3)
    ]
