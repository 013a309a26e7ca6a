"""Properties of every call, tested with random pipelines, configurations, masks and aborts.

Uninitialised memory holds NaN here, so that a value that is read before it is written shows.
"""

import contextlib
import functools
import json

import pytest
import torch
from compare import relative_error
from families import FAMILIES
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from random_calls import Call, calls, pipeline
from test_combinations import tokens
from traces import traces
from world import HELPFUL

import spotedit

# Every run tries the same examples, and a slow example does not fail.
SETTINGS = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=[Phase.generate, Phase.shrink],
)


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Make PyTorch fill new memory with NaN, or with the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@functools.cache
def source_tokens(name: str, seed: int, batch: int) -> torch.Tensor:
    """Return the source's tokens [B, N, C]: the result of a call that reuses every token."""
    call = Call(
        name, seed, steps=4, batch=batch, guided=False, scheduler="Euler",
        options={"reset_steps": ()}, density=0.0, mode="replace",
    )  # fmt: skip
    handle = call.enable()
    latents = call.run()
    assert handle.report.steps[-1]["active"] == 0
    spotedit.disable(pipeline(name))
    return tokens(latents, FAMILIES[name])


def pipeline_traces(name: str) -> list:
    return traces(pipeline(name).transformer, pipeline(name).vae)


@functools.cache
def clean_traces(name: str) -> list:
    """Describe a pipeline's transformer and VAE as they are after a stock call."""
    Call(name, seed=0, steps=1, batch=1, guided=False, scheduler="Euler").stock()
    return pipeline_traces(name)


def check_report(report: spotedit.EditReport, call: Call) -> None:
    rows, cols = FAMILIES[call.name].grid
    num_tokens = rows * cols * call.batch
    steps = report.steps
    kinds = [step["kind"] for step in steps]
    assert report.grid == (rows, cols)
    assert report.batch == call.batch
    assert [step["index"] for step in steps] == list(range(len(steps)))
    assert 0 < len(steps) <= call.steps * 5 // 4
    assert set(kinds) <= {"dense", "full", "spot", "skip"}
    for step in steps:
        assert step["total"] == num_tokens
        if step["kind"] in ("dense", "full"):
            assert step["active"] == num_tokens
        if step["kind"] == "skip":
            assert step["active"] == 0
        assert 0 <= step["active"] <= num_tokens
        assert 0 <= step["sigma"] <= 1
        assert step["seconds"] >= 0
    ratios = [step["active"] / step["total"] for step in steps if step["kind"] == "spot"]
    assert report.mean_ratio == pytest.approx(sum(ratios) / len(ratios) if ratios else 1.0)
    assert 0 <= report.flops_saved < 1
    if report.reason is not None:
        assert not ratios
    if call.options.get("temporal") is None:
        assert "skip" not in kinds
    if ratios and call.mode == "replace" and call.density is not None:
        mask = call.mask().expand(call.batch, rows, cols)
        assert report.mean_ratio == pytest.approx(mask.float().mean().item())
    for i, step in enumerate(steps):
        assert sum(image.steps[i]["active"] for image in report.images) == step["active"]
    assert json.loads(json.dumps(report.to_dict()))["steps"] == steps
    assert type(pipeline(call.name)).__name__ in report.summary()


def check_reused_tokens(latents, report, call, source) -> None:
    """Check that tokens that the last step reuses end at the source, bit for bit."""
    if report.steps[-1]["kind"] == "spot":
        region = torch.stack([torch.from_numpy(image.region) for image in report.images])
        reused = ~region.flatten(1)
        ours = tokens(latents, FAMILIES[call.name])[reused]
        assert torch.equal(ours, source[reused])


