"""The exception for user errors, and the one of a name that is not registered."""

from collections.abc import Iterable


class UserError(ValueError):
    """A user error (configuration, input, permissions): one line that names the values and the remedy.

    Command-line entry points print it without a traceback and exit non-zero; library callers catch it like any
    exception. Everything else that is raised is a defect of this package and keeps its traceback.
    """


def unknown_name(problem: str, names: Iterable[str]) -> UserError:
    """The error for a name without an entry in a registry: the problem, the names there are, and how to add one."""
    return UserError(
        f"{problem}: choose one of {', '.join(names)}, or name the file that registers it in config.extensions"
    )
