"""The two kinds of errors that a command reports in one line instead of a traceback."""


class UserError(Exception):
    """What was given cannot be used; the message says what to mend."""


class RunError(Exception):
    """A run broke down; the message says where, and from what it can go on."""
