"""Where the recipes of --config are found, and how one is loaded. Imports no config: help lists them at once."""

import contextlib
import functools
import os
import re
import sys
import traceback
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePath
from types import ModuleType

from ml_collections import ConfigDict

from cotmi_jax.errors import UserError, did_you_mean

_CHECKOUT = Path(__file__).parent.parent
_INSTALLED = "share/cotmi_jax/configs"  # of the files of an installed package
MODULE = "config_config"  # the name of a loaded recipe's module


@functools.cache
def recipes() -> dict[str, Path]:
    """The recipes of the package by name."""
    return packaged_configs("")


def packaged_configs(folder: str) -> dict[str, Path]:
    """The files of a folder of configs/ by name, of the repository or of an installation."""
    if (_CHECKOUT / "pyproject.toml").is_file():
        paths = list((_CHECKOUT / "configs" / folder).glob("*.py"))
    else:
        installed = metadata.files("cotmi_jax") or []
        pattern = str(PurePath(_INSTALLED, folder, "*.py"))
        paths = [Path(str(file.locate())).resolve() for file in installed if file.match(pattern)]
    return {path.stem: path for path in sorted(paths)}


def find_recipe(name: str) -> Path:
    """The file of a recipe: the path itself, or NAME.py in the current folder, or the package's recipe NAME.

    Raises UserError if there is none, or if NAME is one of the package's and another file in the current folder.
    """
    if os.path.isfile(name):
        return Path(name)
    if not re.fullmatch(r"[\w-]+", name):
        stem = os.path.basename(name).removesuffix(".py")
        raise UserError(f"no file {name}{did_you_mean(stem, recipes())}")
    own, packaged = Path(f"{name}.py"), recipes().get(name)
    if own.is_file():
        if packaged is not None and not own.samefile(packaged):
            raise UserError(f"{name} is {own} in the current folder, and {packaged}: give the path of one")
        return own
    if packaged is None:
        known = did_you_mean(name, recipes()) or f"; the package's recipes are {', '.join(recipes())}"
        raise UserError(f"no recipe {name}{known}")
    return packaged


def load_recipe(argument: str) -> ConfigDict:
    """The config of a recipe RECIPE or RECIPE:ARGUMENT, locked.

    Raises UserError, with file and line, if the recipe is not found, fails, or refuses the argument.
    """
    name, colon, given = argument.partition(":")
    path = find_recipe(name)
    module = load_module(path, MODULE)  # load_extensions finds a recipe there that registers extensions
    with errors_with_place(path):
        config = module.get_config(*([given] if colon else []))
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returns {type(config).__name__}, not a ConfigDict")
    config.lock()
    return config


def load_module(path: Path, name: str) -> ModuleType:
    """Execute a Python file as the module of this name. Raises UserError, with file and line, if it fails.

    The file is compiled anew each time: compiled files of Python are as old as the second of the last change.
    """
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    with errors_with_place(path):
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    return module


@contextlib.contextmanager
def errors_with_place(path: Path) -> Iterator[None]:
    """Raise the exceptions of a user's file in the body as UserError, with file and line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{_place(error, path)}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        ) from error


def _place(error: Exception, path: Path) -> str:
    """The line of a recipe that raised an error."""
    if isinstance(error, SyntaxError):
        return f"{path}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)
