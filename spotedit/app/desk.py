"""The one editor that all users of a page share, and what they may ask of it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from spotedit_kernels.select_tokens import Mode

import spotedit

from ..editor.editor import Edited, Editor, OnStep
from ..evaluation.edits import loop_settings
from ..options.presets import PresetName
from ..preview import Preview
from .photos import Photo


@dataclass(frozen=True)
class Order:
    """What a user asks for.

    Attributes:
        mask: where the picture may change, white on black, with its aspect ratio; None: everywhere.
        mask_mode: how the mask is combined with the judged region; see `Handle.set_mask`.
        seed: seed of the noise.
        steps: number of steps.
    """

    instruction: str
    mask: Image.Image | None = None
    mask_mode: Mode = "intersect"
    seed: int = 0
    preset: PresetName = "default"
    steps: int = 28


class Desk:
    """An editor that carries out one order at a time, whichever thread it comes from."""

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._lock = threading.Lock()

    @property
    def model(self) -> str:
        """Name or folder of the model."""
        return self._editor.settings.model

    @property
    def preset(self) -> PresetName:
        """The preset that the editor was loaded with."""
        return self._editor.settings.config.preset

    @property
    def steps(self) -> int:
        """The number of steps of an edit that does not name one."""
        settings = loop_settings(self._editor.pipe, self._editor.settings.arguments)
        return int(settings["num_inference_steps"])

    def edit(
        self, source: Photo, order: Order, on_step: OnStep, check: Callable[[], None]
    ) -> Edited:
        """Edit a picture.

        Args:
            on_step: called after every step; an exception that it raises ends the edit.
            check: called when the editor is free, before the edit; it may raise as well.

        Raises:
            BadInput, Failure, ImageError: see `Editor.edit` and `Photo.load`.
        """
        with self._lock:
            check()
            self._choose(order.preset)
            return self._editor.edit(source.load(), **_arguments(order), on_step=on_step)

    def preview(
        self, source: Photo, order: Order, on_step: OnStep, check: Callable[[], None]
    ) -> Preview:
        """Run the first steps of an edit, as far as the first judgement; see `edit`."""
        with self._lock:
            check()
            self._choose(order.preset)
            return self._editor.preview(source.load(), **_arguments(order), on_step=on_step)

    def _choose(self, preset: PresetName) -> None:
        """Enable the pipeline with this preset; other settings stay as they are."""
        if self._editor.handle.config.preset != preset:
            config = replace(self._editor.settings.config, preset=preset)
            self._editor.handle = spotedit.enable(self._editor.pipe, config)


def _arguments(order: Order) -> dict[str, Any]:
    """Return the arguments that `Editor.edit` and `Editor.preview` take for an order."""
    return {
        "instruction": order.instruction,
        "seed": order.seed,
        "mask": order.mask,
        "mask_mode": order.mask_mode,
        "arguments": {"num_inference_steps": order.steps},
    }
