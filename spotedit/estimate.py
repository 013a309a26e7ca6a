"""An estimate of the memory that an edit takes for its cache."""

from typing import Any, Unpack

import torch

from . import models  # noqa: F401, registers the families
from .engine.cache import SequenceLayout, allocate
from .engine.fusion import weights
from .models.spec import spec_for
from .options.config import Overrides, SpotEditConfig, resolve

_SIGMAS = [i / 100 for i in range(101)]  # where a fusion function is tried


def estimate(
    pipe: Any,
    height: int,
    width: int,
    *,
    prompt_tokens: int = 512,
    images: int = 1,
    conditions: int = 1,
    branches: int = 1,
    dtype: torch.dtype | None = None,
    config: SpotEditConfig | None = None,
    **overrides: Unpack[Overrides],
) -> int:
    """Return the number of bytes of keys and values that an edit keeps between its steps.

    They are allocated at the last initial step, on the transformer's device, and freed at the end
    of the call. `EditReport.cache_bytes` is the same figure for a call that was made.

    Args:
        pipe: a supported pipeline, enabled or not.
        height, width: size of the output in pixels.
        prompt_tokens: length of the prompt's embeddings: 512 for FLUX; for Qwen as long as the
            prompt and its pictures.
        images: number of images in the batch.
        conditions: number of condition images in the call, each of the output's size.
        branches: number of forwards of the transformer in a step: 2 with classifier-free guidance.
        dtype: dtype of the latents, if it differs from the transformer's (layerwise casting).
        config, **overrides: as for `spotedit.enable`.

    Raises:
        ValueError: the pipeline is not supported, or the size is smaller than a token.
        TypeError: an override is not a field of `SpotEditConfig`.
    """
    spec, config = spec_for(pipe), resolve(config, overrides)
    token_side = spec.token_pixels(pipe)
    num_noise = (height // token_side) * (width // token_side)
    if num_noise < 1:
        raise ValueError(
            f"{height} x {width} pixels; expected at least a token, {token_side} x {token_side}"
        )
    layout = SequenceLayout(
        num_prompt=prompt_tokens,
        num_noise=num_noise,
        source_start=num_noise,
        num_tokens=prompt_tokens + (1 + conditions) * num_noise,
    )
    layer = allocate(
        images,
        layout,
        spec.heads(pipe.transformer),
        needs_blend=any(weight != 1.0 for weight in weights(config.fusion, _SIGMAS)),
        int8=config.cache_dtype == "int8",
        like=torch.empty(0, dtype=dtype or pipe.transformer.dtype, device="meta"),
    )
    return layer.nbytes * len(pipe.transformer.attn_processors) * branches
