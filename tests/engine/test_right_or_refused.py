"""If other code changes the transformer, the picture is right or an error says what to do.

Some calls fall back to the stock pipeline ("dense" steps); their report says why.
"""

import contextlib
import functools
import threading

import pytest
import torch
from compare import relative_error
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from diffusers import hooks as diffusers_hooks
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceHook
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from families import FAMILIES, each_family
from small_kontext import (
    GRID,
    HEIGHT,
    LATENT_CHANNELS,
    NUM_LAYERS,
    NUM_STEPS,
    STOCK_SIZE,
    TOKEN_PIXELS,
    WIDTH,
    call_arguments,
    enable_all_active,
    guidance,
    random_kontext,
)
from torch import nn

import spotedit
from spotedit.engine import cache
from spotedit.engine.processor import SpotProcessor

NUM_LEFT_COLUMNS = 3
LEFT = torch.arange(GRID[1]).expand(GRID) < NUM_LEFT_COLUMNS
LEFT_SHARE = NUM_LEFT_COLUMNS / GRID[1]


def edit(pipe, **extra):
    return pipe(**call_arguments(**extra)).images


def assert_no_processor_of_ours(transformer):
    assert not any(isinstance(p, SpotProcessor) for p in transformer.attn_processors.values())


def assert_refused(pipe, change, match):
    """Assert that `change` is refused.

    If the change follows `enable`, the call refuses it. If it precedes `enable`, `enable` does.
    """
    spotedit.enable(pipe)
    change(pipe)
    with pytest.raises(ValueError, match=match):
        edit(pipe)
    spotedit.disable(pipe)
    with pytest.raises(ValueError, match=match):
        spotedit.enable(pipe)
    assert_no_processor_of_ours(pipe.transformer)


# -- attention processors


class DoublingProcessor(FluxAttnProcessor):
    """A subclass that changes the output."""

    def __call__(self, *args, **kwargs):
        output = super().__call__(*args, **kwargs)
        return tuple(2 * part for part in output) if isinstance(output, tuple) else 2 * output


class WrappingProcessor:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class WrappingProcessorWithStock(WrappingProcessor):
    """Keeps the stock processor in the attribute that our own processors use."""

    def __init__(self, inner):
        self.inner = self.stock = inner


class ModuleProcessor(nn.Module):
    """Has no attention backend, and names its arguments otherwise than the stock processor."""

    def forward(self, layer, x, *rest, **named):
        return FluxAttnProcessor()(layer, x, *rest, **named)


@pytest.mark.parametrize("single_layer", [False, True])
@pytest.mark.parametrize(
    "processor",
    [
        DoublingProcessor(),
        WrappingProcessor(FluxAttnProcessor()),
        WrappingProcessorWithStock(FluxAttnProcessor()),
        ModuleProcessor(),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_attention_processors_of_other_classes_are_refused_by_name(pipe, processor, single_layer):
    def set_processor(pipe):
        if single_layer:
            pipe.transformer.single_transformer_blocks[1].attn.set_processor(processor)
        else:
            pipe.transformer.set_attn_processor(processor)

    name = type(processor).__name__
    message = rf"\.{name}, .*expected FluxAttnProcessor.*set_attn_proc"
    assert_refused(pipe, set_processor, message)


def test_a_patched_processor_class_is_refused(pipe, monkeypatch):
    monkeypatch.setattr(FluxAttnProcessor, "__call__", DoublingProcessor.__call__)
    with pytest.raises(ValueError, match="FluxAttnProcessor"):
        spotedit.enable(pipe)


def test_one_stock_processor_may_serve_all_layers(pipe):
    handle = spotedit.enable(pipe)
    handle.set_mask(LEFT, mode="replace")
    expected = edit(pipe)
    shared = FluxAttnProcessor()
    pipe.transformer.set_attn_processor(shared)
    assert torch.equal(edit(pipe), expected)
    assert all(p is shared for p in pipe.transformer.attn_processors.values())


@pytest.mark.parametrize("chosen", ["before enable", "after enable", "around the call"])
def test_the_chosen_attention_backend_runs_in_every_forward(pipe, monkeypatch, chosen):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    backend, calls = AttentionBackendName._NATIVE_MATH, []
    attention = _AttentionBackendRegistry._backends[backend]

    def counted_attention(*args, **kwargs):
        calls.append(1)
        return attention(*args, **kwargs)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, backend, counted_attention)
    # Choosing a model's backend also changes the process-wide one. Patching that with its present
    # value makes pytest put it back at the end.
    active = _AttentionBackendRegistry._active_backend
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", active)
    if chosen == "before enable":
        pipe.transformer.set_attention_backend(backend.value)
    handle = enable_all_active(pipe)
    if chosen == "after enable":
        pipe.transformer.set_attention_backend(backend.value)
    around_the_call = contextlib.nullcontext()
    if chosen == "around the call":
        around_the_call = attention_backend(backend)
    with around_the_call:
        spot = edit(pipe)
    assert len(calls) == NUM_STEPS * NUM_LAYERS
    handle.disable()
    assert relative_error(spot, edit(pipe, **STOCK_SIZE)) <= 1e-4


def test_arguments_that_spot_steps_cannot_apply_are_refused(pipe):
    mask = torch.ones(1, 1, 1, 101, dtype=torch.bool)  # prompt, noise and condition tokens

    def add_mask(module, args, kwargs):
        return args, kwargs | {"attention_mask": mask}

    layer = pipe.transformer.transformer_blocks[1].attn
    layer.register_forward_pre_hook(add_mask, with_kwargs=True)
    spotedit.enable(pipe)
    with pytest.raises(ValueError, match="given attention_mask; expected no more than"):
        edit(pipe)


# -- hooks and caches


def middle_timestep():
    return 500


CACHES = {
    "first_block_cache": diffusers_hooks.FirstBlockCacheConfig(threshold=0.1),
    "mag_cache": diffusers_hooks.MagCacheConfig(mag_ratios=[1.0] * 8, num_inference_steps=8),
    "faster_cache": diffusers_hooks.FasterCacheConfig(
        current_timestep_callback=middle_timestep,
        spatial_attention_block_identifiers=("transformer_blocks",),
        is_guidance_distilled=True,
    ),
    "pyramid_attention_broadcast": diffusers_hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=middle_timestep,
        spatial_attention_block_identifiers=("transformer_blocks",),
    ),
    "taylorseer_cache": diffusers_hooks.TaylorSeerCacheConfig(),
    "layer_skip": diffusers_hooks.LayerSkipConfig([1], fqn="transformer_blocks"),
}


