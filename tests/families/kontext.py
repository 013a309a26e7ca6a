"""FLUX.1-Kontext; the pipeline and its calls are those of conftest."""

import torch
from conftest import call_arguments, random_kontext

from .family import Family

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
    )
}
