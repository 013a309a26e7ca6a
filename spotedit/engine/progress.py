"""What the caller's `on_step` is told about a step, with the pictures that it predicts."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from PIL.Image import Image

from ..judge.judges import Prediction
from ..models.spec import Spec
from ..options.choices import Grid
from .call import Loop, Request
from .record import StepProgress, StepRecord


def report_progress(request: Request, loop: Loop, step: StepRecord, prediction: Prediction) -> None:
    """Tell the caller's `on_step` about a step, and let it decode the clean prediction."""
    assert request.on_step is not None
    images = PredictedImages(request.pipe, request.spec, loop.grid, prediction)
    progress = StepProgress(
        step.index, loop.num_steps, step.kind, step.sigma, step.computed_share, images
    )
    try:
        request.on_step(progress)
    finally:
        images.release()


class PredictedImages:
    """Decodes the clean pictures that a step predicts, when they are first asked for.

    Until then it holds the latents and the velocity of that step. `release` is called after the
    caller's `on_step` has returned, so whoever keeps a `StepProgress` keeps neither. Pickles and
    copies hold only pictures that are decoded already.
    """

    def __init__(self, pipe: Any, spec: Spec, grid: Grid, prediction: Prediction) -> None:
        self._decode: Callable[[], list[Image]] | None
        self._decode = partial(_decode, pipe, spec, grid, prediction)
        self._images: list[Image] | None = None

    def __call__(self) -> list[Image]:
        """Return a picture for every image of the batch.

        Raises:
            RuntimeError: the pictures were not decoded before `release`.
            ValueError: the pipeline has no VAE.
        """
        if self._images is None:
            if self._decode is None:
                raise RuntimeError(
                    "the latents of this step are no longer held; expected `image` to be read "
                    "before on_step returns: keep the picture instead of the StepProgress"
                )
            self._images = self._decode()
            self.release()
        return self._images

    def release(self) -> None:
        """Let go of everything but pictures that are decoded already."""
        self._decode = None

    def __getstate__(self) -> dict[str, Any]:
        return {"_decode": None, "_images": self._images}


@torch.no_grad()
def _decode(pipe: Any, spec: Spec, grid: Grid, prediction: Prediction) -> list[Image]:
    """Decode a prediction as the pipeline decodes its result."""
    # imported here so that `import spotedit` stays fast
    from diffusers.image_processor import VaeImageProcessor

    tokens = prediction.x0.to(prediction.sample.dtype)
    latents = spec.vae_input(pipe, tokens, grid)(tokens)
    pictures = spec.decode(pipe, latents)
    processor = getattr(pipe, "image_processor", None) or VaeImageProcessor()
    return processor.postprocess(pictures, output_type="pil")
