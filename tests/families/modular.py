"""Modular pipelines of Kontext and Qwen-Image-Edit without their text encoders.

Guidance is not an argument of the call, but a setting of a component, the guider. It is on for
Qwen here.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from diffusers import (
    FluxKontextModularPipeline,
    QwenImageEditModularPipeline,
    QwenImageEditPlusModularPipeline,
)
from diffusers.modular_pipelines.qwenimage import encoders
from small_kontext import random_kontext

from . import kontext, qwen
from .family import Family

encoders.calculate_dimensions = qwen.small_dimensions


def or_latents(decode: type) -> type:
    """Make a decoding block that knows `output_type="latent"`, which Qwen's does not."""

    def __call__(self: Any, pipe: Any, state: Any) -> tuple[Any, Any]:
        if state.get("output_type") != "latent":
            return decode.__call__(self, pipe, state)
        state.set("images", state.get("latents"))
        return pipe, state

    return type(decode.__name__, (decode,), {"__call__": __call__})


def make(cls: type, stock: Callable[[int], Any], seed: int = 0) -> Any:
    """Make a pipeline of class `cls` with the components of a stock one."""
    pipe = stock(seed)
    blocks = cls().blocks
    blocks.sub_blocks.pop("text_encoder")
    decode = blocks.sub_blocks["decode"]
    decode.__class__ = or_latents(type(decode))
    modular = cls(blocks=blocks)
    modular.update_components(transformer=pipe.transformer, vae=pipe.vae, scheduler=pipe.scheduler)
    return modular


def kontext_call(seed: int = 0, **extra: Any) -> dict[str, Any]:
    """Return the arguments of a call, with a PIL image: this pipeline takes no tensors."""
    picture = qwen.picture(torch.Generator().manual_seed(seed))
    return kontext.call_arguments(seed, **{"image": picture, **extra})


def qwen_call(seed: int = 0, **extra: Any) -> dict[str, Any]:
    call = qwen.call(seed, **qwen.GUIDED, **extra)
    del call["true_cfg_scale"]
    return call


def family(cls: type, components: Callable, arguments: Callable, **extra: Any) -> dict[str, Family]:
    return {cls.__name__: Family(partial(make, cls, components), arguments, batches=False, **extra)}


stock_size = kontext.KONTEXT["FluxKontextPipeline"].stock
MODULAR = {
    **family(FluxKontextModularPipeline, random_kontext, kontext_call, stock=stock_size),
    **family(QwenImageEditModularPipeline, qwen.random_qwen, qwen_call),
    **family(
        QwenImageEditPlusModularPipeline, partial(qwen.random_qwen, zero_cond_t=True), qwen_call
    ),
}
