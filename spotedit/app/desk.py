"""The one editor that all users of a page share, and what they may ask of it."""

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from spotedit_kernels.select_tokens import Mode

import spotedit

from ..editor.crop import edit_in_crops
from ..editor.crop_plan import MIN_GAIN
from ..editor.editor import Edited, Editor
from ..editor.errors import BadInput, Failure
from ..editor.photo import Detail
from ..engine.rounds import Rounds
from ..evaluation.edits import loop_settings
from ..options.presets import PresetName
from ..preview import Preview
from ..tiny.pipeline import NATIVE_SIZE
from .job import Cancelled, Job
from .photos import Photo

MAX_SEED = 2**53 - 1  # larger numbers are not exact in a browser
_MODEL_PIXELS = 1024**2  # what the published models work with


@dataclass(frozen=True)
class Order:
    """What a user asks for.

    Attributes:
        mask: where the picture may change, white on black, with its aspect ratio; None: everywhere.
        mask_mode: how the mask is combined with the judged region; see `Handle.set_mask`.
        seed: seed of the noise.
        steps: number of steps.
        detail: see `PhotoOptions.detail`.
    """

    instruction: str
    mask: Image.Image | None = None
    mask_mode: Mode = "intersect"
    seed: int = 0
    preset: PresetName = "default"
    steps: int = 28
    detail: Detail = "model"


@dataclass(frozen=True)
class _Opened:
    """The photograph of the last order, and the session of its edits."""

    photo: Photo
    image: Image.Image
    session: Rounds


class Desk:
    """An editor that carries out one order at a time, whichever thread it comes from.

    Successive orders for one photograph share what depends on the photograph alone. That is kept
    for the photograph of the last order, until `forget`.
    """

    def __init__(self, editor: Editor) -> None:
        self._editor = editor
        self._lock = threading.Lock()
        self._running: Job | None = None
        self._is_closed = False
        self._opened: _Opened | None = None

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

    @property
    def large_from(self) -> int:
        """The number of pixels from which a photograph is edited again in crops, about."""
        pixels = NATIVE_SIZE**2 if self.model == "tiny" else _MODEL_PIXELS
        return math.ceil(MIN_GAIN**2 * pixels)

    def edit(self, source: Photo, order: Order, job: Job) -> Edited:
        """Edit a picture in the thread of `job`, which is told of every step and can be cancelled.

        Raises:
            Cancelled: the job was cancelled, or the desk is closed.
            BadInput, Failure, ImageError: see `Editor.edit` and `Photo.load`.
        """
        with self._turn(source, order, job) as opened:
            arguments = _arguments(order) | {"on_step": job.on_step}
            edited = self._editor.edit(opened.image, **arguments, session=opened.session)
            if order.detail == "model":
                return edited
            return edit_in_crops(
                self._editor, opened.image, first=edited, **arguments, on_crop=job.on_crop
            )

    def preview(self, source: Photo, order: Order, job: Job) -> Preview:
        """Run the first steps of an edit, as far as the first judgement; see `edit`."""
        with self._turn(source, order, job) as opened:
            return self._editor.preview(
                opened.image, **_arguments(order), on_step=job.on_step, session=opened.session
            )

    def forget(self, folder: Path) -> None:
        """Free what is kept of a photograph in this folder."""
        opened = self._opened
        if opened is not None and opened.photo.path.parent == folder:
            self._opened = None
            opened.session.close()

    def close(self) -> None:
        """Refuse further orders, let the running one end at its next step, and wait for that."""
        self._is_closed = True
        running = self._running
        if running is not None:
            running.cancel()
        with self._lock:
            self._free()

    @contextmanager
    def _turn(self, source: Photo, order: Order, job: Job) -> Iterator[_Opened]:
        """Wait for the editor, and open the photograph with the preset of the order."""
        with self._lock:
            self._running = job  # from here on `close` cancels it
            job.check()
            if self._is_closed:
                raise Cancelled
            self._choose(order.preset)
            try:
                yield self._open(source)
            except Failure:
                self._free()  # the memory may be what the next try needs
                raise

    def _choose(self, preset: PresetName) -> None:
        """Enable the pipeline with this preset; other settings stay as they are."""
        if self._editor.handle.config.preset != preset:
            self._free()  # a session belongs to the handle that made it
            try:
                config = replace(self._editor.settings.config, preset=preset)
                self._editor.handle = spotedit.enable(self._editor.pipe, config)
            except ValueError as error:
                raise BadInput(f"the speed {preset!r} cannot be used here: {error}") from error

    def _open(self, source: Photo) -> _Opened:
        """Return the photograph with a session, the one of the last order if it is the same."""
        opened = self._opened
        if opened is None or opened.photo is not source:
            self._free()
            image = source.load()
            opened = _Opened(source, image, self._editor.session(image))
            self._opened = opened
        return opened

    def _free(self) -> None:
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.session.close()


def _arguments(order: Order) -> dict[str, Any]:
    """Return the arguments that `Editor.edit` and `Editor.preview` take for an order."""
    return {
        "instruction": order.instruction,
        "seed": order.seed,
        "mask": order.mask,
        "mask_mode": order.mask_mode,
        "arguments": {"num_inference_steps": order.steps},
    }
