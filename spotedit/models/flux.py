"""The spec of FLUX.1-Kontext, and functions that other families share."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from ..options.choices import Grid, Size
from ..options.temporal import TeaCache
from .copies import compute_dtype, copy_without_hooks, weight_of, with_loaded_weights
from .spec import Arguments, Projection, Spec, register
from .vae import vae_of


def grids(arguments: Arguments) -> list[Grid]:
    """Read the grids from `img_ids`, which hold (picture, row, column) of every image token."""
    ids = _without_batch(arguments["img_ids"]).cpu().long()  # [S - P, 3 or 4]
    picture_index, positions = ids[:, 0], ids[:, 1:3]
    _, num_tokens = picture_index.unique_consecutive(return_counts=True)
    token_grids = []
    for picture in positions.split(num_tokens.tolist()):  # [rows * cols, 2]
        rows, cols = (picture.amax(dim=0) - picture.amin(dim=0) + 1).tolist()
        token_grids.append((rows, cols))
    return token_grids


def _without_batch(ids: Tensor) -> Tensor:
    """Return ids [X, axes], which some pipelines repeat for every image of the batch."""
    return ids[0] if ids.ndim == 3 else ids


def rotary(transformer: Any, arguments: Arguments) -> tuple[Tensor, Tensor]:
    prompt_ids = _without_batch(arguments["txt_ids"])
    image_ids = _without_batch(arguments["img_ids"])
    cos, sin = transformer.pos_embed(torch.cat([prompt_ids, image_ids]))
    return cos, sin


def narrow(arguments: Arguments, index: Tensor) -> dict[str, Any]:
    """Cut `img_ids` to the length of the index. Their values do not matter, see `Spec.narrow`."""
    ids = arguments["img_ids"]
    return {"img_ids": ids.new_zeros(*ids.shape[:-2], index.shape[-1], ids.shape[-1])}


def modulated(block: Any, arguments: Arguments) -> Tensor:
    hidden = arguments["hidden_states"]
    norm = with_loaded_weights(block.norm1, component=block, device=hidden.device)
    modulated_input, *_ = norm(hidden, emb=arguments["temb"])
    return modulated_input


def rms_norms(attn: Any, device: torch.device) -> dict[str, Any]:
    """Return `Projection.norms` with the weights for image rows, and none for prompt rows."""
    return {
        "q_weight": weight_of(attn.norm_q, device),
        "k_weight": weight_of(attn.norm_k, device),
        "text_q_weight": None,
        "text_k_weight": None,
        "eps": attn.norm_q.eps,
    }


def project(attn: Any, hidden: Tensor, prompt: Tensor | None) -> Projection:
    """Project the rows of a dual-stream block, or of a single-stream block if `prompt` is None."""

    def project_to_heads(
        fused_name: str, separate_names: tuple[str, str, str], states: Tensor
    ) -> list[Tensor]:
        if attn.fused_projections:
            projected = getattr(attn, fused_name)(states).chunk(3, dim=-1)
        else:
            projected = [getattr(attn, name)(states) for name in separate_names]
        head_dim = attn.inner_dim // attn.heads
        return [x.unflatten(-1, (-1, head_dim)) for x in projected]  # [B, rows, H, D] each

    norms = rms_norms(attn, hidden.device)
    qkv = project_to_heads("to_qkv", ("to_q", "to_k", "to_v"), hidden)
    if prompt is not None:
        prompt_names = ("add_q_proj", "add_k_proj", "add_v_proj")
        prompt_qkv = project_to_heads("to_added_qkv", prompt_names, prompt)
        qkv = [torch.cat(pair, dim=1) for pair in zip(prompt_qkv, qkv, strict=True)]
        norms["text_q_weight"] = weight_of(attn.norm_added_q, hidden.device)
        norms["text_k_weight"] = weight_of(attn.norm_added_k, hidden.device)
    q, k, v = qkv
    return Projection(q, k, v, norms)


def output(
    attn: Any, attended: Tensor, prompt: Tensor | None, projection: Projection
) -> Tensor | tuple[Tensor, Tensor]:
    hidden = attended.flatten(2, 3)  # [B, rows, H * D]
    if prompt is None:
        return hidden
    num_prompt_tokens = prompt.shape[1]
    prompt_rows, image_rows = hidden[:, :num_prompt_tokens], hidden[:, num_prompt_tokens:]
    image_rows = attn.to_out[1](attn.to_out[0](image_rows.contiguous()))
    return image_rows, attn.to_add_out(prompt_rows.contiguous())


class DecoderPrefix(nn.Module):
    """Copies of the first layers of an `AutoencoderKL` decoder, on the device of `like`.

    Raises:
        ValueError: there is no VAE, or its decoder does not have these layers.
    """

    def __init__(self, vae: Any, like: Tensor) -> None:
        super().__init__()
        if vae is None:
            raise ValueError(
                "the pipeline has no VAE, which the perceptual judge needs; expected one, or "
                'judge="cosine" or "l2"'
            )
        decoder: Any = getattr(vae, "decoder", None)
        if not all(hasattr(decoder, name) for name in ("conv_in", "mid_block", "up_blocks")):
            raise ValueError(
                "the perceptual judge needs the first layers of the VAE's decoder, which "
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
        """Turn latents [B, C, h, w] into feature maps [B, C_l, h_l, w_l], from shallow to deep."""
        hidden = latents.to(self.dtype)
        maps = []
        for layer in self.layers:
            hidden = layer(hidden)
            maps.append(hidden)
        return maps


def tokens_to_latents(tokens: Tensor, grid: Grid) -> Tensor:
    """Turn tokens [B, N, C*4] (channel c*4 + dy*2 + dx) into latents [B, C, 2 rows, 2 cols]."""
    patches = tokens.unflatten(2, (-1, 2, 2)).unflatten(1, grid)  # [B, rows, cols, C, dy, dx]
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def vae_input(pipe: Any, like: Tensor, grid: Grid) -> Callable[[Tensor], Tensor]:
    config = vae_of(pipe).config
    return lambda tokens: (
        tokens_to_latents(tokens, grid) / config.scaling_factor + config.shift_factor
    )


def matched_size(pipe: Any, arguments: Arguments, reference: int | str) -> dict[str, Any]:
    """Return the size that the pipeline will give the condition image.

    `max_area` is part of it, because the pipeline rescales height and width to that area.
    """
    image = arguments.get("image")
    if image is None:
        return {}
    multiple = pipe.vae_scale_factor * 2
    channels = pipe.vae.config.latent_channels
    # the stock pipeline treats a tensor with the VAE's number of channels as latents
    if isinstance(image, Tensor) and image.ndim == 4 and image.shape[1] == channels:
        height, width = (side * pipe.vae_scale_factor for side in image.shape[2:])
    else:
        first = image[0] if isinstance(image, list) else image
        height, width = pipe.image_processor.get_default_height_width(first)
        if arguments.get("_auto_resize", True):  # an argument of the stock pipeline
            width, height = _nearest_preferred_size(width / height)
    height, width = height // multiple * multiple, width // multiple * multiple
    return {"height": height, "width": width, "max_area": height * width}


def _nearest_preferred_size(aspect: float) -> tuple[int, int]:
    """Return the (width, height) of Kontext's list with the nearest aspect ratio.

    The stock pipeline chooses it in the same way, ties included.
    """
    # imported here so that `import spotedit` stays fast
    from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS

    _, width, height = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    return width, height


def source_size(arguments: Arguments, source_index: int) -> Size | None:
    """Return the source's size, for models that take one condition image for each output.

    A list holds one condition image for each output of the batch. They have the same size.
    """
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


def source_size_in_list(arguments: Arguments, source_index: int) -> Size | None:
    """Return the source's size, for models that take several condition images for each output.

    A list holds all condition images of an output.
    """
    image = arguments["image"]
    if isinstance(image, list):
        image = image[source_index]
    return source_size({"image": image}, source_index)


KONTEXT = Spec(
    pipelines=("FluxKontextPipeline", "FluxKontextModularPipeline"),
    grids=grids,
    rotary=rotary,
    narrow=narrow,
    project=project,
    output=output,
    vae_input=vae_input,
    decoder_layers=lambda pipe, y: DecoderPrefix(pipe.vae, y),
    matched_size=matched_size,
    source_size=source_size,
    token_pixels=lambda pipe: pipe.vae_scale_factor * 2,
    latents=tokens_to_latents,
    modulated=modulated,
    processors=("FluxAttnProcessor",),
    # coefficients for FLUX.1-Kontext-dev from github.com/welltop-cn/ComfyUI-TeaCache
    tea=TeaCache(0.25, (-1046.55119, 312.563399, -16.9500694, 0.410995971, 0.0374537863)),
)
register(KONTEXT)
