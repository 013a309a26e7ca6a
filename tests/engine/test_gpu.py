"""Edits on a CUDA device. They run with ``pytest -m gpu``."""

import gc
import itertools
import warnings

import pytest
import torch
from compare import relative_error
from small_kontext import (
    CORNER,
    NUM_CORNER_TOKENS,
    NUM_STEPS,
    NUM_TOKENS,
    STOCK_SIZE,
    call_arguments,
    random_kontext,
)

import spotedit
from spotedit.engine.session import Session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
SMALLEST_BLOCK = 512  # bytes; PyTorch's allocator hands out multiples of it


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """Keep cuDNN from rounding fp32 to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def arguments(device="cuda", dtype=torch.float32, **extra):
    """Make the arguments of a call with embeddings on the device: a pipeline does not move them."""
    arguments = call_arguments(**STOCK_SIZE, **extra)
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        arguments[name] = arguments[name].to(device, dtype)
    return arguments


def stock_edit(device="cuda", dtype=torch.float32, **extra):
    """Return the latents of a stock call, in fp32 on the CPU."""
    pipe = random_kontext().to(device, dtype)
    return pipe(**arguments(device, dtype, **extra)).images.float().cpu()


def spot_edit(device="cuda", dtype=torch.float32, **extra):
    """Return the latents of an edit of the corner, in fp32 on the CPU, and its report.

    At a threshold of 0 the mask alone decides which tokens are active, but the judge runs.
    """
    pipe = random_kontext().to(device, dtype)
    handle = spotedit.enable(pipe, threshold=0.0)
    handle.set_mask(CORNER)
    latents = pipe(**arguments(device, dtype, **extra)).images.float().cpu()
    return latents, handle.report


def test_a_whole_edit_equals_the_cpus():
    on_gpu, report = spot_edit("cuda")
    active = [step["active"] for step in report.steps if step["kind"] == "spot"]
    assert active == [NUM_CORNER_TOKENS] * 5
    on_cpu, _ = spot_edit("cpu")
    assert relative_error(on_gpu, on_cpu) <= 1e-4


def test_bfloat16_costs_at_most_twice_what_it_costs_the_stock_pipeline():
    stock_error = relative_error(stock_edit(dtype=torch.bfloat16), stock_edit())
    spot_error = relative_error(spot_edit(dtype=torch.bfloat16)[0], spot_edit()[0])
    assert spot_error <= 2 * stock_error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reused_tokens_end_exactly_at_the_source(dtype, monkeypatch):
    sources = []
    run = Session.run

    def run_and_record_source(session, forward, kwargs):
        sources.append(kwargs["hidden_states"][:, NUM_TOKENS:].float().cpu())
        return run(session, forward, kwargs)

    monkeypatch.setattr(Session, "run", run_and_record_source)
    latents, report = spot_edit(dtype=dtype)
    reused = torch.from_numpy(~report.region.ravel())
    assert reused.sum() == NUM_TOKENS - NUM_CORNER_TOKENS
    assert torch.equal(latents[:, reused], sources[0][:, reused])


def synchronisations(edit):
    """Return what `edit` returns, and how often the host waits in each step but the first."""
    counts = []

    def record_count(pipe, step, timestep, tensors):
        counts.append(sum("synchronizing" in str(warning.message) for warning in caught))
        return {}

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = edit(callback_on_step_end=record_count)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return result, [after - before for before, after in itertools.pairwise(counts)]


def test_a_spot_step_waits_for_the_device_at_most_once_more_than_a_stock_step():
    spot_edit()  # what the libraries do only once is done here
    _, in_stock_steps = synchronisations(stock_edit)
    (_, report), in_our_steps = synchronisations(spot_edit)
    assert len(in_our_steps) == NUM_STEPS - 1
    more_in_spot_steps = [
        ours - stock
        for ours, stock, step in zip(in_our_steps, in_stock_steps, report.steps[1:], strict=True)
        if step["kind"] == "spot"
    ]
    assert len(more_in_spot_steps) == 5
    assert max(more_in_spot_steps) <= 1
    assert max(in_our_steps) >= 1  # reading the number of active tokens: warnings are counted


def test_a_call_leaves_only_the_numbers_of_its_report_on_the_device():
    spot_edit()  # what the libraries keep, such as workspaces, is allocated here
    pipe = random_kontext().to("cuda")
    call = arguments()
    pipe(**call)
    handle = spotedit.enable(pipe, threshold=0.0)
    handle.set_mask(CORNER)
    before = held_bytes()
    pipe(**call)
    assert handle.report.cache_bytes > 100_000
    # A block each for the scores, the two sets of flags (region, moved) and five active counts.
    assert 0 < held_bytes() - before <= (1 + 2 + 5) * SMALLEST_BLOCK
    handle.report = None
    assert held_bytes() == before


def held_bytes():
    gc.collect()
    return torch.cuda.memory_allocated()
