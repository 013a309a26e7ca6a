"""Tests of the README's code on the trained tiny editor."""

import numpy as np
import pytest
import torch
from PIL import Image

import spotedit
from spotedit import tiny
from spotedit.tiny.scenes import make_scene

ASPECTS = [
    (128, 128), (96, 144), (144, 96), (120, 152), (91, 133), (133, 91), (80, 176), (176, 80),
    (100, 100), (64, 128), (128, 64), (113, 127), (160, 112), (72, 200), (200, 72), (104, 136),
    (88, 88), (150, 101), (97, 163), (140, 140),
]  # fmt: skip


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.load()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def far_pixels():
    """Return a function that finds the pixels two tokens or more from a region [rows, cols]."""

    def find(region: np.ndarray) -> np.ndarray:
        grown = torch.nn.functional.max_pool2d(torch.tensor(region)[None, None].float(), 5, 1, 2)
        return ~np.kron(grown[0, 0].bool(), np.ones((8, 8), bool))

    return find


@pytest.mark.parametrize(("height", "width"), ASPECTS)
def test_a_picture_of_any_aspect_is_edited_on_its_own_grid(pipe, height, width):
    scene = make_scene(height * width, kind="recolour", size=(height, width))
    with spotedit.enable(pipe) as handle:
        image = pipe(
            image=scene.source_image, prompt=scene.instruction, num_inference_steps=8
        ).images[0]
    assert handle.report.reason is None
    assert handle.report.mean_ratio < 1
    assert handle.report.grid == (height // 8, width // 8)
    assert image.size == (width // 8 * 8, height // 8 * 8)


@pytest.mark.parametrize("kind", ["recolour", "remove", "replace", "add"])
def test_what_is_not_edited_is_the_source_as_the_autoencoder_keeps_it(pipe, far_pixels, kind):
    scene = make_scene(1, kind=kind)
    with spotedit.enable(pipe) as handle:
        edited = pipe(
            image=scene.source_image,
            prompt=scene.instruction,
            generator=torch.Generator().manual_seed(0),
        ).images[0]
    vae, processor = pipe.vae, pipe.image_processor
    with torch.no_grad():
        latents = vae.encode(processor.preprocess(scene.source_image)).latent_dist.mode()
        kept = processor.postprocess(vae.decode(latents).sample, output_type="pil")[0]
    far = far_pixels(handle.report.region)
    assert far.mean() > 0.2
    difference = np.abs(np.asarray(edited)[far].astype(int) - np.asarray(kept)[far])
    assert np.median(difference) == 0
    assert difference.mean() < 0.5


def test_a_mask_keeps_the_rest(pipe):
    scene = make_scene(3, kind="remove")
    mask = Image.fromarray(scene.mask)
    with spotedit.enable(pipe) as handle:
        handle.set_mask(mask)
        pipe(image=scene.source_image, prompt=scene.instruction, num_inference_steps=8)
    touched = scene.mask.reshape(16, 8, 16, 8).any((1, 3))
    assert not (handle.report.region & ~touched).any()
    assert handle.report.region.any()
