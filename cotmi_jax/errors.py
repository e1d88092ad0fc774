"""The exception for user errors, and what its messages quote of files and texts that strangers wrote."""

import reprlib
from collections.abc import Iterable

_SHOWN = 100  # characters of a stranger's text in a message


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


def one_line(text: str, limit: int = _SHOWN) -> str:
    """A text of unknown origin for a message: control characters escaped, the middle left out beyond the limit."""
    escaped = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in _cut(text, limit))
    return _cut(escaped, limit)  # an escape sequence has up to ten characters


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - limit // 3 - 1]}…{text[-(limit // 3) :]}"


def shown(value: object) -> str:
    """The repr of a value of unknown origin for a message: on one line, and short however large or nested it is."""
    return one_line(_REPR.repr(value))


class _Repr(reprlib.Repr):
    """Stops at a depth and a width: the repr of tuples that share tuples would take exponential time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _SHOWN

    def repr_int(self, x: int, level: int) -> str:
        # Beyond 4,300 digits Python refuses to write a number in decimal.
        return super().repr_int(x, level) if x.bit_length() <= 512 else f"<integer of {x.bit_length()} bits>"


_REPR = _Repr()


def did_you_mean(name: str, names: Iterable[str], prefix: str = "") -> str:
    """A question with the names that are most like a mistyped one, to append to an error; "" if none is.

    prefix: is shown before each. Of dotted names the last part is compared too: `learning_rate` is like
    `optimizer.learning_rate`.
    """
    import difflib

    known = list(names)
    last = name.rpartition(".")[2]
    found = [each for each in known if each.rpartition(".")[2] == last] or difflib.get_close_matches(name, known, 1)
    if not found:
        close = difflib.get_close_matches(last, [each.rpartition(".")[2] for each in known], 1)
        found = [each for each in known if each.rpartition(".")[2] in close]
    return f": did you mean {' or '.join(prefix + each for each in found[:3])}?" if found else ""
