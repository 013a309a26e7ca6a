"""What a command raises instead of a traceback."""

from collections.abc import Iterable


class BadInput(Exception):
    """The command line or a file named on it is wrong: exit status 2."""


class Failure(Exception):
    """The input is fine, the work could not be done: exit status 1."""


class Unedited(Exception):
    """Nothing was edited, which `--fail-if-unchanged` refuses: exit status 3."""


def fail_for(problems: Iterable[str | None]) -> None:
    """Raise `Failure` with a line for each problem; None is no problem."""
    lines = [problem for problem in problems if problem is not None]
    if lines:
        raise Failure("\n".join(lines))
