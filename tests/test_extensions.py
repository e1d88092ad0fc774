"""Modules of config.extensions are executed once, found from any folder, and loaded with a trained workdir."""

import builtins
import json
import sys
from pathlib import Path

import pytest
import runs
from ml_collections.config_flags import config_flags

from cotmi_jax.data.sources.arithmetic import VOCABULARY_PATH
from cotmi_jax.errors import UserError
from cotmi_jax.experiment import with_data_root
from cotmi_jax.extensions import load_extensions, with_absolute_files
from cotmi_jax.training.job import train
from cotmi_jax.workdir.record import read_run

RECIPE = """
import builtins
from cotmi_jax.config import base
builtins.executed.append(__name__)
def get_config():
    config = base()
    config.extensions = __file__
    return config
"""


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names under which the modules of a test were executed."""
    names: list[str] = []
    monkeypatch.setattr(builtins, "executed", names, raising=False)
    return names


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A recipe that names itself as extension."""
    path = tmp_path / "my_study.py"
    path.write_text(RECIPE)
    return path


def test_a_file_is_executed_once(study: Path, executed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(study.parent)
    load_extensions(f"my_study.py, {study}")
    load_extensions(str(study))
    assert len(executed) == 1 and executed[0] in sys.modules and executed[0].endswith("_my_study")


@pytest.mark.filterwarnings("ignore:the load_module")  # config_flags
def test_the_recipe_of_the_command_is_not_executed_again(study: Path, executed: list[str]) -> None:
    config = config_flags._LoadConfigModule("recipe_config", str(study)).get_config()
    load_extensions(config.extensions)
    assert executed == ["recipe_config"]


def test_a_file_that_failed_is_executed_again(study: Path, executed: list[str]) -> None:
    study.write_text(RECIPE + "raise RuntimeError('of the study')")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="of the study"):
            load_extensions(str(study))
    assert len(executed) == 2


def test_missing_extensions_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=f"^config.extensions: no file {tmp_path}/gone.py: restore it"):
        load_extensions(f"json,{tmp_path}/gone.py")
    with pytest.raises(UserError, match="^config.extensions: no module 'my_package.study'"):
        load_extensions("my_package.study")
    (tmp_path / "lacking.py").write_text("import my_other_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="my_other_package"):
        load_extensions("lacking")


def test_the_record_of_a_run_names_files_absolutely(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    config = with_data_root(runs.tiny_config({"extensions": "a.py, package.b"}))
    assert config.extensions == with_absolute_files(config.extensions) == f"{tmp_path}/a.py,package.b"


def test_training_and_reading_a_workdir_load_its_extensions(study: Path, executed: list[str], tmp_path: Path) -> None:
    config, workdir = runs.tiny_config({"extensions": str(study)}), tmp_path / "run"
    workdir.mkdir()
    runs.make_record(workdir)
    with pytest.raises(UserError, match="another config"):
        train(config, str(workdir))
    assert len(executed) == 1
    record = workdir / "run.json"
    record.write_text(record.read_text().replace('"extensions": ""', f'"extensions": "{study.with_name("gone.py")}"'))
    with pytest.raises(UserError, match=r"gone.py: restore it, or correct its path \(of a run: in run.json\)$"):
        read_run(workdir)


@pytest.mark.slow
def test_describe_imports_extensions(tmp_path: Path) -> None:
    page = (runs.REPOSITORY / "docs" / "extending.md").read_text(encoding="utf-8")
    (tmp_path / "mine.py").write_text(page.partition("```python\n")[2].partition("```")[0])
    flags = ["--dataset=doubling", f"--vocabulary={VOCABULARY_PATH}", "--json"]
    result = runs.command("describe", *flags, f"--extensions={tmp_path / 'mine.py'}")
    assert result.code == 0, result.err
    assert json.loads(result.out)["splits"]["train"]["examples"] == 30
    runs.assert_refused(runs.command("describe", *flags), "dataset = 'doubling'")
