"""Whatever people combine with an enabled pipeline, it equals the stock one, also after `disable`.

A combination is a function (pipe, family) -> further arguments of the call. It may change the
pipeline, and does so after `enable`. `python -m bench.support_matrix` writes docs/support.md from
the outcomes.
"""

import inspect

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compare import relative_error
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FlowMatchLCMScheduler,
    ModelMixin,
    SchedulerMixin,
    UniPCMultistepScheduler,
)
from families import DEFAULT, FAMILIES, MARKS
from families.offload import OFFLOAD
from peft import LoraConfig
from small_kontext import NUM_TOKENS, TOKEN_CHANNELS, enable_all_active
from torch import nn

import spotedit


def lora(pipe, family):
    """Add a random adapter to every projection of the blocks."""
    torch.manual_seed(1)
    linear_layers = [
        name
        for name, module in pipe.transformer.named_modules()
        if "blocks." in name and isinstance(module, nn.Linear)
    ]
    pipe.transformer.add_adapter(
        LoraConfig(r=4, target_modules=linear_layers, init_lora_weights=False)
    )
    return {}


def scaled_lora(pipe, family):
    lora(pipe, family)
    pipe.transformer.set_adapters("default", weights=[0.5])
    if not attention_kwargs(pipe.transformer.forward):
        return {}
    return {name: {"scale": 0.7} for name in attention_kwargs(type(pipe).__call__)}


def attention_kwargs(function):
    """Return the names of the function's arguments that may hold a LoRA's scale."""
    names = inspect.signature(function).parameters
    return [name for name in names if name.endswith("attention_kwargs")]


def fused_lora(pipe, family):
    lora(pipe, family)
    pipe.transformer.fuse_lora(lora_scale=0.8)
    return {}


def unfused_lora(pipe, family):
    fused_lora(pipe, family)
    pipe.transformer.unfuse_lora()
    return {}


def fused_projections(pipe, family):
    pipe.transformer.fuse_qkv_projections()
    return {}


def layerwise_casting(pipe, family):
    pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    return {}


def two_images(pipe, family):
    return family.prompt(pipe) | {"num_images_per_prompt": 2}


def callback_changes(name):
    """Make a combination with a callback that changes this tensor after every step."""

    def change(pipe, step, timestep, tensors):
        return {name: 0.9 * tensors[name] + 0.01 * step}

    return call_with(
        callback_on_step_end=change,
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )


def interrupt(pipe, family):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step >= 5
        return {}

    return {"callback_on_step_end": stop}


def scheduler(cls, **options):
    """Make a combination with another scheduler."""

    def replace(pipe, family):
        pipe.scheduler = cls.from_config(pipe.scheduler.config, **options)
        return {}

    return replace


def call_with(**arguments):
    """Make a combination that only adds these arguments to the call."""

    def combination(pipe, family):
        return arguments

    return combination


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = {
    "scheduler replaced after enable": scheduler(FlowMatchEulerDiscreteScheduler, base_shift=0.9),
    "FlowMatchLCMScheduler": scheduler(FlowMatchLCMScheduler),
    "stochastic Euler": scheduler(FlowMatchEulerDiscreteScheduler, stochastic_sampling=True),
    "UniPC, flow sigmas": scheduler(UniPCMultistepScheduler, use_dynamic_shifting=False, **FLOW),
}
COMBINATIONS = {  # row of docs/support.md -> combination
    "LoRA": lora,
    "LoRA scaled": scaled_lora,
    "LoRA fused": fused_lora,
    "LoRA unfused": unfused_lora,
    "fused projections": fused_projections,
    **OFFLOAD,
    "layerwise casting, fp8": layerwise_casting,
    "two images a prompt": two_images,
    "callback changes latents": callback_changes("latents"),
    "callback changes prompt": callback_changes("prompt_embeds"),
    "interrupt": interrupt,
    "output latent": call_with(),
    "output np": call_with(output_type="np"),
    "output pil": call_with(output_type="pil"),
    "custom sigmas": call_with(sigmas=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1]),
    **SCHEDULERS,
}
# What some stock pipelines cannot do. bench/support_matrix.py gives the reasons.
NEEDS_CALLBACK = {"callback changes latents", "callback changes prompt", "interrupt"}
IMPOSSIBLE = {"UniPC, flow sigmas": "Inpaint", "model offload": "Modular"}  # in names with this


def is_possible(name, combination):
    """Tell whether the family's stock pipeline allows the combination."""
    if combination in IMPOSSIBLE and IMPOSSIBLE[combination] in name:
        return False
    class_name = name.partition(" ")[0]  # a variant's name follows it
    call = getattr(diffusers, class_name).__call__
    takes_callback = "callback_on_step_end" in inspect.signature(call).parameters
    return takes_callback or combination not in NEEDS_CALLBACK


def each_with(combinations):
    """Run a test with every family and combination that is possible."""
    return pytest.mark.parametrize(
        ("name", "combination"),
        [
            pytest.param(name, combination, marks=MARKS[name], id=f"{name}-{combination}")
            for name in FAMILIES
            for combination in combinations
            if is_possible(name, combination)
        ],
    )


# Modular pipelines are copied and saved in other ways.
each_family_but_modular = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS[name]) for name in FAMILIES if "Modular" not in name]
)


def pictures(pipe, arguments):
    """Call the pipeline and return its images or latents in fp64."""
    torch.manual_seed(2)  # stochastic schedulers draw from PyTorch's global generator
    images = pipe(**arguments).images
    if isinstance(images, list):
        images = np.stack([np.asarray(image) / 255 for image in images])
    return torch.as_tensor(images).double()


