"""The program `spotedit`.

This module finds out which command runs. The command's own module, and with it PyTorch, is imported
only when the command runs.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from .. import __version__
from ..editor.errors import BadInput, Failure
from ..pictures.images import ImageError, OutputError
from .commands import COMMANDS, parse
from .errors import Unedited

FAILED, BAD_INPUT, UNEDITED = 1, 2, 3
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 on success, 1 if the command failed, 2 for bad input, 3 if nothing was edited and
        `--fail-if-unchanged` was given, 130 if the user interrupted the command.

    Raises:
        SystemExit: with 2 if the command line has a mistake, with 0 after `--help` or `--version`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command: str = _parser().parse_args(arguments[:1]).command
    # transformers warns that torchvision is missing, which no editing pipeline here uses
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    logging.getLogger("spotedit").setLevel(logging.ERROR)  # the commands print these messages
    try:
        options = parse(command, arguments[1:])
        import_module(f"{__name__}.{command}").run(options)
    except Failure as error:
        return _stop(command, error, FAILED)
    except (BadInput, ImageError, OutputError) as error:
        return _stop(command, error, BAD_INPUT)
    except Unedited as error:
        return _stop(command, error, UNEDITED)
    except KeyboardInterrupt:
        return _stop(command, "interrupted", INTERRUPTED)
    return 0


def _stop(command: str, problem: object, status: int) -> int:
    print(f"spotedit {command}: {problem}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    """Return a parser that takes the name of the command and nothing else."""
    parser = argparse.ArgumentParser(
        prog="spotedit",
        description="Edit pictures by instruction; compute only what changes.",
        epilog="`spotedit COMMAND --help` describes the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"spotedit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, options in COMMANDS.items():
        summary, *_ = str(options.__doc__).splitlines()
        commands.add_parser(name, help=summary, add_help=False)
    return parser
