"""`EditReport`: the figures of a call, with its words and pictures."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..pictures.composite import PlacedEdit, composite
from ..pictures.draw import plot_steps, tint
from ..pictures.images import open_image
from . import words
from .figures import Figures


class EditReport(Figures):
    __doc__ = Figures.__doc__

    @property
    def doubts(self) -> list[str]:
        """Signs that the edit was left undone or is not what was asked for; each says what to try.

        An empty list does not prove that the edit is right.
        """
        return words.doubts(self)

    def summary(self) -> str:
        """Return a few lines for people.

        They claim no speed-up, because the call was not compared with a dense one.
        """
        return words.summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the scores, in types that JSON has; `region` as rows of 0 and 1."""
        return {
            "pipeline": self.pipeline,
            "grid": list(self.grid) if self.grid else None,
            "batch": self.batch,
            "steps": [dict(step) for step in self.steps],
            "mean_ratio": self.mean_ratio,
            "flops_saved": self.flops_saved,
            "seconds": self.seconds,
            "seconds_saved": self.seconds_saved,
            "cache_bytes": self.cache_bytes,
            "reason": self.reason,
            "threshold": self.threshold,
            "judge": self.judge,
            "temporal": self.temporal and type(self.temporal).__name__,
            "unedited": self.unedited,
            "mask_note": self.mask_note,
            "doubts": self.doubts,
            "source_box": self.source_box and list(self.source_box),
            "misalignment": self.misalignment and asdict(self.misalignment),
            "region": None if self.region is None else self.region.astype(int).tolist(),
        }

    def overlay(self, image: Image.Image) -> Image.Image:
        """Return `image` in RGB at its own size, with the regenerated tokens tinted and outlined.

        Raises:
            ValueError: the call has no region, or several images (use `report.images[i]`).
        """
        if self.batch > 1:
            raise ValueError(
                f"this report covers {self.batch} images; use report.images[i].overlay(image)"
            )
        if self.region is None:
            raise ValueError(f"no region to draw: {self.reason or 'no token was judged'}")
        return tint(image, self.region)

    def composite(
        self, original: Image.Image | str | os.PathLike[str], edited: Image.Image
    ) -> Image.Image:
        """Put the regenerated region into the original picture, at the original's size.

        Outside the region, the edit fades into the original over one token (16 pixels of the
        pipeline's output with most models). All other pixels are the original's, exactly. If every
        token was regenerated, the result is `edited` at the original's size; if none was, it is the
        original.

        Args:
            original: the picture that was given to the pipeline, at any size and in any mode, or a
                file. A file is turned as its EXIF orientation says, and `load_image` does. A
                palette becomes RGB, or RGBA if it has transparency; black and white becomes grey;
                other modes that are not grey, RGB or CMYK become RGB.
            edited: the picture that the pipeline returned.

        Returns:
            A new picture in the original's mode and with its `info`. An ICC profile there is
            respected: the edit, which is sRGB, is converted to it.

        Raises:
            ValueError: the output cannot be placed on the source (see `source_box`), `original`
                needs to be turned first, or there are several images (use `report.images[i]`).
            ImageError: the file cannot be read, or its pixels are floats.
        """
        placed = self.placed(edited)
        if not isinstance(original, Image.Image):
            with open_image(original) as opened:
                return composite(ImageOps.exif_transpose(opened), placed)
        if _is_turned(original, edited):
            raise ValueError(
                "the EXIF orientation of the original turns it, and the edit is turned already; "
                "pass ImageOps.exif_transpose(original), or the file"
            )
        return composite(original, placed)

    def placed(self, edited: Image.Image) -> PlacedEdit:
        """Return the edit and its place in the original; see `composite`.

        Raises:
            ValueError: the output cannot be placed on the source, or there are several images.
        """
        if self.batch > 1:
            raise ValueError(
                f"this report covers {self.batch} images; use report.images[i].composite(...)"
            )
        if self.grid is None or self.source_box is None:
            why = self.reason or "the call edits a crop, or another picture than its condition"
            raise ValueError(f"the output cannot be placed on the source picture: {why}")
        region = self.region
        if region is None or self.kinds[-1:] == ["dense"]:
            region = np.ones(self.grid, dtype=bool)
        return PlacedEdit(edited.convert("RGB"), region, self.source_box)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a figure of the tokens computed and the seconds taken at every step.

        The suffix of `path` chooses the format (.png, .svg, .pdf). A file there is replaced.

        Raises:
            OutputError: the file cannot be written.
        """
        plot_steps(self.steps, Path(path))


def _is_turned(original: Image.Image, edited: Image.Image) -> bool:
    """Tell whether `edited` has been turned by a quarter as the EXIF orientation says."""
    is_quarter_turn = original.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    is_wide, edited_is_wide = (image.width > image.height for image in (original, edited))
    return is_quarter_turn and is_wide != edited_is_wide
