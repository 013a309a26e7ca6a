"""The memory of the cache: estimated before a call, halved by int8, and freed after the call."""

import weakref
from pathlib import Path

import pytest
import torch
from compare import relative_error
from diffusers import (
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxTransformer2DModel,
    LongCatImageEditPipeline,
    LongCatImageTransformer2DModel,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from live_tensors import held_bytes, live_tensors
from small_kontext import (
    HEAD_DIM,
    HEIGHT,
    NUM_PROMPT_TOKENS,
    STOCK_SIZE,
    WIDTH,
    call_arguments,
    guidance,
    random_kontext,
)

import spotedit
from spotedit.engine.cache import CachedRows, quantise
from spotedit.engine.forwards import Branch

ROOT = Path(__file__).parents[2]
PART = torch.zeros(6, 8)
PART[1:3, :4] = 1


def edit(pipe, arguments=None, **options):
    """Edit a part of the picture; return the latents and the report."""
    handle = spotedit.enable(pipe, **options)
    handle.set_mask(PART, mode="replace")
    latents = pipe(**call_arguments(**arguments or {})).images
    return latents, handle.report


def only_cached(sigma: float) -> float:
    """A fusion that blends nothing, so that no second copy of the keys and values is kept."""
    return 1.0


@pytest.mark.parametrize(
    ("options", "call", "about_call"),
    [
        ({}, {}, {}),
        ({"cache_dtype": "int8"}, {}, {}),
        ({"fusion": only_cached}, {"batch": 2}, {"images": 2}),
        ({}, guidance(2.0), {"branches": 2}),
    ],
)
def test_the_estimate_is_what_a_call_takes(pipe, options, call, about_call):
    expected = spotedit.estimate(
        pipe, HEIGHT, WIDTH, prompt_tokens=NUM_PROMPT_TOKENS, **about_call, **options
    )
    _, report = edit(pipe, call, **options)
    assert report.cache_bytes == expected > 0


def test_the_estimate_refuses_a_picture_smaller_than_a_token(pipe):
    with pytest.raises(ValueError, match="at least a token, 8 x 8"):
        spotedit.estimate(pipe, 7, 64)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("condition_cache", [True, False])
def test_an_int8_cache_changes_little(pipe, batch, condition_cache):
    options = {"reset_every": 3, "condition_cache": condition_cache}
    plain, _ = edit(pipe, {"batch": batch}, **options)
    int8, _ = edit(pipe, {"batch": batch}, cache_dtype="int8", **options)
    assert 0 < relative_error(int8, plain) < 2e-4


def test_an_int8_cache_takes_about_half_the_bytes_of_a_16_bit_one():
    pipe = random_kontext().to(torch.bfloat16)
    plain = spotedit.estimate(pipe, 1024, 1024, cache_dtype="auto")
    int8 = spotedit.estimate(pipe, 1024, 1024, cache_dtype="int8")
    bytes_per_head = 2 * HEAD_DIM
    bytes_per_head_int8 = HEAD_DIM + 4  # and a scale in fp32
    assert int8 / plain == pytest.approx(bytes_per_head_int8 / bytes_per_head)


def test_quantised_rows_come_back_within_half_a_step():
    batch, num_rows, heads, head_dim = 2, 9, 3, 8
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch, 5, heads, head_dim, generator=generator)
    values[0, 2] = 0
    rows = CachedRows(*quantise(torch.zeros(batch, num_rows, heads, head_dim)))
    index = torch.tensor([[3, 0, 8, -1, 2], [1, 2, 3, 4, 5]])  # -1 is padding
    rows.write(index, values)
    step = values.abs().amax(dim=-1, keepdim=True) / 127
    error = (rows.read(index) - values).abs()
    is_row = (index >= 0)[..., None, None].expand_as(error)
    assert (error <= 0.5001 * step)[is_row].all()
    unwritten = rows.data[0, [1, 4, 5, 6, 7]]
    assert torch.equal(unwritten, torch.zeros(5, heads, head_dim, dtype=torch.int8))


