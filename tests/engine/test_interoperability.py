"""What works beside an enabled pipeline, and what is refused with a way out.

Every test is a row of docs/interoperability.md; `python -m bench.interoperability` writes it.
"""

import base64
import copy
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import neighbours
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.attention_dispatch import attention_backend
from families.offload import OFFLOAD
from small_kontext import call_arguments, random_kontext
from test_combinations import fused_lora, lora, scaled_lora
from world import HELPFUL

import spotedit

SIZE = {"height": 48, "width": 64, "max_area": 48 * 64}
CORNER = torch.zeros(6, 8)
CORNER[1:3, 2:5] = 1


def row(what, how, instead=""):
    """The first, second and fourth column of the table."""
    return pytest.mark.row(what=what, how=how, instead=instead)


def case(name, what, how, change, instead=""):
    return pytest.param(change, id=name, marks=row(what, how, instead))


def edit(pipe, **extra):
    return pipe(**call_arguments(**SIZE, num_inference_steps=5, **extra)).images


def close(images, expected):
    return (images - expected).norm() <= 1e-4 * expected.norm()


def attempt(change, before, naming):
    """Enable, change and call in one of both orders: "works", "dense: why" or "refused".

    What is refused says so with words that match `naming`, and what to do.

    The picture is the stock pipeline's with the same change, or there is none.
    """
    pipe = random_kontext()
    try:
        if before:
            change(pipe)
        handle = spotedit.enable(pipe, condition_cache=False)
        if not before:
            change(pipe)
        handle.set_mask(torch.ones(6, 8), mode="replace")
        images = edit(pipe)
    except ValueError as error:
        if not (naming and re.search(naming, str(error)) and HELPFUL.search(str(error))):
            raise
        return "refused"
    stock = random_kontext()
    change(stock)
    dense = edit(stock)
    assert close(images, dense)
    if handle.report.reason is not None:
        assert "spot" not in {step["kind"] for step in handle.report.steps}
        return f"dense: {handle.report.reason}"
    assert "spot" in {step["kind"] for step in handle.report.steps}
    handle = spotedit.enable(pipe)
    handle.set_mask(CORNER, mode="replace")
    assert torch.isfinite(edit(pipe)).all()
    assert handle.report.mean_ratio == pytest.approx(6 / 48)
    spotedit.disable(pipe)
    assert close(edit(pipe), dense)
    return "works"


@pytest.fixture
def outcome(record_property):
    """Tries a change before and after `enable`, and records what came of it."""

    def both(change, *expected, naming=None):
        found = dict.fromkeys(attempt(change, before, naming) for before in (True, False))
        record_property("outcome", "; ".join(found))
        assert {text.partition(":")[0] for text in found} <= set(expected)

    return both


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


def in_force(change):
    """Tell whether applying the change gives another picture."""
    pipe = random_kontext()
    plain = edit(pipe)
    change(pipe)
    return not close(edit(pipe), plain)


@pytest.mark.parametrize("change", QUANTISED)
def test_quantised_weights(change, outcome):
    outcome(change, "works")
    assert in_force(change)


ADAPTERS = [
    case("LoRA", "PEFT", "a LoRA", lambda pipe: lora(pipe, None)),
    case(
        "scaled LoRA", "PEFT", "a LoRA, `set_adapters(weights=0.5)`",
        lambda pipe: scaled_lora(pipe, None) and None,
    ),
    case("fused LoRA", "PEFT", "a LoRA, `fuse_lora()`", lambda pipe: fused_lora(pipe, None)),
    case("hot-swapped LoRA", "PEFT", "`load_lora_adapter(hotswap=True)`", neighbours.hotswapped),
]  # fmt: skip


@pytest.mark.full  # test_combinations.py has plain ones
@pytest.mark.parametrize("change", ADAPTERS)
def test_adapters(change, outcome):
    outcome(change, "works")
    assert in_force(change)


@row("accelerate", "`pipe.enable_model_cpu_offload()`")
def test_model_offload(outcome):
    outcome(OFFLOAD["model offload"], "works")


