"""The shell around every command: flags in, one-line errors out."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

# Before tensorflow is imported: its start-up notices are not for the user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # announced at start-up otherwise; batches need no such kernels

from absl import app, flags  # noqa: E402
from absl import logging as absl_logging  # noqa: E402

from cotmi_jax.errors import UserError  # noqa: E402

_TRACEBACK = flags.DEFINE_bool("traceback", False, "Show the traceback of an error, and the notices of libraries.")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def _parse(arguments: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(arguments))
    except flags.Error as error:
        _fail(str(error).replace("\n", " "))
    except (AttributeError, KeyError, TypeError, ValueError, OSError, UserError) as error:
        # What config_flags lets through from a recipe: an unknown key, a value of another type, a missing file.
        _fail(f"--config: {error.args[0] if len(error.args) == 1 else error}".replace("\n", " "))
    if rest[1:]:
        _fail(f"unexpected argument {rest[1]!r}: every option starts with --, see --help")
    return rest


def run(main: Callable[[], int | None]) -> None:
    """Parse the flags and run main; a UserError becomes one line on standard error and exit code 2."""

    def guarded(_: list[str]) -> int | None:
        if not _TRACEBACK.value:
            absl_logging.set_verbosity(absl_logging.ERROR)
            logging.getLogger().setLevel(logging.ERROR)
        try:
            return main()
        except UserError as error:
            if _TRACEBACK.value:
                raise
            _fail(" ".join(str(error).split("\n")))
        except KeyboardInterrupt:
            sys.exit(130)

    app.run(guarded, flags_parser=_parse)
