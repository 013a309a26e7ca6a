"""A preview: a call that ends at its first judgement and shows what it would regenerate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .engine.call import Hooks, Request
from .engine.outputs import with_sample
from .engine.session import Session
from .judge.judges import Prediction
from .models.spec import Arguments
from .pictures.draw import heat
from .report import EditReport


@dataclass(frozen=True)
class Preview:
    """What a call would regenerate, as far as its first judgement can tell.

    Attributes:
        image: the draft, which is the clean picture predicted at that step.
        report: the `EditReport` of the steps that were run.
    """

    image: Image.Image
    report: EditReport

    @property
    def scores(self) -> np.ndarray:
        """Distance of every token from the source: fp32 [rows, cols]."""
        assert self.report.scores is not None  # a preview always judges
        return self.report.scores

    @property
    def region(self) -> np.ndarray:
        """The tokens that the first spot step would compute: bool [rows, cols]."""
        assert self.report.region is not None
        return self.report.region

    @property
    def heat_map(self) -> Image.Image:
        """The draft in grey, in warmer colours for higher scores, with the region outlined."""
        threshold = self.report.threshold
        limit = threshold if isinstance(threshold, float) else 0.0
        return heat(self.image, self.scores, self.region, limit)


class PreviewSession(Session):
    """Ends the loop at the first judgement, with the predicted clean image as its latents."""

    def __init__(self, request: Request, hooks: Hooks, first_arguments: Arguments) -> None:
        super().__init__(request, hooks, first_arguments)
        if self.reason is not None:
            raise ValueError(f"there is no region to preview: {self.reason}")
        if self.loop.batch > 1:
            raise ValueError(f"the call makes {self.loop.batch} images; expected one: preview each")

    def scheduler_step(
        self,
        step: Callable[..., Any],
        output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Take the stock step until the judgement; then return the predicted clean latents."""
        sigma = self.loop.sigmas[self.index]
        result = super().scheduler_step(step, output, timestep, sample, *args, **kwargs)
        if self.reuse is None or self.reuse.judging.selection is None:
            return result
        self.hooks.stop()
        draft = Prediction(sample, output, sigma).x0
        return with_sample(result, draft.to(sample.dtype))