@row("accelerate", "`dispatch_model(transformer, ...)`, blocks on the CPU and on disk")
def test_dispatch(outcome, tmp_path_factory):
    from accelerate import dispatch_model

    def dispatch(pipe):
        names = [name for name, _ in pipe.transformer.named_children()]
        places = dict.fromkeys(names, "cpu") | {"single_transformer_blocks": "disk"}
        dispatch_model(
            pipe.transformer, places, main_device="cpu", force_hooks=True,
            offload_dir=tmp_path_factory.mktemp("offload"),
        )  # fmt: skip

    outcome(dispatch, "works")


TAKE_OFF = "`pipe.transformer.disable_cache()`"
TEMPORAL = f"{TAKE_OFF}, and `temporal=spotedit.TeaCache()` for steps without a forward"
OURS = {
    "TaylorSeer": f"{TAKE_OFF}, and `temporal=spotedit.TaylorSeer()`",
    "TextKVCache": f"{TAKE_OFF}, and `cache_text=True`",
}


@pytest.mark.parametrize("how", ["enable_cache", "apply"])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            n,
            marks=row(
                f"diffusers' {n}", "`enable_cache(...)` or `apply_...(...)`", OURS.get(n, TEMPORAL)
            ),
        )
        for n in neighbours.CACHES
    ],
)
def test_caches(name, how, outcome):
    apply = neighbours.enable_cache if how == "enable_cache" else neighbours.apply_cache
    outcome(partial(apply, name=name), "refused", naming="(?i)cache|hook")


REMOVE = "remove its hook"


@pytest.mark.parametrize(
    "change",
    [
        case(
            "layer skip", "diffusers' LayerSkip", "`apply_layer_skip`",
            neighbours.layer_skip, REMOVE,
        ),
        case(
            "SEG", "diffusers' smoothed energy guidance", "its hook on a block",
            neighbours.smoothed_energy, REMOVE,
        ),
        case(
            "replacing hook", "a `ModelHook` with `new_forward`", "on the transformer",
            partial(neighbours.model_hook, hook=neighbours.Repeat, part=""), REMOVE,
        ),
        case(
            "replacing hook on a block", "a `ModelHook` with `new_forward`", "on a block",
            partial(neighbours.model_hook, hook=neighbours.Repeat, part="transformer_blocks.0"),
            REMOVE,
        ),
    ],
)  # fmt: skip
def test_hooks_that_replace_a_forward(change, outcome):
    outcome(change, "refused", naming="hook")


@pytest.mark.parametrize(
    "change",
    [
        case(
            "torch", "torch's forward hooks", "on every module, only watching",
            neighbours.forward_hooks,
        ),
        case(
            "ModelHook", "a `ModelHook` that watches", "`pre_forward` on the transformer",
            partial(neighbours.model_hook, hook=neighbours.Watch, part=""),
        ),
        case(
            "ModelHook on a block", "a `ModelHook` that watches", "`pre_forward` on a block",
            partial(neighbours.model_hook, hook=neighbours.Watch, part="transformer_blocks.1"),
        ),
    ],
)  # fmt: skip
def test_hooks_that_watch(change, outcome):
    outcome(change, "works")


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
def test_own_attention_processors(change, name, outcome):
    outcome(change, "refused", naming=rf"(?s){name}.*set_attn_processor")
    pipe = random_kontext()
    change(pipe)
    with pytest.raises(ValueError, match=name):
        spotedit.enable(pipe)


@row("IP-Adapter", "`pipe.load_ip_adapter(...)`", "`pipe.unload_ip_adapter()`")
def test_ip_adapter(outcome):
    outcome(neighbours.ip_adapter, "refused", naming="unload_ip_adapter")


@pytest.mark.parametrize("backend", ["native", "_native_math"])
@row("attention backends", "`transformer.set_attention_backend(...)`")
def test_attention_backend_of_the_transformer(backend, outcome):
    with attention_backend("native"):  # put back at the end: it is also set for all models
        outcome(lambda pipe: pipe.transformer.set_attention_backend(backend), "works")


