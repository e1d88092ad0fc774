"""Classifies exceptions of tensorstore and orbax: a system error, damaged content, or unavailable storage."""

import errno
import re

from cotmi_jax.files import failures

# tensorstore raises ValueError whose text begins with the status and may hold the number of the system's error.
_STATUS = re.compile(
    r"(CANCELLED|UNKNOWN|INVALID_ARGUMENT|DEADLINE_EXCEEDED|NOT_FOUND|ALREADY_EXISTS|PERMISSION_DENIED|"
    r"RESOURCE_EXHAUSTED|FAILED_PRECONDITION|ABORTED|OUT_OF_RANGE|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS|"
    r"UNAUTHENTICATED): "
)
_SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")
_ERRNO = {"RESOURCE_EXHAUSTED": errno.ENOSPC, "PERMISSION_DENIED": errno.EACCES, "NOT_FOUND": errno.ENOENT}
# Errors about the content of files, by tensorstore's status and by the system's error; others may be an outage.
_OF_CONTENT = ("NOT_FOUND", "DATA_LOSS", "FAILED_PRECONDITION", "INVALID_ARGUMENT", "OUT_OF_RANGE")
_OF_CONTENT_CODES = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)


def first_line(error: Exception) -> str:
    """The message of an exception in one line, without tensorstore's details."""
    return str(error).strip().splitlines()[0].partition(". See full")[0][:200] if str(error) else type(error).__name__


def as_system_error(error: ValueError, path: object) -> OSError | None:
    """The system's error that tensorstore wraps in a ValueError; None where it wraps none."""
    status, number = _STATUS.match(str(error)), _SYSTEM_ERROR.search(str(error))
    if status is None:
        return None
    code = int(number[1]) if number else _ERRNO.get(status[1], errno.EIO)
    return OSError(code, first_line(error) if number is None else "", str(path))


def is_damage(error: Exception) -> bool:
    """Whether a read error is about the content. Any other may be a temporary outage."""
    if isinstance(error, failures()):
        return getattr(error, "errno", None) == errno.ELOOP or isinstance(
            error, FileNotFoundError | NotADirectoryError | IsADirectoryError
        )
    status, number = _STATUS.match(str(error)), _SYSTEM_ERROR.search(str(error))
    if number:
        return int(number[1]) in _OF_CONTENT_CODES
    return status is None or status[1] in _OF_CONTENT
