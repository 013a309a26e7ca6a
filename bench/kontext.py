"""Build FLUX.1-Kontext pipelines with random weights, on the device that runs them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxTransformer2DModel,
)


@dataclass(frozen=True)
class Shape:
    """The configuration of a pipeline and of its calls.

    Attributes:
        pixels: side of the picture.
        prompt: number of prompt tokens.
        transformer: configuration of the transformer.
        vae: configuration of the VAE.
    """

    pixels: int
    prompt: int
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]

    def __str__(self) -> str:
        config = self.transformer
        blocks = f"{config['num_layers']} + {config['num_single_layers']} blocks"
        heads = f"{config['num_attention_heads']} x {config['attention_head_dim']}"
        return f"{blocks} of {heads}, {self.pixels} px, {self.prompt} prompt tokens"


_TRANSFORMER = {"in_channels": 64, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56),
                "guidance_embeds": True}  # fmt: skip
_VAE = {"down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159,
        "use_quant_conv": False, "use_post_quant_conv": False}  # fmt: skip
_SCHEDULER = {"use_dynamic_shifting": True, "shift": 3.0}  # all else as diffusers' defaults
SHAPES = {
    "kontext": Shape(
        1024,
        512,
        _TRANSFORMER | {"num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24,
                        "joint_attention_dim": 4096, "pooled_projection_dim": 768},
        _VAE | {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
    ),
    "tiny": Shape(
        64,
        5,
        _TRANSFORMER | {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2,
                        "joint_attention_dim": 12, "pooled_projection_dim": 10},
        _VAE | {"block_out_channels": (8, 8, 16, 16), "norm_num_groups": 4},
    ),
}  # fmt: skip


def build(shape: Shape, device: str, dtype: torch.dtype) -> FluxKontextPipeline:
    """Build a pipeline without text encoders and progress bar; `arguments` has the embeddings."""
    pipe = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**_SCHEDULER),
        vae=_random(AutoencoderKL, shape.vae, device, dtype),
        transformer=_random(FluxTransformer2DModel, shape.transformer, device, dtype),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _random(cls: type, config: Mapping[str, Any], device: str, dtype: torch.dtype) -> Any:
    """Build a model with random weights that keep the magnitude of the activations."""
    with torch.device("meta"):
        model = cls(**config)
    model = model.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:  # the weight of a norm (near 1) or a bias (near 0)
                parameter.normal_(float(name.endswith("weight")), 0.02, generator=generator)
    return model


def compiled(pipe: FluxKontextPipeline, backend: str) -> FluxKontextPipeline:
    """Return a pipeline with compiled blocks that shares the weights of `pipe`."""
    with torch.device("meta"):
        twin = FluxTransformer2DModel.from_config(pipe.transformer.config)
    twin.load_state_dict(pipe.transformer.state_dict(), assign=True)
    twin.eval().compile_repeated_blocks(fullgraph=True, backend=backend)
    other = FluxKontextPipeline(**pipe.components | {"transformer": twin})
    other.set_progress_bar_config(disable=True)
    return other


def arguments(
    shape: Shape, device: str | torch.device, dtype: torch.dtype, steps: int
) -> dict[str, Any]:
    """Return keyword arguments for an edit of a random picture, the same in every call."""
    generator = torch.Generator().manual_seed(0)
    side, config = shape.pixels, shape.transformer
    embeddings = {
        "prompt_embeds": (1, shape.prompt, config["joint_attention_dim"]),
        "pooled_prompt_embeds": (1, config["pooled_projection_dim"]),
    }
    return {
        "image": torch.rand(1, 3, side, side, generator=generator),
        "height": side,
        "width": side,
        "max_area": side * side,
        "_auto_resize": False,
        "num_inference_steps": steps,
        **{
            name: torch.randn(size, generator=generator).to(device, dtype)
            for name, size in embeddings.items()
        },
        "generator": generator,
    }
