"""Test edits on a CUDA device: ``pytest -m gpu``."""

import gc
import itertools
import warnings

import pytest
import torch
from small_kontext import call_arguments, random_kontext

import spotedit
from spotedit.engine.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NUM_NOISE = 48  # 6 x 8 tokens of 8 x 8 pixels
CORNER = torch.zeros(48, 64)
CORNER[8:24, 16:40] = 1  # 2 x 3 tokens


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def arguments(device="cuda", dtype=torch.float32, **extra):
    """Return arguments of a call, with embeddings on the device: a pipeline does not move them."""
    call = call_arguments(height=48, width=64, max_area=48 * 64, **extra)
    embeddings = ("prompt_embeds", "pooled_prompt_embeds")
    return call | {name: call[name].to(device, dtype) for name in embeddings}


def edit(device="cuda", dtype=torch.float32, spot=True, **extra):
    """Return the latents, fp32 on the CPU, and the report. The judge runs, but the mask decides."""
    pipe = random_kontext().to(device, dtype)
    call = arguments(device, dtype, **extra)
    handle = spotedit.enable(pipe, threshold=0.0) if spot else None
    if handle is not None:
        handle.set_mask(CORNER)
    latents = pipe(**call).images.float().cpu()
    return latents, handle.report if handle is not None else None


def relative_error(a, b):
    return float((a - b).norm() / b.norm())


def test_a_whole_edit_equals_that_on_the_cpu():
    ours, report = edit("cuda")
    assert [step["active"] for step in report.steps if step["kind"] == "spot"] == [6] * 5
    assert relative_error(ours, edit("cpu")[0]) <= 1e-4


def test_bfloat16_error_is_at_most_twice_that_of_the_stock_pipeline():
    stock_error = relative_error(edit(dtype=torch.bfloat16, spot=False)[0], edit(spot=False)[0])
    assert relative_error(edit(dtype=torch.bfloat16)[0], edit()[0]) <= 2 * stock_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reused_tokens_end_exactly_at_the_source(dtype, monkeypatch):
    sources = []
    run = Session.run

    def recorded_run(session, forward, kwargs):
        sources.append(kwargs["hidden_states"][:, NUM_NOISE:].float().cpu())
        return run(session, forward, kwargs)

    monkeypatch.setattr(Session, "run", recorded_run)
    latents, report = edit(dtype=dtype)
    reused = torch.from_numpy(~report.region.ravel())
    assert reused.sum() == NUM_NOISE - 6
    assert torch.equal(latents[:, reused], sources[0][:, reused])


def synchronisations(spot):
    """Return how often the host waited for the device in each step but the first, and its kind."""
    counts = []

    def count_warnings(pipe, step, timestep, tensors):
        counts.append(sum("synchronizing" in str(item.message) for item in caught))
        return {}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _, report = edit(spot=spot, callback_on_step_end=count_warnings)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    kinds = ["dense"] * 8 if report is None else [step["kind"] for step in report.steps]
    return [b - a for a, b in itertools.pairwise(counts)], kinds[1:]


def test_a_spot_step_waits_for_the_device_once_more_than_a_stock_step():
    edit()  # creates what is created once in a process
    stock, _ = synchronisations(spot=False)
    ours, kinds = synchronisations(spot=True)
    extra = [a - b for a, b, kind in zip(ours, stock, kinds, strict=True) if kind == "spot"]
    assert len(extra) == 5
    assert max(extra) <= 1
    assert max(ours) >= 1  # reading the number of active tokens; so warnings are counted at all


def test_a_call_keeps_only_the_numbers_of_its_report_in_memory():
    edit()  # creates what is created once in a process, such as the libraries' workspaces
    pipe = random_kontext().to("cuda")
    call = arguments()
    pipe(**call)
    handle = spotedit.enable(pipe, threshold=0.0)
    handle.set_mask(CORNER)
    before = held_bytes()
    pipe(**call)
    assert handle.report.cache_bytes > 100_000
    # scores, two sets of flags (region, moved), five counts of active tokens, a block of 512 each
    assert 0 < held_bytes() - before <= 8 * 512
    handle.report = None
    assert held_bytes() == before


def held_bytes():
    gc.collect()
    return torch.cuda.memory_allocated()