@pytest.mark.parametrize("name", CACHES)
def test_caches_applied_to_the_transformer_are_refused(pipe, name):
    def apply_cache(pipe):
        getattr(diffusers_hooks, f"apply_{name}")(pipe.transformer, CACHES[name])

    assert_refused(pipe, apply_cache, "has the hook .*expected none")


def test_a_hook_that_blurs_attention_is_refused(pipe):
    def add_hook(pipe):
        layer = pipe.transformer.transformer_blocks[0].attn.to_q
        hook = SmoothedEnergyGuidanceHook(blur_sigma=1.0)
        HookRegistry.check_if_exists_or_initialize(layer).register_hook(hook, "blur")

    assert_refused(pipe, add_hook, "SmoothedEnergyGuidanceHook")


class WatchingHook(ModelHook):
    """Records every forward and changes nothing."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def pre_forward(self, module, *args, **kwargs):
        self.seen.append("before")
        return args, kwargs

    def post_forward(self, module, output):
        self.seen.append("after")
        return output


class ReplacingHook(WatchingHook):
    """Replaces the forward, here with the same one."""

    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs)


def test_hooks_that_only_watch_still_work(pipe):
    handle = spotedit.enable(pipe)
    handle.set_mask(LEFT, mode="replace")
    expected = edit(pipe)
    hook, torch_hook_calls = WatchingHook(), []
    modules = pipe.transformer, pipe.transformer.transformer_blocks[0]
    for module in modules:
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "watch")
    pipe.transformer.register_forward_hook(lambda *args: torch_hook_calls.append(1))
    assert torch.equal(edit(pipe), expected)
    assert len(torch_hook_calls) == NUM_STEPS
    assert hook.seen.count("before") == hook.seen.count("after") == NUM_STEPS * len(modules)
    assert handle.report.mean_ratio == LEFT_SHARE


def test_a_users_hook_that_replaces_a_forward_is_refused(pipe):
    def add_hook(pipe):
        block = pipe.transformer.transformer_blocks[1]
        HookRegistry.check_if_exists_or_initialize(block).register_hook(ReplacingHook(), "mine")

    message = r"transformer_blocks\.1 has the hook 'mine' \(ReplacingHook\)"
    assert_refused(pipe, add_hook, message)


# -- forwards that bypass the attention layers


@pytest.fixture
def poisoned_buffers(monkeypatch):
    """Fill new buffers with NaN, so that reading a row before it is written spoils the picture.

    The int8 cache holds integers, which cannot be NaN. They are filled with -77.
    """
    allocate = cache.allocate

    def allocate_poisoned(*args):
        layer = allocate(*args)
        buffers = [layer.k, layer.v]
        if layer.blend_inputs:
            buffers += vars(layer.blend_inputs).values()
        for buffer in buffers:
            for tensor in buffer.tensors():
                tensor.fill_(torch.nan if tensor.is_floating_point() else -77)
        return layer

    monkeypatch.setattr("spotedit.engine.forwards.allocate", allocate_poisoned)


def copy_of(model):
    other = FluxTransformer2DModel.from_config(model.config).eval()
    other.load_state_dict(model.state_dict())
    return other


def bypass_all_layers(model):
    """Give the model a forward that ignores its attention processors, as an exported model has."""
    model.forward = copy_of(model).forward


def bypass_one_layer(model):
    """Give one block a forward that ignores its attention processor."""
    other_block = copy_of(model).single_transformer_blocks[1]
    model.single_transformer_blocks[1].forward = other_block.forward


@pytest.mark.usefixtures("poisoned_buffers")
@pytest.mark.parametrize(
    "options", [{}, {"cache_dtype": "int8"}, {"temporal": spotedit.TaylorSeer()}]
)
@pytest.mark.parametrize("bypass", [bypass_all_layers, bypass_one_layer])
def test_a_call_that_bypasses_a_layer_falls_back_to_dense_and_says_why(pipe, bypass, options):
    bypass(pipe.transformer)
    stock = edit(pipe, **STOCK_SIZE)
    with spotedit.enable(pipe, **options) as handle:
        spot = edit(pipe)
    report = handle.report
    assert "did not run its own attention" in report.reason
    # The first step starts as a full step, which fills the cache, and notices the bypass. It is
    # reported as full; the steps after it run the stock pipeline.
    assert {step["kind"] for step in report.steps[1:]} <= {"dense", "skip"}
    assert report.cache_bytes == 0
    if "temporal" not in options:
        assert relative_error(spot, stock) <= 1e-5
    assert torch.isfinite(spot).all()


@pytest.mark.usefixtures("poisoned_buffers")
def test_a_guidance_branch_that_bypasses_a_layer_makes_all_steps_after_the_first_dense(pipe):
    """With skip-layer guidance, the second forward of each step leaves a block out."""
    block, forwards = pipe.transformer.transformer_blocks[1], []
    stock_forward = block.forward

    def skip_every_other_forward(hidden_states, encoder_hidden_states, **rest):
        forwards.append(1)
        if len(forwards) % 2 == 0:
            return encoder_hidden_states, hidden_states
        return stock_forward(hidden_states, encoder_hidden_states, **rest)

    block.forward = skip_every_other_forward
    stock = edit(pipe, **STOCK_SIZE, **guidance(2.0))
    with spotedit.enable(pipe) as handle:
        spot = edit(pipe, **guidance(2.0))
    assert "transformer_blocks.1" in handle.report.reason
    assert relative_error(spot, stock) <= 1e-5


def test_a_block_that_is_skipped_in_a_spot_step_raises(pipe):
    """Some scripts cache a block's output and skip the block when its input changes little."""
    stock = edit(pipe, **STOCK_SIZE)
    block, forwards = pipe.transformer.transformer_blocks[1], []
    stock_forward = block.forward

    def skip_third_forward(hidden_states, encoder_hidden_states, **rest):
        forwards.append(1)
        if len(forwards) == 3:
            return encoder_hidden_states, hidden_states
        return stock_forward(hidden_states, encoder_hidden_states, **rest)

    block.forward = skip_third_forward
    handle = spotedit.enable(pipe)
    handle.set_mask(LEFT, mode="replace")
    with pytest.raises(
        RuntimeError, match=r"transformer_blocks\.1.*not in this spot step.*expected"
    ):
        edit(pipe)
    assert_no_processor_of_ours(pipe.transformer)
    del block.forward
    # The failed call leaves nothing behind: two edits with the mask agree.
    assert torch.equal(edit(pipe), edit(pipe))
    handle.disable()
    assert torch.equal(edit(pipe, **STOCK_SIZE), stock)


