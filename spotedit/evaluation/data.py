"""The data set that a benchmark's reader returns: items to edit, and rows that have a problem."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

INSTALL = 'in a clone of spotedit, run: pip install -e ".[benchmarks]"'
NO_MASK = "no mask"
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # a key becomes the name of a file


class DataError(ValueError):
    """Raised when a data set cannot be read at all."""


class Malformed(ValueError):
    """Raised when one row of a data set is wrong. The row is reported and skipped."""


@dataclass(frozen=True)
class Item:
    """A picture and its instruction.

    Attributes:
        key: unique in the data set; it becomes the file name of the output pictures.
        category: the kind of edit, in the benchmark's words.
        instruction: the prompt for the editor.
        load: a function that reads the picture as RGB. It raises `ImageError` if it cannot.
        target: a description of the edited picture, or None.
        mask: bool [H, W] of the picture's size, True = edited, or None.
        mask_problem: why there is no mask, or which part of the picture the mask leaves empty
            (`masks.EMPTY`, `masks.FULL`); None if the mask has no problem.
    """

    key: str
    category: str
    instruction: str
    load: Callable[[], Image.Image]
    target: str | None = None
    mask: np.ndarray | None = None
    mask_problem: str | None = NO_MASK


@dataclass(frozen=True)
class DataSet:
    """The items of a benchmark.

    Attributes:
        name: the benchmark's name.
        items: the items in the benchmark's order.
        problems: the rows that were left out, as (key of the row, what is wrong with it).
    """

    name: str
    items: list[Item]
    problems: list[tuple[str, str]]

    @property
    def identity(self) -> str:
        """Return the name and a hash of everything but the pictures.

        Two data sets with the same list have the same identity.
        """
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(json.dumps((item.key, item.instruction, item.target)).encode())
            digest.update(b"" if item.mask is None else np.packbits(item.mask).tobytes())
        return f"{self.name} {digest.hexdigest()[:12]}"


def text(row: dict[str, Any], name: str) -> str:
    """Return the text in the field `name`.

    Raises:
        Malformed: the field is missing, is no text, or is blank.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f"{name} is {_short(value)}; expected text")
    return value


def unmarked(prompt: str) -> str:
    """Return `prompt` without the square brackets around what the edit changes."""
    return prompt.replace("[", "").replace("]", "").strip()


def check_key(key: object) -> str:
    """Return `key`, or raise `Malformed` if it cannot be the name of a file."""
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise Malformed(f"key {_short(key)}; expected letters, digits, '_', '-' and '.'")
    return key


def picture_path(root: Path, name: str) -> Path:
    """Return the path of the picture `name` below `root`; `name` separates folders with slashes.

    Raises:
        Malformed: `name` leads out of `root`, or there is no such file.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or re.search(r"[\\:\0]", name):
        raise Malformed(f"path {_short(name)} leads out of the data set")
    path = root / parts
    if not path.is_file():
        raise Malformed(f"no such picture: {name}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: the file cannot be read, is not JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{path}: a {type(value).__name__}; expected an object, key to row")
    return value


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
