"""The errors that a command reports in one line instead of a traceback."""

from collections.abc import Iterable


class BadInput(Exception):
    """Raised when the command line, or a file named on it, is wrong: exit status 2."""


class Failure(Exception):
    """Raised when the input is fine but the work could not be done: exit status 1."""


class Unedited(Exception):
    """Raised with `--fail-if-unchanged` when nothing was edited: exit status 3."""


def raise_if_any(problems: Iterable[str | None]) -> None:
    """Raise `Failure` with a line for each problem, if there is one. None means no problem."""
    lines = [problem for problem in problems if problem is not None]
    if lines:
        raise Failure("\n".join(lines))
