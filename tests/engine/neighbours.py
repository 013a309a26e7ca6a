"""What people use together with spotedit, each as a function that changes a random Kontext.

A package that is not installed skips the test. Where a package needs a GPU or a published model, a
stand-in does to the pipeline what the package does.
"""

import copy
import functools
from typing import Any

import pytest
import torch
from diffusers import hooks
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceHook
from diffusers.models.transformers.transformer_flux import (
    FluxAttnProcessor,
    FluxIPAdapterAttnProcessor,
)
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

# -- quantised weights


def torchao(pipe: Any, config: str) -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    quantization.quantize_(pipe.transformer, getattr(quantization, config)())


def quanto(pipe: Any) -> None:
    package = pytest.importorskip("optimum.quanto", reason="optimum-quanto is not installed")
    package.quantize(pipe.transformer, weights=package.qint8)
    package.freeze(pipe.transformer)


def replace_linear(module: nn.Module, make: Any) -> int:
    """Replace linear layers whose widths are multiples of 32 by `make(linear)`; count them."""
    count = 0
    for name, child in module.named_children():
        is_linear = isinstance(child, nn.Linear)
        if is_linear and child.in_features % 32 == 0 and child.out_features % 32 == 0:
            setattr(module, name, make(child))
            count += 1
        else:
            count += replace_linear(child, make)
    return count


def bitsandbytes(pipe: Any, bits: int) -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

    def make(linear: nn.Linear) -> nn.Module:
        shape = linear.in_features, linear.out_features, linear.bias is not None
        if bits == 4:
            options = {"quant_type": "nf4", "compute_dtype": torch.float32}
            layer = bnb.nn.Linear4bit(*shape, **options)
        else:
            layer = bnb.nn.Linear8bitLt(*shape, has_fp16_weights=False)
        layer.load_state_dict(linear.state_dict())
        return layer.to("cpu")

    assert replace_linear(pipe.transformer, make) > 20


def gguf(pipe: Any) -> None:
    package = pytest.importorskip("gguf", reason="gguf is not installed")
    from diffusers.quantizers.gguf.utils import GGUFLinear, GGUFParameter

    def make(linear: nn.Linear) -> nn.Module:
        kind = package.GGMLQuantizationType.Q8_0
        data = package.quants.quantize(linear.weight.detach().numpy(), kind)
        layer = GGUFLinear(
            linear.in_features, linear.out_features, linear.bias is not None, torch.float32
        )
        layer.weight = GGUFParameter(torch.from_numpy(data), quant_type=kind)
        layer.bias = linear.bias
        return layer

    assert replace_linear(pipe.transformer, make) > 20


# -- adapters


def hotswapped(pipe: Any) -> None:
    """Load an adapter of random weights in the place of another one."""
    transformer = pipe.transformer
    config = LoraConfig(r=4, target_modules=["to_q", "to_k", "proj_out"], init_lora_weights=False)
    torch.manual_seed(1)
    transformer.add_adapter(config)
    first = get_peft_model_state_dict(transformer)
    second = {name: torch.randn_like(weight) / 4 for name, weight in first.items()}
    transformer.load_lora_adapter(second, adapter_name="default", prefix=None, hotswap=True)


# -- caches


def middle_timestep() -> int:
    return 500


CACHES: dict[str, tuple[Any, Any]] = {  # name -> configuration and the function that applies it
    "FirstBlockCache": (hooks.FirstBlockCacheConfig(0.1), hooks.apply_first_block_cache),
    "FasterCache": (
        hooks.FasterCacheConfig(
            spatial_attention_block_identifiers=("transformer_blocks",),
            current_timestep_callback=middle_timestep,
            is_guidance_distilled=True,
            tensor_format="BCHW",
        ),
        hooks.apply_faster_cache,
    ),
    "PyramidAttentionBroadcast": (
        hooks.PyramidAttentionBroadcastConfig(2, current_timestep_callback=middle_timestep),
        hooks.apply_pyramid_attention_broadcast,
    ),
    "MagCache": (hooks.MagCacheConfig(mag_ratios=torch.ones(28)), hooks.apply_mag_cache),
    "TaylorSeer": (hooks.TaylorSeerCacheConfig(), hooks.apply_taylorseer_cache),
    "SeaCache": (hooks.SeaCacheConfig(), hooks.apply_sea_cache),
    "TextKVCache": (hooks.TextKVCacheConfig(), hooks.apply_text_kv_cache),
}


def enable_cache(pipe: Any, name: str) -> None:
    pipe.transformer.enable_cache(CACHES[name][0])


def apply_cache(pipe: Any, name: str) -> None:
    config, apply = CACHES[name]
    apply(pipe.transformer, config)


def layer_skip(pipe: Any) -> None:
    hooks.apply_layer_skip(pipe.transformer, hooks.LayerSkipConfig([0], fqn="transformer_blocks"))


