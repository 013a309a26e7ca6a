"""Find the pictures that the command line names: files, folders and glob patterns."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..editor.errors import BadInput
from ..pictures.files import describe_error
from ..pictures.images import IMAGE_SUFFIXES

_NUM_EXAMPLES = 5


@dataclass(frozen=True)
class Picture:
    """A user's file, and its place below the folder of the outputs.

    Attributes:
        path: the file.
        name: relative path with the suffix of the file; the output's name follows from it.
    """

    path: Path
    name: Path


@dataclass
class Found:
    """The pictures in their order, and how many other files were passed over, by suffix."""

    pictures: list[Picture] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)


def find_pictures(inputs: Sequence[str], out: Path, masks: Path | None = None) -> Found:
    """Find the pictures that `inputs` name, in their order; inside one input in natural order.

    A folder is searched with its sub-folders, without hidden files and folders, `out` and `masks`.
    A picture keeps its sub-folder below the input. If there are several inputs, the pictures of a
    folder go into a sub-folder of its name.

    Args:
        inputs: files, folders, or patterns such as "photos/**/*.jpg".
        out: folder for the outputs.
        masks: folder of masks, or None.

    Raises:
        BadInput: an input does not exist, names no picture, or is the folder of the outputs.
    """
    found = Found()
    left_out = [path.resolve() for path in (out, masks) if path is not None]
    seen: set[tuple[Path, Path]] = set()
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            prefix = Path(path.resolve().name) if len(inputs) > 1 else Path()
            pictures = _in_folder(path, prefix, left_out, found.ignored)
        elif path.is_file():
            pictures = [_single_file(path)]
        else:
            pictures = _matching(text, left_out, found.ignored)
        for picture in pictures:
            identity = picture.path.resolve(), picture.name
            if identity not in seen:
                seen.add(identity)
                found.pictures.append(picture)
    return found


def natural_key(path: Path) -> tuple[list[list[str | int]], str]:
    """Return a sorting key that puts "9.png" before "10.png"."""
    parts = [_natural(part) for part in path.parts]
    return parts, str(path)


def _natural(text: str) -> list[str | int]:
    # text and numbers alternate, so that a number is never compared with a text
    pieces = re.split(r"([0-9]+)", text.casefold())
    return [int(piece) if index % 2 else piece for index, piece in enumerate(pieces)]


def _in_folder(
    folder: Path, prefix: Path, left_out: Sequence[Path], ignored: Counter[str]
) -> list[Picture]:
    if folder.resolve() in left_out:
        raise BadInput(f"{folder}: is the folder of the outputs or of the masks; choose another")
    paths = [path for path in _files_below(folder, left_out) if _is_picture(path, ignored)]
    if not paths:
        raise BadInput(f"{folder}: no pictures there; expected files {', '.join(IMAGE_SUFFIXES)}")
    relative = sorted((path.relative_to(folder) for path in paths), key=natural_key)
    return [Picture(folder / path, prefix / path) for path in relative]


def _files_below(folder: Path, left_out: Sequence[Path]) -> Iterator[Path]:
    for current, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and Path(current, name).resolve() not in left_out
        ]
        yield from (Path(current, name) for name in files if not name.startswith("."))


def _refuse(error: OSError) -> None:
    """Report a folder that cannot be read, which `os.walk` would pass over without a word."""
    raise BadInput(
        f"{error.filename}: cannot be read ({describe_error(error)}); make it readable, or name "
        "the folders beside it"
    )


def _is_picture(path: Path, ignored: Counter[str]) -> bool:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    ignored[path.suffix.lower() or path.name] += 1
    return False


def _single_file(path: Path) -> Picture:
    if path.suffix.lower() not in IMAGE_SUFFIXES:
        raise BadInput(
            f"{path}: the suffix is {path.suffix!r}; expected one of {', '.join(IMAGE_SUFFIXES)}"
        )
    return Picture(path, Path(path.name))


def _matching(pattern: str, left_out: Sequence[Path], ignored: Counter[str]) -> list[Picture]:
    if not glob.has_magic(pattern):
        raise BadInput(f"{pattern}: no such file or folder")
    # `Path.glob` would find hidden files
    matches = map(Path, glob.glob(pattern, recursive=True))  # noqa: PTH207
    outside = [path for path in matches if not _is_below(path.resolve(), left_out)]
    paths = [path for path in outside if path.is_file() and _is_picture(path, ignored)]
    if not paths:
        raise BadInput(f"{pattern}: matches no picture")
    parts = Path(pattern).parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    return [Picture(path, path.relative_to(root)) for path in sorted(paths, key=natural_key)]


def _is_below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def describe_ignored(ignored: Counter[str]) -> str | None:
    """Return a line about files that are no pictures, or None if there are none."""
    if not ignored:
        return None
    kinds = ", ".join(f"{count} {kind}" for kind, count in ignored.most_common(_NUM_EXAMPLES))
    more = ", ..." if len(ignored) > _NUM_EXAMPLES else ""
    return f"passed over {ignored.total()} files that are no pictures: {kinds}{more}"
