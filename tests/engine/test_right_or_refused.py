"""Whatever else touches the transformer, a picture is right, or an error says what to do."""

import contextlib
import functools
import threading

import pytest
import torch
from diffusers import AutoencoderTiny, FluxTransformer2DModel
from diffusers import hooks as diffusers_hooks
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceHook
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor
from families import FAMILIES, each_family
from small_kontext import call_arguments, random_kontext
from torch import nn

import spotedit
from spotedit.engine import cache

SIZE = {"height": 48, "width": 64, "max_area": 48 * 64}
LEFT = torch.arange(8).expand(6, 8) < 3


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def edit(pipe, **extra):
    return pipe(**call_arguments(**extra)).images


def refused(pipe, apply, match):
    """`apply` is refused before `enable`, and after it at the call; nothing remains of it."""
    spotedit.enable(pipe)
    apply(pipe)
    with pytest.raises(ValueError, match=match):
        edit(pipe)
    spotedit.disable(pipe)
    with pytest.raises(ValueError, match=match):
        spotedit.enable(pipe)
    assert not any(hasattr(p, "here") for p in pipe.transformer.attn_processors.values())


# -- processors


class Scaled(FluxAttnProcessor):
    def __call__(self, *args, **kwargs):
        output = super().__call__(*args, **kwargs)
        return tuple(2 * part for part in output) if isinstance(output, tuple) else 2 * output


class Wrapper:
    def __init__(self, inner):
        self.inner = inner

    def __call__(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Impostor(Wrapper):
    """Keeps the stock processor under the name that ours uses."""

    def __init__(self, inner):
        self.inner = self.stock = inner


class Weighted(nn.Module):
    """Neither a backend nor the names of the stock one's arguments."""

    def forward(self, layer, x, *rest, **named):
        return FluxAttnProcessor()(layer, x, *rest, **named)


@pytest.mark.parametrize("one", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        Scaled,
        lambda: Wrapper(FluxAttnProcessor()),
        lambda: Impostor(FluxAttnProcessor()),
        Weighted,
    ],
)
def test_attention_processors_of_other_classes_are_refused_by_name(pipe, make, one):
    def apply(pipe):
        processor = make()
        if one:
            pipe.transformer.single_transformer_blocks[1].attn.set_processor(processor)
        else:
            pipe.transformer.set_attn_processor(processor)

    refused(pipe, apply, rf"\.{type(make()).__name__}, .*expected FluxAttnProcessor.*set_attn_proc")


def test_a_processor_class_that_was_patched_is_refused(pipe, monkeypatch):
    monkeypatch.setattr(FluxAttnProcessor, "__call__", Scaled.__call__)
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


@pytest.mark.parametrize("chosen", ["for the model", "before enable", "for the context"])
def test_an_attention_backend_that_was_chosen_runs_in_every_forward(pipe, monkeypatch, chosen):
    from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry

    name, rows = AttentionBackendName._NATIVE_MATH, []
    stock = _AttentionBackendRegistry._backends[name]

    def count(query, *args, **kwargs):
        rows.append(query.shape[1])
        return stock(query, *args, **kwargs)

    monkeypatch.setitem(_AttentionBackendRegistry._backends, name, count)
    # a model's backend becomes that of the whole process
    active = _AttentionBackendRegistry._active_backend
    monkeypatch.setattr(_AttentionBackendRegistry, "_active_backend", active)
    if chosen == "before enable":
        pipe.transformer.set_attention_backend(name.value)
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(6, 8), mode="replace")
    if chosen == "for the model":
        pipe.transformer.set_attention_backend(name.value)
    with attention_backend(name) if chosen == "for the context" else contextlib.nullcontext():
        spot = edit(pipe)
    assert len(rows) == 8 * 4  # steps, layers
    handle.disable()
    assert relative(spot, edit(pipe, **SIZE)) <= 1e-4


def test_arguments_that_spot_steps_cannot_apply_are_refused(pipe):
    masked = {"attention_mask": torch.ones(1, 1, 1, 101, dtype=torch.bool)}
    layer = pipe.transformer.transformer_blocks[1].attn
    layer.register_forward_pre_hook(lambda m, args, kw: (args, kw | masked), with_kwargs=True)
    spotedit.enable(pipe)
    with pytest.raises(ValueError, match="given attention_mask; expected no more than"):
        edit(pipe)


# -- hooks and caches

