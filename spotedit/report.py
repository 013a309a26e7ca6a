"""What one call of an enabled pipeline did, step by step."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import said
from .draw import plot_steps, tint
from .misalignment import Misalignment
from .temporal import Temporal

StepKind = Literal["dense", "full", "spot", "skip"]
Mark = float | torch.cuda.Event  # time.perf_counter() in seconds, or a recorded event


class Step(TypedDict):
    """One of `EditReport.steps`.

    Attributes:
        index: 0-based position in the loop.
        kind: "dense" (the stock pipeline), "full", "spot", or "skip" (no forward was run).
        sigma: noise level the step started from, 1 (noise) to 0 (image).
        active, total: noise tokens computed, and all of them, summed over the images of a batch.
        seconds: from the step's start to its end.
    """

    index: int
    kind: StepKind
    sigma: float
    active: int
    total: int
    seconds: float


@dataclass(frozen=True)
class StepProgress:
    """What `Handle.call` tells its `on_step` after a denoising step.

    Attributes:
        index: 0-based position in the loop of `total` steps.
        kind: "dense", "full", "spot" or "skip", as in `EditReport.steps`.
        sigma: noise level the step started from, 1 (noise) to 0 (image).
    """

    index: int
    total: int
    kind: str
    sigma: float


@dataclass(frozen=True)
class StepRecord:
    """One denoising step, as it was run. Device values are not read here.

    Attributes:
        index: 0-based position in the loop.
        kind: "dense" (the stock pipeline), "full", "spot", or "skip" (no forward was run).
        sigma: noise level the step started from, 1 (noise) to 0 (image).
        rows: query rows run per image, prompt included.
        sequence: rows of the joint sequence [prompt, noise, condition].
        total: noise tokens of an image.
        active: noise tokens computed, [B] on the device or the same number for every image.
        start, end: when the step began and ended.
    """

    index: int
    kind: str
    sigma: float
    rows: int
    sequence: int
    total: int
    active: Tensor | int
    start: Mark
    end: Mark


def _seconds(start: Mark, end: Mark) -> float:
    if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
        end.synchronize()
        return start.elapsed_time(end) / 1000
    if isinstance(start, float) and isinstance(end, float):
        return end - start
    raise TypeError(f"marks of two kinds: {type(start).__name__} and {type(end).__name__}")


class EditReport:
    """What was skipped in a call, and why not more. Device values are read once, when asked for.

    Attributes:
        pipeline: class name of the pipeline.
        grid: noise tokens (rows, cols), or None where the call ended before the transformer ran.
        batch: images in the call.
        cache_bytes: bytes of the buffers that held keys and values.
        reason: why no token was reused, or None.
        threshold, judge: what decided which tokens are reused; `"auto"`: the scores' own cut.
        misalignment: how the whole frame differs from the source's, if that was found to be why so
            many tokens change; every token was computed then. None: not found, or not looked for.
        temporal: what decided which steps run no forward, or None.
        unedited: number of images in which nothing was edited: the call ended with all of their
            tokens replaced by the source's.
        mask_note: what is odd about the user's mask, a sentence, or None.
        judged: whether tokens were judged; not in a dense call or where the mask alone decides.
        largest: largest number of active tokens, of all images, that a judgement found.
        returned: (step, number of tokens) of the resets at which tokens were judged to change that
            had been reused until then.
    """

    def __init__(
        self,
        pipeline: str,
        grid: tuple[int, int] | None,
        records: Sequence[StepRecord],
        region: Tensor | None,
        scores: Tensor | None,
        batch: int,
        cache_bytes: int,
        reason: str | None,
        threshold: float | Literal["auto"] | None,
        judge: str | None,
        misalignment: Misalignment | None = None,
        temporal: Temporal | None = None,
        unedited: int = 0,
        mask_note: str | None = None,
        largest: int = 0,
        returned: Sequence[tuple[int, int]] = (),
        moved: Tensor | None = None,
    ) -> None:
        """`region` is bool [B, N] (True = regenerated) and `scores` fp32 [B, N], as last judged.

        `moved` is bool [B, N]: the regenerated tokens that ended away from the source.
        """
        self.pipeline, self.grid, self.batch = pipeline, grid, batch
        self.cache_bytes, self.reason = cache_bytes, reason
        self.threshold, self.judge, self.misalignment = threshold, judge, misalignment
        self.temporal, self.unedited, self.mask_note = temporal, unedited, mask_note
        self.judged = scores is not None
        self.largest, self.returned, self._moved = largest, list(returned), moved
        self._records, self._region, self._scores = list(records), region, scores

    @cached_property
    def _active(self) -> list[list[int]]:
        """Active tokens by step and image, read from the device in one transfer."""
        counts = [record.active for record in self._records]
        tensors = [count for count in counts if isinstance(count, Tensor)]
        read = iter(torch.stack(tensors).tolist() if tensors else [])
        return [next(read) if isinstance(c, Tensor) else [c] * self.batch for c in counts]

    @property
    def kinds(self) -> list[str]:
        """The kind of every step, known without reading anything from the device."""
        return [record.kind for record in self._records]

    @cached_property
    def steps(self) -> list[Step]:
        """A `Step` per step; one that was left out computes no token."""
        return [
            Step(
                index=record.index,
                kind=cast(StepKind, record.kind),
                sigma=record.sigma,
                active=sum(active),
                total=record.total * self.batch,
                seconds=_seconds(record.start, record.end),
            )
            for record, active in zip(self._records, self._active, strict=True)
        ]

    @cached_property
    def images(self) -> tuple["EditReport", ...]:
        """A report for each image of the batch. Times and bytes stay those of the whole call."""
        if self.batch == 1:
            return (self,)
        return tuple(self._of_image(i) for i in range(self.batch))

    def _of_image(self, i: int) -> "EditReport":
        records = [
            replace(record, active=active[i])
            for record, active in zip(self._records, self._active, strict=True)
        ]
        tensors = (self._region, self._scores, self._moved)
        region, scores, moved = (x if x is None else x[i : i + 1] for x in tensors)
        unedited = self.unedited > 0 and self.region is not None and not self.region[i].any()
        return EditReport(
            self.pipeline, self.grid, records, region, scores, 1,
            self.cache_bytes, self.reason, self.threshold, self.judge, temporal=self.temporal,
            unedited=int(unedited), mask_note=self.mask_note, moved=moved,
        )  # fmt: skip

    @cached_property
    def region(self) -> np.ndarray | None:
        """Tokens that were regenerated: bool [rows, cols], [B, rows, cols] for a batch, or None."""
        return self._on_grid(self._region)

    @cached_property
    def scores(self) -> np.ndarray | None:
        """Scores of the last judgement: fp32, shaped as `region`, or None."""
        return self._on_grid(self._scores)

    @cached_property
    def moved(self) -> np.ndarray | None:
        """Regenerated tokens that ended away from the source: bool, shaped as `region`, or None."""
        return self._on_grid(self._moved)

    @property
    def doubts(self) -> list[str]:
        """Signs that the edit was left undone or is not what was asked for; each says what to try.

        An empty list is no proof that the edit is right.
        """
        return said.doubts(self)

    def _on_grid(self, tokens: Tensor | None) -> np.ndarray | None:
        if tokens is None or self.grid is None:
            return None
        maps = tokens.cpu().numpy().reshape(-1, *self.grid)
        return maps[0] if self.batch == 1 else maps

    @property
    def mean_ratio(self) -> float:
        """r: share of the noise tokens that a spot step computed, on average; 1.0 without any."""
        ratios = [step["active"] / step["total"] for step in self.steps if step["kind"] == "spot"]
        return sum(ratios) / len(ratios) if ratios else 1.0

    @property
    def flops_saved(self) -> float:
        """Share of the transformer's work that was skipped, 0..1.

        Linear layers and attention both cost in proportion to the query rows.
        """
        dense = sum(record.sequence for record in self._records)
        return 1 - sum(record.rows for record in self._records) / dense if dense else 0.0

    @property
    def seconds(self) -> float:
        """From the first step's start to the last step's end."""
        return _seconds(self._records[0].start, self._records[-1].end) if self._records else 0.0

    def summary(self) -> str:
        """A few lines for people. Without a dense run to compare with, no speed-up is claimed."""
        return said.summary(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the scores, as JSON can hold it; `region` as rows of 0 and 1."""
        return {
            "pipeline": self.pipeline,
            "grid": list(self.grid) if self.grid else None,
            "batch": self.batch,
            "steps": [dict(step) for step in self.steps],
            "mean_ratio": self.mean_ratio,
            "flops_saved": self.flops_saved,
            "seconds": self.seconds,
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
        """`image` at its own size in RGB, with the regenerated tokens tinted and outlined.

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
