"""What a command raises instead of a traceback."""


class BadInput(Exception):
    """The command line or a file named on it is wrong: exit status 2."""


class Failure(Exception):
    """The input is fine, the work could not be done: exit status 1."""


class Unedited(Exception):
    """Nothing was edited, which `--fail-if-unchanged` refuses: exit status 3."""
