"""What works together with an enabled pipeline, and what is refused with a way out.

Every test is a row of docs/interoperability.md, which `python -m bench.interoperability` writes. A
"change" is a function that changes a pipeline as a user would: it adds an adapter, a cache, a hook.
"""

import base64
import copy
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import neighbours
import pytest
import torch
from compare import relative_error
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_dispatch import attention_backend
from families.offload import OFFLOAD
from small_kontext import (
    CORNER_ON_GRID,
    NUM_CORNER_TOKENS,
    NUM_TOKENS,
    STOCK_SIZE,
    call_arguments,
    enable_all_active,
    random_kontext,
)
from test_combinations import fused_lora, lora, scaled_lora
from world import HELPFUL

import spotedit


def row(what, how, instead=""):
    """Mark a test with the first, second and fourth column of its row."""
    return pytest.mark.row(what=what, how=how, instead=instead)


def case(name, what, how, change, instead=""):
    """Make a parameter of a test, with a row of its own."""
    return pytest.param(change, id=name, marks=row(what, how, instead))


def edit(pipe, **extra):
    return pipe(**call_arguments(**STOCK_SIZE, num_inference_steps=5, **extra)).images


def is_close(images, expected):
    return relative_error(images, expected) <= 1e-4


def kinds_of(report):
    return {step["kind"] for step in report.steps}


def attempt(change, change_first, refusal):
    """Change a pipeline before or after `enable`, call it, and return what came of it.

    Args:
        refusal: pattern of the error's words if the change may be refused, else None.

    Returns:
        "works" or "dense: why" if the picture is that of the stock pipeline with the same change,
        or "refused" if an error says what was found and what to do instead.
    """
    pipe = random_kontext()
    try:
        if change_first:
            change(pipe)
        handle = enable_all_active(pipe)
        if not change_first:
            change(pipe)
        images = edit(pipe)
    except ValueError as error:
        message = str(error)
        if not (refusal and re.search(refusal, message) and HELPFUL.search(message)):
            raise
        return "refused"
    stock_pipe = random_kontext()
    change(stock_pipe)
    stock = edit(stock_pipe)
    assert is_close(images, stock)
    if handle.report.reason is not None:
        assert "spot" not in kinds_of(handle.report)
        return f"dense: {handle.report.reason}"
    assert "spot" in kinds_of(handle.report)
    assert_that_a_part_is_edited(pipe)
    spotedit.disable(pipe)
    assert is_close(edit(pipe), stock)
    return "works"


def assert_that_a_part_is_edited(pipe):
    handle = spotedit.enable(pipe)
    handle.set_mask(CORNER_ON_GRID, mode="replace")
    assert torch.isfinite(edit(pipe)).all()
    assert handle.report.mean_ratio == pytest.approx(NUM_CORNER_TOKENS / NUM_TOKENS)


@pytest.fixture
def check_outcome(record_property):
    """Try a change before and after `enable`, check the outcomes and record them for the table."""

    def check(change, *expected, refusal=None):
        outcomes = [attempt(change, change_first, refusal) for change_first in (True, False)]
        record_property("outcome", "; ".join(dict.fromkeys(outcomes)))
        assert {outcome.partition(":")[0] for outcome in outcomes} <= set(expected)

    return check


QUANTISED = [
    case(
        "torchao int8 weights",
        "torchao",
        "`quantize_(pipe.transformer, Int8WeightOnlyConfig())`",
        partial(neighbours.torchao, config="Int8WeightOnlyConfig"),
    ),
    case(
        "torchao int8 activations",
        "torchao",
        "`quantize_(pipe.transformer, Int8DynamicActivationInt8WeightConfig())`",
        partial(neighbours.torchao, config="Int8DynamicActivationInt8WeightConfig"),
    ),
    case(
        "quanto",
        "optimum-quanto",
        "`quantize(pipe.transformer, weights=qint8); freeze(...)`",
        neighbours.quanto,
    ),
    case(
        "bitsandbytes 8 bits",
        "bitsandbytes",
        "`Linear8bitLt` layers",
        partial(neighbours.bitsandbytes, bits=8),
    ),
    case(
        "bitsandbytes 4 bits",
        "bitsandbytes",
        "`Linear4bit` layers, nf4",
        partial(neighbours.bitsandbytes, bits=4),
    ),
    case("GGUF", "GGUF", "Q8_0 weights in diffusers' `GGUFLinear` layers", neighbours.gguf),
]


