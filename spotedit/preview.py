"""A call that ends at its first judgement, to see what would be regenerated."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from .engine.session import Session, with_sample
from .judge.judges import Prediction
from .pictures.draw import heat
from .report import EditReport


@dataclass(frozen=True)
class Preview:
    """What a call would regenerate, as far as its first judgement can say.

    Attributes:
        image: the draft: the clean picture predicted at that step, decoded by the pipeline.
        report: of the steps that were run.
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
        """The draft in grey, warmer the higher the score, with the region outlined."""
        limit = self.report.threshold
        return heat(
            self.image, self.scores, self.region, limit if isinstance(limit, float) else 0.0
        )


class PreviewSession(Session):
    """Stops at the first judgement and hands the predicted clean latents to the pipeline."""

    def _begin(self, arguments: Mapping[str, Any]) -> None:
        super()._begin(arguments)
        if self.reason is not None:
            raise ValueError(f"there is no region to preview: {self.reason}")
        if self.batch > 1:
            raise ValueError(f"the call makes {self.batch} images; expected one: preview each")

    def _select(self, output: Tensor, sample: Tensor) -> None:
        super()._select(output, sample)
        self._draft = Prediction(sample, output, self.sigmas[self.index]).x0

    def scheduler_step(
        self,
        step: Callable[..., Any],
        output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """The stock step until the judgement; then the predicted clean latents."""
        result = super().scheduler_step(step, output, timestep, sample, *args, **kwargs)
        if self.judging is None or self.judging.selection is None:
            return result
        self.stop()
        return with_sample(result, self._draft.to(sample.dtype))
