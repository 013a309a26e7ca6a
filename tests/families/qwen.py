"""Qwen-Image-Edit: the first version, 2509, 2511 and inpainting. A token has 8 x 8 pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditInpaintPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import (
    pipeline_qwenimage_edit,
    pipeline_qwenimage_edit_inpaint,
    pipeline_qwenimage_edit_plus,
)
from PIL import Image

from .family import Family

CHANNELS = 4  # of the latents
AREA = 48 * 64  # of the pictures, in pixels


def small_dimensions(area: int, ratio: float) -> tuple[int, int, None]:
    width = (AREA * ratio) ** 0.5
    return round(width / 8) * 8, round(width / ratio / 8) * 8, None


# The pipelines scale every picture to about a million pixels. Here they scale it to `AREA`.
pipeline_qwenimage_edit.calculate_dimensions = small_dimensions
pipeline_qwenimage_edit_inpaint.calculate_dimensions = small_dimensions
pipeline_qwenimage_edit_plus.calculate_dimensions = lambda *given: small_dimensions(*given)[:2]


def random_qwen(seed: int = 0, cls: type = QwenImageEditPipeline, **config: Any) -> Any:
    """Make a pipeline without a text encoder; `config` goes to the transformer."""
    torch.manual_seed(seed)
    transformer = QwenImageTransformer2DModel(
        in_channels=CHANNELS * 4,
        out_channels=CHANNELS,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
        **config,
    )
    vae = AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[0.7, 1.1, 0.9, 1.3],
    )
    for name, parameter in (*transformer.named_parameters(), *vae.named_parameters()):
        if parameter.ndim == 1 or name.endswith("gamma"):  # the defaults would hide mistakes
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        processor=None,
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(generator: torch.Generator, size: tuple[int, int] = (48, 64)) -> Image.Image:
    """Return a random picture of (height, width)."""
    return Image.fromarray(
        torch.randint(256, (*size, 3), generator=generator).numpy().astype(np.uint8)
    )


def call(seed: int = 0, batch: int = 1, **extra: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(batch, 7, dtype=torch.long)
    mask[0, 5:] = 0  # a shorter prompt
    return {
        "image": [picture(generator) for _ in range(batch)],
        "prompt_embeds": torch.randn(batch, 7, 12, generator=generator),
        "prompt_embeds_mask": mask,
        "generator": torch.Generator().manual_seed(seed + 1),
        "true_cfg_scale": 1.0,
        "num_inference_steps": 8,
        "output_type": "latent",
        **extra,
    }


GUIDED = {
    "true_cfg_scale": 2.5,
    "negative_prompt_embeds": torch.ones(1, 4, 12),
    "negative_prompt_embeds_mask": torch.tensor([[1, 1, 1, 0]]),
}


def inpainting(seed: int = 0, **extra: Any) -> dict[str, Any]:
    """Return the arguments of a call in which everything may change, from the first step on."""
    return call(seed, **{"mask_image": Image.new("L", (64, 48), 255), "strength": 1.0, **extra})


def family(
    cls: type, arguments: Callable[..., dict] = call, batches: bool = False, **config: Any
) -> Family:
    make = partial(random_qwen, cls=cls, **config)
    return Family(make, arguments, guided=GUIDED, batches=batches)


QWEN = {
    "QwenImageEditPipeline": family(QwenImageEditPipeline, batches=True),
    "QwenImageEditPlusPipeline": family(QwenImageEditPlusPipeline),
    "QwenImageEditPlusPipeline 2511": family(QwenImageEditPlusPipeline, zero_cond_t=True),
    "QwenImageEditInpaintPipeline": family(QwenImageEditInpaintPipeline, inpainting, batches=True),
}
