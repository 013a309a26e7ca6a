"""What a call did, as plain data. Values on the device are read only when somebody asks."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from PIL.Image import Image
from torch import Tensor

from ..judge.misalignment import Misalignment
from ..options.choices import Box, Grid
from ..options.temporal import Temporal

Timestamp = float | torch.cuda.Event  # time.perf_counter() in seconds, or a recorded event
Elapsed = tuple[Timestamp, Timestamp]  # when something began and ended


def timestamp(like: Tensor) -> Timestamp:
    """Mark this point in time on the device of the tensor `like`.

    On CUDA it is an event on the current stream, which is read later, so that nothing waits here.
    Elsewhere it is the host's clock in seconds.
    """
    if like.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@dataclass(frozen=True)
class StepProgress:
    """What `Handle.call` passes to its `on_step` after a denoising step.

    `ratio`, `image` and `images` are computed when they are first read, and kept. Reading them does
    not change the result of the call.

    Attributes:
        index: 0-based position in the loop of `total` steps.
        kind: "dense", "full", "spot" or "skip", as in `EditReport.steps`.
        sigma: noise level at which the step started, 1 (noise) to 0 (image).
    """

    index: int
    total: int
    kind: str
    sigma: float
    _computed_share: Tensor | float = field(default=1.0, repr=False, compare=False)
    _predicted_images: Callable[[], list[Image]] | None = field(
        default=None, repr=False, compare=False
    )

    @cached_property
    def ratio(self) -> float:
        """Share of the noise tokens that the step computed, the mean over the batch.

        It is 1 for a dense or full step, and 0 for a skipped one. Reading it waits for the device.
        """
        return float(self._computed_share)

    @property
    def image(self) -> Image:
        """The first of `images`."""
        return self.images[0]

    @property
    def images(self) -> list[Image]:
        """The clean pictures that the step predicts, one for each image of the batch.

        A picture is the decoded ``x_t - sigma v``; after the last step, it is the result. Pictures
        are decoded by the whole VAE, as at the end of a call. With model offload, that moves the
        transformer out of the device, and the next step moves it back. An inpainting pipeline puts
        the source outside of its mask after `on_step`, so it is not yet in these pictures.

        Read it before `on_step` returns. The latents, from which the pictures are decoded, are held
        only until then; a picture that was read stays.

        Raises:
            RuntimeError: `on_step` has returned, and the pictures were not read before.
            ValueError: the pipeline has no VAE.
        """
        if self._predicted_images is None:
            raise RuntimeError("this StepProgress belongs to no call; expected one from on_step")
        return self._predicted_images()


@dataclass(frozen=True)
class StepRecord:
    """One denoising step, as it was run.

    Attributes:
        index: 0-based position in the loop.
        kind: "dense" (the stock pipeline), "full" (all tokens), "spot" (the active tokens), or
            "skip" (no forward was run).
        sigma: noise level at which the step started, 1 (noise) to 0 (image).
        rows: number of query rows run per image, prompt included.
        sequence: number of rows in the joint sequence [prompt, noise, condition].
        total: number of noise tokens of an image.
        active: number of noise tokens computed: [B] on the device, or one number for every image.
        start, end: when the step began and ended.
    """

    index: int
    kind: str
    sigma: float
    rows: int
    sequence: int
    total: int
    active: Tensor | int
    start: Timestamp
    end: Timestamp

    @property
    def computed_share(self) -> Tensor | float:
        """Share of the noise tokens computed, the mean over the images. It may be on the device."""
        if isinstance(self.active, Tensor):
            return self.active.float().mean() / self.total
        return self.active / self.total


@dataclass(frozen=True)
class CallRecord:
    """One call of an enabled pipeline.

    Attributes:
        pipeline: class name of the pipeline.
        grid: token grid (rows, cols), or None if the call ended before the transformer ran.
        records: a record for each step.
        region: bool [B, N], True = regenerated, as last judged; None if nothing was judged.
        scores: fp32 [B, N] of the last judgement, or None.
        batch: number of images.
        cache_bytes: bytes of the buffers that held keys and values.
        reason: why no token was reused, or None.
        threshold, judge: the rule by which tokens were reused; `"auto"`: a threshold
            from the scores of each picture.
        misalignment: how the whole frame differs from the source's, or None.
        temporal: the method that chose the steps without a forward, or None.
        unedited: number of images that came out equal to the source.
        mask_note: a sentence about a mask that protects every token or none, or None.
        largest: largest number of active tokens, over all images, that a judgement found.
        returned: (step, number of tokens) for each full step that found that reused tokens had
            changed. These tokens became active again.
        moved: bool [B, N], the regenerated tokens whose final latents differ from the source's, or
            None.
        source_box: the part of the source picture that the output shows, or None if the output
            cannot be placed on it.
        saved: when earlier calls of the session made what this one took from them, an item for
            each; None outside of a session.
    """

    pipeline: str
    grid: Grid | None
    records: Sequence[StepRecord]
    region: Tensor | None
    scores: Tensor | None
    batch: int
    cache_bytes: int
    reason: str | None
    threshold: float | Literal["auto"] | None
    judge: str | None
    misalignment: Misalignment | None = None
    temporal: Temporal | None = None
    unedited: int = 0
    mask_note: str | None = None
    largest: int = 0
    returned: Sequence[tuple[int, int]] = field(default=())
    moved: Tensor | None = None
    source_box: Box | None = None
    saved: Sequence[Elapsed] | None = None