def is_close(images, expected):
    return relative_error(images, expected) <= 1e-4


def is_close_in_8_bits(images, expected):
    """Allow one level: a value at a boundary may be rounded up or down."""
    return (images - expected).abs().max() <= 1 / 255


@each_with(COMBINATIONS)
def test_all_tokens_active_equals_stock_with(name, combination):
    family = FAMILIES[name]
    stock_pipe, pipe = family.make(0), family.make(0)
    combine = COMBINATIONS[combination]

    stock_arguments = family.arguments(**family.stock, **combine(stock_pipe, family))
    stock = pictures(stock_pipe, stock_arguments)
    handle = enable_all_active(pipe, family.grid)
    arguments = family.arguments(**combine(pipe, family))
    spot = pictures(pipe, arguments)
    assert [step["kind"] for step in handle.report.steps].count("spot") >= 3
    is_same = is_close_in_8_bits if combination == "output pil" else is_close
    assert is_same(spot, stock)

    handle.disable()
    if "generator" in arguments:  # the call before has drawn from it
        arguments["generator"] = family.arguments()["generator"]
    assert torch.equal(pictures(pipe, arguments | family.stock), stock)


WITHOUT_EFFECT = {"fused projections", "output latent", "output np", "output pil", *OFFLOAD}


@pytest.mark.parametrize("combination", [c for c in COMBINATIONS if c not in WITHOUT_EFFECT])
def test_the_combination_changes_the_picture(combination):
    family = FAMILIES[DEFAULT[0]]
    pipe = family.make(0)
    plain = pictures(pipe, family.arguments(**family.stock))
    extra = COMBINATIONS[combination](pipe, family)
    assert not torch.equal(pictures(pipe, family.arguments(**family.stock, **extra)), plain)


@pytest.mark.parametrize("name", DEFAULT)
def test_layerwise_casting_that_computes_in_bfloat16(name):
    """The spot path errs by at most twice what bfloat16 costs the stock pipeline.

    Both numeric types have the same weights, which bfloat16 can hold.
    """
    family = FAMILIES[name]

    def pipe_and_arguments(dtype):
        pipe = family.make(0).to(torch.bfloat16).to(dtype)
        pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, dtype)
        noise = torch.randn(
            1, NUM_TOKENS, TOKEN_CHANNELS, generator=torch.Generator().manual_seed(3)
        )
        arguments = family.arguments(latents=noise.to(torch.bfloat16))
        for name, value in arguments.items():
            if torch.is_tensor(value) and value.is_floating_point():
                arguments[name] = value.to(dtype)
        return pipe, arguments

    pipe, arguments = pipe_and_arguments(torch.float32)
    exact = pictures(pipe, arguments | family.stock)
    pipe, arguments = pipe_and_arguments(torch.bfloat16)
    stock = pictures(pipe, arguments | family.stock)
    handle = enable_all_active(pipe, family.grid)
    spot = pictures(pipe, arguments)
    assert "spot" in {step["kind"] for step in handle.report.steps}
    assert (spot - stock).norm() <= 2 * (stock - exact).norm()


def tokens(latents, family):
    """Return latents as tokens [B, N, C], from tokens or from [B, C, h, w] or [B, C, 1, h, w]."""
    if latents.ndim == 3:
        return latents
    latents = latents.flatten(1, -3)
    side = latents.shape[-1] // family.grid[1]
    return F.pixel_unshuffle(latents, side).flatten(2).transpose(1, 2)


@each_with(SCHEDULERS)
def test_reused_tokens_end_at_the_source_with(name, combination):
    """This holds even if the scheduler adds noise or remembers earlier steps."""
    family = FAMILIES[name]
    pipe = family.make(0)
    handle = spotedit.enable(pipe)
    mask = torch.zeros(family.grid)
    mask[:2] = 1
    handle.set_mask(mask, mode="replace")
    SCHEDULERS[combination](pipe, family)
    images = tokens(pipe(**family.arguments()).images, family)
    reused = ~torch.from_numpy(handle.report.region).flatten()
    # Reused tokens of a call with one full and one spot step are the source's too.
    short_call = family.arguments(num_inference_steps=2)
    source = tokens(pipe(**short_call).images, family)
    assert torch.equal(images[:, reused], source[:, reused])
    assert torch.isfinite(images).all()


@each_family_but_modular
def test_siblings_stay_stock(name):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    stock = pipe(**family.arguments(**family.stock)).images
    spotedit.enable(pipe)
    sibling = type(pipe).from_pipe(pipe)
    sibling.set_progress_bar_config(disable=True)
    assert torch.equal(sibling(**family.arguments(**family.stock)).images, stock)


@each_family_but_modular
def test_a_saved_pipeline_is_loaded_as_a_stock_one(name, tmp_path):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    stock_class = type(pipe)
    stock = pipe(**family.arguments(**family.stock)).images
    spotedit.enable(pipe)
    pipe.save_pretrained(tmp_path)
    saved = (ModelMixin, SchedulerMixin)
    not_saved = {
        name: part for name, part in pipe.components.items() if not isinstance(part, saved)
    }
    loaded = stock_class.from_pretrained(tmp_path, **not_saved)
    loaded.set_progress_bar_config(disable=True)
    assert stock_class.load_config(tmp_path)["_class_name"] == stock_class.__name__
    # Loaded weights lie at other addresses, so they may be summed in another order.
    assert is_close(loaded(**family.arguments(**family.stock)).images, stock)
