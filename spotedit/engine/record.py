"""What a call did, as plain data. Values on the device are not read here."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..judge.misalignment import Misalignment
from ..options.choices import Grid
from ..options.temporal import Temporal

Timestamp = float | torch.cuda.Event  # time.perf_counter() in seconds, or a recorded event


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

    Attributes:
        index: 0-based position in the loop of `total` steps.
        kind: "dense", "full", "spot" or "skip", as in `EditReport.steps`.
        sigma: noise level at which the step started, 1 (noise) to 0 (image).
    """

    index: int
    total: int
    kind: str
    sigma: float


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
