"""Write an edit into a copy of the user's file."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from ..composite import Placed
from ..files import atomic_write
from ..images import check_output, open_image
from . import jpeg, others, png, tiff
from .convert import converted
from .orientation import as_stored, orientation
from .rewritten import Rewritten

_REWRITE: dict[str, Callable[[Path, Placed], Rewritten | None]] = {
    "PNG": png.rewritten,
    "JPEG": jpeg.rewritten,
    "WEBP": others.rewritten,
    "AVIF": others.rewritten,
    "HEIF": others.rewritten,
    "BMP": others.rewritten,
    "TIFF": tiff.rewritten,
}


def write_edit(original: Path, edit: Placed, out: Path, force: bool = False) -> list[str]:
    """Write the original with the edit in it.

    A file of the original's format keeps the pixels' order in the file, and the EXIF orientation
    with it. A file of another format gets upright pixels.

    Args:
        original: the user's file.
        edit: the edit of the picture as `load_image` shows it.
        out: file to write; its suffix chooses the format.
        force: overwrite `out`.

    Returns:
        Sentences about what could not be kept.

    Raises:
        ImageError: the original cannot be read.
        OutputError: see `check_output` and `atomic_write`.
    """
    out = check_output(out, force)
    out_format = Image.registered_extensions()[out.suffix.lower()]
    with open_image(original) as opened:
        source_format = "JPEG" if opened.format == "MPO" else opened.format
        result = None
        if source_format == out_format and edit.is_empty:
            result = Rewritten(original.read_bytes())
        elif source_format == out_format:
            result = _REWRITE[out_format](original, as_stored(edit, orientation(opened)))
        if result is None:
            result = converted(original, edit, out_format)
    with atomic_write(out) as temporary:
        temporary.write_bytes(result.data)
    return result.notes
