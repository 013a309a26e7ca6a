"""Rows in JSON lines that survive a kill: appended whole, read without the half-written ones."""

import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..pictures.files import OutputError

Row = dict[str, Any]


class Lines:
    """The rows of a kind in a folder: each process appends to a file of its own, and reads all.

    Files are `KIND-NUMBER.jsonl`. Rows get `written`, seconds since the epoch: of two for one
    picture and mode the later one counts, whichever process wrote it.
    """

    def __init__(self, folder: Path, kind: str, process: int = 0) -> None:
        self._folder, self._kind = folder, kind
        self._own = folder / f"{kind}-{process}.jsonl"

    def read(self) -> dict[tuple[str, str], Row]:
        """Rows by (key, mode)."""
        paths = sorted(self._folder.glob(f"{self._kind}-*.jsonl"))
        rows = sorted((row for path in paths for row in _rows(path)), key=lambda r: r["written"])
        return {(row["key"], row["mode"]): row for row in rows}

    def append(self, row: Row) -> None:
        """Add a row, in one write where the disk has room. A line cut short stays apart from it.

        Raises:
            OutputError: the row could not be written, or not all of it.
        """
        whole = row | {"written": time.time()}
        line = f"\n{json.dumps(whole, allow_nan=False)}\n".encode()
        try:
            file = os.open(self._own, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                while line:  # after a short write, the next one raises the reason
                    line = line[os.write(file, line) :]
            finally:
                os.close(file)
        except OSError as error:
            raise OutputError(
                f"{self._own}: a row cannot be written ({error.strerror}); what is finished stays: "
                "make room and run the same command again"
            ) from error


def _rows(path: Path) -> Iterator[Row]:
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # blank, or cut short
            continue
        if isinstance(row, dict) and {"key", "mode", "written"} <= row.keys():
            yield row


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