def changes_the_picture(change):
    pipe = random_kontext()
    plain = edit(pipe)
    change(pipe)
    return not is_close(edit(pipe), plain)


@pytest.mark.parametrize("change", QUANTISED)
def test_quantised_weights_work(change, check_outcome):
    check_outcome(change, "works")
    assert changes_the_picture(change)


ADAPTERS = [
    case("LoRA", "PEFT", "a LoRA", partial(lora, family=None)),
    case(
        "scaled LoRA", "PEFT", "a LoRA, `set_adapters(weights=0.5)`",
        partial(scaled_lora, family=None),
    ),
    case("fused LoRA", "PEFT", "a LoRA, `fuse_lora()`", partial(fused_lora, family=None)),
    case("hot-swapped LoRA", "PEFT", "`load_lora_adapter(hotswap=True)`", neighbours.hotswapped),
]  # fmt: skip


@pytest.mark.full  # test_combinations.py tests adapters in the default run
@pytest.mark.parametrize("change", ADAPTERS)
def test_adapters_work(change, check_outcome):
    check_outcome(change, "works")
    assert changes_the_picture(change)


@row("accelerate", "`pipe.enable_model_cpu_offload()`")
def test_model_offload_works(check_outcome):
    check_outcome(OFFLOAD["model offload"], "works")


@row("accelerate", "`dispatch_model(transformer, ...)`, blocks on the CPU and on disk")
def test_a_dispatched_transformer_works(check_outcome, tmp_path_factory):
    from accelerate import dispatch_model

    def dispatch(pipe):
        names = [name for name, _ in pipe.transformer.named_children()]
        places = dict.fromkeys(names, "cpu") | {"single_transformer_blocks": "disk"}
        dispatch_model(
            pipe.transformer, places, main_device="cpu", force_hooks=True,
            offload_dir=tmp_path_factory.mktemp("offload"),
        )  # fmt: skip

    check_outcome(dispatch, "works")


DISABLE_CACHE = "`pipe.transformer.disable_cache()`"
USE_TEACACHE = f"{DISABLE_CACHE}, and `temporal=spotedit.TeaCache()` for steps without a forward"
INSTEAD_OF_CACHE = {  # others: USE_TEACACHE
    "TaylorSeer": f"{DISABLE_CACHE}, and `temporal=spotedit.TaylorSeer()`",
    "TextKVCache": f"{DISABLE_CACHE}, and `cache_text=True`",
}


@pytest.mark.parametrize("how", ["enable_cache", "apply"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            cache,
            marks=row(
                f"diffusers' {cache}",
                "`enable_cache(...)` or `apply_...(...)`",
                INSTEAD_OF_CACHE.get(cache, USE_TEACACHE),
            ),
        )
        for cache in neighbours.CACHES
    ],
)
def test_caches_of_diffusers_are_refused(name, how, check_outcome):
    apply = neighbours.enable_cache if how == "enable_cache" else neighbours.apply_cache
    check_outcome(partial(apply, name=name), "refused", refusal="(?i)cache|hook")


REMOVE_HOOK = "remove its hook"


@pytest.mark.parametrize(
    "change",
    [
        case(
            "layer skip", "diffusers' LayerSkip", "`apply_layer_skip`",
            neighbours.layer_skip, REMOVE_HOOK,
        ),
        case(
            "SEG", "diffusers' smoothed energy guidance", "its hook on a block",
            neighbours.smoothed_energy, REMOVE_HOOK,
        ),
        case(
            "replacing hook", "a `ModelHook` with `new_forward`", "on the transformer",
            partial(neighbours.model_hook, hook=neighbours.SkippingHook, part=""), REMOVE_HOOK,
        ),
        case(
            "replacing hook on a block", "a `ModelHook` with `new_forward`", "on a block",
            partial(
                neighbours.model_hook, hook=neighbours.SkippingHook, part="transformer_blocks.0"
            ),
            REMOVE_HOOK,
        ),
    ],
)  # fmt: skip
def test_hooks_that_replace_a_forward_are_refused(change, check_outcome):
    check_outcome(change, "refused", refusal="hook")


