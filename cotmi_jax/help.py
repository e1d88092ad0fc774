"""The text of --help: what a command does, its flags, and the keys of a recipe. Imports no config, to be fast."""

import ast
import re
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from absl import flags

from cotmi_jax.recipes import recipes

_CONFIG_SOURCE = Path(__file__).with_name("config.py")
_SECTIONS = ("base", "_data", "_model", "_mi")  # the functions of config.py that declare keys
_ASSIGNMENT = re.compile(r"    (\w+)\.([\w.]+) = (.*?)(?:  # (.*))?")
EXIT_CODES = """Exit codes: 0 done, or (train) stopped by a signal and saved; 1 a defect, with its traceback, or a
negative result (aot: a program does not fit; annotate: see its report; study: a run failed); 2 a user error, one line
that names the remedy; 75 (train, evaluate) another process of the run was lost: start again; 130 and 143
interrupted, nothing to save."""


class ConfigKey(NamedTuple):
    """A key as config.py declares it: its default as Python text, and its comment."""

    name: str
    default: str
    comment: str


def config_keys() -> list[ConfigKey]:
    """Every key of a recipe, read from the source of config.py without importing it."""
    source = _CONFIG_SOURCE.read_text("utf-8")
    lines, keys = source.splitlines(), []
    for function in ast.parse(source).body:
        if not isinstance(function, ast.FunctionDef) or function.name not in _SECTIONS:
            continue
        above: list[str] = []
        for line in lines[function.lineno : function.end_lineno]:
            found = _ASSIGNMENT.fullmatch(line)
            if found and not found[3].endswith("()"):  # a section
                prefix = "" if found[1] == "config" else f"{found[1]}."
                keys.append(ConfigKey(prefix + found[2], found[3], found[4] or " ".join(above)))
            above = [*above, line.strip("# ")] if line.startswith("    # ") else []
    return keys


def format_help(purpose: str, module: str) -> str:
    """The help of a command: its purpose, and the flags that its module and cli define."""
    shown = list(flags.FLAGS.get_key_flags_for_module(module))
    common = [flag for flag in flags.FLAGS.flags_by_module_dict().get("cotmi_jax.cli", []) if flag not in shown]
    is_trained = any(flag.name == "config" for flag in common)
    blocks = [purpose.strip(), "\nFlags:", *map(_format_flag, [flag for flag in common if flag.name == "config"])]
    blocks += map(_format_flag, shown)
    blocks += [_format_flag(flag) for flag in common if flag.name != "config"]
    if is_trained:
        blocks += [
            "",
            *_wrap(f"Recipes of --config: {', '.join(recipes())}; NAME:smoke at CPU size; or a file of your own.", ""),
            "\nKeys of a recipe, with the defaults of base() in cotmi_jax/config.py:",
            *(_entry(f"--config.{key.name}={key.default}", key.comment) for key in config_keys()),
        ]
    return "\n".join([*blocks, "", *_wrap(EXIT_CODES, "")])


def _format_flag(flag: flags.Flag) -> str:
    values = getattr(flag.parser, "enum_values", None)
    if flag.boolean:
        head = f"--[no]{flag.name}"
    else:
        head = f"--{flag.name}={'|'.join(values) if values else flag.name.upper()}"
    if any("must have a value" in each.message and hasattr(each, "flag_name") for each in flag.validators):
        head += "  (required)"
    elif flag.default not in (None, "", False):
        head += f"  (default {flag.default})"
    return _entry(head, re.sub("^<.*?>: ", "", flag.help or ""))  # absl puts the values of an enum before its help


def _entry(head: str, text: str) -> str:
    return "\n".join([f"  {head}", *_wrap(text, "      ")])


def _wrap(text: str, indent: str) -> Iterable[str]:
    width = min(shutil.get_terminal_size((100, 24)).columns, 110)
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
