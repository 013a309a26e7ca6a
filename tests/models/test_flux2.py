"""What FLUX.2 has and FLUX.1 does not: several references, its VAE, distilled and KV klein."""

import random

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
)
from families.flux2 import FLUX2, arguments, picture, random_pipeline
from PIL import Image

import spotedit
from spotedit.models.spec import spec_for

SMALL = (64, 80)  # height and width of the second reference: 4 x 5 tokens of 16 pixels


def two_references(name):
    """Return the arguments that add a second reference of another size."""
    if name == "Flux2KleinInpaintPipeline":
        return {"image_reference": picture(SMALL, seed=5)}
    return {"image": [picture(seed=4), picture(SMALL, seed=5)]}


def watch_inputs(pipe):
    """Return a list to which the transformer's hidden states will be appended."""
    inputs = []
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["hidden_states"]), with_kwargs=True
    )
    return inputs


@pytest.mark.parametrize("name", FLUX2)
def test_two_references_of_different_sizes_equal_stock(name):
    pipe = FLUX2[name].make(0)
    call = FLUX2[name].arguments(**two_references(name))
    inputs = watch_inputs(pipe)
    dense = pipe(**call).images
    assert inputs[0].shape[1] == 48 + 48 + 20
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(6, 8), mode="replace")
    assert torch.allclose(pipe(**call).images, dense, atol=1e-4)
    assert [step["kind"] for step in handle.report.steps].count("spot") == 5


@pytest.mark.parametrize(
    ("reference", "grid", "source"),
    [("auto", (6, 8), 48), (0, (6, 8), 48), (1, (4, 5), 20 + 48), ("auto", (4, 5), 20 + 48)],
)
def test_reused_tokens_end_at_the_chosen_reference(reference, grid, source):
    """`source` is the image token at which the chosen reference begins."""
    pipe = random_pipeline(Flux2Pipeline)
    inputs = watch_inputs(pipe)
    handle = spotedit.enable(pipe, reference=reference)
    handle.set_mask(torch.arange(grid[1]).expand(grid) < 2, mode="replace")
    size = {"height": grid[0] * 16, "width": grid[1] * 16}
    result = pipe(**arguments(grid=grid, **two_references("Flux2Pipeline"), **size)).images
    reused = ~torch.from_numpy(handle.report.region).flatten()
    assert reused.float().mean() > 0.5
    y = inputs[0][:, source : source + reused.numel()]
    assert torch.equal(result[:, reused], y[:, reused])


def test_with_a_reference_on_another_grid_the_call_is_dense():
    pipe = random_pipeline(Flux2Pipeline)
    handle = spotedit.enable(pipe, reference=1, match_size=False)
    pipe(**arguments(num_inference_steps=2, **two_references("Flux2Pipeline")))
    assert "6 x 8, differs from the condition image's, 4 x 5" in handle.report.reason


class Stop(Exception):
    pass


