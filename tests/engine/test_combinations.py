"""What people combine with an enabled pipeline: identity and inverse hold with each of it.

`python -m bench.support_matrix` writes docs/support.md from the outcomes.
"""

import inspect

import diffusers
import numpy as np
import pytest
import torch
import torch.nn.functional as F
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
from torch import nn

import spotedit


def lora(pipe, family):
    """A random adapter on every projection of the blocks."""
    torch.manual_seed(1)
    linear = [
        name
        for name, module in pipe.transformer.named_modules()
        if "blocks." in name and isinstance(module, nn.Linear)
    ]
    pipe.transformer.add_adapter(LoraConfig(r=4, target_modules=linear, init_lora_weights=False))
    return {}


def scaled_lora(pipe, family):
    lora(pipe, family)
    pipe.transformer.set_adapters("default", weights=[0.5])
    layer = inspect.signature(pipe.transformer.forward).parameters
    if not any(name.endswith("attention_kwargs") for name in layer):
        return {}
    takes = inspect.signature(type(pipe).__call__).parameters
    return {name: {"scale": 0.7} for name in takes if name.endswith("attention_kwargs")}


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


def at_every_step(name):
    def change(pipe, step, timestep, tensors):
        return {name: 0.9 * tensors[name] + 0.01 * step}

    inputs = ["latents", "prompt_embeds"]
    return lambda pipe, family: {
        "callback_on_step_end": change,
        "callback_on_step_end_tensor_inputs": inputs,
    }


def interrupt(pipe, family):
    def stop(pipe, step, timestep, tensors):
        pipe._interrupt = step >= 5
        return {}

    return {"callback_on_step_end": stop}


def scheduler(kind, **options):
    def replace(pipe, family):
        pipe.scheduler = kind.from_config(pipe.scheduler.config, **options)
        return {}

    return replace


def always(**arguments):
    return lambda pipe, family: arguments


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
SCHEDULERS = {
    "scheduler replaced after enable": scheduler(FlowMatchEulerDiscreteScheduler, base_shift=0.9),
    "FlowMatchLCMScheduler": scheduler(FlowMatchLCMScheduler),
    "stochastic Euler": scheduler(FlowMatchEulerDiscreteScheduler, stochastic_sampling=True),
    "UniPC, flow sigmas": scheduler(UniPCMultistepScheduler, use_dynamic_shifting=False, **FLOW),
}
# name -> (pipe, family) -> arguments of the call; what changes the pipe does so after `enable`
COMBINATIONS = {
    "LoRA": lora,
    "LoRA scaled": scaled_lora,
    "LoRA fused": fused_lora,
    "LoRA unfused": unfused_lora,
    "fused projections": fused_projections,
    **OFFLOAD,
    "layerwise casting, fp8": layerwise_casting,
    "two images a prompt": two_images,
    "callback changes latents": at_every_step("latents"),
    "callback changes prompt": at_every_step("prompt_embeds"),
    "interrupt": interrupt,
    "output latent": always(),
    "output np": always(output_type="np"),
    "output pil": always(output_type="pil"),
    "custom sigmas": always(sigmas=[1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.3, 0.1]),
    **SCHEDULERS,
}
WITHIN = {"output pil": 1 / 255}  # 8 bits: a value at a boundary may fall to either side
# the stock pipelines' own limits, given as reasons in bench/support_matrix.py
CALLBACKS = {"callback changes latents", "callback changes prompt", "interrupt"}
UNKNOWN = {"UniPC, flow sigmas": "Inpaint", "model offload": "Modular"}


def possible(name, combination):
    takes = inspect.signature(getattr(diffusers, name.partition(" ")[0]).__call__).parameters
    callback = combination not in CALLBACKS or "callback_on_step_end" in takes
    return callback and UNKNOWN.get(combination, "no name") not in name


def each_with(combinations):
    return pytest.mark.parametrize(
        ("name", "combination"),
        [
            pytest.param(name, combination, marks=MARKS[name], id=f"{name}-{combination}")
            for name in FAMILIES
            for combination in combinations
            if possible(name, combination)
        ],
    )


# modular pipelines are made and saved by their blocks
each_stock = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=MARKS[n]) for n in FAMILIES if "Modular" not in n]
)


def pictures(pipe, arguments):
    """Of a call whose scheduler may draw from PyTorch's own generator."""
    torch.manual_seed(2)
    images = pipe(**arguments).images
    if isinstance(images, list):
        images = np.stack([np.asarray(image) / 255 for image in images])
    return torch.as_tensor(images).double()


def same(a, b, combination=None):
    if combination in WITHIN:
        return (a - b).abs().max() <= WITHIN[combination]
    return (a - b).norm() <= 1e-4 * b.norm()


