"""Random calls of random configurations, for Hypothesis, and small pipelines to make them with."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from families import FAMILIES
from hypothesis import strategies as st

import spotedit

SCHEDULERS: dict[str, tuple[type, dict[str, Any]]] = {
    "Euler": (FlowMatchEulerDiscreteScheduler, {}),
    "another shift": (FlowMatchEulerDiscreteScheduler, {"base_shift": 0.9}),
    "stochastic Euler": (FlowMatchEulerDiscreteScheduler, {"stochastic_sampling": True}),
    "LCM": (FlowMatchLCMScheduler, {}),
    "UniPC": (
        UniPCMultistepScheduler,
        {
            "use_flow_sigmas": True,
            "prediction_type": "flow_prediction",
            "use_dynamic_shifting": False,
        },
    ),
}
# the slower ones come less often
NAMES = [
    name
    for name in FAMILIES
    for _ in range(1 if "LongCat" in name else 3 if "Modular" in name else 6)
]


@dataclass(frozen=True)
class Call:
    """A call of a family's pipeline, and what is enabled on it.

    Attributes:
        density: share of white tokens in the mask, drawn from `seed`; None: no mask.
        guided: with classifier-free guidance.
    """

    name: str
    seed: int
    steps: int
    batch: int
    guided: bool
    scheduler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    density: float | None = None
    mode: str = "intersect"
    mask_per_image: bool = False

    def arguments(self) -> dict[str, Any]:
        family = FAMILIES[self.name]
        extra = dict(family.guided) if self.guided else {}
        if self.batch > 1:
            extra["batch"] = self.batch
        return family.arguments(self.seed, num_inference_steps=self.steps, **family.stock, **extra)

    def mask(self) -> torch.Tensor | None:
        if self.density is None:
            return None
        images = (self.batch,) if self.mask_per_image else ()
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(*images, *FAMILIES[self.name].grid, generator=generator) < self.density

    def prepare(self) -> Any:
        """The family's pipeline with the call's scheduler."""
        pipe = pipeline(self.name)
        cls, changes = SCHEDULERS[self.scheduler]
        pipe.scheduler = cls.from_config({"use_dynamic_shifting": True} | changes)
        return pipe

    def enable(self) -> spotedit.Handle:
        handle = spotedit.enable(self.prepare(), **self.options)
        handle.set_mask(self.mask(), mode=self.mode)
        return handle

    def run(self) -> torch.Tensor:
        """The latents of the call, enabled or not as the pipeline is now."""
        torch.manual_seed(self.seed)  # stochastic schedulers draw from PyTorch's own generator
        return pipeline(self.name)(**self.arguments()).images

    def stock(self) -> torch.Tensor:
        """The latents of the stock pipeline."""
        return _stock(self.name, self.seed, self.steps, self.batch, self.guided, self.scheduler)


@functools.cache
def pipeline(name: str) -> Any:
    """The family's random pipeline with one block of each kind."""
    pipe = FAMILIES[name].make(0)
    for blocks in ("transformer_blocks", "single_transformer_blocks"):
        if hasattr(pipe.transformer, blocks):
            setattr(pipe.transformer, blocks, getattr(pipe.transformer, blocks)[:1])
    return pipe


@functools.lru_cache(1000)
def _stock(*call: Any) -> torch.Tensor:
    plain = Call(*call)
    spotedit.disable(plain.prepare())
    return plain.run()


def several(low: int, high: int) -> st.SearchStrategy:
    return st.none() | st.integers(low, high)


RESETS = st.one_of(
    st.just({}),
    st.builds(lambda steps: {"reset_steps": steps}, st.lists(st.integers(0, 6), max_size=3)),
    st.builds(lambda every: {"reset_every": every}, st.integers(1, 4)),
)
TEMPORAL = st.one_of(
    st.none(),
    st.builds(spotedit.TaylorSeer, st.integers(1, 3), st.integers(0, 2), st.integers(1, 3)),
    st.builds(spotedit.TeaCache, st.sampled_from([0.0, 0.1, 0.5, 9.0]), st.just((1.0, 0.0))),
)
EXACT = st.fixed_dictionaries(  # what changes nothing where every token is computed
    {
        "judge": st.sampled_from(["perceptual", "cosine", "l2"]),
        "threshold": st.none() | st.just("auto") | st.floats(0, 3),
        "dilation": several(0, 2),
        "judge_every": several(1, 3),
        "initial_steps": several(1, 3),
        "fusion": st.sampled_from(["cosine", lambda sigma: 1.0, lambda sigma: 1 - sigma]),
        "reference": st.sampled_from([0, "auto"]),
        "match_size": st.booleans(),
        "on_misaligned": st.sampled_from(["cache", "dense"]),
        "impl": st.sampled_from(["auto", "reference"]),
    }
)
LOSSY = st.fixed_dictionaries(
    {
        "condition_cache": st.booleans(),
        "cache_dtype": st.sampled_from(["auto", "int8"]),
        "spatial": st.sampled_from([True, True, True, False]),
        "temporal": TEMPORAL,
        "cache_text": st.booleans(),
    }
)


@st.composite
def calls(draw: st.DrawFn, exact: bool = False) -> Call:
    """`exact`: every token is computed anew in every step, so that the picture is the stock one."""
    name = draw(st.sampled_from(NAMES))
    family = FAMILIES[name]
    guided = bool(family.guided) and draw(st.booleans())
    batch = draw(st.integers(1, 2)) if family.batches and not guided else 1
    schedulers = [s for s in SCHEDULERS if s != "UniPC" or "Inpaint" not in name]
    options = draw(EXACT) | draw(RESETS)
    options |= {"condition_cache": False} if exact else draw(LOSSY)
    density = 1.1 if exact else draw(st.sampled_from([None, 0.0, 0.1, 0.5, 1.1]))
    mode = "replace" if exact else draw(st.sampled_from(["intersect", "union", "replace"]))
    return Call(
        name=name,
        seed=draw(st.integers(0, 1)),
        steps=draw(st.integers(1, 4)),
        batch=batch,
        guided=guided,
        scheduler=draw(st.sampled_from(schedulers)),
        options=options,
        density=density,
        mode=mode,
        mask_per_image=draw(st.booleans()),
    )