@pytest.mark.parametrize(
    "change",
    [
        case(
            "torch", "torch's forward hooks", "on every module, only watching",
            neighbours.forward_hooks,
        ),
        case(
            "ModelHook", "a `ModelHook` that watches", "`pre_forward` on the transformer",
            partial(neighbours.model_hook, hook=neighbours.WatchingHook, part=""),
        ),
        case(
            "ModelHook on a block", "a `ModelHook` that watches", "`pre_forward` on a block",
            partial(
                neighbours.model_hook, hook=neighbours.WatchingHook, part="transformer_blocks.1"
            ),
        ),
    ],
)  # fmt: skip
def test_hooks_that_only_watch_work(change, check_outcome):
    check_outcome(change, "works")


STOCK_PROCESSOR = "`pipe.transformer.set_attn_processor(FluxAttnProcessor())`"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        pytest.param(
            partial(neighbours.processors, cls=cls), cls.__name__,
            id=cls.__name__, marks=row(what, "`set_attn_processor(...)`", STOCK_PROCESSOR),
        )
        for what, cls in (
            ("an attention processor of one's own", neighbours.OwnProcessor),
            ("an attention processor of one's own, a subclass", neighbours.SubclassedProcessor),
            ("nunchaku, named processors (stand-in)", neighbours.NamedProcessor),
        )
    ],
)  # fmt: skip
def test_attention_processors_of_other_classes_are_refused(change, name, check_outcome):
    check_outcome(change, "refused", refusal=rf"(?s){name}.*set_attn_processor")
    pipe = random_kontext()
    change(pipe)
    with pytest.raises(ValueError, match=name):
        spotedit.enable(pipe)


@row("IP-Adapter", "`pipe.load_ip_adapter(...)`", "`pipe.unload_ip_adapter()`")
def test_an_ip_adapter_is_refused(check_outcome):
    check_outcome(neighbours.ip_adapter, "refused", refusal="unload_ip_adapter")


@pytest.mark.parametrize("backend", ["native", "_native_math"])
@row("attention backends", "`transformer.set_attention_backend(...)`")
def test_an_attention_backend_of_the_transformer_works(backend, check_outcome):
    # A model's backend also becomes the process-wide one. The context puts that back.
    with attention_backend("native"):
        check_outcome(lambda pipe: pipe.transformer.set_attention_backend(backend), "works")


@row("attention backends", "`with attention_backend(...):` around the call")
def test_an_attention_backend_around_the_call_works(check_outcome):
    with attention_backend("_native_math"):
        check_outcome(lambda pipe: None, "works")


@row(
    "nunchaku, all blocks in one (stand-in)", "blocks without attention", "the ordinary transformer"
)
def test_blocks_that_hide_their_attention_are_refused_or_dense(check_outcome):
    check_outcome(neighbours.opaque_blocks, "refused", "dense", refusal="block")


@row(
    "TeaCache's script", "`FluxTransformer2DModel.forward = ...`", "`temporal=spotedit.TeaCache()`"
)
@pytest.mark.parametrize("before", [True, False])
def test_a_forward_replaced_on_the_class_is_refused(before, monkeypatch, record_property):
    pipe = random_kontext()
    if before:
        neighbours.teacache_script(pipe, monkeypatch)
        with pytest.raises(ValueError, match="forward") as caught:
            spotedit.enable(pipe)
    else:
        spotedit.enable(pipe)
        neighbours.teacache_script(pipe, monkeypatch)
        with pytest.raises(ValueError, match="forward") as caught:
            edit(pipe)
    assert HELPFUL.search(str(caught.value))
    record_property("outcome", "refused")


