"""What a benchmark's reader gives: items to edit, and the rows that it could not use."""

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
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # becomes the name of a file


class DataError(ValueError):
    """A data set cannot be read at all."""


class Malformed(ValueError):
    """One row of a data set is wrong; it is reported and skipped."""


@dataclass(frozen=True)
class Item:
    """A picture and its instruction.

    Attributes:
        key: unique in the data set; names the output pictures.
        category: the benchmark's own kind of edit.
        instruction: the prompt of the editor.
        load: reads the picture, RGB; raises `ImageError`.
        target: description of the edited picture, or None.
        mask: bool [H, W] of the picture's size, True = edited, or None.
        mask_problem: why there is no mask, or which part of the picture it leaves empty
            (`masks.EMPTY`, `masks.FULL`), or None.
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
    """Items in the data set's order, and (row, what is wrong with it) of those left out."""

    name: str
    items: list[Item]
    problems: list[tuple[str, str]]

    @property
    def identity(self) -> str:
        """Name and a hash of all but the pictures: the same for the same listing."""
        digest = hashlib.sha256()
        for item in self.items:
            digest.update(json.dumps((item.key, item.instruction, item.target)).encode())
            digest.update(b"" if item.mask is None else np.packbits(item.mask).tobytes())
        return f"{self.name} {digest.hexdigest()[:12]}"


def text(row: dict[str, Any], name: str) -> str:
    """A field that must be a string with more than blanks."""
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise Malformed(f"{name} is {_short(value)}; expected text")
    return value


def unmarked(prompt: str) -> str:
    """`prompt` without the `[ ]` around what the edit changes."""
    return prompt.replace("[", "").replace("]", "").strip()


def check_key(key: object) -> str:
    if not isinstance(key, str) or not _KEY.fullmatch(key):
        raise Malformed(f"key {_short(key)}; expected letters, digits, '_', '-' and '.'")
    return key


def picture_path(root: Path, name: str) -> Path:
    """The file `name` (slashes between folders) below `root`.

    Raises:
        Malformed: it leads out of `root`, or there is no such file.
    """
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or re.search(r"[\\:\0]", name):
        raise Malformed(f"path {_short(name)} leads out of the data set")
    path = root / parts
    if not path.is_file():
        raise Malformed(f"no such picture: {name}")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DataError: not readable, not JSON, or something else than an object.
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