def test_a_forward_replaced_on_the_class_is_refused(pipe, monkeypatch):
    stock = FluxTransformer2DModel.forward

    def teacache_forward(self, *args, **kwargs):
        return stock(self, *args, **kwargs)

    def replace_forward(pipe):
        monkeypatch.setattr(FluxTransformer2DModel, "forward", teacache_forward)

    message = r"FluxTransformer2DModel\.forward has been replaced by .*teacache_forward"
    assert_refused(pipe, replace_forward, message)


def test_a_forward_wrapped_by_functools_wraps_is_accepted(pipe, monkeypatch):
    stock, calls = FluxTransformer2DModel.forward, []

    @functools.wraps(stock)
    def timed(self, *args, **kwargs):
        calls.append(1)
        return stock(self, *args, **kwargs)

    expected = edit(pipe, **STOCK_SIZE)
    monkeypatch.setattr(FluxTransformer2DModel, "forward", timed)
    enable_all_active(pipe)
    assert relative_error(edit(pipe), expected) <= 1e-4
    assert len(calls) == NUM_STEPS


class FusedBlocks(nn.Module):
    """One module that runs all blocks and hides them, as a binding to C++ code does."""

    def __init__(self, blocks):
        super().__init__()
        self.hidden_blocks = (list(blocks),)  # modules in a tuple are not registered as submodules

    def forward(self, hidden_states, encoder_hidden_states, **rest):
        for block in self.hidden_blocks[0]:
            encoder_hidden_states, hidden_states = block(
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **rest
            )
        return encoder_hidden_states, hidden_states


