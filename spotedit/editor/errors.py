"""The errors that a program reports in one line instead of a traceback."""


class BadInput(Exception):
    """Raised when an option, or a file that the user names, is wrong: exit status 2."""


class Failure(Exception):
    """Raised when the input is fine but the work could not be done: exit status 1."""