@each_with(COMBINATIONS)
def test_combination(name, combination):
    family = FAMILIES[name]
    stock, pipe = family.make(0), family.make(0)

    def arguments(pipe, **size):
        return family.arguments(**size, **COMBINATIONS[combination](pipe, family))

    dense = pictures(stock, arguments(stock, **family.stock))
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(family.grid), mode="replace")
    call = arguments(pipe)
    spot = pictures(pipe, call)
    assert [step["kind"] for step in handle.report.steps].count("spot") >= 3
    assert same(spot, dense, combination)
    handle.disable()
    call |= {k: v for k, v in family.arguments().items() if k == "generator"}
    assert torch.equal(pictures(pipe, call | family.stock), dense)


NEUTRAL = {"fused projections", "output latent", "output np", "output pil", *OFFLOAD}


@pytest.mark.parametrize("combination", [name for name in COMBINATIONS if name not in NEUTRAL])
def test_it_is_in_force(combination):
    family = FAMILIES[DEFAULT[0]]
    pipe = family.make(0)
    plain = pictures(pipe, family.arguments(**family.stock))
    extra = COMBINATIONS[combination](pipe, family)
    assert not torch.equal(pictures(pipe, family.arguments(**family.stock, **extra)), plain)


@pytest.mark.parametrize("name", DEFAULT)
def test_layerwise_casting_that_computes_in_bfloat16(name):
    """As near to the stock pipeline as that is to the same weights in fp32, twice."""
    family = FAMILIES[name]

    def cast(dtype):
        pipe = family.make(0).to(torch.bfloat16).to(dtype)
        pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, dtype)
        call = family.arguments()
        embeddings = {
            k: v.to(dtype) for k, v in call.items() if torch.is_tensor(v) and v.is_floating_point()
        }
        noise = torch.randn(1, 48, 16, generator=torch.Generator().manual_seed(3))
        return pipe, call | embeddings | {"latents": noise.to(torch.bfloat16).to(dtype)}

    pipe, call = cast(torch.float32)
    exact = pictures(pipe, call | family.stock)
    pipe, call = cast(torch.bfloat16)
    stock = pictures(pipe, call | family.stock)
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(family.grid), mode="replace")
    spot = pictures(pipe, call)
    assert "spot" in {step["kind"] for step in handle.report.steps}
    assert (spot - stock).norm() <= 2 * (stock - exact).norm()


def tokens(latents, family):
    """Packed latents [B, N, C] from those, or from [B, C, (1,) h, w] that were unpacked."""
    if latents.ndim == 3:
        return latents
    latents = latents.flatten(1, -3)
    side = latents.shape[-1] // family.grid[1]
    return F.pixel_unshuffle(latents, side).flatten(2).transpose(1, 2)


@each_with(SCHEDULERS)
def test_reused_tokens_end_at_the_source_with(name, combination):
    """Also where the scheduler adds noise or remembers earlier steps."""
    family = FAMILIES[name]
    pipe = family.make(0)
    handle = spotedit.enable(pipe)
    mask = torch.zeros(family.grid)
    mask[:2] = 1
    handle.set_mask(mask, mode="replace")
    SCHEDULERS[combination](pipe, family)
    images = tokens(pipe(**family.arguments()).images, family)
    reused = ~torch.from_numpy(handle.report.region).flatten()
    few = family.arguments(num_inference_steps=2)  # one full step, one spot
    sources = tokens(pipe(**few).images, family)
    assert torch.equal(images[:, reused], sources[:, reused])
    assert torch.isfinite(images).all()


@each_stock
def test_siblings_stay_stock(name):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    dense = pipe(**family.arguments(**family.stock)).images
    spotedit.enable(pipe)
    sibling = type(pipe).from_pipe(pipe)
    sibling.set_progress_bar_config(disable=True)
    assert torch.equal(sibling(**family.arguments(**family.stock)).images, dense)


@each_stock
def test_saved_and_loaded_again(name, tmp_path):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    base = type(pipe)
    dense = pipe(**family.arguments(**family.stock)).images
    spotedit.enable(pipe)
    pipe.save_pretrained(tmp_path)
    kinds = (ModelMixin, SchedulerMixin)
    encoders = {k: v for k, v in pipe.components.items() if not isinstance(v, kinds)}
    loaded = base.from_pretrained(tmp_path, **encoders)
    loaded.set_progress_bar_config(disable=True)
    assert base.load_config(tmp_path)["_class_name"] == base.__name__
    # weights at other addresses may be summed in another order
    assert same(loaded(**family.arguments(**family.stock)).images, dense)
