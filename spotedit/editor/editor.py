"""An `Editor` edits one picture at a time with a pipeline that is loaded once."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from PIL import Image
from spotedit_kernels.select_tokens import Mode

import spotedit

from ..engine.record import StepProgress
from ..engine.rounds import Rounds
from ..evaluation.edits import loop_settings
from ..judge.mask import as_mask, resized
from ..pictures.composite import Placed
from ..preview import Preview
from ..report import EditReport
from .loading import choose_device, explain_errors, image_to_edit, load, one_thread_for_tiny
from .settings import EditorSettings

OnStep = Callable[[StepProgress], object]


@dataclass(frozen=True)
class Edited:
    """The result of one edit.

    Attributes:
        source: the picture as the pipeline got it. It has another size than the user's picture if
            the model works at one size only.
        picture: the edited picture at the model's size, RGB.
        report: the report of the call.
        seconds: duration of the call, with text encoding and decoding.
    """

    source: Image.Image
    picture: Image.Image
    report: EditReport
    seconds: float

    @property
    def placed(self) -> Placed:
        """The edit with its place in the user's picture.

        Raises:
            ValueError: see `EditReport.placed`.
        """
        return self.report.placed(self.picture)


class Editor:
    """A loaded pipeline, enabled, with the settings of its calls. It makes one edit at a time.

    Raises:
        BadInput: the machine has no such device, the pipeline is not supported, it does not take
            one of the arguments, or the configuration does not fit it.
        Failure: the model cannot be found or read.
    """

    def __init__(self, settings: EditorSettings) -> None:
        self.settings = settings
        self.device = choose_device(settings.device, settings.offload)
        with self._running():
            self.pipe = load(settings.model, settings.dtype, self.device, settings.offload)
            self.pipe.set_progress_bar_config(disable=True)
            loop_settings(self.pipe, settings.arguments)  # raises for an unknown argument
            self.handle = spotedit.enable(self.pipe, settings.config)

    def edit(
        self,
        image: Image.Image,
        instruction: str,
        *,
        seed: int = 0,
        mask: Any = None,
        mask_mode: Mode = "intersect",
        on_step: OnStep | None = None,
        session: Rounds | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Edited:
        """Edit one picture.

        Args:
            image: the picture, RGB.
            instruction: what to change.
            seed: seed of the noise.
            mask, mask_mode: where the picture may change; see `Handle.set_mask`. The mask has the
                aspect ratio of `image`.
            on_step: called after every denoising step; see `Handle.call`. An exception that it
                raises ends the edit.
            session: a session of `Editor.session`, in which edits of one picture share work.
            arguments: arguments of the call that override those of the settings.

        Raises:
            BadInput: the pipeline refused the call.
            Failure: out of memory.
        """
        with self._running():
            source = self.prepare(image)
            call = self._call(source, instruction, seed, arguments)
            pixels = None if mask is None else self._fitted(mask, source)
            with self.handle.call(
                mask=pixels, mode=mask_mode, on_step=on_step, session=session
            ) as scope:
                start = time.perf_counter()
                picture = self.pipe(**call).images[0]
                seconds = time.perf_counter() - start
        assert scope.report is not None  # the call has returned
        return Edited(source, picture.convert("RGB"), scope.report, seconds)

    def session(self, image: Image.Image) -> Rounds:
        """Let several edits of one picture share what depends on the picture alone.

        Either edit in the block of ``with editor.session(image):``, or pass the session to `edit`,
        from any thread, and call its `close` in the end. See `Handle.session`.
        """
        return self.handle.session(self.prepare(image))

    def preview(
        self,
        image: Image.Image,
        instruction: str,
        *,
        seed: int = 0,
        mask: Any = None,
        mask_mode: Mode = "intersect",
        on_step: OnStep | None = None,
        session: Rounds | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> Preview:
        """Run an edit up to its first judgement; see `Handle.preview`.

        Args:
            image, instruction, seed, mask, mask_mode, on_step, session, arguments: as for `edit`.

        Raises:
            BadInput: nothing would be skipped, the mask replaces the judgement, or the pipeline
                refused the call.
            Failure: out of memory.
        """
        with self._running():
            source = self.prepare(image)
            call = self._call(source, instruction, seed, arguments)
            pixels = None if mask is None else self._fitted(mask, source)
            with self.handle.call(mask=pixels, mode=mask_mode, on_step=on_step, session=session):
                return self.handle.preview(**call)

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the picture at the size at which it is given to the pipeline."""
        return image_to_edit(self.pipe, self.settings.model, image)

    def close(self) -> None:
        """Put the pipeline back as it was loaded."""
        self.handle.disable()

    def _call(
        self,
        source: Image.Image,
        instruction: str,
        seed: int,
        arguments: Mapping[str, Any] | None,
    ) -> dict[str, Any]:
        return {
            "image": source,
            "prompt": instruction,
            "generator": torch.Generator().manual_seed(seed),
            **self.settings.arguments,
            **(arguments or {}),
        }

    def _fitted(self, mask: Any, source: Image.Image) -> torch.Tensor:
        """Return the mask, at the size of the source if the model works at one size only."""
        pixels = as_mask(mask)
        if self.settings.model == "tiny":  # `prepare` has resized the picture
            return resized(pixels, (source.height, source.width))
        return pixels

    @contextmanager
    def _running(self) -> Iterator[None]:
        with explain_errors(self.device), one_thread_for_tiny(self.settings.model, self.device):
            yield

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