@pytest.mark.full
@pytest.mark.parametrize(
    ("name", "reference"), [("Flux2Pipeline", 1), *((name, "auto") for name in FLUX2)]
)
def test_every_size_gives_equal_grids(name, reference, monkeypatch):
    """The pipelines take the size of the first image, even if they shrink it to a megapixel."""
    pipe = FLUX2[name].make(0)
    handle = spotedit.enable(pipe, reference=reference)
    monkeypatch.setattr(
        pipe,
        "_encode_vae_image",
        lambda image, generator: torch.zeros(1, 16, image.shape[2] // 16, image.shape[3] // 16),
    )

    def stop(*args):
        raise Stop

    pipe.transformer.register_forward_pre_hook(stop)
    rng = random.Random(0)
    sizes = [(rng.randint(64, 500), rng.randint(64, 500)) for _ in range(10)]
    sizes += [(rng.randint(400, 2000), rng.randint(400, 2000)) for _ in range(10)]
    grids = set()
    for size in sizes:
        image = Image.new("RGB", size[::-1])
        image = [picture(), image] if reference == 1 else image
        with pytest.raises(Stop):
            pipe(**FLUX2[name].arguments(image=image, latents=None))
        assert handle.report.reason is None
        grids.add(handle.report.grid)
        assert size[0] * size[1] > 2**20 or handle.report.grid == (size[0] // 16, size[1] // 16)
    assert len(grids) >= 15


@pytest.mark.parametrize("offloaded", [False, True])
def test_the_judge_gets_the_decoders_features(offloaded):
    """It gets them even if the VAE is offloaded, and if it changes afterwards."""
    pipe, grid = random_pipeline(Flux2Pipeline), (3, 5)
    tokens = torch.randn(2, grid[0] * grid[1], 16)
    vae, decoder = pipe.vae, pipe.vae.decoder
    latents = tokens.transpose(1, 2).unflatten(2, grid)
    std = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
    latents = latents * std[:, None, None] + vae.bn.running_mean[:, None, None]
    with torch.no_grad():
        expected = [vae.post_quant_conv(pipe._unpatchify_latents(latents))]
        for layer in (decoder.conv_in, decoder.mid_block, decoder.up_blocks[0]):
            expected.append(layer(expected[-1]))
        if offloaded:
            cpu_offload(vae, torch.device("cpu"), offload_buffers=True)
            assert vae.bn.running_mean.is_meta
        features = spec_for(pipe).features(pipe, tokens, grid)
        for value in vae.state_dict().values():
            value.zero_()
        for got, want in zip(features(tokens), expected[1:], strict=True):
            assert torch.allclose(got, want, atol=1e-5)
        assert got.shape[-2:] == (4 * grid[0], 4 * grid[1])


@pytest.mark.parametrize("vae_dtype", [torch.float32, torch.bfloat16])
def test_judged_edits_run(vae_dtype):
    pipe = random_pipeline(Flux2KleinPipeline)
    pipe.vae.to(vae_dtype)
    handle = spotedit.enable(pipe, threshold=1e-3)
    assert torch.isfinite(pipe(**arguments(guidance_scale=1.0)).images).all()
    assert handle.report.reason is None


@pytest.mark.parametrize("distilled", [False, True])
def test_guidance_runs_two_forwards_unless_distilled(distilled):
    pipe = random_pipeline(Flux2KleinPipeline, is_distilled=distilled)
    inputs = watch_inputs(pipe)
    handle = spotedit.enable(pipe)
    handle.set_mask(torch.arange(8).expand(6, 8) < 4, mode="replace")
    guided = {"guidance_scale": 2.0, "negative_prompt_embeds": torch.ones(1, 4, 12)}
    pipe(**arguments(num_inference_steps=4, **guided))
    forwards = 1 if distilled else 2
    rows = [x.shape[1] for x in inputs]
    assert rows == [rows for rows in (96, 24, 96, 24) for _ in range(forwards)]
    assert [step["kind"] for step in handle.report.steps] == ["full", "spot", "full", "spot"]


def test_one_step_is_dense_and_says_why():
    pipe = random_pipeline(Flux2KleinPipeline, is_distilled=True)
    handle = spotedit.enable(pipe)
    pipe(**arguments(num_inference_steps=1))
    assert "too few steps (1)" in handle.report.reason


def test_inpainting_keeps_what_the_pipelines_mask_keeps():
    family = FLUX2["Flux2KleinInpaintPipeline"]
    pipe = family.make(0)
    dense = pipe(**family.arguments()).images
    handle = spotedit.enable(pipe)
    handle.set_mask(torch.arange(8).expand(6, 8) < 2, mode="replace")
    spot = pipe(**family.arguments()).images  # [1, 4, 12, 16], of which the right half is kept
    assert torch.equal(spot[..., 8:], dense[..., 8:])
    assert not torch.equal(spot[..., :4], dense[..., :4])


def test_a_mask_may_have_the_size_of_the_chosen_reference():
    """The pipeline keeps 80 columns in the middle of 85, from the third one on."""
    pipe = random_pipeline(Flux2Pipeline)
    handle = spotedit.enable(pipe, reference=1)
    mask = torch.zeros(75, 85)
    mask[:, 2 + 3 * 16 :] = 1
    handle.set_mask(mask, mode="replace")
    pipe(**arguments(grid=(4, 5), image=[picture(), picture((75, 85))]))
    assert handle.report.region.shape == (4, 5)
    assert handle.report.region[0].tolist() == [False] * 3 + [True] * 2


def test_klein_kv_is_refused_but_its_components_work_in_klein():
    pipe = random_pipeline(Flux2KleinKVPipeline)
    with pytest.raises(ValueError, match=r"keys and values itself; expected Flux2KleinPipeline"):
        spotedit.enable(pipe)
    pipe = Flux2KleinPipeline(**pipe.components, is_distilled=True)
    pipe.set_progress_bar_config(disable=True)
    dense = pipe(**arguments()).images
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(6, 8), mode="replace")
    assert torch.allclose(pipe(**arguments()).images, dense, atol=1e-4)
    assert handle.report.reason is None


@pytest.mark.parametrize("extra", [{}, {"image_reference": picture()}])
def test_inpainting_computes_nothing_that_the_pipelines_mask_keeps(extra):
    family = FLUX2["Flux2KleinInpaintPipeline"]
    pipe = family.make(0)
    handle = spotedit.enable(pipe, threshold=0.0)
    pipe(**family.arguments(**extra))
    assert handle.report.region.tolist() == [[True] * 4 + [False] * 4] * 6