@row("attention backends", "`with attention_backend(...):` around the call")
def test_attention_backend_around_the_call(outcome):
    with attention_backend("_native_math"):
        outcome(lambda pipe: None, "works")


@row(
    "nunchaku, all blocks in one (stand-in)", "blocks without attention", "the ordinary transformer"
)
def test_opaque_blocks(outcome):
    outcome(neighbours.opaque_blocks, "refused", "dense", naming="block")


@row(
    "TeaCache's script", "`FluxTransformer2DModel.forward = ...`", "`temporal=spotedit.TeaCache()`"
)
@pytest.mark.parametrize("before", [True, False])
def test_a_forward_of_the_class(before, monkeypatch, record_property):
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
def test_a_forward_that_runs_no_processor(outcome):
    outcome(neighbours.forward_of_a_copy, "dense", "refused", naming="forward")


@pytest.mark.full
@row("exported programs", "`transformer.forward = torch.export.export(...)`", "`torch.compile`")
def test_an_exported_program(outcome):
    arguments = call_arguments(**SIZE, num_inference_steps=1)
    change = partial(neighbours.exported, arguments=arguments)
    outcome(change, "dense", "refused", naming="forward")


@pytest.mark.full
@pytest.mark.parametrize(
    "change",
    [
        case(
            "blocks", "`torch.compile`", "`transformer.compile_repeated_blocks()`",
            lambda pipe: pipe.transformer.compile_repeated_blocks(backend="eager"),
        ),
        case(
            "module", "`torch.compile`", "`transformer.compile()`",
            lambda pipe: pipe.transformer.compile(backend="eager"),
        ),
        case(
            "wrapper", "`torch.compile`", "`pipe.transformer = torch.compile(pipe.transformer)`",
            lambda pipe: setattr(
                pipe, "transformer", torch.compile(pipe.transformer, backend="eager")
            ),
        ),
    ],
)  # fmt: skip
def test_compiled(change, outcome):
    torch._dynamo.reset()
    outcome(change, "works")
    torch._dynamo.reset()


# -- servers


def served(app, seeds):
    """The answers of concurrent requests."""
    from fastapi.testclient import TestClient

    with TestClient(app) as client, ThreadPoolExecutor(len(seeds)) as pool:
        return list(pool.map(lambda seed: client.post("/edit", params={"seed": seed}), seeds))


def encoded(images):
    return base64.b64encode(images.numpy().tobytes()).decode()


def server(pipe_of_request):
    fastapi = pytest.importorskip("fastapi", reason="fastapi is not installed")
    pytest.importorskip("httpx", reason="httpx is not installed")
    app = fastapi.FastAPI()

    @app.post("/edit")
    def answer(seed: int):  # FastAPI runs it in a thread
        try:
            return {"latents": encoded(edit(pipe_of_request(), seed=seed))}
        except (RuntimeError, ValueError) as error:
            raise fastapi.HTTPException(503, str(error)) from error

    return app


SEEDS = (1, 2, 3, 4)


@row("FastAPI", "one enabled pipeline, concurrent requests", "answer 503, or queue the requests")
def test_one_pipeline_of_a_server(record_property):
    pipe = random_kontext()
    handle = spotedit.enable(pipe, judge="l2", threshold=1.5)
    alone = {seed: encoded(edit(pipe, seed=seed)) for seed in SEEDS}
    answers = served(server(lambda: pipe), SEEDS)
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
def test_a_pipeline_a_request():
    pipe = random_kontext()
    options = {"judge": "l2", "threshold": 1.5}
    with spotedit.enable(pipe, **options):
        alone = {seed: encoded(edit(pipe, seed=seed)) for seed in SEEDS}

    def pipe_of_request():
        request = copy.copy(pipe)
        request.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
        spotedit.enable(request, **options)
        return request

    answers = served(server(pipe_of_request), SEEDS)
    for seed, answer in zip(SEEDS, answers, strict=True):
        assert answer.status_code in (200, 503), answer.text
        if answer.status_code == 200:
            assert answer.json()["latents"] == alone[seed]
    assert 200 in {answer.status_code for answer in answers}
