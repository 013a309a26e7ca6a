"""Files of JSON lines. Reading skips a line that a killed process wrote only in part."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .files import OutputError, describe_error


def append_line(path: Path, row: Mapping[str, Any]) -> None:
    """Append a row to a file in one write.

    The row starts on a new line, so that a line cut short before it does no harm.

    Raises:
        OutputError: the row, or a part of it, could not be written.
    """
    line = f"\n{json.dumps(row, allow_nan=False)}\n".encode()
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            while line:  # a full disk shortens one write, and the next one raises
                line = line[os.write(file, line) :]
        finally:
            os.close(file)
    except OSError as error:
        raise OutputError(
            f"{path}: a row cannot be written ({describe_error(error)}); finished rows stay: "
            "make room and run the same command again"
        ) from error


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file. Lines that are blank, cut short or no JSON object are skipped."""
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the line is blank or was cut short
            continue
        if isinstance(row, dict):
            yield row


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
