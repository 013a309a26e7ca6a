"""Random pipelines of FLUX.2, klein and its inpainting. A token has 16 x 16 pixels."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from PIL import Image

from .family import Family

CHANNELS = 4  # of the latents
PROMPT = 5  # number of prompt tokens


def random_pipeline(cls: type, seed: int = 0, **extra: Any) -> Any:
    """Make a pipeline of class `cls` without a text encoder; `extra` goes to its constructor."""
    torch.manual_seed(seed)
    transformer = Flux2Transformer2DModel(
        in_channels=CHANNELS * 4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=cls is Flux2Pipeline,
    )
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=2,
    )
    for parameter in (*transformer.parameters(), *vae.parameters()):
        if parameter.ndim == 1:  # the defaults of norms and biases would hide mistakes
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    vae.bn.running_mean.normal_(0.0, 0.3)
    vae.bn.running_var.uniform_(0.5, 2.0)
    pipe = cls(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=transformer.eval(),
        **extra,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(size: tuple[int, int] = (96, 128), seed: int = 0) -> Image.Image:
    """Return a random picture of (height, width)."""
    pixels = torch.randint(0, 256, (*size, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def arguments(seed: int = 0, batch: int = 1, grid: tuple[int, int] = (6, 8), **extra: Any) -> dict:
    """Return the arguments of a call. `grid` is the output's token grid."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": picture(seed=seed),
        "prompt_embeds": torch.randn(batch, PROMPT, 12, generator=generator),
        "latents": torch.randn(batch, CHANNELS * 4, *grid, generator=generator),
        "num_inference_steps": 8,
        "output_type": "latent",
        **extra,
    }


def inpaint_arguments(seed: int = 0, batch: int = 1, **extra: Any) -> dict:
    """Return the arguments of a call that runs eight of ten steps.

    The mask lets the left half change. Every image of a batch has its own source.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    mask = Image.new("L", (128, 96))
    mask.paste(255, (0, 0, 64, 96))
    extra = {"num_inference_steps": 8, "guidance_scale": 1.0, **extra}
    extra["num_inference_steps"] = extra["num_inference_steps"] * 5 // 4
    return arguments(
        seed,
        batch,
        **{
            "image": torch.rand(batch, 3, 96, 128, generator=generator),
            "mask_image": mask,
            "strength": 0.8,
            **extra,
        },
    )


GUIDED = {"guidance_scale": 2.5, "negative_prompt_embeds": torch.ones(1, 4, 12)}


def two_images(pipe: Any) -> dict[str, Any]:
    """Return latents for two images. The embeddings are those of one prompt."""
    return {"latents": torch.randn(2, CHANNELS * 4, 6, 8, generator=torch.Generator())}


def family(cls: type, arguments: Callable[..., dict], **extra: Any) -> dict[str, Family]:
    make = partial(random_pipeline, cls)
    return {cls.__name__: Family(make, arguments, prompt=two_images, **extra)}


FLUX2 = {
    **family(Flux2Pipeline, arguments),
    **family(Flux2KleinPipeline, partial(arguments, guidance_scale=1.0), guided=GUIDED),
    **family(Flux2KleinInpaintPipeline, inpaint_arguments, guided=GUIDED),
}
