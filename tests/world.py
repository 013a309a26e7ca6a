"""Pipelines that share one set of weights, and the result that each of their calls gives alone."""

import re

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from small_kontext import call_arguments, random_kontext

import spotedit

SIZE = {"height": 48, "width": 64, "max_area": 48 * 64}
CORNER = torch.zeros(6, 8)
CORNER[1:3, 2:5] = 1
GUIDED = {
    "true_cfg_scale": 2.5,
    "negative_prompt_embeds": torch.ones(1, 5, 12),
    "negative_pooled_prompt_embeds": torch.ones(1, 10),
}
CALLS = [
    {"seed": 1, "num_inference_steps": 4},
    {"seed": 2, "num_inference_steps": 4, "batch": 2},
    {"seed": 3, "num_inference_steps": 4, **GUIDED},
    {"seed": 4, "num_inference_steps": 5},
]
L2 = {"judge": "l2", "threshold": 1.5, "initial_steps": 1, "reset_steps": ()}
EDITS = [  # (configuration, mask)
    (L2, None),
    (L2 | {"reset_steps": (2,), "temporal": spotedit.TaylorSeer(2, 1, 1)}, None),
    (L2 | {"condition_cache": False}, CORNER),
    (L2 | {"cache_dtype": "int8", "cache_text": True}, CORNER),
    ({"spatial": False, "temporal": spotedit.TeaCache(1e9, (1.0, 0.0))}, None),
]
STOCK = None  # instead of an index of EDITS: the stock pipeline
CLEAR = re.compile(r"; |: call |expected ")  # in messages that say what is wrong and what to do


class World:
    """One set of weights, and the result of each call on it while no other call runs."""

    def __init__(self):
        pipe = random_kontext()
        pipe.transformer.transformer_blocks = pipe.transformer.transformer_blocks[:1]
        pipe.transformer.single_transformer_blocks = pipe.transformer.single_transformer_blocks[:1]
        self.components = pipe.components
        self.results = {}
        self.quiet = self.pipeline()
        self.stock_attributes = None
        self.alone(STOCK, 0)  # a call of the stock pipeline sets attributes, too
        self.stock_attributes = set(vars(self.quiet))

    @property
    def shared(self):
        return self.components["transformer"], self.components["vae"]

    def scheduler(self):
        return FlowMatchEulerDiscreteScheduler.from_config(self.components["scheduler"].config)

    def pipeline(self, scheduler=None):
        made = FluxKontextPipeline(**self.components | {"scheduler": scheduler or self.scheduler()})
        made.set_progress_bar_config(disable=True)
        return made

    def alone(self, edit, call):
        """Return the latents and the steps' kinds of a call while no other call runs."""
        if (edit, call) not in self.results:
            handle = enable(self.quiet, edit)
            images = self.quiet(**arguments(call)).images
            kinds = handle and [step["kind"] for step in handle.report.steps]
            spotedit.disable(self.quiet)
            self.results[edit, call] = images, kinds
        return self.results[edit, call]


def arguments(call, **extra):
    return call_arguments(**SIZE, **CALLS[call], **extra)


def enable(pipe, edit):
    if edit is STOCK:
        return None
    options, mask = EDITS[edit]
    handle = spotedit.enable(pipe, **options)
    handle.set_mask(mask, mode="replace")
    return handle