def abort(call: Call, abort_at: int) -> None:
    """Make the call, and abort it before its forward number `abort_at` if it has so many."""
    forwards = []

    def stop(*args):
        forwards.append(1)
        if len(forwards) > abort_at:
            raise KeyboardInterrupt

    hook = pipeline(call.name).transformer.register_forward_pre_hook(stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            call.run()
    finally:
        hook.remove()


def check_call(call: Call, afterwards: str, abort_at: int) -> None:
    """Check the call, what comes afterwards, and that `disable` leaves nothing behind."""
    clean = clean_traces(call.name)
    source = source_tokens(call.name, call.seed, call.batch)
    handle = call.enable()
    latents = call.run()
    assert torch.isfinite(latents).all()
    check_report(handle.report, call)
    check_reused_tokens(latents, handle.report, call, source)
    kinds = [step["kind"] for step in handle.report.steps]
    if afterwards == "abort":
        abort(call, abort_at)
        assert torch.equal(call.run(), latents)
    if afterwards == "again":
        assert torch.equal(call.run(), latents)
        assert [step["kind"] for step in handle.report.steps] == kinds
    spotedit.disable(pipeline(call.name))
    assert not handle.enabled
    assert pipeline_traces(call.name) == clean
    if afterwards == "stock":
        call.prepare()
        assert torch.equal(call.run(), call.stock())


AFTERWARDS = st.sampled_from(["nothing", "nothing", "again", "abort", "stock"])
ABORT_AT = st.integers(0, 4)


@settings(SETTINGS, max_examples=100)
@given(calls(), AFTERWARDS, ABORT_AT)
def test_any_call_is_right_and_leaves_nothing_behind(call, afterwards, abort_at):
    check_call(call, afterwards, abort_at)


def check_identity(call: Call) -> None:
    stock = call.stock()
    handle = call.enable()
    latents = call.run()
    assert relative_error(latents, stock) <= 1e-4
    check_report(handle.report, call)
    spotedit.disable(pipeline(call.name))


@settings(SETTINGS, max_examples=30)
@given(calls(exact=True))
def test_a_call_that_computes_every_token_gives_the_stock_picture(call):
    check_identity(call)


@pytest.mark.full
@pytest.mark.parametrize("number", range(10))
def test_many_more_calls_with_other_seeds(number):
    @seed(number)
    @settings(SETTINGS, derandomize=False, max_examples=400)
    @given(calls(), AFTERWARDS, ABORT_AT)
    def check_calls(call, afterwards, abort_at):
        check_call(call, afterwards, abort_at)

    @seed(number)
    @settings(SETTINGS, derandomize=False, max_examples=100)
    @given(calls(exact=True))
    def check_identities(call):
        check_identity(call)

    check_calls()
    check_identities()


INVALID_OPTIONS = [
    {"threshold": -1.0},
    {"judge": "taste"},
    {"reset_every": 2, "reset_steps": (1,)},
    {"initial_steps": 0},
    {"cache_dtype": "int4"},
    {"reference": 7},
    {"fusion": lambda sigma: 2.0},
    {"temporal": "TeaCache"},
    {"impl": "cuda"},
    {"thresold": 0.1},
]


@settings(SETTINGS, max_examples=20)
@given(calls(), st.sampled_from([*INVALID_OPTIONS, "mask"]))
def test_what_is_invalid_is_named_and_changes_nothing(call, invalid):
    """`invalid` are options, or "mask" for a mask of the wrong size."""
    clean = clean_traces(call.name)
    options = {} if invalid == "mask" else invalid
    refused = Call(
        call.name, call.seed, steps=4, batch=call.batch, guided=call.guided,
        scheduler=call.scheduler, options=options,
    )  # fmt: skip

    def enable_and_call():
        handle = refused.enable()
        if invalid == "mask":
            handle.set_mask(torch.ones(64, 4))
        refused.run()

    with pytest.raises((ValueError, TypeError)) as caught:
        enable_and_call()
    message = str(caught.value)
    assert HELPFUL.search(message) or "SpotEditConfig has" in message
    spotedit.disable(pipeline(call.name))
    assert pipeline_traces(call.name) == clean
    refused.prepare()
    assert torch.equal(refused.run(), refused.stock())
