"""The figures of a call, read from its record."""

from dataclasses import replace
from functools import cached_property
from typing import Literal, Self, TypedDict, cast

import numpy as np
import torch
from torch import Tensor

from ..engine.record import CallRecord, StepRecord, Timestamp

StepKind = Literal["dense", "full", "spot", "skip"]


class Step(TypedDict):
    """One entry of `EditReport.steps`.

    Attributes:
        index: 0-based position in the loop.
        kind: "dense" (the stock pipeline), "full" (all tokens), "spot" (the active tokens), or
            "skip" (no forward was run).
        sigma: noise level at which the step started, 1 (noise) to 0 (image).
        active: number of noise tokens computed, summed over the batch.
        total: number of all noise tokens of the batch.
        seconds: from the step's start to its end.
    """

    index: int
    kind: StepKind
    sigma: float
    active: int
    total: int
    seconds: float


class Figures:
    """What was skipped in a call, in numbers. Device values are read once, when first asked for.

    Attributes:
        pipeline: class name of the pipeline.
        grid: token grid (rows, cols), or None if the call ended before the transformer ran.
        batch: number of images in the call.
        cache_bytes: bytes of the buffers that held keys and values.
        reason: why no token was reused, or None.
        threshold, judge: the rule by which tokens were reused; `"auto"`: a threshold from the
            scores of each picture.
        misalignment: how the whole frame differs from the source's, if it was found to have moved,
            grown or changed colour; every token was computed then. None if the frame matches the
            source's, or was not checked.
        temporal: the method that chose the steps without a forward, or None.
        unedited: number of images in which nothing was edited, so that they equal the source.
        mask_note: a sentence about a mask that protects every token or none, or None.
        judged: whether tokens were judged. False in a dense call, and if the mask alone decides.
        largest: the largest number of active tokens that a judgement found, over all images.
        source_box: the part of the source picture that the output shows: left, top, right and
            bottom edge as fractions of its width and height. None if the output cannot be placed on
            the source, for example because its shape is another.
        returned: (step, number of tokens) for each full step that found that reused tokens had
            changed. These tokens became active again.
    """

    def __init__(self, record: CallRecord) -> None:
        self.pipeline = record.pipeline
        self.grid = record.grid
        self.batch = record.batch
        self.cache_bytes = record.cache_bytes
        self.reason = record.reason
        self.threshold = record.threshold
        self.judge = record.judge
        self.misalignment = record.misalignment
        self.temporal = record.temporal
        self.unedited = record.unedited
        self.mask_note = record.mask_note
        self.judged = record.scores is not None
        self.largest = record.largest
        self.source_box = record.source_box
        self.returned = list(record.returned)
        self._record = record

    @cached_property
    def _active(self) -> list[list[int]]:
        """Number of active tokens by step and image, read from the device in one transfer."""
        counts = [step.active for step in self._record.records]
        tensors = [count for count in counts if isinstance(count, Tensor)]
        transferred = iter(torch.stack(tensors).tolist() if tensors else [])
        return [
            next(transferred) if isinstance(count, Tensor) else [count] * self.batch
            for count in counts
        ]

    @property
    def kinds(self) -> list[str]:
        """The kind of every step. It is known without reading anything from the device."""
        return [step.kind for step in self._record.records]

    @cached_property
    def steps(self) -> list[Step]:
        """A `Step` for each step. One that ran no forward computes no token."""
        return [
            Step(
                index=step.index,
                kind=cast(StepKind, step.kind),
                sigma=step.sigma,
                active=sum(active),
                total=step.total * self.batch,
                seconds=_seconds(step.start, step.end),
            )
            for step, active in zip(self._record.records, self._active, strict=True)
        ]

    @cached_property
    def images(self) -> tuple[Self, ...]:
        """An object of this class for each image. Times and bytes stay those of the whole call."""
        if self.batch == 1:
            return (self,)
        return tuple(type(self)(self._record_of(image)) for image in range(self.batch))

    def _record_of(self, image: int) -> CallRecord:
        """Return the record of one image of the batch."""
        whole = self._record
        # an empty region alone means nothing: the call may not have reached its end
        is_unedited = self.unedited > 0 and self.region is not None and not self.region[image].any()
        return replace(
            whole,
            records=[
                replace(step, active=active[image])
                for step, active in zip(whole.records, self._active, strict=True)
            ],
            region=_image_of(whole.region, image),
            scores=_image_of(whole.scores, image),
            moved=_image_of(whole.moved, image),
            batch=1,
            unedited=int(is_unedited),
            # the following are known for the whole batch only
            misalignment=None,
            largest=0,
            returned=(),
        )

    @cached_property
    def region(self) -> np.ndarray | None:
        """Tokens of the last region: bool [rows, cols], [B, rows, cols] for a batch, or None."""
        return self._on_grid(self._record.region)

    @cached_property
    def scores(self) -> np.ndarray | None:
        """Scores of the last judgement: fp32 of the same shape as `region`, or None."""
        return self._on_grid(self._record.scores)

    @cached_property
    def moved(self) -> np.ndarray | None:
        """Regenerated tokens that differ from the source's at the end: bool like `region`."""
        return self._on_grid(self._record.moved)

    def _on_grid(self, tokens: Tensor | None) -> np.ndarray | None:
        if tokens is None or self.grid is None:
            return None
        maps = tokens.cpu().numpy().reshape(-1, *self.grid)
        return maps[0] if self.batch == 1 else maps

    @property
    def mean_ratio(self) -> float:
        """r: mean fraction of the noise tokens that a spot step computed, or 1.0 without one."""
        ratios = [step["active"] / step["total"] for step in self.steps if step["kind"] == "spot"]
        return sum(ratios) / len(ratios) if ratios else 1.0

    @property
    def flops_saved(self) -> float:
        """Fraction of the transformer's work that was skipped, 0..1.

        The cost of linear layers and of attention is proportional to the number of query rows.
        """
        num_rows = sum(step.rows for step in self._record.records)
        num_dense_rows = sum(step.sequence for step in self._record.records)
        return 1 - num_rows / num_dense_rows if num_dense_rows else 0.0

    @property
    def seconds(self) -> float:
        """Seconds from the first step's start to the last step's end."""
        steps: list[StepRecord] = list(self._record.records)
        return _seconds(steps[0].start, steps[-1].end) if steps else 0.0

    @cached_property
    def seconds_saved(self) -> float | None:
        """Seconds that earlier calls of a session took to make what this call took from them.

        Measured in the call that made it, with whatever warm-up that call had: the source's
        encodings and the judge's features. 0 in the first call, None outside of a session.
        """
        saved = self._record.saved
        return None if saved is None else float(sum(_seconds(start, end) for start, end in saved))


def _image_of(tokens: Tensor | None, image: int) -> Tensor | None:
    return None if tokens is None else tokens[image : image + 1]


def _seconds(start: Timestamp, end: Timestamp) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return start.elapsed_time(end) / 1000
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    raise TypeError(f"timestamps of two kinds: {type(start).__name__} and {type(end).__name__}")
