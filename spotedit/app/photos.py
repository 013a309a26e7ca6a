"""The picture files of one browser session, and the smaller copies that the page shows."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..editor.editor import Edited
from ..editor.keep import keep_original
from ..pictures.images import decode_image, load_image, save_image

_LONGEST_SHOWN_SIDE = 1024  # pixels
_SHORTEST_SHOWN_SIDE = 512  # of the longer side: smaller pictures are hard to paint on
_MAX_NAME_LENGTH = 40  # characters; a file's name has at most 255 bytes


@dataclass(frozen=True)
class Photo:
    """A picture file in the folder of a session.

    Attributes:
        path: the file, byte for byte as the user gave it or as an edit wrote it.
        name: the user's name for the picture, without a suffix.
        size: (width, height) of the upright picture in pixels.
        shown: the picture for the page, RGB; its longer side has 512 to 1024 pixels.
    """

    path: Path
    name: str
    size: tuple[int, int]
    shown: Image.Image

    def load(self) -> Image.Image:
        """Return the whole picture, RGB and upright.

        Raises:
            ImageError: see `load_image`.
        """
        return load_image(self.path)


def add_photo(file: Path, folder: Path, number: int) -> Photo:
    """Copy a picture that the user gave into the folder of the session.

    Args:
        number: a number that no other picture of the session has.

    Raises:
        ImageError: the file is no picture, is damaged or has too many pixels. The message names
            the file, but no folder of this machine.
    """
    data = file.read_bytes()
    image = decode_image(data, file.name)
    name = _safe_name(file.stem)
    path = folder / f"{name}-{number}{_safe_name(file.suffix)}"
    path.write_bytes(data)
    return Photo(path, name, image.size, fit_to_page(image))


def add_picture(image: Image.Image, name: str, folder: Path, number: int) -> Photo:
    """Write a picture as PNG into the folder of the session."""
    path = folder / f"{name}-{number}.png"
    save_image(image, path)
    return Photo(path, name, image.size, fit_to_page(image))


def add_edit(source: Photo, edited: Edited, number: int) -> tuple[Photo, list[str]]:
    """Write an edit of `source` next to it: in the same format, else as PNG.

    Returns:
        The new picture, and sentences about what of the original could not be kept.
    """
    suffix = source.path.suffix.lower()
    path = source.path.with_name(f"{source.name}-edit-{number}{suffix}")
    problems: list[str] = []
    for candidate in dict.fromkeys((path, path.with_suffix(".png"))):
        try:
            notes = keep_original(source.path, edited, candidate)
            return _open(candidate, source.name), problems + notes
        except Exception as error:  # every encoder has its own exceptions
            problems.append(_without_folder(str(error), candidate))
    save_image(edited.picture, path.with_suffix(".png"), force=True)
    return _open(path.with_suffix(".png"), source.name), problems


def fit_to_page(image: Image.Image) -> Image.Image:
    """Scale a picture so that its longer side has between 512 and 1024 pixels."""
    longer = max(image.size)
    wanted = min(max(longer, _SHORTEST_SHOWN_SIDE), _LONGEST_SHOWN_SIDE)
    if longer == wanted:
        return image
    width, height = (max(1, round(side * wanted / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _open(path: Path, name: str) -> Photo:
    image = load_image(path)
    return Photo(path, name, image.size, fit_to_page(image))


def _without_folder(text: str, path: Path) -> str:
    return text.replace(f"{path.parent}{os.sep}", "")


def _safe_name(text: str) -> str:
    """Return the text with nothing but letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^\w.-]+", "_", text)[:_MAX_NAME_LENGTH]