def test_no_state_is_kept_after_fifty_calls(pipe, monkeypatch, only_new_tensors):
    branches = []  # weak references to the state of every guidance branch
    init = Branch.__init__

    def init_and_record(branch, *args, **kwargs):
        init(branch, *args, **kwargs)
        branches.append(weakref.ref(branch))

    monkeypatch.setattr(Branch, "__init__", init_and_record)
    handle = spotedit.enable(pipe)
    handle.set_mask(PART, mode="replace")
    tensor_counts = set()
    for call in range(50):
        pipe(**call_arguments(num_inference_steps=3))
        if call % 10 == 4:
            tensor_counts.add(len(live_tensors()))
    assert len(branches) == 50
    assert all(reference() is None for reference in branches)
    assert len(tensor_counts) == 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="default"),
        pytest.param({"cache_dtype": "int8"}, id="int8", marks=pytest.mark.full),
        pytest.param({"temporal": spotedit.TaylorSeer()}, id="temporal", marks=pytest.mark.full),
    ],
)
def test_a_call_leaves_only_the_numbers_of_its_report(pipe, options, only_new_tensors):
    arguments = call_arguments(**STOCK_SIZE)
    pipe(**arguments)  # the stock pipeline keeps some tensors after its first call
    handle = spotedit.enable(pipe, **options)
    handle.set_mask(PART)
    before = held_bytes()
    pipe(**arguments)
    assert handle.report.cache_bytes > 50_000
    # The scores and flags of 48 tokens, and the active count of each step.
    assert 0 < held_bytes() - before <= 500
    handle.report = None
    assert held_bytes() == before


FLUX2 = {"num_layers": 8, "num_single_layers": 48, "num_attention_heads": 48}
KLEIN_4B = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24}
KLEIN_9B = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32}


@pytest.mark.parametrize(
    ("pipeline", "transformer", "config", "prompt", "expected"),
    [
        (FluxKontextPipeline, FluxTransformer2DModel, {}, 512, "10.4 GB"),
        (FluxKontextInpaintPipeline, FluxTransformer2DModel, {}, 512, "10.4 GB"),
        (LongCatImageEditPipeline, LongCatImageTransformer2DModel, {}, 512, "10.4 GB"),
        (QwenImageEditPipeline, QwenImageTransformer2DModel, {}, 1400, "11.6 GB"),
        (QwenImageEditPlusPipeline, QwenImageTransformer2DModel, {}, 1400, "11.6 GB"),
        (Flux2Pipeline, Flux2Transformer2DModel, FLUX2, 512, "20.4 GB"),
        (Flux2KleinPipeline, Flux2Transformer2DModel, KLEIN_4B, 512, "4.6 GB (4B)"),
        (Flux2KleinPipeline, Flux2Transformer2DModel, KLEIN_9B, 512, "7.8 GB (9B)"),
    ],
)
def test_the_memory_in_readme_and_docs_is_the_estimate(
    pipeline, transformer, config, prompt, expected
):
    """The models have their published sizes, in bfloat16, but no weights."""
    with torch.device("meta"):
        model = transformer(**config).to(torch.bfloat16)
    pipe = pipeline.__new__(pipeline)
    vars(pipe).update(transformer=model, vae_scale_factor=8)
    name = f"`{pipeline.__name__}`"

    def gigabytes(**about_call):
        num_bytes = spotedit.estimate(pipe, 1024, 1024, prompt_tokens=prompt, **about_call)
        return f"{num_bytes / 1e9:.1f} GB"

    assert expected.startswith(gigabytes())
    readme = (ROOT / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith(f"| {name}"))
    assert expected in row

    memory = (ROOT / "docs" / "memory.md").read_text()
    rows = [line for line in memory.splitlines() if name in line]
    cells = f"| {prompt} | {gigabytes()} |"
    guided_cells = (f"{cells} {gigabytes(branches=2)} |", f"{cells} - |")  # some have no guidance
    assert any(possible in row for row in rows for possible in guided_cells)
