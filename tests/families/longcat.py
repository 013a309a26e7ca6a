"""LongCat-Image-Edit. Its output has about 1024 * 1024 pixels, so a token has 128 x 128 here."""

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    LongCatImageEditPipeline,
    LongCatImageTransformer2DModel,
)
from PIL import Image

from .family import Family


class TextProcessor:
    image_processor = None


class LongCat(LongCatImageEditPipeline):
    """The pipeline without its text encoder, which it needs because it takes no embeddings."""

    def _encode_prompt(self, prompt, image):
        """Return random embeddings. A negative prompt has fewer tokens than a prompt."""
        num_tokens = 5 if prompt[0] else 3
        return torch.randn(1, num_tokens, 12, generator=torch.Generator().manual_seed(num_tokens))


def make(seed=0):
    torch.manual_seed(seed)
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,  # the pipeline always has 16 latent channels
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=[4, 6, 6],
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 7,
        up_block_types=("UpDecoderBlock2D",) * 7,
        block_out_channels=(2, 2, 2, 4, 4, 8, 8),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.7,
        shift_factor=0.1,
    )
    for parameter in (*transformer.parameters(), *vae.parameters()):
        if parameter.ndim == 1:
            parameter.data.add_(0.2 * torch.randn_like(parameter))
    pipe = LongCat(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        text_processor=TextProcessor(),
        transformer=transformer.eval(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(seed=0, batch=1, **extra):
    pixels = np.random.default_rng(seed).integers(0, 256, (42, 56, 3), dtype=np.uint8)
    return {
        "image": Image.fromarray(pixels),
        "prompt": "edit",
        "guidance_scale": 1.0,
        "generator": torch.Generator().manual_seed(seed + 1),
        "num_inference_steps": 8,
        "output_type": "latent",
        **extra,
    }


LONGCAT = {
    "LongCatImageEditPipeline": Family(
        make=make,
        arguments=arguments,
        guided={"guidance_scale": 4.5},
        grid=(7, 9),
        batches=False,
    )
}
