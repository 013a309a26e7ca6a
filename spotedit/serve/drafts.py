"""Drafts of an edit: the pictures that its steps predict."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

from ..engine.record import StepProgress
from .workers import OnStep


@dataclass(frozen=True)
class Draft:
    """The clean picture that a step predicts.

    Attributes:
        index: 0-based number among the drafts of an edit.
        picture: RGB, at the model's size.
    """

    index: int
    picture: Image.Image


class Drafts:
    """An `on_step` that decodes a picture after a few steps, evenly apart, but never the last."""

    def __init__(self, count: int, on_step: OnStep, put: Callable[[Draft], object]) -> None:
        """Decode `count` drafts of one edit and give them to `put`. Call `on_step` as well."""
        self._count = count
        self._on_step = on_step
        self._put = put
        self._num_made = 0

    def __call__(self, progress: StepProgress) -> None:
        self._on_step(progress)
        if progress.index not in draft_steps(self._count, progress.total):
            return
        with suppress(ValueError):  # the pipeline has no VAE
            self._put(Draft(self._num_made, progress.image.convert("RGB")))
            self._num_made += 1


def draft_steps(count: int, total: int) -> set[int]:
    """Return the 0-based indices of the steps, of `total`, after which a draft is decoded."""
    steps = {(number + 1) * total // (count + 1) - 1 for number in range(count)}
    return {step for step in steps if 0 <= step < total - 1}
