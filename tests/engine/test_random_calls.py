"""What holds for every call: random families, configurations, masks, schedulers and aborts.

Buffers that nobody has written hold NaN here, so that a value read too early shows.
"""

import functools
import json

import pytest
import torch
from families import FAMILIES
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from random_calls import Call, calls, pipeline
from test_combinations import tokens
from traces import traces
from world import CLEAR

import spotedit

DEFAULT = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    phases=[Phase.generate, Phase.shrink],
)


@pytest.fixture(autouse=True, scope="module")
def poisoned():
    """Fill memory that PyTorch hands out with NaN, or the largest integer."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@functools.cache
def source(name: str, seed: int, batch: int) -> torch.Tensor:
    """The source's tokens: the end of a call that reuses every token."""
    call = Call(name, seed, 4, batch, False, "Euler", {"reset_steps": ()}, 0.0, "replace")
    handle = call.enable()
    latents = call.run()
    assert handle.report.steps[-1]["active"] == 0
    spotedit.disable(pipeline(name))
    return tokens(latents, FAMILIES[name])


@functools.cache
def clean(name: str) -> list:
    """What a pipeline's transformer and VAE look like after a stock call."""
    Call(name, 0, 1, 1, False, "Euler").stock()
    return traces(pipeline(name).transformer, pipeline(name).vae)


def check_report(report: spotedit.EditReport, call: Call) -> None:
    rows, cols = FAMILIES[call.name].grid
    steps = report.steps
    assert report.grid == (rows, cols)
    assert report.batch == call.batch
    assert [step["index"] for step in steps] == list(range(len(steps)))
    assert 0 < len(steps) <= call.steps * 5 // 4
    for step in steps:
        assert step["total"] == rows * cols * call.batch
        expected = {"dense": step["total"], "full": step["total"], "skip": 0}
        assert step["active"] == expected.get(step["kind"], step["active"])
        assert step["kind"] in {*expected, "spot"}
        assert 0 <= step["active"] <= step["total"]
        assert 0 <= step["sigma"] <= 1
        assert step["seconds"] >= 0
    ratios = [step["active"] / step["total"] for step in steps if step["kind"] == "spot"]
    assert report.mean_ratio == pytest.approx(sum(ratios) / len(ratios) if ratios else 1.0)
    assert 0 <= report.flops_saved < 1
    if report.reason is not None:
        assert not ratios
    if call.options.get("temporal") is None:
        assert "skip" not in {step["kind"] for step in steps}
    if ratios and call.mode == "replace" and call.density is not None:
        mask = call.mask().expand(call.batch, rows, cols)
        assert report.mean_ratio == pytest.approx(mask.float().mean().item())
    for i, step in enumerate(steps):
        assert sum(image.steps[i]["active"] for image in report.images) == step["active"]
    assert json.loads(json.dumps(report.to_dict()))["steps"] == steps
    assert type(pipeline(call.name)).__name__ in report.summary()


def check_reused(latents, report, call, unchanged) -> None:
    """Tokens that the last step reuses end at the source, bit for bit."""
    if report.steps[-1]["kind"] == "spot":
        region = torch.stack([torch.from_numpy(image.region) for image in report.images])
        reused = ~region.flatten(1)
        ours = tokens(latents, FAMILIES[call.name])[reused]
        assert torch.equal(ours, unchanged[reused])


def aborted(call: Call, at: int) -> bool:
    """Make the call up to its forward number `at`; whether it came that far."""
    seen = []

    def stop(*args):
        seen.append(1)
        if len(seen) > at:
            raise KeyboardInterrupt

    hook = pipeline(call.name).transformer.register_forward_pre_hook(stop)
    try:
        call.run()
    except KeyboardInterrupt:
        return True
    finally:
        hook.remove()
    return False


def check_call(call: Call, then: str, at: int) -> None:
    before = clean(call.name)
    unchanged = source(call.name, call.seed, call.batch)
    handle = call.enable()
    latents = call.run()
    assert torch.isfinite(latents).all()
    check_report(handle.report, call)
    check_reused(latents, handle.report, call, unchanged)
    if then == "abort":
        aborted(call, at)
    if then in ("abort", "again"):
        first = [step["kind"] for step in handle.report.steps]
        assert torch.equal(call.run(), latents)
        assert then == "abort" or [step["kind"] for step in handle.report.steps] == first
    spotedit.disable(pipeline(call.name))
    assert not handle.enabled
    assert traces(pipeline(call.name).transformer, pipeline(call.name).vae) == before
    if then == "stock":
        call.prepare()
        assert torch.equal(call.run(), call.stock())


THEN = st.sampled_from(["nothing", "nothing", "again", "abort", "stock"])
STEP = st.integers(0, 4)


@settings(DEFAULT, max_examples=220)
@given(calls(), THEN, STEP)
def test_any_call(call, then, at):
    check_call(call, then, at)


def check_identity(call: Call) -> None:
    stock = call.stock()
    handle = call.enable()
    latents = call.run()
    assert (latents - stock).norm() <= 1e-4 * stock.norm()
    check_report(handle.report, call)
    spotedit.disable(pipeline(call.name))


@settings(DEFAULT, max_examples=60)
@given(calls(exact=True))
def test_every_token_computed_is_the_stock_picture(call):
    check_identity(call)


@pytest.mark.full
@pytest.mark.parametrize("number", range(10))
def test_many_calls(number):
    limits = settings(DEFAULT, derandomize=False, max_examples=400)
    seed(number)(limits(given(calls(), THEN, STEP)(check_call)))()
    limits = settings(DEFAULT, derandomize=False, max_examples=100)
    seed(number)(limits(given(calls(exact=True))(check_identity)))()


INVALID = [
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


@settings(DEFAULT, max_examples=20)
@given(calls(), st.sampled_from([*INVALID, "mask"]))
def test_what_is_refused_is_said_and_changes_nothing(call, wrong):
    """The call that follows is the one that would have been made."""
    before = clean(call.name)
    options = {} if wrong == "mask" else wrong
    refused = Call(call.name, call.seed, 4, call.batch, call.guided, call.scheduler, options)

    def enable_and_call():
        handle = refused.enable()
        if wrong == "mask":
            handle.set_mask(torch.ones(64, 4))
        refused.run()

    with pytest.raises((ValueError, TypeError)) as caught:
        enable_and_call()
    message = str(caught.value)
    assert CLEAR.search(message) or "SpotEditConfig has" in message
    spotedit.disable(pipeline(call.name))
    assert traces(pipeline(call.name).transformer, pipeline(call.name).vae) == before
    refused.prepare()
    assert torch.equal(refused.run(), refused.stock())
