"""The bytes of the cache: known before, halved by int8, gone after the call."""

import gc
import weakref
from pathlib import Path

import pytest
import torch
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
from small_kontext import call_arguments, random_kontext

import spotedit
from spotedit.engine.cache import CachedRows, quantise
from spotedit.engine.forwards import Branch

GUIDED = {
    "true_cfg_scale": 2.0,
    "negative_prompt_embeds": torch.ones(1, 5, 12),
    "negative_pooled_prompt_embeds": torch.ones(1, 10),
}
PART = torch.zeros(6, 8)
PART[1:3, :4] = 1


def spot(pipe, batch=1, **options):
    extra = options.pop("extra", {})
    handle = spotedit.enable(pipe, **options)
    handle.set_mask(PART, mode="replace")
    return pipe(**call_arguments(batch=batch, **extra)).images, handle.report


@pytest.mark.parametrize(
    ("options", "call", "known"),
    [
        ({}, {}, {}),
        ({"cache_dtype": "int8"}, {}, {}),
        ({"fusion": lambda sigma: 1.0}, {"batch": 2}, {"images": 2}),
        ({}, {"extra": GUIDED}, {"branches": 2}),
    ],
)
def test_the_estimate_is_what_a_call_takes(pipe, options, call, known):
    expected = spotedit.estimate(pipe, 48, 64, prompt_tokens=5, **known, **options)
    assert spot(pipe, **call, **options)[1].cache_bytes == expected > 0


def test_the_estimate_refuses_a_picture_without_a_token(pipe):
    with pytest.raises(ValueError, match="at least a token, 8 x 8"):
        spotedit.estimate(pipe, 7, 64)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("condition_cache", [True, False])
def test_an_int8_cache_changes_little(pipe, batch, condition_cache):
    options = {"reset_every": 3, "condition_cache": condition_cache}
    plain, _ = spot(pipe, batch, **options)
    small, _ = spot(pipe, batch, cache_dtype="int8", **options)
    assert 0 < (small - plain).norm() / plain.norm() < 2e-4


def test_an_int8_cache_takes_half_the_bytes_of_a_16_bit_one():
    pipe = random_kontext().to(torch.bfloat16)
    plain, small = (
        spotedit.estimate(pipe, 1024, 1024, cache_dtype=kind) for kind in ("auto", "int8")
    )
    assert small / plain == pytest.approx(0.5 + 4 / (2 * 16))  # a scale for 16 channels


def test_quantised_rows_come_back_within_half_a_step():
    values = torch.randn(2, 5, 3, 8, generator=torch.Generator().manual_seed(0))
    values[0, 2] = 0
    rows = CachedRows(*quantise(torch.zeros(2, 9, 3, 8)))
    index = torch.tensor([[3, 0, 8, -1, 2], [1, 2, 3, 4, 5]])
    rows.write(index, values)
    step = values.abs().amax(dim=-1, keepdim=True) / 127
    error = (rows.read(index) - values).abs()
    real = (index >= 0)[..., None, None]
    assert (error <= 0.5001 * step)[real.expand_as(error)].all()
    assert torch.equal(rows.data[0, [1, 4, 5, 6, 7]], torch.zeros(5, 3, 8, dtype=torch.int8))


def test_nothing_is_kept_after_fifty_calls(pipe, monkeypatch):
    made = []
    create = Branch.__init__

    def watched(branch, *args, **kwargs):
        create(branch, *args, **kwargs)
        made.append(weakref.ref(branch))

    monkeypatch.setattr(Branch, "__init__", watched)
    handle = spotedit.enable(pipe)
    handle.set_mask(PART, mode="replace")

    def tensors():
        gc.collect()
        return sum(issubclass(type(found), torch.Tensor) for found in gc.get_objects())

    counts = []
    for call in range(50):
        pipe(**call_arguments(num_inference_steps=3))
        if call % 10 == 4:
            counts.append(tensors())
    assert len(made) == 50
    assert [ref() for ref in made] == [None] * 50
    assert len(set(counts)) == 1


def held_bytes():
    """Count the bytes of all live tensors on the CPU; a storage that they share counts once."""
    gc.collect()
    alive = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    stores = [tensor.untyped_storage() for tensor in alive if tensor.device.type == "cpu"]
    return sum({store._cdata: store.nbytes() for store in stores}.values())


@pytest.mark.parametrize(
    "options",
    [{}, {"cache_dtype": "int8"}, {"temporal": spotedit.TaylorSeer()}],
    ids=["default", "int8", "temporal"],
)
def test_a_call_leaves_only_the_numbers_of_its_report(pipe, options):
    given = call_arguments(height=48, width=64, max_area=48 * 64)
    pipe(**given)  # what the stock pipeline makes once is made here
    handle = spotedit.enable(pipe, **options)
    handle.set_mask(PART)
    before = held_bytes()
    pipe(**given)
    assert handle.report.cache_bytes > 50_000
    assert 0 < held_bytes() - before <= 500  # scores and flags of 48 tokens, counts of the steps
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
def test_the_readmes_memory_column_is_the_estimate(pipeline, transformer, config, prompt, expected):
    """At 1024 x 1024 pixels in bfloat16; the models' own sizes, without weights."""
    with torch.device("meta"):
        model = transformer(**config).to(torch.bfloat16)
    pipe = pipeline.__new__(pipeline)
    vars(pipe).update(transformer=model, vae_scale_factor=8)
    found = spotedit.estimate(pipe, 1024, 1024, prompt_tokens=prompt) / 1e9
    assert f"{found:.1f} GB" == " ".join(expected.split()[:2])
    root = Path(__file__).parents[2]
    readme = (root / "README.md").read_text()
    row = next(line for line in readme.splitlines() if line.startswith(f"| `{pipeline.__name__}`"))
    assert expected in row
    guided = spotedit.estimate(pipe, 1024, 1024, prompt_tokens=prompt, branches=2) / 1e9
    text = (root / "docs" / "memory.md").read_text()
    rows = [line for line in text.splitlines() if f"`{pipeline.__name__}`" in line]
    figures = f"| {prompt} | {found:.1f} GB |"
    assert any(f"{figures} {guided:.1f} GB |" in row or f"{figures} - |" in row for row in rows)
