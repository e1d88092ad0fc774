"""Filters reports of orbax and tensorstore that repeat the exception that they raise.

If one array of a tree cannot be read or written, orbax raises and closes its event loop while tensorstore still
processes the others. Each of these then reports separately, through sys.unraisablehook from a thread that cannot be
joined ("Event loop is closed"), or through asyncio's logger when its task is garbage-collected ("exception was never
retrieved"). Observed with orbax-checkpoint 0.12.8. Such reports may come at any later time, so the filters remain for
the life of the process.
"""

import logging
import sys
from typing import Any

_ABANDONED = ("Event loop is closed", "Encountered error while reading")
_previous_hook = sys.unraisablehook


def _report_others(unraisable: Any) -> None:  # sys.UnraisableHookArgs exists for type checkers only
    if not str(unraisable.exc_value).startswith(_ABANDONED):
        _previous_hook(unraisable)


def _not_of_an_abandoned_task(record: logging.LogRecord) -> bool:
    return "exception was never retrieved" not in record.getMessage()


def _not_raised_too(record: logging.LogRecord) -> bool:
    """Orbax logs the traceback of what it raises; the exception is reported where it is caught."""
    return not (record.exc_info and "orbax" in record.pathname)


def silence_abandoned_operations() -> None:
    """Filter these reports, and no others, from now on. Calling it again changes nothing."""
    global _previous_hook
    if sys.unraisablehook is not _report_others:
        _previous_hook, sys.unraisablehook = sys.unraisablehook, _report_others
    logging.getLogger("asyncio").addFilter(_not_of_an_abandoned_task)
    logging.getLogger("absl").addFilter(_not_raised_too)
