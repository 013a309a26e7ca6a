"""Store the rows of an evaluation as JSON lines, in a file for each process."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..pictures.lines import append_line, digest, read_lines
from .edits import DENSE

__all__ = ["JsonLines", "Row", "digest"]

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

        Raises:
            OutputError: the row, or a part of it, could not be written.
        """
        append_line(self._path, row | {"written": time.time()})


def _rows(path: Path) -> Iterator[Row]:
    rows = read_lines(path)
    return (_current(row) for row in rows if {"key", "mode", "written"} <= row.keys())


def _current(row: Row) -> Row:
    """Return a row whose configuration is beside the settings; older rows have it among them."""
    settings = row.get("settings", {})
    if "config" not in settings:
        return row
    shared = {name: value for name, value in settings.items() if name != "config"}
    own = None if row["mode"] == DENSE else settings["config"]
    return {**row, "settings": shared, "config": own}
