"""The entry point `cotmi`, the help of commands, and how --config finds a recipe."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import runs
from paths import REPOSITORY

from cotmi_jax import __main__ as entry
from cotmi_jax import recipes
from cotmi_jax.config import base, flatten
from cotmi_jax.errors import UserError, did_you_mean
from cotmi_jax.help import config_keys
from cotmi_jax.recipes import find_recipe, load_recipe

OWN = """from cotmi_jax.config import base
def get_config():
    config = base()
    config.steps = 7
    return config
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In an empty folder: the package's recipes are found from any."""
    monkeypatch.chdir(tmp_path)
    recipes.recipes.cache_clear()
    yield
    recipes.recipes.cache_clear()


def test_the_help_has_every_config_key_with_its_default_and_meaning() -> None:
    declared = {key.name: ast.literal_eval(key.default) for key in config_keys()}
    assert declared == flatten(base())
    assert [key.name for key in config_keys() if not key.comment] == ["optimizer.weight_decay"]


def test_help_of_commands_exits_with_0_and_lists_flags() -> None:
    for command, parts in {
        "train": [
            "--workdir=WORKDIR  (required)",
            "--config.batch_size=64",
            "examples a step",
            "Recipes of --config: anli1",
        ],
        "predict": ["--task=predict|explain|both|raw  (default both)", "--[no]scores", "Exit codes: 0 done"],
    }.items():
        for arguments in ([command, "--help"], [command, "-h", "--stpes=3"]):
            result = runs.command("__main__", *arguments)
            assert (result.code, result.err) == (0, ""), result
            assert all(part in result.out for part in parts), result.out
    assert runs.command("evaluate", "--help").out.startswith("Score a student on a split")


def test_the_entry_point_lists_its_commands_and_suggests_the_nearest() -> None:
    result = runs.command("__main__", "--help")
    assert (result.code, result.err) == (0, "")
    assert all(f"  {name}" in result.out for name in entry.COMMANDS) and "Train a student\n" in result.out
    runs.assert_refused(runs.command("__main__", "trian"), "unknown command 'trian': did you mean train?")
    runs.assert_refused(runs.command("__main__"), "no command: give one of train, evaluate")
    runs.assert_refused(runs.command("__main__", "train", "--config=cqa"), "--workdir must have a value")


def test_help_imports_neither_jax_nor_tensorflow() -> None:
    """In a fresh process: imports are nearly all the time that help takes."""
    slow = ("jax", "tensorflow", "numpy", "sentencepiece", "cotmi_jax.config")
    program = f"import sys; from cotmi_jax import train; print([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=cqaa"], "no recipe cqaa: did you mean cqa?"),
        (["--config=mine"], "no recipe mine; the package's recipes are anli1, base, cqa, "),
        (["--config=config/cqa.py"], "no file config/cqa.py: did you mean cqa?"),
        (["--config=cqa:quick"], "unknown config variant 'quick': recipes take :smoke, or nothing"),
        (["--config=cqa", "--stpes=3"], "unknown flag --stpes: did you mean --config.steps or"),
        (["--config=cqa", "--wrokdir=x"], "unknown flag --wrokdir: did you mean --workdir?"),
        (
            ["--config=cqa", "--config.learning_rate=1"],
            "no key learning_rate: did you mean --config.optimizer.learning",
        ),
        (["--config=cqa", "--config.modle.preset=x"], "no key modle.preset: did you mean --config.model.preset?"),
        (["--config=cqa", f"--{'x' * 5000}=1"], "unknown flag --xxx"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_a_mistyped_argument_is_one_short_line(arguments: list[str], message: str) -> None:
    result = runs.command("train", *arguments, "--workdir=run")
    runs.assert_refused(result, message)
    assert len(result.err) < 250


def test_a_recipe_is_found_by_name_or_path(tmp_path: Path) -> None:
    assert find_recipe("cqa") == REPOSITORY / "configs" / "cqa.py"
    assert load_recipe("quickstart:smoke").steps == 4 and load_recipe("quickstart").steps == 700
    Path("mine.py").write_text(OWN)
    Path("plain").write_text(OWN)
    for name in ("mine", "mine.py", "./mine.py", str(tmp_path / "mine.py"), "plain"):
        config = load_recipe(name)
        assert config.steps == 7 and config.is_locked


def test_a_name_with_two_meanings_is_refused() -> None:
    Path("cqa.py").write_text(OWN)
    with pytest.raises(UserError, match="cqa is cqa.py in the current folder, and .*configs/cqa.py: give"):
        find_recipe("cqa")
    assert load_recipe("cqa.py").steps == 7


def test_recipes_of_an_installed_package_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a checkout: the files are those that the installation lists."""
    file = tmp_path / "share" / "cotmi_jax" / "configs" / "cqa.py"
    file.parent.mkdir(parents=True)
    file.write_text(OWN)
    monkeypatch.setattr(recipes, "_CHECKOUT", tmp_path / "site-packages")
    info = tmp_path / "site-packages" / "cotmi_jax-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: cotmi_jax\nVersion: 1\n")
    (info / "RECORD").write_text(
        "cotmi_jax/config.py,,\n../share/cotmi_jax/configs/cqa.py,,\n../share/cotmi_jax/configs/studies/first.py,,\n"
    )
    monkeypatch.syspath_prepend(str(info.parent))
    assert find_recipe("cqa") == file and list(recipes.recipes()) == ["cqa"]
    assert recipes.packaged_configs("studies") == {"first": file.parent / "studies" / "first.py"}


@pytest.mark.parametrize(
    ("source", "argument", "message"),
    [
        ("def get_config():\n    return undefined\n", "", r"mine.py:2: NameError: name 'undefined' is not defined"),
        ("def get_config(:\n", "", r"mine.py:1: SyntaxError"),
        ("steps = 3\n", "", r"mine.py: AttributeError: .*get_config"),
        ("def get_config():\n    return {}\n", "", r"mine.py: get_config\(\) returns dict, not a ConfigDict"),
        (OWN, ":smoke", r"mine.py: TypeError: get_config\(\) takes 0 positional arguments but 1 was given"),
        ("open('absent')\n", "", r"mine.py:1: FileNotFoundError"),
    ],
)
def test_a_recipe_that_fails_is_one_line_with_its_place(source: str, argument: str, message: str) -> None:
    Path("mine.py").write_text(source)
    with pytest.raises(UserError, match=message) as error:
        load_recipe(f"mine.py{argument}")
    assert "\n" not in str(error.value)


def test_nearest_names() -> None:
    assert did_you_mean("batchsize", ["batch_size", "steps"]) == ": did you mean batch_size?"
    assert did_you_mean("lr", ["a.lr", "b.lr"], "--") == ": did you mean --a.lr or --b.lr?"
    assert did_you_mean("zzz", ["steps"]) == ""
