"""Read a list of edits: a CSV file or a file of JSON lines."""

import csv
import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ..editor.errors import BadInput

LIST_SUFFIXES = (".csv", ".jsonl", ".ndjson")
COLUMNS = ("image", "instruction", "mask", "seed", "output")
_MAX_SEED = 2**63 - 1
_MAX_PROBLEMS = 10


@dataclass(frozen=True)
class Entry:
    """A row of a list. What the row leaves out is None.

    Attributes:
        where: name of the list and number of the line, for messages.
        image, mask: paths as the list has them.
    """

    where: str
    image: str
    instruction: str | None = None
    mask: str | None = None
    seed: int | None = None
    output: str | None = None


def is_list(path: Path) -> bool:
    """Return whether the suffix is that of a list."""
    return path.suffix.lower() in LIST_SUFFIXES


def read_list(path: Path) -> tuple[list[Entry], list[str]]:
    """Read a list.

    Returns:
        Its rows, and the names of the columns that are not used.

    Raises:
        BadInput: the file cannot be read, or rows of it are wrong; a line for each, up to ten.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise BadInput(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is not in UTF-8 ({error.reason}); save it as UTF-8") from error
    rows = _csv_rows(path, text) if path.suffix.lower() == ".csv" else _json_rows(path, text)
    entries: list[Entry] = []
    problems: list[str] = []
    unused: dict[str, None] = {}  # in the order of their first appearance
    for where, row in rows:
        try:
            if isinstance(row, str):
                raise BadInput(row)
            unused |= dict.fromkeys(_unused_columns(row))
            entries.append(_entry(where, row))
        except BadInput as error:
            problems.append(f"{where}: {error}")
    if problems:
        more = len(problems) - _MAX_PROBLEMS
        rest = [f"... and {more} more lines"] if more > 0 else []
        raise BadInput("\n".join(problems[:_MAX_PROBLEMS] + rest))
    if not entries:
        raise BadInput(f"{path}: has no rows; expected the columns {', '.join(COLUMNS)}")
    return entries, list(unused)


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    """Yield (place, row), or (place, what is wrong with the row)."""
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # some spreadsheets write semicolons
    reader = csv.DictReader(
        StringIO(text, newline=""), delimiter=delimiter, restkey="", restval="", strict=True
    )
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = names
        if "image" not in names:
            raise BadInput(
                f"{path}: the first line names the columns {', '.join(names) or '(none)'}; "
                f"expected image, and any of {', '.join(COLUMNS[1:])}"
            )
        for row in reader:
            where = f"{path.name}:{reader.line_num}"
            if "" in row and isinstance(row[""], list):
                yield where, f"more fields than the {len(names)} columns; quote those with commas"
            else:
                yield where, row
    except csv.Error as error:
        raise BadInput(f"{path}:{reader.line_num}: {error}") from error


def _json_rows(path: Path, text: str) -> Iterator[tuple[str, Mapping[str, Any] | str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path.name}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            yield where, f"not JSON ({error})"
        else:
            expected = 'expected an object such as {"image": "dog.png"}'
            yield where, row if isinstance(row, dict) else f"{line.strip()[:40]}; {expected}"


def _unused_columns(row: Mapping[str, Any]) -> list[str]:
    unused = [name for name in row if name not in COLUMNS]
    for name in unused:
        if similar := difflib.get_close_matches(name.strip().lower(), COLUMNS, n=1, cutoff=0.75):
            raise BadInput(f"the column {name!r} is unknown; did you mean {similar[0]!r}?")
    return unused


def _entry(where: str, row: Mapping[str, Any]) -> Entry:
    image = _text(row, "image")
    if image is None:
        raise BadInput("image is missing")
    return Entry(
        where,
        image,
        _text(row, "instruction"),
        _text(row, "mask"),
        _seed(row.get("seed")),
        _text(row, "output"),
    )


def _text(row: Mapping[str, Any], name: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or "\0" in value:
        raise BadInput(f"{name} is {value!r}; expected a text")
    return value.strip() or None


def _seed(value: Any) -> int | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        seed = int(value) if isinstance(value, str) else value
    except ValueError:
        seed = None
    if type(seed) is not int or not 0 <= seed <= _MAX_SEED:
        raise BadInput(f"seed is {value!r}; expected a whole number from 0 to {_MAX_SEED}")
    return seed