@pytest.mark.parametrize(
    "lists",
    [
        ["transformer_blocks"],
        ["single_transformer_blocks"],
        ["transformer_blocks", "single_transformer_blocks"],
    ],
)
def test_blocks_that_hide_their_attention_are_refused(pipe, lists):
    stock = edit(pipe, **STOCK_SIZE)

    def fuse_blocks(pipe):
        for name in lists:
            fused = FusedBlocks(getattr(pipe.transformer, name))
            setattr(pipe.transformer, name, nn.ModuleList([fused]))

    message = r"_blocks\.0 \(FusedBlocks\) shows no attention processor; expected one"
    assert_refused(pipe, fuse_blocks, message)
    assert torch.equal(edit(pipe, **STOCK_SIZE), stock)


def test_a_transformer_that_is_replaced_during_a_call_raises(pipe):
    spotedit.enable(pipe)
    original, other = pipe.transformer, random_kontext(1).transformer

    def replace(pipe, step, timestep, tensors):
        # During a call, `pipe.transformer` is a view of the original that shares its attributes.
        # Replace the forward that both share, then the component `pipe.transformer` itself.
        vars(pipe.transformer)["forward"] = other.forward
        pipe.__dict__["transformer"] = other
        return {}

    # The words depend on whether a full or a spot step notices it first.
    with pytest.raises(RuntimeError, match=r"did not|in this spot step"):
        edit(pipe, callback_on_step_end=replace)
    del original.forward
    assert_no_processor_of_ours(original)


# -- the state of a call


def test_a_call_does_not_change_the_pipelines_scheduler(pipe):
    pipe(**call_arguments(num_inference_steps=3, **STOCK_SIZE))
    before = dict(vars(pipe.scheduler))
    spotedit.enable(pipe)
    edit(pipe)
    assert vars(pipe.scheduler).keys() == before.keys()
    assert all(vars(pipe.scheduler)[name] is value for name, value in before.items())


def test_a_step_method_set_on_the_scheduler_is_called(pipe):
    expected = edit(pipe, **STOCK_SIZE)
    stock_step, calls = pipe.scheduler.step, []

    def counted_step(*args, **kwargs):
        calls.append(1)
        return stock_step(*args, **kwargs)

    pipe.scheduler.step = counted_step
    enable_all_active(pipe)
    assert relative_error(edit(pipe), expected) <= 1e-4
    assert len(calls) == NUM_STEPS
    assert pipe.scheduler.step is counted_step


def test_a_scheduler_that_cannot_be_copied_is_used_directly(pipe):
    pipe.scheduler.lock = threading.Lock()  # a lock cannot be copied
    expected = edit(pipe, **STOCK_SIZE)
    enable_all_active(pipe)
    assert relative_error(edit(pipe), expected) <= 1e-4


def test_threads_do_not_share_masks_callbacks_or_reports(pipe):
    handle, masks = spotedit.enable(pipe), (LEFT, ~LEFT)
    alone = []
    for mask in masks:
        with handle.call(mask=mask, mode="replace"):
            alone.append(edit(pipe))
    one_at_a_time = threading.Lock()  # a pipeline refuses a second call while one is running
    together, reports, steps = {}, {}, {0: [], 1: []}

    def worker(i):
        with handle.call(mask=masks[i], mode="replace", on_step=steps[i].append) as run:
            with one_at_a_time:
                together[i] = edit(pipe)
            reports[i] = run.report

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, mask in enumerate(masks):
        assert torch.equal(together[i], alone[i])
        assert (reports[i].region == mask.numpy()).all()
        expected = [(s["index"], NUM_STEPS, s["kind"]) for s in reports[i].steps]
        assert [(step.index, step.total, step.kind) for step in steps[i]] == expected


