"""Several edits of one picture, each in its own place, as if they were one edit."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from .composite import Edges, Placed


@dataclass(frozen=True)
class Layers:
    """Edits that lie over each other, the last one on top.

    This is a `Placed`, and so is each of the edits.
    """

    edits: tuple[Placed, ...]

    @property
    def is_empty(self) -> bool:
        """Tell whether the original stays as it is."""
        return all(edit.is_empty for edit in self.edits)

    def transposed(self, method: Image.Transpose) -> "Layers":
        """Return the edits for an original that is mirrored or turned in the same way."""
        return Layers(tuple(edit.transposed(method) for edit in self.edits))

    def extent(self, size: tuple[int, int]) -> Edges:
        """Return the smallest box around the pixels that change; see `PlacedEdit.extent`."""
        extents = [edit.extent(size) for edit in self.edits]
        extents = [extent for extent in extents if extent[2] > extent[0]]
        if not extents:
            return 0, 0, 0, 0
        lefts, tops, rights, bottoms = zip(*extents, strict=True)
        return min(lefts), min(tops), max(rights), max(bottoms)

    def opacity(self, size: tuple[int, int], box: Edges) -> np.ndarray:
        """Return how much of the edits shows, 0 to 1; see `PlacedEdit.opacity`."""
        left, top, right, bottom = box
        rest = np.ones((bottom - top, right - left), dtype=np.float32)
        for edit in self.edits:
            if part := _overlap(edit.extent(size), box):
                rest[_inside(part, box)] *= 1 - edit.opacity(size, part)
        return 1 - rest

    def colours(self, size: tuple[int, int], box: Edges) -> Image.Image:
        """Return the colours of the edits, mixed where several show; see `PlacedEdit.colours`."""
        left, top, right, bottom = box
        colours = np.zeros((bottom - top, right - left, 3), dtype=np.float32)
        shown = np.zeros((bottom - top, right - left, 1), dtype=np.float32)
        for edit in self.edits:
            part = _overlap(edit.extent(size), box)
            if part is None:
                continue
            inside = _inside(part, box)
            opacity = edit.opacity(size, part)[..., None]
            new = np.asarray(edit.colours(size, part), dtype=np.float32)
            # `colours` is not weighted, so the share of the new ones is that of what shows
            total = opacity + (1 - opacity) * shown[inside]
            share = np.divide(opacity, total, out=np.zeros_like(opacity), where=total > 0)
            colours[inside] += share * (new - colours[inside])
            shown[inside] = total
        return Image.fromarray(np.rint(colours).astype(np.uint8))


def _overlap(box: Edges, other: Edges) -> Edges | None:
    """Return the pixels that both boxes have, or None if there are none."""
    left, top = max(box[0], other[0]), max(box[1], other[1])
    right, bottom = min(box[2], other[2]), min(box[3], other[3])
    return (left, top, right, bottom) if left < right and top < bottom else None


def _inside(part: Edges, box: Edges) -> tuple[slice, slice]:
    """Return the rows and columns of a part of a box, in an array of the box."""
    left, top, right, bottom = part
    return slice(top - box[1], bottom - box[1]), slice(left - box[0], right - box[0])
