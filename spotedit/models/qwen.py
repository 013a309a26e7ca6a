"""The specs of Qwen-Image-Edit and of its multi-image successors 2509 and 2511."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from spotedit_kernels.rows import gather_rows
from torch import Tensor, nn

from ..options.choices import Grid
from ..options.temporal import TeaCache
from . import flux
from .copies import with_loaded_weights
from .spec import Arguments, Spec, register
from .vae import decode_with_vae, vae_of


def grids(arguments: Arguments) -> list[Grid]:
    """Read the grids from `img_shapes`.

    For every image of the batch, it lists (frames, rows, cols) of the noise and of the pictures.
    """
    return [(rows, cols) for _, rows, cols in arguments["img_shapes"][0]]


def rotary(transformer: Any, arguments: Arguments) -> tuple[Tensor, Tensor]:
    prompt = arguments["encoder_hidden_states"]
    image, text = transformer.pos_embed(
        arguments["img_shapes"], max_txt_seq_len=prompt.shape[1], device=prompt.device
    )
    rotations = torch.cat([text, image]).repeat_interleave(2, dim=-1)  # complex [S, D]
    return rotations.real.contiguous(), rotations.imag.contiguous()


def prompt_mask(arguments: Arguments) -> Tensor | None:
    mask = arguments.get("encoder_hidden_states_mask")
    return None if mask is None else mask.bool()


def narrow_block(arguments: Arguments, index: Tensor) -> dict[str, Any]:
    """Cut the `modulate_index` [1 or B, S - P] of 2511, which is 1 for tokens at time zero."""
    modulate_index = arguments["modulate_index"]
    if modulate_index is None:
        return {}
    return {"modulate_index": gather_rows(modulate_index, index)}


def modulated(block: Any, arguments: Arguments) -> Tensor:
    """Modulate all tokens with the noise's time, also the conditions of 2511, which have another.

    `temb` of 2511 holds the B images at the noise's time, then at the conditions'.
    """
    hidden = arguments["hidden_states"]
    batch = len(hidden)
    layer = with_loaded_weights(block.img_mod, component=block, device=hidden.device)
    modulation = layer(arguments["temb"])
    shift, scale, *_ = modulation[:batch, None].chunk(6, dim=-1)
    return block.img_norm1(hidden) * (1 + scale) + shift


def without_prompt(arguments: Arguments) -> dict[str, Any]:
    prompt = arguments["encoder_hidden_states"][:, :0]
    return {"encoder_hidden_states": prompt, "encoder_hidden_states_mask": None}


class FrameConv(nn.Module):
    """A 2-D convolution that equals a causal 3-D one on a single frame.

    On one frame only the last tap in time meets the frame; the others meet padding.
    """

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight[:, :, -1].clone(), requires_grad=False)
        self.bias = conv.bias
        self.padding = conv._padding[2], conv._padding[0]  # (height, width)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, 1, h, w]
        return F.conv2d(x[:, :, 0], self.weight, self.bias, padding=self.padding)[:, :, None]


class FramePrefix(flux.DecoderPrefix):
    """Copies of the first layers of an `AutoencoderKLQwenImage` decoder, for one frame.

    At 1024 x 1024 px they take 0.96 TFLOP. The 3-D layers take 1.83 for the same maps.
    """

    def __init__(self, vae: Any, like: Tensor) -> None:
        super().__init__(vae, like)
        for parent in list(self.modules()):
            for name, layer in parent.named_children():
                if isinstance(layer, nn.Conv3d):
                    setattr(parent, name, FrameConv(layer))

    def forward(self, latents: Tensor) -> list[Tensor]:
        return [frames[:, :, 0] for frames in super().forward(latents[:, :, None])]


def vae_input(pipe: Any, like: Tensor, grid: Grid) -> Callable[[Tensor], Tensor]:
    config = vae_of(pipe).config
    mean, std = (
        torch.tensor(values, device=like.device)[:, None, None]  # [C, 1, 1]
        for values in (config.latents_mean, config.latents_std)
    )
    return lambda tokens: flux.tokens_to_latents(tokens, grid) * std + mean


def decode(pipe: Any, latents: Tensor) -> Tensor:
    """Decode latents [B, c, h, w] as videos of one frame."""
    return decode_with_vae(pipe, latents[:, :, None])[:, :, 0]


def plus_size(pipe: Any, arguments: Arguments, reference: int | str) -> dict[str, Any]:
    """Return the size that the pipeline gives condition image `reference`.

    Without it, the pipeline takes the size of the last one, which is right for `"auto"`.
    """
    images = arguments.get("image")
    if reference == "auto" or not isinstance(images, list) or int(reference) >= len(images):
        return {}
    # imported here so that `import spotedit` stays fast
    from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

    image = images[int(reference)]
    width, height = plus.calculate_dimensions(plus.VAE_IMAGE_SIZE, image.width / image.height)
    return {"height": height, "width": width}


EDIT = Spec(
    pipelines=("QwenImageEditPipeline",),
    grids=grids,
    rotary=rotary,
    narrow=lambda arguments, index: {},
    project=flux.project,
    output=flux.output,
    vae_input=vae_input,
    decoder_layers=lambda pipe, y: FramePrefix(pipe.vae, y),
    decode=decode,
    matched_size=lambda pipe, arguments, reference: {},  # the pipeline's own choice matches
    source_size=flux.source_size_in_list,
    token_pixels=lambda pipe: pipe.vae_scale_factor * 2,
    prompt_mask=prompt_mask,
    narrow_block=narrow_block,
    latents=flux.tokens_to_latents,
    modulated=modulated,
    processors=("QwenDoubleStreamAttnProcessor2_0",),
    without_prompt=without_prompt,
    # coefficients for Qwen-Image from github.com/vllm-project/vllm-omni
    tea=TeaCache(0.2, (-450.0, 280.0, -45.0, 3.2, -0.02)),
)
register(EDIT)
PLUS = ("QwenImageEditPlusPipeline", "QwenImageEditPlusModularPipeline")
register(replace(EDIT, pipelines=PLUS, matched_size=plus_size, followed=-1))
