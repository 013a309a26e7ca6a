"""A random Kontext pipeline of a few thousand parameters, and the arguments of its calls."""

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)

CHANNELS, PROMPT, WIDTH = 4, 5, 16


def random_kontext(seed: int = 0, guidance_embeds: bool = False) -> FluxKontextPipeline:
    """Make a pipeline without text encoders: calls pass embeddings. A token has 8 px a side."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=CHANNELS * 4,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=WIDTH,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.7,
        shift_factor=0.1,
    )
    for parameter in (*transformer.parameters(), *vae.parameters()):
        if parameter.ndim == 1:  # the default norms and biases would hide a wrong one
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    pipe = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call_arguments(
    seed: int = 0, size: tuple[int, int] = (48, 64), batch: int = 1, **extra
) -> dict:
    """Make the arguments of a call; `size` is (height, width) of the random source picture."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(batch, 3, *size, generator=generator),
        "prompt_embeds": torch.randn(batch, PROMPT, 12, generator=generator),
        "pooled_prompt_embeds": torch.randn(batch, 10, generator=generator),
        "generator": torch.Generator().manual_seed(seed + 1),
        "num_inference_steps": 8,
        "_auto_resize": False,
        "output_type": "latent",
        **extra,
    }