def test_settings_of_handle_call_end_with_its_with_statement(pipe):
    handle = spotedit.enable(pipe)
    handle.set_mask(LEFT, mode="replace")
    expected = edit(pipe)
    with handle.call(mask=~LEFT, mode="replace") as outer:
        with handle.call() as inner:
            edit(pipe, num_inference_steps=3)
        edit(pipe)
    assert (outer.report.region == ~LEFT.numpy()).all()
    # The inner call has no mask: neither the handle's nor the outer one counts.
    assert inner.report.mean_ratio not in (LEFT_SHARE, 1 - LEFT_SHARE)
    assert torch.equal(edit(pipe), expected)
    with pytest.raises(TypeError, match="mask is a str"), handle.call(mask="left"):
        pass


def test_an_exception_in_on_step_ends_the_call(pipe):
    handle = spotedit.enable(pipe)

    def stop(step):
        if step.index == 3:
            raise KeyboardInterrupt

    with handle.call(on_step=stop) as run, pytest.raises(KeyboardInterrupt):
        edit(pipe)
    assert len(run.report.steps) == 4
    assert torch.isfinite(edit(pipe)).all()


def test_a_mask_set_for_a_refused_call_is_dropped(pipe):
    handle = spotedit.enable(pipe)
    handle.set_mask(LEFT, mode="replace")

    def another_request(pipe, step, timestep, tensors):
        handle.set_mask(~LEFT, mode="replace")
        with pytest.raises(RuntimeError, match=r"already running.*copy\.copy"):
            edit(pipe)
        return {}

    expected = edit(pipe)
    assert torch.equal(edit(pipe, callback_on_step_end=another_request), expected)
    assert torch.equal(edit(pipe), expected)


# -- sizes and VAEs


@pytest.mark.parametrize(
    ("size", "matches"),
    [
        ({"max_area": HEIGHT * WIDTH}, True),
        ({"max_area": WIDTH * WIDTH}, True),
        ({"max_area": 40 * 40}, False),
        ({"height": HEIGHT, "max_area": HEIGHT * WIDTH}, False),
        ({"width": 40, "max_area": HEIGHT * WIDTH}, False),
        ({"height": HEIGHT, "width": WIDTH, "max_area": HEIGHT * WIDTH}, True),
    ],
)
def test_a_size_that_the_caller_gives_wins_over_match_size(pipe, size, matches):
    """If the output's grid is then not the source's, the call is dense."""
    with spotedit.enable(pipe, threshold=1e9) as handle:  # no score is as high: all are reused
        ours = edit(pipe, **size)
    rows, cols = handle.report.grid
    assert rows * cols * TOKEN_PIXELS**2 <= size["max_area"]
    assert ((rows, cols) == GRID) == matches
    assert (handle.report.reason is None) == matches
    if not matches:
        assert "match_size" in handle.report.reason
        assert torch.equal(ours, edit(pipe, **size))


def test_a_vae_without_the_decoder_layers_of_the_default_judge_needs_another_judge(pipe):
    pipe.vae = AutoencoderTiny(
        latent_channels=LATENT_CHANNELS,
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(1,) * 3,
        num_decoder_blocks=(1,) * 3,
    ).eval()
    steps = []

    def count_step(pipe, step, timestep, tensors):
        steps.append(step)
        return {}

    with (
        spotedit.enable(pipe),
        pytest.raises(ValueError, match=r'AutoencoderTiny does not have.*judge="cosine"'),
    ):
        edit(pipe, callback_on_step_end=count_step)
    assert not steps
    for options in ({"judge": "l2"}, {"judge": "cosine"}, {"spatial": False}):
        with spotedit.enable(pipe, **options):
            assert torch.isfinite(edit(pipe)).all()
    with spotedit.enable(pipe) as handle:
        handle.set_mask(LEFT, mode="replace")
        edit(pipe)
    assert handle.report.mean_ratio == LEFT_SHARE


@each_family
def test_the_spec_of_every_family_names_its_attention_processors(name):
    pipe = FAMILIES[name].make(0)
    spotedit.enable(pipe)
    classes = {type(p).__name__ for p in pipe.transformer.attn_processors.values()}
    assert classes <= set(spotedit.api.spec_for(pipe).processors)
