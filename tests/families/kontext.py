"""FLUX.1-Kontext. The pipeline and its calls are those of `small_kontext`."""

import torch
from small_kontext import call_arguments, random_kontext

from .family import Family


def prompt(pipe):
    """Replace the text encoders by random ones, and return a prompt as text."""

    def embed(*shape):
        def encode(prompt, num_images_per_prompt, **_):
            generator = torch.Generator().manual_seed(0)
            return torch.randn(len(prompt) * num_images_per_prompt, *shape, generator=generator)

        return encode

    pipe._get_t5_prompt_embeds, pipe._get_clip_prompt_embeds = embed(5, 12), embed(10)
    return {"prompt": ["edit"], "prompt_embeds": None, "pooled_prompt_embeds": None}


KONTEXT = {
    "FluxKontextPipeline": Family(
        make=random_kontext,
        arguments=call_arguments,
        stock={"height": 48, "width": 64, "max_area": 48 * 64},
        guided={
            "true_cfg_scale": 2.5,
            "negative_prompt_embeds": torch.ones(1, 5, 12),
            "negative_pooled_prompt_embeds": torch.ones(1, 10),
        },
        prompt=prompt,
    )
}