CACHES = {
    "first_block_cache": diffusers_hooks.FirstBlockCacheConfig(threshold=0.1),
    "mag_cache": diffusers_hooks.MagCacheConfig(mag_ratios=[1.0] * 8, num_inference_steps=8),
    "faster_cache": diffusers_hooks.FasterCacheConfig(
        current_timestep_callback=lambda: 500,
        spatial_attention_block_identifiers=("transformer_blocks",),
        is_guidance_distilled=True,
    ),
    "pyramid_attention_broadcast": diffusers_hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: 500,
        spatial_attention_block_identifiers=("transformer_blocks",),
    ),
    "taylorseer_cache": diffusers_hooks.TaylorSeerCacheConfig(),
    "layer_skip": diffusers_hooks.LayerSkipConfig([1], fqn="transformer_blocks"),
}


@pytest.mark.parametrize("name", CACHES)
def test_caches_put_on_the_module_are_refused(pipe, name):
    apply = getattr(diffusers_hooks, f"apply_{name}")
    refused(
        pipe, lambda pipe: apply(pipe.transformer, CACHES[name]), "has the hook .*expected none"
    )


def test_a_hook_that_blurs_attention_is_refused(pipe):
    def apply(pipe):
        layer = pipe.transformer.transformer_blocks[0].attn.to_q
        hook = SmoothedEnergyGuidanceHook(blur_sigma=1.0)
        HookRegistry.check_if_exists_or_initialize(layer).register_hook(hook, "blur")

    refused(pipe, apply, "SmoothedEnergyGuidanceHook")


class Watching(ModelHook):
    def __init__(self):
        super().__init__()
        self.seen = []

    def pre_forward(self, module, *args, **kwargs):
        self.seen.append("before")
        return args, kwargs

    def post_forward(self, module, output):
        self.seen.append("after")
        return output


class Replacing(Watching):
    def new_forward(self, module, *args, **kwargs):
        return self.fn_ref.original_forward(*args, **kwargs)


def test_hooks_that_watch_go_on_working(pipe):
    handle = spotedit.enable(pipe)
    handle.set_mask(LEFT, mode="replace")
    expected, hook, calls = edit(pipe), Watching(), []
    for module in (pipe.transformer, pipe.transformer.transformer_blocks[0]):
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, "watch")
    pipe.transformer.register_forward_hook(lambda *args: calls.append(1))
    assert torch.equal(edit(pipe), expected)
    assert len(calls) == 8
    assert len(hook.seen) == 8 * 4
    assert handle.report.mean_ratio == LEFT.float().mean()


def test_a_hook_of_ones_own_that_replaces_a_forward_is_refused(pipe):
    def apply(pipe):
        block = pipe.transformer.transformer_blocks[1]
        HookRegistry.check_if_exists_or_initialize(block).register_hook(Replacing(), "mine")

    refused(pipe, apply, r"transformer_blocks\.1 has the hook 'mine' \(Replacing\)")


# -- forwards that bypass the layers


@pytest.fixture
def poisoned(monkeypatch):
    """Buffers hold NaN until they are written."""
    allocate = cache.allocate

    def poison(*args):
        layer = allocate(*args)
        for rows in (layer.k, layer.v, *(vars(layer.sources).values() if layer.sources else ())):
            for tensor in rows.tensors():
                tensor.fill_(torch.nan if tensor.is_floating_point() else -77)
        return layer

    monkeypatch.setattr("spotedit.engine.forwards.allocate", poison)


def without_processors(model):
    """The model's forward as a program: what it computes does not depend on its processors."""
    frozen = FluxTransformer2DModel.from_config(model.config).eval()
    frozen.load_state_dict(model.state_dict())
    model.forward = frozen.forward


def a_block_of_another_kind(model):
    frozen = FluxTransformer2DModel.from_config(model.config).eval()
    frozen.load_state_dict(model.state_dict())
    model.single_transformer_blocks[1].forward = frozen.single_transformer_blocks[1].forward


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "options", [{}, {"cache_dtype": "int8"}, {"temporal": spotedit.TaylorSeer()}]
)
@pytest.mark.parametrize("bypass", [without_processors, a_block_of_another_kind])
def test_a_layer_that_does_not_run_makes_the_call_dense_with_the_reason(pipe, bypass, options):
    bypass(pipe.transformer)
    stock = edit(pipe, **SIZE)
    with spotedit.enable(pipe, **options) as handle:
        spot = edit(pipe)
    report = handle.report
    assert "did not run its own attention" in report.reason
    assert {step["kind"] for step in report.steps[1:]} <= {"dense", "skip"}
    assert report.cache_bytes == 0
    if "temporal" not in options:
        assert relative(spot, stock) <= 1e-5
    assert torch.isfinite(spot).all()


