"""FLUX.1-Kontext."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from ..options.choices import Grid
from ..options.temporal import TeaCache
from .copies import compute_dtype, copy_without_hooks, weight_of, with_loaded_weights
from .spec import Arguments, Projection, Spec, register


def grids(arguments: Arguments) -> list[Grid]:
    """The first axis of `img_ids` numbers the pictures; the noise comes first."""
    ids = arguments["img_ids"]
    ids = (ids[0] if ids.ndim == 3 else ids).cpu().long()  # [N + C, 3]
    _, counts = ids[:, 0].unique_consecutive(return_counts=True)
    sizes = [part.amax(dim=0) - part.amin(dim=0) + 1 for part in ids[:, 1:3].split(counts.tolist())]
    return [(int(rows), int(cols)) for rows, cols in sizes]


def rotary(transformer: Any, arguments: Arguments) -> tuple[Tensor, Tensor]:
    ids = (arguments["txt_ids"], arguments["img_ids"])
    cos, sin = transformer.pos_embed(torch.cat([i[0] if i.ndim == 3 else i for i in ids]))
    return cos, sin


def narrow(arguments: Arguments, index: Tensor) -> dict[str, Any]:
    ids = arguments["img_ids"]
    return {"img_ids": ids.new_zeros(*ids.shape[:-2], index.shape[-1], ids.shape[-1])}


def modulated(block: Any, arguments: Arguments) -> Tensor:
    hidden = arguments["hidden_states"]
    norm = with_loaded_weights(block.norm1, block, hidden.device)
    return norm(hidden, emb=arguments["temb"])[0]


def rms_norms(attn: Any, device: torch.device) -> dict[str, Any]:
    """`Projection.norms` of a block with one stream."""
    norms = {"q_weight": attn.norm_q, "k_weight": attn.norm_k}
    weights: dict[str, Any] = {name: weight_of(norm, device) for name, norm in norms.items()}
    return weights | {"text_q_weight": None, "text_k_weight": None, "eps": attn.norm_q.eps}


def project(attn: Any, hidden: Tensor, prompt: Tensor | None) -> Projection:
    """Joint rows of a dual-stream block, or those of a single-stream one (`prompt` is None)."""

    def heads(fused: str, separate: tuple[str, str, str], states: Tensor) -> list[Tensor]:
        if attn.fused_projections:
            parts = getattr(attn, fused)(states).chunk(3, dim=-1)
        else:
            parts = [getattr(attn, name)(states) for name in separate]
        return [part.unflatten(-1, (-1, attn.inner_dim // attn.heads)) for part in parts]

    norms = rms_norms(attn, hidden.device)
    rows = heads("to_qkv", ("to_q", "to_k", "to_v"), hidden)
    if prompt is not None:
        text = heads("to_added_qkv", ("add_q_proj", "add_k_proj", "add_v_proj"), prompt)
        rows = [torch.cat(pair, dim=1) for pair in zip(text, rows, strict=True)]
        norms["text_q_weight"] = weight_of(attn.norm_added_q, hidden.device)
        norms["text_k_weight"] = weight_of(attn.norm_added_k, hidden.device)
    q, k, v = rows
    return Projection(q, k, v, norms)


def output(
    attn: Any, heads: Tensor, prompt: Tensor | None, projection: Projection
) -> Tensor | tuple[Tensor, Tensor]:
    hidden = heads.flatten(2, 3)
    if prompt is None:
        return hidden
    text, image = hidden[:, : prompt.shape[1]], hidden[:, prompt.shape[1] :]
    image = attn.to_out[1](attn.to_out[0](image.contiguous()))
    return image, attn.to_add_out(text.contiguous())


class DecoderPrefix(nn.Module):
    """Copies of the first layers of an `AutoencoderKL` decoder, on the device of `like`.

    Raises:
        ValueError: there is no VAE, or its decoder has other layers.
    """

    def __init__(self, vae: Any, like: Tensor) -> None:
        super().__init__()
        if vae is None:
            raise ValueError(
                "the pipeline has no VAE, through which the perceptual judge looks; expected one, "
                'or judge="cosine" or "l2"'
            )
        decoder: Any = getattr(vae, "decoder", None)
        if not all(hasattr(decoder, name) for name in ("conv_in", "mid_block", "up_blocks")):
            raise ValueError(
                "the perceptual judge looks through the first layers of the VAE's decoder, which "
                f"{type(vae).__name__} does not have; expected an AutoencoderKL, or "
                'judge="cosine" or "l2"'
            )
        parts = [decoder.conv_in, decoder.mid_block, decoder.up_blocks[0]]
        if getattr(vae, "post_quant_conv", None) is not None:
            parts[0] = nn.Sequential(vae.post_quant_conv, parts[0])
        self.layers = nn.ModuleList(copy_without_hooks(part, vae) for part in parts)
        self.dtype = compute_dtype(self, like.dtype)
        self.to(like.device, self.dtype)

    def forward(self, latents: Tensor) -> list[Tensor]:
        """Latents [B, C, h, w] -> feature maps [B, C_l, h_l, w_l], shallow to deep."""
        latents, maps = latents.to(self.dtype), []
        for layer in self.layers:
            latents = layer(latents)
            maps.append(latents)
        return maps


def tokens_to_latents(tokens: Tensor, grid: Grid) -> Tensor:
    """Packed tokens [B, N, C*4] (channel c*4 + dy*2 + dx) -> latents [B, C, 2 rows, 2 cols]."""
    patches = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, grid)  # [B, rows, cols, C, dy, dx]
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def tokens_to_vae_input(pipe: Any, tokens: Tensor, grid: Grid) -> Tensor:
    latents = tokens_to_latents(tokens, grid)
    return latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor


def features(pipe: Any, y: Tensor, grid: Grid) -> Callable[[Tensor], list[Tensor]]:
    prefix = DecoderPrefix(pipe.vae, y)
    return lambda tokens: prefix(tokens_to_vae_input(pipe, tokens, grid))


def matched_size(pipe: Any, arguments: Arguments, reference: int | str) -> dict[str, Any]:
    """The size that the pipeline will give the condition image, as output size.

    `max_area` goes with it: the pipeline rescales height and width to that area.
    """
    image = arguments.get("image")
    if image is None:
        return {}
    multiple = pipe.vae_scale_factor * 2
    channels = pipe.vae.config.latent_channels
    if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == channels:
        height, width = (side * pipe.vae_scale_factor for side in image.shape[2:])
    else:
        first = image[0] if isinstance(image, list) else image
        height, width = pipe.image_processor.get_default_height_width(first)
        if arguments.get("_auto_resize", True):
            # imported here so that `import spotedit` stays fast
            from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

            aspect = width / height
            _, width, height = min(
                (abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS
            )
    height, width = height // multiple * multiple, width // multiple * multiple
    return {"height": height, "width": width, "max_area": height * width}


def source_size(arguments: Arguments, number: int) -> Grid | None:
    image = arguments.get("image")
    if isinstance(image, list | tuple):
        image = image[0]
    if isinstance(image, Image):
        return image.height, image.width
    if isinstance(image, Tensor):  # [B, C, H, W]
        return image.shape[-2], image.shape[-1]
    if isinstance(image, np.ndarray):  # [B, H, W, C]
        return image.shape[-3], image.shape[-2]
    return None


def listed_size(arguments: Arguments, number: int) -> Grid | None:
    """The same for pipelines that take a list as the condition images of one output."""
    image = arguments["image"]
    return source_size({"image": image[number] if isinstance(image, list) else image}, number)


KONTEXT = Spec(
    pipelines=("FluxKontextPipeline", "FluxKontextModularPipeline"),
    grids=grids,
    rotary=rotary,
    narrow=narrow,
    project=project,
    output=output,
    features=features,
    matched_size=matched_size,
    source_size=source_size,
    token_pixels=lambda pipe: pipe.vae_scale_factor * 2,
    latents=tokens_to_latents,
    modulated=modulated,
    processors=("FluxAttnProcessor",),
    # of FLUX.1-Kontext-dev, from ComfyUI-TeaCache (github.com/welltop-cn/ComfyUI-TeaCache)
    tea=TeaCache(0.25, (-1046.55119, 312.563399, -16.9500694, 0.410995971, 0.0374537863)),
)
register(KONTEXT)
