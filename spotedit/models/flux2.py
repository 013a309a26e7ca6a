"""The spec of FLUX.2 and FLUX.2 klein."""

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from ..options.choices import Box, Grid
from . import flux
from .copies import copy_without_hooks
from .spec import Arguments, Projection, Spec, register, register_refusal
from .vae import vae_of


def project(attn: Any, hidden: Tensor, prompt: Tensor | None) -> Projection:
    """Project the rows of a block. A single-stream block projects the MLP's input with them."""
    if prompt is not None:
        return flux.project(attn, hidden, prompt)
    projected = attn.to_qkv_mlp_proj(hidden)  # [B, rows, channels of q, k, v and the MLP]
    qkv_channels = 3 * attn.inner_dim
    mlp_channels = attn.mlp_hidden_dim * attn.mlp_mult_factor
    # a shard of a tensor-parallel model has a part of these channels
    split = projected.shape[-1] * qkv_channels // (qkv_channels + mlp_channels)
    qkv, mlp_input = projected[..., :split], projected[..., split:]
    q, k, v = (x.unflatten(-1, (-1, attn.head_dim)) for x in qkv.chunk(3, dim=-1))
    return Projection(q, k, v, flux.rms_norms(attn, hidden.device), rest=mlp_input)


def modulated(block: Any, arguments: Arguments) -> Tensor:
    modulation = arguments["temb_mod_img"]
    if modulation.ndim == 2:  # [B, 6 * width], the same for all rows of an image
        modulation = modulation[:, None]
    shift, scale, *_ = modulation.chunk(6, dim=-1)
    return block.norm1(arguments["hidden_states"]) * (1 + scale) + shift


def output(
    attn: Any, attended: Tensor, prompt: Tensor | None, projection: Projection
) -> Tensor | tuple[Tensor, Tensor]:
    if prompt is not None:
        return flux.output(attn, attended, prompt, projection)
    mlp = attn.mlp_act_fn(projection.rest)
    return attn.to_out(torch.cat([attended.flatten(2, 3), mlp], dim=-1))


def vae_input(pipe: Any, like: Tensor, grid: Grid) -> Callable[[Tensor], Tensor]:
    vae = vae_of(pipe)
    bn: Any = copy_without_hooks(vae.bn, vae).to(like.device, torch.float32)
    mean, std = bn.running_mean, (bn.running_var + bn.eps).sqrt()
    return lambda tokens: flux.tokens_to_latents(tokens * std + mean, grid)


def matched_size(pipe: Any, arguments: Arguments, reference: int | str) -> dict[str, Any]:
    """Return the size that the pipeline gives condition image `reference`.

    Without it, the pipeline takes the size of the first one, which is right for `"auto"`.
    """
    images = arguments["image"]
    if reference == "auto" or not isinstance(images, list) or int(reference) >= len(images):
        return {}
    width, height = _resized(images[int(reference)])
    multiple = pipe.vae_scale_factor * 2
    return {"height": height // multiple * multiple, "width": width // multiple * multiple}


def _resized(image: Image) -> tuple[int, int]:
    """Return the (width, height) that the pipeline gives a condition image before it crops it."""
    scale = min(1.0, math.sqrt(1024 * 1024 / (image.width * image.height)))
    return int(image.width * scale), int(image.height * scale)


def source_box(pipe: Any, arguments: Arguments, source_index: int) -> Box:
    """Return what is left of the source after the pipeline cropped it to whole tokens."""
    image = arguments["image"]
    if isinstance(image, list):
        image = image[source_index]
    width, height = _resized(image)
    left, right = _centre(width, pipe.vae_scale_factor * 2)
    top, bottom = _centre(height, pipe.vae_scale_factor * 2)
    return left / width, top / height, right / width, bottom / height


def _centre(side: int, multiple: int) -> tuple[int, int]:
    """Return the first and the last pixel edge of the centre that the pipeline keeps of a side."""
    kept = side // multiple * multiple
    start = (side - kept) // 2
    return start, start + kept


FLUX2 = Spec(
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    grids=flux.grids,
    rotary=flux.rotary,
    narrow=flux.narrow,
    project=project,
    output=output,
    vae_input=vae_input,
    decoder_layers=lambda pipe, y: flux.DecoderPrefix(pipe.vae, y),
    matched_size=matched_size,
    source_size=flux.source_size_in_list,
    token_pixels=lambda pipe: pipe.vae_scale_factor * 2,
    latents=flux.tokens_to_latents,
    source_box=source_box,
    modulated=modulated,
    # The KV processors of klein compute the same as the others if they get no cache.
    processors=(
        "Flux2AttnProcessor",
        "Flux2ParallelSelfAttnProcessor",
        "Flux2KVAttnProcessor",
        "Flux2KVParallelSelfAttnProcessor",
    ),
)
register(FLUX2)
register_refusal(
    "Flux2KleinKVPipeline",
    "it keeps the condition's keys and values itself; expected Flux2KleinPipeline with the same "
    "weights: Flux2KleinPipeline(**pipe.components, is_distilled=True)",
)
