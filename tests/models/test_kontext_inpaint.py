"""The inpainting pipeline of Kontext: its mask, a part of the schedule, and other conditions."""

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image

import spotedit

FAMILY = FAMILIES["FluxKontextInpaintPipeline"]
GRID = torch.zeros(6, 8)
GRID[1:4, 2:5] = 1  # these tokens may change
MASK = GRID.repeat_interleave(8, 0).repeat_interleave(8, 1)[None, None]  # a token has 8 pixels


@pytest.fixture
def pipe():
    return FAMILY.make()


def call(pipe, **extra):
    return pipe(**FAMILY.arguments(**{"mask_image": MASK, **extra})).images


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def picture(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_identity_with_the_pipelines_mask(pipe, strength):
    dense = call(pipe, strength=strength, num_inference_steps=10)
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(torch.ones(6, 8), mode="replace")
    spot = call(pipe, strength=strength, num_inference_steps=10)
    assert [step["kind"] for step in handle.report.steps].count("spot") >= 4
    assert len(handle.report.steps) == 10 * strength
    assert relative(spot, dense) <= 1e-4
    handle.disable()
    assert torch.equal(call(pipe, strength=strength, num_inference_steps=10), dense)


@pytest.mark.parametrize("batch", [1, 2])
def test_tokens_black_in_mask_image_are_reused_and_end_as_in_the_stock_pipeline(pipe, batch):
    dense = call(pipe, batch=batch)
    handle = spotedit.enable(pipe, threshold=0.0)
    spot = call(pipe, batch=batch)
    kept = GRID.flatten() == 0
    for report in handle.report.images:
        assert np.array_equal(report.region, GRID.bool().numpy())
    assert torch.equal(spot[:, kept], dense[:, kept])
    assert not torch.equal(spot[:, ~kept], dense[:, ~kept])


def test_a_black_mask_gives_the_source_back(pipe):
    dense = call(pipe, mask_image=torch.zeros_like(MASK))
    handle = spotedit.enable(pipe)
    assert torch.equal(call(pipe, mask_image=torch.zeros_like(MASK)), dense)
    assert handle.report.mean_ratio == 0


def test_a_users_mask_overrides_mask_image(pipe):
    handle = spotedit.enable(pipe, threshold=0.0)
    handle.set_mask(MASK[0, 0].flip(1))
    call(pipe)
    assert np.array_equal(handle.report.region, GRID.flip(1).bool().numpy())
    handle.set_mask(None)
    call(pipe)
    assert np.array_equal(handle.report.region, GRID.bool().numpy())


def test_a_mask_for_each_prompt_and_several_images_for_each(pipe):
    handle = spotedit.enable(pipe, threshold=0.0)
    masks = torch.cat([MASK, MASK.flip(3)])
    prompts = FAMILY.prompt(pipe) | {"prompt": ["one", "two"], "num_images_per_prompt": 2}
    call(pipe, batch=2, mask_image=masks, **prompts)
    regions = [report.region for report in handle.report.images]
    grid = GRID.bool().numpy()
    for region, expected in zip(regions, [grid, grid[:, ::-1]] * 2, strict=True):
        assert np.array_equal(region, expected)


def test_padding_mask_crop(pipe):
    """The model sees the crop around the mask, so a mask of the picture's size does not fit."""
    mask = Image.new("L", (64, 48))
    mask.paste(255, (24, 16, 40, 28))
    arguments = {"image": picture(48, 64), "mask_image": mask, "padding_mask_crop": 4}
    dense = call(pipe, **arguments, output_type="pil")[0]
    handle = spotedit.enable(pipe, threshold=0.0)
    spot = call(pipe, **arguments, output_type="pil")[0]
    assert spot.size == dense.size == (64, 48)
    region = handle.report.region
    assert region[2:4, 2:6].all()  # the mask fills the middle of the crop
    assert not region[[0, -1]].any()
    handle.set_mask(torch.ones(50, 66))
    arguments["image"] = picture(50, 66)  # the pipeline makes it 48 x 64
    with pytest.raises(ValueError, match="mask is 50 x 66"):
        call(pipe, **arguments, output_type="pil")
    call(pipe, image=arguments["image"], mask_image=mask)


def test_with_another_picture_as_reference_every_token_changes(pipe):
    arguments = {"image_reference": torch.rand(1, 3, 48, 64)}
    dense = call(pipe, **arguments)
    handle = spotedit.enable(pipe, condition_cache=False)
    assert relative(call(pipe, **arguments), dense) <= 1e-4
    assert handle.report.mean_ratio == 1.0
    assert "every token was judged to change" in handle.report.summary()
    handle.set_mask(MASK[0, 0])
    with pytest.raises(ValueError, match="image_reference"):
        call(pipe, **arguments)


def test_with_a_reference_of_another_size_the_call_is_dense_and_says_why(pipe):
    arguments = {"image_reference": torch.rand(1, 3, 32, 40)}
    dense = call(pipe, **arguments)
    handle = spotedit.enable(pipe)
    assert torch.equal(call(pipe, **arguments), dense)
    assert "4 x 5" in handle.report.reason
