"""Edits on a CUDA device: ``pytest -m gpu``."""

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
CORNER = torch.zeros(48, 64)
CORNER[8:24, 16:40] = 1  # 2 x 3 of 6 x 8 tokens


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def arguments(device="cuda", dtype=torch.float32, **extra):
    """Arguments of a call; a pipeline does not move the embeddings that it is given."""
    given = call_arguments(height=48, width=64, max_area=48 * 64, **extra)
    embeds = ("prompt_embeds", "pooled_prompt_embeds")
    return given | {key: given[key].to(device, dtype) for key in embeds}


def edit(device="cuda", dtype=torch.float32, spot=True, **extra):
    """(latents as fp32 on the CPU, report); the mask decides, and the judge runs all the same."""
    pipe = random_kontext().to(device, dtype)
    given = arguments(device, dtype, **extra)
    handle = spotedit.enable(pipe, threshold=0.0) if spot else None
    if handle is not None:
        handle.set_mask(CORNER)
    latents = pipe(**given).images.float().cpu()
    return latents, handle.report if handle is not None else None


def distance(a, b):
    return float((a - b).norm() / b.norm())


def test_a_whole_edit_equals_the_cpus():
    ours, report = edit("cuda")
    assert [step["active"] for step in report.steps if step["kind"] == "spot"] == [6] * 5
    assert distance(ours, edit("cpu")[0]) <= 1e-4


def test_bfloat16_adds_no_more_error_than_it_does_to_the_stock_pipeline():
    stock = distance(edit(dtype=torch.bfloat16, spot=False)[0], edit(spot=False)[0])
    assert distance(edit(dtype=torch.bfloat16)[0], edit()[0]) <= 2 * stock


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reused_tokens_end_exactly_at_the_source(dtype, monkeypatch):
    seen = []
    run = Session.run

    def watched(session, forward, kwargs):
        seen.append(kwargs["hidden_states"][:, 48:].float().cpu())
        return run(session, forward, kwargs)

    monkeypatch.setattr(Session, "run", watched)
    latents, report = edit(dtype=dtype)
    reused = torch.from_numpy(~report.region.ravel())
    assert reused.sum() == 42
    assert torch.equal(latents[:, reused], seen[0][:, reused])


def synchronisations(spot):
    """Times that the host waited for the device in each step but the first, and their kinds."""
    counts = []

    def read(pipe, step, timestep, tensors):
        counts.append(sum("synchronizing" in str(item.message) for item in caught))
        return {}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            _, report = edit(spot=spot, callback_on_step_end=read)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    kinds = ["dense"] * 8 if report is None else [step["kind"] for step in report.steps]
    return [b - a for a, b in itertools.pairwise(counts)], kinds[1:]


def test_a_spot_step_waits_for_the_device_once_more_than_a_stock_step():
    edit()  # what is made once is made here
    stock, _ = synchronisations(spot=False)
    ours, kinds = synchronisations(spot=True)
    extra = [a - b for a, b, kind in zip(ours, stock, kinds, strict=True) if kind == "spot"]
    assert len(extra) == 5
    assert max(extra) <= 1
    assert max(ours) >= 1  # the count of active tokens: the warnings are seen


def test_a_call_leaves_only_the_numbers_of_its_report():
    edit()  # what is made once, such as the libraries' workspaces, is made here
    pipe = random_kontext().to("cuda")
    given = arguments()
    pipe(**given)
    handle = spotedit.enable(pipe, threshold=0.0)
    handle.set_mask(CORNER)
    before = held_bytes()
    pipe(**given)
    assert handle.report.cache_bytes > 100_000
    # scores, two sets of flags (region, moved), five counts of active tokens, a block of 512 each
    assert 0 < held_bytes() - before <= 8 * 512
    handle.report = None
    assert held_bytes() == before


def held_bytes():
    gc.collect()
    return torch.cuda.memory_allocated()
