"""One set of weights, the pipelines that share it, and the picture of each call when it runs alone.

Tests name a call by its key in `CALLS`, and what is enabled on a pipeline by its key in `EDITS`,
or `STOCK` where nothing is enabled.
"""

import re

from diffusers import FlowMatchEulerDiscreteScheduler, FluxKontextPipeline
from small_kontext import CORNER_ON_GRID, STOCK_SIZE, call_arguments, guidance, random_kontext

import spotedit

CALLS = {
    "four steps": {"seed": 1, "num_inference_steps": 4},
    "batch of two": {"seed": 2, "num_inference_steps": 4, "batch": 2},
    "guided": {"seed": 3, "num_inference_steps": 4, **guidance(2.5)},
    "five steps": {"seed": 4, "num_inference_steps": 5},
}
JUDGED = {"judge": "l2", "threshold": 1.5, "initial_steps": 1, "reset_steps": ()}
EDITS = {  # (configuration, mask that replaces the judgement or None)
    "judged": (JUDGED, None),
    "skips steps": (JUDGED | {"reset_steps": (2,), "temporal": spotedit.TaylorSeer(2, 1, 1)}, None),
    "masked": (JUDGED | {"condition_cache": False}, CORNER_ON_GRID),
    "int8 cache": (JUDGED | {"cache_dtype": "int8", "cache_text": True}, CORNER_ON_GRID),
    "only skips steps": ({"spatial": False, "temporal": spotedit.TeaCache(1e9, (1.0, 0.0))}, None),
}
STOCK = "stock"
# Our error messages say what was found and what to do instead.
HELPFUL = re.compile(r"; |: call |expected ")


class World:
    """One set of weights, and the result of every call on it when no other call is running."""

    def __init__(self):
        pipe = random_kontext()
        pipe.transformer.transformer_blocks = pipe.transformer.transformer_blocks[:1]
        pipe.transformer.single_transformer_blocks = pipe.transformer.single_transformer_blocks[:1]
        self.components = pipe.components
        self.results = {}  # (edit, call) -> (latents, kinds of the steps)
        self.reference_pipe = self.pipeline()
        self.alone(STOCK, "four steps")  # even a stock call sets attributes of the pipeline
        self.stock_attributes = set(vars(self.reference_pipe))

    @property
    def shared_modules(self):
        return self.components["transformer"], self.components["vae"]

    def scheduler(self):
        return FlowMatchEulerDiscreteScheduler.from_config(self.components["scheduler"].config)

    def pipeline(self, scheduler=None):
        """Make a pipeline on the shared weights, with a new scheduler or the given one."""
        pipe = FluxKontextPipeline(**self.components | {"scheduler": scheduler or self.scheduler()})
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def alone(self, edit, call):
        """Return the latents of a call that runs alone, and the kinds of its steps.

        The kinds are None for the stock pipeline.
        """
        if (edit, call) not in self.results:
            handle = enable(self.reference_pipe, edit)
            latents = self.reference_pipe(**arguments(call)).images
            kinds = handle and [step["kind"] for step in handle.report.steps]
            spotedit.disable(self.reference_pipe)
            self.results[edit, call] = latents, kinds
        return self.results[edit, call]


def arguments(call, **extra):
    return call_arguments(**STOCK_SIZE, **CALLS[call], **extra)


def enable(pipe, edit):
    """Enable an edit on the pipeline and return its handle; None for `STOCK`."""
    if edit == STOCK:
        return None
    options, mask = EDITS[edit]
    handle = spotedit.enable(pipe, **options)
    handle.set_mask(mask, mode="replace")
    return handle