@pytest.mark.usefixtures("poisoned")
def test_a_guidance_branch_that_bypasses_a_layer_makes_the_rest_dense(pipe):
    """Skip-layer guidance, in the second forward of a step."""
    guided = {
        "true_cfg_scale": 2.0,
        "negative_prompt_embeds": torch.ones(1, 5, 12),
        "negative_pooled_prompt_embeds": torch.ones(1, 10),
    }
    block, forwards = pipe.transformer.transformer_blocks[1], []
    stock_forward = block.forward

    def skip_every_other(hidden_states, encoder_hidden_states, **rest):
        forwards.append(1)
        if len(forwards) % 2 == 0:
            return encoder_hidden_states, hidden_states
        return stock_forward(hidden_states, encoder_hidden_states, **rest)

    block.forward = skip_every_other
    stock = edit(pipe, **SIZE, **guided)
    with spotedit.enable(pipe) as handle:
        spot = edit(pipe, **guided)
    assert "transformer_blocks.1" in handle.report.reason
    assert relative(spot, stock) <= 1e-5


def test_a_block_that_is_skipped_in_spot_steps_raises(pipe):
    """A cache that a script puts on the instance: it skips a block where little changes."""
    block, forwards = pipe.transformer.transformer_blocks[1], []
    stock = block.forward

    def cached(hidden_states, encoder_hidden_states, **rest):
        forwards.append(1)
        if len(forwards) == 3:
            return encoder_hidden_states, hidden_states
        return stock(hidden_states, encoder_hidden_states, **rest)

    block.forward = cached
    handle = spotedit.enable(pipe)
    handle.set_mask(LEFT, mode="replace")
    with pytest.raises(
        RuntimeError, match=r"transformer_blocks\.1.*not in this spot step.*expected"
    ):
        edit(pipe)
    assert not any(hasattr(p, "here") for p in pipe.transformer.attn_processors.values())
    del block.forward
    assert torch.equal(edit(pipe), edit(pipe))


def test_a_forward_that_was_replaced_on_the_class_is_refused(pipe, monkeypatch):
    stock = FluxTransformer2DModel.forward

    def teacache_forward(self, *args, **kwargs):
        return stock(self, *args, **kwargs)

    def apply(pipe):
        monkeypatch.setattr(FluxTransformer2DModel, "forward", teacache_forward)

    refused(pipe, apply, r"FluxTransformer2DModel\.forward has been replaced by .*teacache_forward")


def test_a_forward_that_is_wrapped_with_its_name_is_taken(pipe, monkeypatch):
    stock, calls = FluxTransformer2DModel.forward, []

    @functools.wraps(stock)
    def timed(self, *args, **kwargs):
        calls.append(1)
        return stock(self, *args, **kwargs)

    expected = edit(pipe, **SIZE)
    monkeypatch.setattr(FluxTransformer2DModel, "forward", timed)
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(6, 8), mode="replace")
    assert relative(edit(pipe), expected) <= 1e-4
    assert len(calls) == 8


class Fused(nn.Module):
    """Blocks in one object that hides them, as a C++ program does."""

    def __init__(self, blocks):
        super().__init__()
        self.hidden = (list(blocks),)

    def forward(self, hidden_states, encoder_hidden_states, **rest):
        for block in self.hidden[0]:
            encoder_hidden_states, hidden_states = block(
                hidden_states=hidden_states, encoder_hidden_states=encoder_hidden_states, **rest
            )
        return encoder_hidden_states, hidden_states


@pytest.mark.parametrize(
    "names", [("transformer",), ("single_transformer",), ("transformer", "single_transformer")]
)
def test_blocks_that_hide_their_attention_are_refused(pipe, names):
    stock = edit(pipe, **SIZE)

    def apply(pipe):
        for name in names:
            blocks = getattr(pipe.transformer, f"{name}_blocks")
            setattr(pipe.transformer, f"{name}_blocks", nn.ModuleList([Fused(blocks)]))

    refused(pipe, apply, r"_blocks\.0 \(Fused\) shows no attention processor; expected one")
    assert torch.equal(edit(pipe, **SIZE), stock)


def test_a_transformer_that_is_replaced_during_a_call_raises(pipe):
    spotedit.enable(pipe)
    other = random_kontext(1).transformer

    def replace(pipe, step, timestep, tensors):
        vars(pipe.transformer)["forward"] = other.forward  # of the object that is shared
        pipe.__dict__["transformer"] = other
        return {}

    stock = pipe.transformer
    with pytest.raises(RuntimeError, match=r"did not|in this spot step"):
        edit(pipe, callback_on_step_end=replace)
    del stock.forward
    assert not any(hasattr(p, "here") for p in stock.attn_processors.values())


# -- a call's own state


def test_a_call_leaves_the_pipelines_scheduler_alone(pipe):
    pipe(**call_arguments(num_inference_steps=3, **SIZE))
    before = dict(vars(pipe.scheduler))
    spotedit.enable(pipe)
    edit(pipe)
    assert vars(pipe.scheduler).keys() == before.keys()
    assert all(vars(pipe.scheduler)[name] is value for name, value in before.items())


