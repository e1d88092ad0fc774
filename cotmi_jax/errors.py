"""The one exception that is meant for the person at the keyboard."""


class UserError(ValueError):
    """Something the user can put right: one line that names the values and the way out.

    Command-line entry points print it without a traceback and exit non-zero; library callers catch it like any
    exception. Everything else that is raised is a defect of this package and keeps its traceback.
    """
