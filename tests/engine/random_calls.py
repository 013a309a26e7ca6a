"""Hypothesis strategies of random calls and configurations, and the small pipelines they run on."""

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


def frequency(name: str) -> int:
    """Return how often a pipeline is drawn; slow ones are drawn less often."""
    if "LongCat" in name:
        return 1
    if "Modular" in name:
        return 3
    return 6


NAMES = [name for name in FAMILIES for _ in range(frequency(name))]


@dataclass(frozen=True)
class Call:
    """A call of a family's pipeline, and what is enabled on it.

    Attributes:
        name: key of `FAMILIES`.
        guided: whether the call has classifier-free guidance.
        scheduler: key of `SCHEDULERS`.
        options: arguments of `spotedit.enable`.
        density: probability that a token of the mask is white; None means no mask.
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
        """Return the mask on the token grid, drawn from `seed`."""
        if self.density is None:
            return None
        images = (self.batch,) if self.mask_per_image else ()
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(*images, *FAMILIES[self.name].grid, generator=generator) < self.density

    def prepare(self) -> Any:
        """Return the family's pipeline with the call's scheduler."""
        pipe = pipeline(self.name)
        cls, changes = SCHEDULERS[self.scheduler]
        pipe.scheduler = cls.from_config({"use_dynamic_shifting": True} | changes)
        return pipe

    def enable(self) -> spotedit.Handle:
        """Enable the options and the mask on the family's pipeline."""
        handle = spotedit.enable(self.prepare(), **self.options)
        handle.set_mask(self.mask(), mode=self.mode)
        return handle

    def run(self) -> torch.Tensor:
        """Call the pipeline, enabled or not as it is now, and return the latents."""
        torch.manual_seed(self.seed)  # stochastic schedulers draw from PyTorch's global generator
        return pipeline(self.name)(**self.arguments()).images

    def stock(self) -> torch.Tensor:
        """Return the latents of the same call of the stock pipeline."""
        return _stock(self.name, self.seed, self.steps, self.batch, self.guided, self.scheduler)


@functools.cache
def pipeline(name: str) -> Any:
    """Return the family's random pipeline, with only one block of each kind."""
    pipe = FAMILIES[name].make(0)
    for list_name in ("transformer_blocks", "single_transformer_blocks"):
        if hasattr(pipe.transformer, list_name):
            blocks = getattr(pipe.transformer, list_name)
            setattr(pipe.transformer, list_name, blocks[:1])
    return pipe


@functools.lru_cache(1000)
def _stock(*call_fields: Any) -> torch.Tensor:
    call = Call(*call_fields)
    spotedit.disable(call.prepare())
    return call.run()


def none_or_integer(low: int, high: int) -> st.SearchStrategy:
    return st.none() | st.integers(low, high)


def only_cached(sigma: float) -> float:
    return 1.0


def falling(sigma: float) -> float:
    return 1 - sigma


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
# Options that change nothing in a call that computes every token.
EXACT = st.fixed_dictionaries(
    {
        "judge": st.sampled_from(["perceptual", "cosine", "l2"]),
        "threshold": st.none() | st.just("auto") | st.floats(0, 3),
        "dilation": none_or_integer(0, 2),
        "judge_every": none_or_integer(1, 3),
        "initial_steps": none_or_integer(1, 3),
        "fusion": st.sampled_from(["cosine", only_cached, falling]),
        "reference": st.sampled_from([0, "auto"]),
        "match_size": st.booleans(),
        "on_misaligned": st.sampled_from(["cache", "dense"]),
        "impl": st.sampled_from(["auto", "reference"]),
    }
)
# Options that may change the picture even then.
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
    """Draw a call. If `exact`, it computes every token, so that its picture is the stock one."""
    name = draw(st.sampled_from(NAMES))
    family = FAMILIES[name]
    guided = bool(family.guided) and draw(st.booleans())
    batch = draw(st.integers(1, 2)) if family.batches and not guided else 1
    schedulers = list(SCHEDULERS)
    if "Inpaint" in name:  # these pipelines need a method of the scheduler that UniPC lacks
        schedulers.remove("UniPC")
    options = draw(EXACT) | draw(RESETS)
    options |= {"condition_cache": False} if exact else draw(LOSSY)
    all_tokens = 1.1  # above every random number
    density = all_tokens if exact else draw(st.sampled_from([None, 0.0, 0.1, 0.5, all_tokens]))
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
