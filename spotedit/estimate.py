"""What the cache of an edit will take, before it is made."""

from typing import Any, Unpack

import torch

from . import models  # noqa: F401, registers the families
from .engine.cache import Place, allocate
from .engine.fusion import weights
from .models.spec import spec_for
from .options.config import Overrides, SpotEditConfig, resolve

_SIGMAS = [i / 100 for i in range(101)]


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
    """Bytes of keys and values that an edit keeps between its steps.

    They are allocated at the last initial step, on the transformer's device, and freed at the end
    of the call; `EditReport.cache_bytes` is the same figure for a call that was made.

    Args:
        pipe: a supported pipeline, enabled or not.
        height, width: of the output in pixels.
        prompt_tokens: length of the prompt's embeddings (512 for FLUX, as long as the prompt and
            its pictures for Qwen).
        images: pictures in the batch.
        conditions: condition images in the call, each of the output's size.
        branches: forwards of the transformer a step: 2 with classifier-free guidance.
        dtype: of the latents, where it is not the transformer's (layerwise casting).
        config, **overrides: as for `spotedit.enable`.

    Raises:
        ValueError: the pipeline is not supported, or the size is smaller than a token.
        TypeError: an unknown field.
    """
    spec, config = spec_for(pipe), resolve(config, overrides)
    side = spec.token_pixels(pipe)
    noise = (height // side) * (width // side)
    if noise < 1:
        raise ValueError(f"{height} x {width} pixels; expected at least a token, {side} x {side}")
    place = Place(prompt_tokens, noise, noise, prompt_tokens + (1 + conditions) * noise)
    mixed = any(weight != 1.0 for weight in weights(config.fusion, _SIGMAS))
    like = torch.empty(0, dtype=dtype or pipe.transformer.dtype, device="meta")
    int8, heads = config.cache_dtype == "int8", spec.heads(pipe.transformer)
    layer = allocate(images, place, heads, mixed, int8, like)
    return layer.nbytes * len(pipe.transformer.attn_processors) * branches
