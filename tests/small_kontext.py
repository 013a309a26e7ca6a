"""A random FLUX.1-Kontext pipeline of a few thousand parameters, and the arguments of its calls."""

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)

import spotedit

LATENT_CHANNELS, TOKEN_CHANNELS = 4, 16  # a token packs 2 x 2 latent positions
HEAD_DIM = 16
NUM_LAYERS = 4  # attention layers: two blocks of each kind
NUM_PROMPT_TOKENS, PROMPT_CHANNELS, POOLED_CHANNELS = 5, 12, 10

# Unless a call says otherwise, the source picture has this size.
HEIGHT, WIDTH = 48, 64  # pixels
TOKEN_PIXELS = 8  # side of a token
GRID = (6, 8)
NUM_TOKENS = 48  # noise tokens; there are as many condition tokens
NUM_STEPS = 8
# Makes the stock pipeline's output as large as the source. An enabled pipeline does so by itself.
STOCK_SIZE = {"height": HEIGHT, "width": WIDTH, "max_area": HEIGHT * WIDTH}

# One region of 2 x 3 tokens, as a mask of pixels and as a mask of tokens.
CORNER = torch.zeros(HEIGHT, WIDTH)
CORNER[8:24, 16:40] = 1
CORNER_ON_GRID = torch.zeros(GRID)
CORNER_ON_GRID[1:3, 2:5] = 1
NUM_CORNER_TOKENS = 6


def random_kontext(seed: int = 0, guidance_embeds: bool = False) -> FluxKontextPipeline:
    """Make a pipeline without text encoders; its calls pass embeddings."""
    torch.manual_seed(seed)
    transformer = FluxTransformer2DModel(
        in_channels=TOKEN_CHANNELS,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=HEAD_DIM,
        num_attention_heads=2,
        joint_attention_dim=PROMPT_CHANNELS,
        pooled_projection_dim=POOLED_CHANNELS,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 16),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=0.7,
        shift_factor=0.1,
    )
    for parameter in (*transformer.parameters(), *vae.parameters()):
        if parameter.ndim == 1:  # a test would not notice a norm or bias that has its default value
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


class PromptedKontext(FluxKontextPipeline):
    """A random pipeline that edits at the picture's size and ignores the prompt."""

    def __call__(
        self,
        image=None,
        prompt=None,
        height=None,
        width=None,
        num_inference_steps=28,
        generator=None,
        output_type="pil",
        return_dict=True,
        max_area=1024**2,
        _auto_resize=False,
    ):
        arguments = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        return super().__call__(**arguments)

    def encode_prompt(self, **arguments):
        generator = torch.Generator().manual_seed(0)
        prompt = torch.randn(1, NUM_PROMPT_TOKENS, PROMPT_CHANNELS, generator=generator)
        pooled = torch.randn(1, POOLED_CHANNELS, generator=generator)
        return prompt, pooled, torch.zeros(NUM_PROMPT_TOKENS, 3)


def prompted_kontext(seed: int = 0) -> PromptedKontext:
    """Make a pipeline that takes a prompt, for programs that load a pipeline by its name."""
    pipe = random_kontext(seed)
    pipe.__class__ = PromptedKontext
    return pipe


def call_arguments(
    seed: int = 0, size: tuple[int, int] = (HEIGHT, WIDTH), batch: int = 1, **extra
) -> dict:
    """Make the arguments of a call; `size` is (height, width) of the random source picture.

    `extra` are further arguments of the call, or others in place of these.
    """
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(batch, 3, *size, generator=generator),
        "prompt_embeds": torch.randn(
            batch, NUM_PROMPT_TOKENS, PROMPT_CHANNELS, generator=generator
        ),
        "pooled_prompt_embeds": torch.randn(batch, POOLED_CHANNELS, generator=generator),
        "generator": torch.Generator().manual_seed(seed + 1),
        "num_inference_steps": NUM_STEPS,
        "_auto_resize": False,
        "output_type": "latent",
        **extra,
    }


def guidance(scale: float) -> dict:
    """Make the arguments that add classifier-free guidance of this scale to a call."""
    return {
        "true_cfg_scale": scale,
        "negative_prompt_embeds": torch.ones(1, NUM_PROMPT_TOKENS, PROMPT_CHANNELS),
        "negative_pooled_prompt_embeds": torch.ones(1, POOLED_CHANNELS),
    }


def enable_all_active(pipe, grid: tuple[int, int] = GRID, **options) -> spotedit.Handle:
    """Enable with every token active and no cached condition: spot steps give the stock picture."""
    handle = spotedit.enable(pipe, condition_cache=False, **options)
    handle.set_mask(torch.ones(grid), mode="replace")
    return handle
