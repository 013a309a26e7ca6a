"""The record of a batch: a row for every picture, in `manifest.jsonl` and in the reports.

A row has these fields:

    output     path of the picture below the folder of the outputs
    input, mask
               paths of the user's files, relative to that folder; mask may be None
    input_sha256, mask_sha256
               hashes of the files; None if a file could not be read
    instruction, seed
    settings   `BatchSettings.record`
    sha256     hash of the output
    size       [width, height] of the picture as the model made it, in pixels
    seconds    from reading the picture to writing the output
    r, reason, cache_bytes, doubts
               see `EditReport`
    region     share of the tokens in the region that was last judged to change, or None
    notes      sentences about what could not be done as asked
    versions   of spotedit, torch and diffusers
    problem    why there is no output; it replaces the fields from `sha256` on
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from ..editor.errors import BadInput
from ..pictures.files import OutputError, describe_error
from ..pictures.lines import append_line, read_lines
from .settings import BatchSettings

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows, where two runs in one folder are not told apart
    fcntl = None

Row = dict[str, Any]
MANIFEST = "manifest.jsonl"
_START = b'{"output": '  # of every row
_FIELDS = {"output", "input", "settings", "instruction", "seed"}


class Manifest:
    """The rows of a batch, read from its file.

    Raises:
        BadInput: another program wrote the file.

    Attributes:
        rows: the last row of every output.
        hashes: for every output, the hashes of all files that were made for it.
    """

    def __init__(self, settings: BatchSettings) -> None:
        self.path = settings.out / MANIFEST
        self._settings = settings
        self.rows: dict[str, Row] = {}
        self.hashes: dict[str, set[str]] = {}
        if not self.path.is_file():
            return
        for row in read_lines(self.path):
            if _is_row(row):
                self._take(row)
        if not self.rows and not _is_cut_short(self.path.read_bytes()):
            raise BadInput(f"{self.path}: was not made by spotedit batch; move it away")

    def append(self, row: Row) -> None:
        """Append a row.

        Raises:
            OutputError: it could not be written.
        """
        append_line(self.path, row)
        self._take(row)

    def reported(self, output: str) -> Row | None:
        """Return the row in an output's report, or None.

        A process that is killed after it wrote a report leaves no row elsewhere.
        """
        try:
            report = json.loads(self._settings.report(output).read_bytes())
        except (OSError, ValueError):
            return None
        row = report.get("row") if isinstance(report, dict) else None
        return row if isinstance(row, dict) and _is_row(row) and row["output"] == output else None

    def _take(self, row: Row) -> None:
        self.rows[row["output"]] = row
        if "sha256" in row:
            self.hashes.setdefault(row["output"], set()).add(row["sha256"])


def _is_cut_short(content: bytes) -> bool:
    """Return whether a full disk, or a killed process, can have left this instead of a row."""
    line = content.strip()
    return line.startswith(_START) or _START.startswith(line)


def _is_row(row: Row) -> bool:
    return row.keys() >= _FIELDS and ("sha256" in row or "problem" in row)


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder `out`, which exists, during the block.

    Raises:
        BadInput: another run is at work there.
        OutputError: the manifest cannot be opened for writing.
    """
    path = out / MANIFEST
    try:
        file = path.open("ab")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({describe_error(error)})") from error
    with file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BadInput(
                    f"{out}: another run of spotedit batch is at work there; wait for it, or "
                    "choose another folder"
                ) from None
            except OSError:  # this file system has no locks
                pass
        yield
