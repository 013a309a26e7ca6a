"""How a command ends if something went wrong."""

from collections.abc import Iterable

from ..editor.errors import Failure


class Unedited(Exception):
    """Raised with `--fail-if-unchanged` when nothing was edited: exit status 3."""


def raise_if_any(problems: Iterable[str | None]) -> None:
    """Raise `Failure` with a line for each problem, if there is one. None means no problem."""
    lines = [problem for problem in problems if problem is not None]
    if lines:
        raise Failure("\n".join(lines))
