"""The exception for user errors."""


class UserError(ValueError):
    """A user error (configuration, input, permissions): one line that names the values and the remedy.

    Command-line entry points print it without a traceback and exit non-zero; library callers catch it like any
    exception. Everything else that is raised is a defect of this package and keeps its traceback.
    """
