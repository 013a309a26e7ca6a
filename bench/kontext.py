"""FLUX.1-Kontext with random weights, made on the device that runs it."""

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
    """A pipeline's configuration, side of the picture in pixels and length of the prompt."""

    pixels: int
    prompt: int
    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]

    def __str__(self) -> str:
        of = self.transformer
        blocks = f"{of['num_layers']} + {of['num_single_layers']} blocks"
        heads = f"{of['num_attention_heads']} x {of['attention_head_dim']}"
        return f"{blocks} of {heads}, {self.pixels} px, {self.prompt} prompt tokens"


_TRANSFORMER = {"in_channels": 64, "attention_head_dim": 128, "axes_dims_rope": (16, 56, 56),
                "guidance_embeds": True}  # fmt: skip
_VAE = {"down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159,
        "use_quant_conv": False, "use_post_quant_conv": False}  # fmt: skip
_SCHEDULER = {"use_dynamic_shifting": True, "shift": 3.0}  # the rest is diffusers' default
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
    """A silent pipeline without text encoders: calls pass embeddings (`arguments`)."""
    pipe = FluxKontextPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(**_SCHEDULER),
        vae=_random(AutoencoderKL, shape.vae, device, dtype),
        transformer=_random(FluxTransformer2DModel, shape.transformer, device, dtype),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _random(cls: type, config: Mapping[str, Any], device: str, dtype: torch.dtype) -> Any:
    """A model whose layers keep the size of what goes through them."""
    with torch.device("meta"):
        model = cls(**config)
    model = model.to(dtype).to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            else:  # the weight of a norm, or a bias
                parameter.normal_(float(name.endswith("weight")), 0.02, generator=generator)
    return model


def compiled(pipe: FluxKontextPipeline, backend: str) -> FluxKontextPipeline:
    """A pipeline of the same weights, in the same memory, whose blocks are compiled."""
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
    """Keyword arguments of an edit of a random picture; always the same."""
    generator = torch.Generator().manual_seed(0)
    side, config = shape.pixels, shape.transformer
    sizes = {
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
        **{k: torch.randn(v, generator=generator).to(device, dtype) for k, v in sizes.items()},
        "generator": generator,
    }
