"""Common to all commands: parsing of flags, and one-line error messages."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

# Before tensorflow is imported: hides its start-up notices.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # else tensorflow prints a notice; batches need no such kernels

from absl import app, flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

from cotmi_jax.errors import UserError  # noqa: E402
from cotmi_jax.parallel.accelerators import set_libtpu_stack_size  # noqa: E402

_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of an error.")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parse(arguments: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(arguments))
    except flags.Error as error:
        _fail(str(error).replace("\n", " "))
    except (AttributeError, KeyError) as error:
        # The text of ml_collections' exception is the repr of a message of two lines.
        unknown = " ".join(str(error.args[0]).encode().decode("unicode_escape").replace("'", "").split())
        _fail(f"--config has no key {unknown} (all keys: cotmi_jax/config.py)")
    except (TypeError, ValueError, SyntaxError, UserError) as error:
        _fail(f"--config: {error}".replace("\n", " "))
    if rest[1:]:
        _fail(f"unexpected argument {rest[1]!r}: every option starts with --, see --help")
    return rest


def loaded_config(flag: flags.FlagHolder[ConfigDict]) -> ConfigDict:
    """The value of a --config flag; config_flags reports a recipe that cannot be loaded only when it is first read."""
    config = flag.value
    try:
        config.keys()
    except OSError as error:
        raise UserError(f"--config: {str(error).splitlines()[-1].strip()}") from error
    return config


def guard(main: Callable[[], int | None]) -> int | None:
    """Run main after flags are parsed; a UserError becomes one line on standard error and exit code 2."""
    set_libtpu_stack_size()
    if not flags.FLAGS["verbosity"].present:  # --verbosity=0 shows the notices of the libraries
        absl_logging.set_verbosity(absl_logging.ERROR)
        logging.getLogger().setLevel(logging.ERROR)
    try:
        code = main()
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The process that reads the output, such as head, has ended. Without this, Python's flush at exit fails again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except UserError as error:
        if _TRACEBACK.value:
            raise
        _fail(" ".join(str(error).split("\n")))
    except KeyboardInterrupt:
        sys.exit(130)


def run(main: Callable[[], int | None]) -> None:
    """Parse the flags and run main, guarded."""
    app.run(lambda _: guard(main), flags_parser=_parse)
