"""Store rows as JSON lines. Reading skips a line that a killed process wrote only in part."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..pictures.files import OutputError
from .edits import DENSE

Row = dict[str, Any]


class JsonLines:
    """The JSON-lines files of one kind of rows in a folder.

    Each process appends to its own file, `KIND-PROCESS.jsonl`, and reads the files of all. A row
    gets the field `written`, in seconds since the epoch. If two rows have the same picture and
    mode, the later one counts, whichever process wrote it.
    """

    def __init__(self, folder: Path, kind: str, process: int = 0) -> None:
        self._folder, self._kind = folder, kind
        self._path = folder / f"{kind}-{process}.jsonl"

    def read(self) -> dict[tuple[str, str], Row]:
        """Return the rows that all processes wrote, by (key, mode)."""
        paths = sorted(self._folder.glob(f"{self._kind}-*.jsonl"))
        rows = sorted((row for path in paths for row in _rows(path)), key=lambda r: r["written"])
        return {(row["key"], row["mode"]): row for row in rows}

    def append(self, row: Row) -> None:
        """Append a row in one write.

        The row starts on a new line, so that a line cut short before it does no harm.

        Raises:
            OutputError: the row, or a part of it, could not be written.
        """
        whole = row | {"written": time.time()}
        line = f"\n{json.dumps(whole, allow_nan=False)}\n".encode()
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                while line:  # a full disk shortens one write, and the next one raises
                    line = line[os.write(file, line) :]
            finally:
                os.close(file)
        except OSError as error:
            raise OutputError(
                f"{self._path}: a row cannot be written ({error.strerror}); finished rows stay: "
                "make room and run the same command again"
            ) from error


def _rows(path: Path) -> Iterator[Row]:
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the line is blank or was cut short
            continue
        if isinstance(row, dict) and {"key", "mode", "written"} <= row.keys():
            yield _current(row)


def _current(row: Row) -> Row:
    """Return a row whose configuration is beside the settings; older rows have it among them."""
    settings = row.get("settings", {})
    if "config" not in settings:
        return row
    shared = {name: value for name, value in settings.items() if name != "config"}
    own = None if row["mode"] == DENSE else settings["config"]
    return {**row, "settings": shared, "config": own}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
