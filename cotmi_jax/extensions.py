"""Imports the user's extensions: the modules of config.extensions, which register objectives, estimators and more."""

import hashlib
import importlib
import importlib.util
import os
import sys

from cotmi_jax.errors import UserError
from cotmi_jax.files import absolute


def extension_names(extensions: str) -> list[str]:
    """The files and modules that config.extensions names."""
    return [name.strip() for name in extensions.split(",") if name.strip()]


def with_absolute_files(extensions: str) -> str:
    """The same extensions, with absolute paths of files, so that a run's record can be read from any folder.

    Raises UserError for a path with a comma, which separates extensions.
    """
    names = [absolute(name) if name.endswith(".py") else name for name in extension_names(extensions)]
    for name in names:
        if "," in name:
            raise UserError(f"config.extensions: {name}: a path cannot contain a comma: move the file, or link it")
    return ",".join(names)


def load_extensions(extensions: str) -> None:
    """Import every module of config.extensions: Python files (*.py) and importable names, separated by commas.

    Each is executed once per process: the recipe of --config, which is executed already, is not executed again.

    Raises UserError if one is not found. Exceptions of a module's own code are not converted.
    """
    for name in extension_names(extensions):
        if name.endswith(".py"):
            _load_extension_file(os.path.realpath(absolute(name)))
            continue
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # a module that the extension imports is missing
            raise UserError(
                f"config.extensions: no module {name!r} (install its package, or add it to PYTHONPATH)"
            ) from error


def _load_extension_file(path: str) -> None:
    files = (getattr(module, "__dict__", {}).get("__file__") for module in list(sys.modules.values()))
    if any(isinstance(file, str) and os.path.realpath(file) == path for file in files):
        return
    if not os.path.isfile(path):
        raise UserError(f"config.extensions: no file {path}: restore it, or correct its path (of a run: in run.json)")
    stem = os.path.basename(path).removesuffix(".py")
    name = f"cotmi_jax_extension_{hashlib.sha256(path.encode()).hexdigest()[:8]}_{stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # files *.py always have a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