@row(
    "another forward",
    "`transformer.forward = ...` of another module",
    "the transformer's own forward",
)
def test_a_forward_that_runs_no_processor_is_dense_or_refused(check_outcome):
    check_outcome(neighbours.forward_of_a_copy, "dense", "refused", refusal="forward")


@pytest.mark.full
@row("exported programs", "`transformer.forward = torch.export.export(...)`", "`torch.compile`")
def test_an_exported_program_is_dense_or_refused(check_outcome):
    arguments = call_arguments(**STOCK_SIZE, num_inference_steps=1)
    change = partial(neighbours.exported, arguments=arguments)
    check_outcome(change, "dense", "refused", refusal="forward")


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [
        case(
            "blocks", "`torch.compile`", "`transformer.compile_repeated_blocks()`",
            neighbours.compile_blocks,
        ),
        case(
            "module", "`torch.compile`", "`transformer.compile()`",
            neighbours.compile_transformer,
        ),
        case(
            "wrapper", "`torch.compile`", "`pipe.transformer = torch.compile(pipe.transformer)`",
            neighbours.wrap_in_compiled,
        ),
    ],
)  # fmt: skip
def test_a_compiled_transformer_works(change, check_outcome):
    torch._dynamo.reset()
    check_outcome(change, "works")
    torch._dynamo.reset()


# -- servers

SEEDS = (1, 2, 3, 4)  # one request each
OPTIONS = {"judge": "l2", "threshold": 1.5}


def answers_to_concurrent_requests(app):
    """Return the server's response for each of `SEEDS`."""
    from fastapi.testclient import TestClient

    with TestClient(app) as client, ThreadPoolExecutor(len(SEEDS)) as pool:
        return list(pool.map(lambda seed: client.post("/edit", params={"seed": seed}), SEEDS))


def encoded(images):
    return base64.b64encode(images.numpy().tobytes()).decode()


def make_server(pipe_for_request):
    """Make a server that calls `pipe_for_request` for the pipeline of each request."""
    fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
    pytest.importorskip("httpx", reason="httpx is not installed")
    app = fastapi.FastAPI()

    @app.post("/edit")
    def answer(seed: int):  # FastAPI runs it in a thread
        try:
            return {"latents": encoded(edit(pipe_for_request(), seed=seed))}
        except (RuntimeError, ValueError) as error:
            raise fastapi.HTTPException(503, str(error)) from error

    return app


@row("FastAPI", "one enabled pipeline, concurrent requests", "answer 503, or queue the requests")
def test_a_server_may_share_one_pipeline(record_property):
    pipe = random_kontext()
    handle = spotedit.enable(pipe, **OPTIONS)
    alone = {seed: encoded(edit(pipe, seed=seed)) for seed in SEEDS}
    answers = answers_to_concurrent_requests(make_server(lambda: pipe))
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert 200 in {answer.status_code for answer in answers}
    for seed, answer in zip(SEEDS, answers, strict=True):
        if answer.status_code == 200:
            assert answer.json()["latents"] == alone[seed]
        else:
            assert "already running" in answer.json()["detail"]
    assert handle.enabled
    assert encoded(edit(pipe, seed=1)) == alone[1]
    record_property("outcome", "works: one call at a time, others raise `RuntimeError`")


@row("FastAPI", "a copy of the pipeline with a scheduler of its own for each request, enabled")
def test_a_server_may_enable_a_copy_for_each_request():
    pipe = random_kontext()
    with spotedit.enable(pipe, **OPTIONS):
        alone = {seed: encoded(edit(pipe, seed=seed)) for seed in SEEDS}

    def enabled_copy():
        twin = copy.copy(pipe)
        twin.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
        spotedit.enable(twin, **OPTIONS)
        return twin

    answers = answers_to_concurrent_requests(make_server(enabled_copy))
    for seed, answer in zip(SEEDS, answers, strict=True):
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 200:
            assert answer.json()["latents"] == alone[seed]
    assert 200 in {answer.status_code for answer in answers}
