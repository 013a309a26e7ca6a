"""`EditReport`: the figures of a call, with its words and pictures."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from ..pictures.draw import plot_steps, tint
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

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write a figure of the tokens computed and the seconds taken at every step.

        The suffix of `path` chooses the format (.png, .svg, .pdf). A file there is replaced.

        Raises:
            OutputError: the file cannot be written.
        """
        plot_steps(self.steps, Path(path))