def test_a_scheduler_with_a_step_of_its_own_is_followed(pipe):
    expected = edit(pipe, **SIZE)
    step, calls = pipe.scheduler.step, []

    def watched(*args, **kwargs):
        calls.append(1)
        return step(*args, **kwargs)

    pipe.scheduler.step = watched
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(6, 8), mode="replace")
    assert relative(edit(pipe), expected) <= 1e-4
    assert len(calls) == 8
    assert pipe.scheduler.step is watched


def test_a_scheduler_that_cannot_be_copied_is_used_itself(pipe):
    pipe.scheduler.lock = threading.Lock()
    expected = edit(pipe, **SIZE)
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(6, 8), mode="replace")
    assert relative(edit(pipe), expected) <= 1e-4


def test_the_masks_callbacks_and_reports_of_two_threads_calls_are_their_own(pipe):
    handle, masks = spotedit.enable(pipe), (LEFT, ~LEFT)
    alone = []
    for mask in masks:
        with handle.call(mask=mask, mode="replace"):
            alone.append(edit(pipe))
    turn, together, reports, steps = threading.Lock(), {}, {}, {}

    def worker(i):
        with handle.call(
            mask=masks[i], mode="replace", on_step=steps.setdefault(i, []).append
        ) as run:
            with turn:
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
        kinds = [step["kind"] for step in reports[i].steps]
        assert [(s.index, s.total, s.kind) for s in steps[i]] == [
            (n, 8, kind) for n, kind in enumerate(kinds)
        ]


def test_a_block_of_calls_ends_with_its_block(pipe):
    handle = spotedit.enable(pipe)
    handle.set_mask(LEFT, mode="replace")
    usual = edit(pipe)
    with handle.call(mask=~LEFT, mode="replace") as outer:
        with handle.call() as inner:
            edit(pipe, num_inference_steps=3)
        edit(pipe)
    assert (outer.report.region == ~LEFT.numpy()).all()
    assert inner.report.mean_ratio not in (0.375, 0.625)
    assert torch.equal(edit(pipe), usual)
    with pytest.raises(TypeError, match="mask is a str"), handle.call(mask="left"):
        pass


def test_an_exception_of_on_step_ends_the_call(pipe):
    handle = spotedit.enable(pipe)

    def stop(step):
        if step.index == 3:
            raise KeyboardInterrupt

    with handle.call(on_step=stop) as run, pytest.raises(KeyboardInterrupt):
        edit(pipe)
    assert len(run.report.steps) == 4
    assert torch.isfinite(edit(pipe)).all()


def test_a_refused_call_takes_its_mask_with_it(pipe):
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
    ("given", "matched"),
    [
        ({"max_area": 48 * 64}, True),
        ({"max_area": 64 * 64}, True),
        ({"max_area": 40 * 40}, False),
        ({"height": 48, "max_area": 48 * 64}, False),
        ({"width": 40, "max_area": 48 * 64}, False),
        (SIZE, True),
    ],
)
def test_the_callers_size_wins(pipe, given, matched):
    with spotedit.enable(pipe, threshold=1e9) as handle:
        ours = edit(pipe, **given)
    rows, cols = handle.report.grid
    assert rows * cols * 64 <= given["max_area"]
    assert ((rows, cols) == (6, 8)) == matched
    assert (handle.report.reason is None) == matched
    if not matched:
        assert "match_size" in handle.report.reason
        assert torch.equal(ours, edit(pipe, **given))


def test_a_vae_without_the_decoders_first_layers(pipe):
    pipe.vae = AutoencoderTiny(
        latent_channels=4,
        encoder_block_out_channels=(8,) * 3,
        decoder_block_out_channels=(8,) * 3,
        num_encoder_blocks=(1,) * 3,
        num_decoder_blocks=(1,) * 3,
    ).eval()
    steps = []
    given = {"callback_on_step_end": lambda *args: steps.append(1) or {}}
    with (
        spotedit.enable(pipe),
        pytest.raises(ValueError, match=r'AutoencoderTiny does not have.*judge="cosine"'),
    ):
        edit(pipe, **given)
    assert not steps
    for options in ({"judge": "l2"}, {"judge": "cosine"}, {"spatial": False}):
        with spotedit.enable(pipe, **options):
            assert torch.isfinite(edit(pipe)).all()
    with spotedit.enable(pipe) as handle:
        handle.set_mask(LEFT, mode="replace")
        edit(pipe)
    assert handle.report.mean_ratio == LEFT.float().mean()


@each_family
def test_every_family_names_its_processors(name):
    pipe = FAMILIES[name].make(0)
    spotedit.enable(pipe)
    kinds = {type(p).__name__ for p in pipe.transformer.attn_processors.values()}
    assert kinds <= set(spotedit.api.spec_for(pipe).processors)
