"""Write an edit into the user's own file, whose other pixels stay as they were."""

from pathlib import Path

from ..pictures.images import save_image
from ..pictures.originals.write import write_edit
from .editor import Edited

_SAMPLES = (1024, 1024)  # width and height in which `kept_share` counts pixels


def keep_original(original: Path, edited: Edited, out: Path, force: bool = False) -> list[str]:
    """Write the edited region into the original picture, at the original's size.

    Args:
        original: the user's file.
        edited: an edit of that file.
        out: file to write; its suffix chooses the format.
        force: overwrite `out`.

    Returns:
        Sentences about what could not be kept, for people.

    Raises:
        ImageError: the original cannot be read.
        OutputError: see `save_image`.
    """
    try:
        placed = edited.placed
    except ValueError as error:
        save_image(edited.picture, out, force)
        return [f"nothing of the original is kept: {error}"]
    notes = write_edit(original, placed, out, force)
    if kept_share(edited) == 0:
        notes.insert(0, "the region reaches over the whole picture, so none of its pixels is kept")
    return notes


def kept_share(edited: Edited) -> float:
    """Return the share of the original's pixels that show nothing of the edit, 0 to 1."""
    try:
        opacity = edited.placed.opacity(_SAMPLES, (0, 0, *_SAMPLES))
    except ValueError:  # the edit cannot be placed
        return 0.0
    return float((opacity == 0).mean())
