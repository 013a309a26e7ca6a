"""FLUX.2 and FLUX.2 klein."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..options.choices import Grid
from . import flux
from .copies import copy_without_hooks
from .spec import Arguments, Projection, Spec, register, register_refusal


def project(attn: Any, hidden: Tensor, prompt: Tensor | None) -> Projection:
    """Single-stream blocks project queries, keys, values and the MLP's rows at once."""
    if prompt is not None:
        return flux.project(attn, hidden, prompt)
    rows = attn.to_qkv_mlp_proj(hidden)
    qkv, mlp = 3 * attn.inner_dim, attn.mlp_hidden_dim * attn.mlp_mult_factor
    split = rows.shape[-1] * qkv // (qkv + mlp)  # a shard of a tensor-parallel model has fewer
    parts = rows[..., :split].chunk(3, dim=-1)
    q, k, v = (part.unflatten(-1, (-1, attn.head_dim)) for part in parts)
    return Projection(q, k, v, flux.rms_norms(attn, hidden.device), rest=rows[..., split:])


def modulated(block: Any, arguments: Arguments) -> Tensor:
    modulation = arguments["temb_mod_img"]
    if modulation.ndim == 2:  # [B, 6 D], one for all rows of an image
        modulation = modulation[:, None]
    shift, scale, *_ = modulation.chunk(6, dim=-1)
    return block.norm1(arguments["hidden_states"]) * (1 + scale) + shift


def output(
    attn: Any, heads: Tensor, prompt: Tensor | None, projection: Projection
) -> Tensor | tuple[Tensor, Tensor]:
    if prompt is not None:
        return flux.output(attn, heads, prompt, projection)
    mlp = attn.mlp_act_fn(projection.rest)
    return attn.to_out(torch.cat([heads.flatten(2, 3), mlp], dim=-1))


def features(pipe: Any, y: Tensor, grid: Grid) -> Callable[[Tensor], list[Tensor]]:
    prefix = flux.DecoderPrefix(pipe.vae, y)
    bn: Any = copy_without_hooks(pipe.vae.bn, pipe.vae).to(y.device, torch.float32)
    mean, std = bn.running_mean, (bn.running_var + bn.eps).sqrt()
    return lambda tokens: prefix(flux.tokens_to_latents(tokens * std + mean, grid))


def matched_size(pipe: Any, arguments: Arguments, reference: int | str) -> dict[str, Any]:
    """The size that the pipeline gives condition image `reference`; its own choice is the first."""
    images = arguments["image"]
    if reference == "auto" or not isinstance(images, list) or int(reference) >= len(images):
        return {}
    width, height = images[int(reference)].size
    scale = min(1.0, math.sqrt(1024 * 1024 / (width * height)))
    multiple = pipe.vae_scale_factor * 2
    sides = {"height": height, "width": width}
    return {name: int(side * scale) // multiple * multiple for name, side in sides.items()}


FLUX2 = Spec(
    pipelines=("Flux2Pipeline", "Flux2KleinPipeline"),
    grids=flux.grids,
    rotary=flux.rotary,
    narrow=flux.narrow,
    project=project,
    output=output,
    features=features,
    matched_size=matched_size,
    source_size=flux.listed_size,
    token_pixels=lambda pipe: pipe.vae_scale_factor * 2,
    latents=flux.tokens_to_latents,
    modulated=modulated,
    # those of klein KV are the others where no cache of keys and values is passed to them
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
