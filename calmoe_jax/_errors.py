"""The two kinds of errors that a command reports in one line instead of a traceback."""


class UserError(Exception):
    """The user's input cannot be used; the message says what to fix."""


class RunError(Exception):
    """A run failed; the message says where, and how to resume it."""