def smoothed_energy(pipe: Any) -> None:
    """Add the hook to one layer by hand: diffusers' own function does not know this attention."""
    queries = pipe.transformer.get_submodule("transformer_blocks.0.attn.to_q")
    hook = SmoothedEnergyGuidanceHook(blur_sigma=1.0)
    hooks.HookRegistry.check_if_exists_or_initialize(queries).register_hook(hook, "seg")


# -- hooks, processors and forwards


class WatchingHook(hooks.ModelHook):
    """Counts the forwards and changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.num_forwards = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.num_forwards += 1
        return args, kwargs


class SkippingHook(hooks.ModelHook):
    """Runs every other forward only, and repeats its output."""

    num_calls = 0

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        if self.num_calls % 2 == 1:
            self.output = self.fn_ref.original_forward(*args, **kwargs)
        return self.output


def model_hook(pipe: Any, hook: type, part: str) -> None:
    """Register a hook on the submodule named `part`, or on the transformer itself for ""."""
    module = pipe.transformer.get_submodule(part)
    hooks.HookRegistry.check_if_exists_or_initialize(module).register_hook(hook(), "of a user")


def forward_hooks(pipe: Any) -> None:
    """Register PyTorch's own hooks on every module."""
    for module in pipe.transformer.modules():
        module.register_forward_pre_hook(lambda module, args: None)
        module.register_forward_hook(lambda module, args, output: None)


class OwnProcessor:
    """Does what the stock processor does, with something of its own, as many users' do."""

    def __call__(self, attn: Any, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        output = FluxAttnProcessor()(attn, hidden_states, *args, **kwargs)
        return tuple(0.9 * x for x in output) if isinstance(output, tuple) else 0.9 * output


class SubclassedProcessor(OwnProcessor, FluxAttnProcessor):
    pass


class NamedProcessor:
    """Takes the layer's arguments by name and has no attributes, as nunchaku's does."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Any,
        encoder_hidden_states: Any = None,
        attention_mask: Any = None,
        image_rotary_emb: Any = None,
        **kwargs: Any,
    ) -> Any:
        stock = FluxAttnProcessor()
        return stock(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)


def processors(pipe: Any, cls: type) -> None:
    pipe.transformer.set_attn_processor(cls())


def ip_adapter(pipe: Any) -> None:
    attention = pipe.transformer.transformer_blocks[0].attn
    attention.set_processor(FluxIPAdapterAttnProcessor(32, 12))


class AllBlocks(nn.Module):
    """Runs all blocks as one opaque module, as nunchaku's C++ code does."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        self.hidden_blocks = (blocks,)  # modules in a tuple are not registered as submodules

    def forward(self, hidden_states: Any, encoder_hidden_states: Any, **rest: Any) -> Any:
        for block in self.hidden_blocks[0]:
            encoder_hidden_states, hidden_states = block(
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **rest
            )
        return encoder_hidden_states, hidden_states


def opaque_blocks(pipe: Any) -> None:
    blocks = nn.ModuleList([AllBlocks(pipe.transformer)])
    pipe.transformer.transformer_blocks = blocks
    pipe.transformer.single_transformer_blocks = nn.ModuleList()


def teacache_script(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the class's forward, as the scripts of TeaCache's authors do."""
    cls = type(getattr(pipe.transformer, "_orig_mod", pipe.transformer))
    stock = cls.forward

    def teacache_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.cnt % 2 == 0:
            self.previous_output = stock(self, *args, **kwargs)
        self.cnt += 1
        return self.previous_output

    base = next(base for base in cls.__mro__ if "forward" in vars(base))
    monkeypatch.setattr(base, "forward", teacache_forward)
    monkeypatch.setattr(base, "cnt", 0, raising=False)


def exported(pipe: Any, arguments: Any) -> None:
    """Replace the forward by an exported program, which ignores the attention processors."""
    model, inputs = pipe.transformer, {}

    def record_tensors(module: Any, args: Any, kwargs: Any) -> None:
        inputs.update({name: x for name, x in kwargs.items() if torch.is_tensor(x)})

    hook = model.register_forward_pre_hook(record_tensors, with_kwargs=True)
    pipe(**arguments)
    hook.remove()
    tokens = torch.export.Dim("tokens", min=8, max=4096)
    dynamic = {**dict.fromkeys(inputs), "hidden_states": {1: tokens}, "img_ids": {0: tokens}}
    program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic, strict=False).module()

    def forward(return_dict: bool = True, joint_attention_kwargs: Any = None, **kwargs: Any) -> Any:
        output = program(**{name: x for name, x in kwargs.items() if name in inputs})
        return output if return_dict else (output[0],)

    model.forward = forward


def forward_of_a_copy(pipe: Any) -> None:
    """Replace the forward by that of another module with the same weights."""
    pipe.transformer.forward = functools.partial(copy.deepcopy(pipe.transformer).forward)


# -- torch.compile


def compile_blocks(pipe: Any) -> None:
    pipe.transformer.compile_repeated_blocks(backend="eager")


def compile_transformer(pipe: Any) -> None:
    pipe.transformer.compile(backend="eager")


def wrap_in_compiled(pipe: Any) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
