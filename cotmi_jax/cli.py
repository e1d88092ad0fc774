"""Common to all commands: parsing of flags, and one-line error messages."""

import contextlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

# Before tensorflow is imported: hides its start-up notices.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else tensorflow prints a notice; batches need no such kernels

from absl import app, flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from ml_collections import ConfigDict, config_flags  # noqa: E402

from cotmi_jax.errors import UserError, did_you_mean  # noqa: E402
from cotmi_jax.help import config_keys, format_help  # noqa: E402
from cotmi_jax.huge_pages import use_huge_pages  # noqa: E402
from cotmi_jax.parallel.accelerators import set_libtpu_stack_size  # noqa: E402
from cotmi_jax.recipes import load_recipe  # noqa: E402

_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of an error.")
_MAX_SHOWN = 100  # characters of an argument in a message


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


class _RecipeParser(flags.ArgumentParser):
    """The value of --config, which config_flags then changes by --config.key=value."""

    def parse(self, argument: str) -> ConfigDict:
        return load_recipe(argument)

    def flag_type(self) -> str:
        return "recipe"


def define_config() -> flags.FlagHolder[ConfigDict]:
    """The flag --config of a command that takes a recipe."""
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "The recipe, a name or a file; RECIPE:smoke is the same at CPU size. --config.key=value changes a key.",
    )
    flags.FLAGS["config"].parser = _RecipeParser()
    return holder


def _fail_on_key(arguments: Sequence[str]) -> NoReturn:
    """Report the first --config.key=value whose key no recipe has."""
    known = [key.name for key in config_keys()]
    given = [match[1] for each in arguments if (match := re.match(r"--?(?:no)?config\.([^=]*)", each))]
    sections = {name.rpartition(".")[0] for name in known}
    unknown = next((key for key in given if key not in known and key not in sections), ", ".join(given))
    close = did_you_mean(unknown, known, "--config.")
    _fail(f"--config has no key {unknown[:_MAX_SHOWN]}{close} (train --help lists all keys)")


def _fail_on_flag(name: str) -> NoReturn:
    keys = [f"config.{key.name}" for key in config_keys()] if "config" in flags.FLAGS else []
    close = did_you_mean(name, [*flags.FLAGS, *keys], "--")
    _fail(f"unknown flag --{name[:_MAX_SHOWN]}{close or ': see --help'}")


def _help(arguments: Sequence[str]) -> None:
    """Print the help that the arguments ask for, if they do, and exit with code 0."""
    options = {each.lstrip("-") for each in arguments if each.startswith("-")}
    if not options & {"help", "helpshort", "h", "?", "helpfull"}:
        return
    with _closed_pipe_ends():
        if "helpfull" in options:
            app.usage(writeto_stdout=True)
        else:
            print(format_help(sys.modules["__main__"].__doc__ or "", sys.argv[0]))
        sys.stdout.flush()
    sys.exit(0)


@contextlib.contextmanager
def _closed_pipe_ends() -> Iterator[None]:
    """End with exit code 1 and no message when the process that reads the output, such as head, has ended."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python's flush at exit fails again
        sys.exit(1)


def _parse(arguments: Sequence[str], positional: bool) -> list[str]:
    try:
        rest = flags.FLAGS(list(arguments))
    except flags.UnrecognizedFlagError as error:
        _fail_on_flag(error.flagname)
    except RecursionError:  # of absl's search for a flag like one whose name has hundreds of characters
        _fail_on_flag(max((each.lstrip("-").partition("=")[0] for each in arguments[1:]), key=len))
    except flags.Error as error:
        _fail(" ".join(str(error).split()))
    except (AttributeError, KeyError):
        _fail_on_key(arguments)
    except (TypeError, ValueError) as error:
        _fail(f"--config: {' '.join(str(error).split())}")
    if rest[1:] and not positional:
        _fail(f"unexpected argument {rest[1][:_MAX_SHOWN]!r}: every option starts with --, see --help")
    return rest


def guard(main: Callable[[], int | None]) -> int | None:
    """Run main after flags are parsed; a UserError becomes one line on standard error and exit code 2."""
    set_libtpu_stack_size()
    if not flags.FLAGS["verbosity"].present:  # --verbosity=0 shows the notices of the libraries
        absl_logging.set_verbosity(absl_logging.ERROR)
        logging.getLogger().setLevel(logging.ERROR)
    try:
        with _closed_pipe_ends():
            code = main()
            sys.stdout.flush()
        return code
    except UserError as error:
        if _TRACEBACK.value:
            raise
        _fail(" ".join(str(error).split("\n")))
    except KeyboardInterrupt:
        sys.exit(130)


def run(main: Callable[..., int | None], *, huge_pages: bool = False, positional: bool = False) -> None:
    """Parse the flags and run main, guarded; with huge_pages the command is first executed again (huge_pages.py).

    positional: main takes the list of arguments that are no flags; otherwise there may be none.
    """

    def parse(arguments: Sequence[str]) -> list[str]:
        _help(arguments[1:])
        if huge_pages:
            try:
                use_huge_pages()
            except UserError as error:
                _fail(str(error))
        return _parse(arguments, positional)

    app.run(lambda rest: guard((lambda: main(rest[1:])) if positional else main), flags_parser=parse)
