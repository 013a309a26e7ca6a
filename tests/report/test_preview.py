"""A preview shows the region of the call and a draft of its picture, after the first steps."""

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image
from small_kontext import HEIGHT, NUM_TOKENS, WIDTH, call_arguments

import spotedit
from spotedit import tiny
from spotedit.pictures.draw import heat

INTERRUPTIBLE = [name for name in FAMILIES if "Modular" not in name]


def active_in_first_spot_step(pipe, arguments):
    """Call the pipeline and return the flags [N] of the tokens active in its first spot step."""
    active_masks = []

    def record_active_mask(module, args):
        session = pipe.transformer._spotedit_run.func.__self__.session
        if session.kind == "spot":
            active_masks.append(session.selection.active_mask[0].clone())

    hook = pipe.transformer.register_forward_pre_hook(record_active_mask)
    pipe(**arguments)
    hook.remove()
    return active_masks[0].numpy()


@pytest.mark.parametrize("name", INTERRUPTIBLE)
@pytest.mark.parametrize(("steps", "initial_steps"), [(8, 1), (20, 2)])
def test_the_region_is_that_of_the_calls_first_spot_step(name, steps, initial_steps):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    scores = spotedit.enable(pipe, judge="l2").preview(**family.arguments()).scores
    handle = spotedit.enable(pipe, judge="l2", threshold=float(np.quantile(scores, 0.8)))
    preview = handle.preview(**family.arguments(num_inference_steps=steps))
    assert [step["kind"] for step in preview.report.steps] == ["full"] * initial_steps
    side = handle._spec.token_pixels(pipe)
    rows, cols = family.grid
    assert preview.image.size == preview.heat_map.size == (cols * side, rows * side)
    assert preview.scores.shape == preview.region.shape == family.grid
    assert 0 < preview.region.sum() < preview.region.size
    active = active_in_first_spot_step(pipe, family.arguments(num_inference_steps=steps))
    assert np.array_equal(active.reshape(family.grid), preview.region)


@pytest.mark.parametrize("name", INTERRUPTIBLE)
def test_nothing_remains_of_a_preview(name):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    stock = pipe(**family.arguments(**family.stock)).images
    scheduler_attributes = set(vars(pipe.scheduler))
    with spotedit.enable(pipe, judge="l2") as handle:
        before = pipe(**family.arguments()).images
        handle.preview(**family.arguments())
        assert pipe._interrupt is False
        assert set(vars(pipe.scheduler)) == scheduler_attributes
        assert torch.equal(pipe(**family.arguments()).images, before)
    assert torch.equal(pipe(**family.arguments(**family.stock)).images, stock)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "Inpaint" in name])
def test_an_inpainting_draft_shows_the_source_without_noise_outside_the_mask(name):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    rows, cols = family.grid
    mask = torch.zeros(1, 1, 8 * rows, 8 * cols)
    mask[..., : 4 * cols] = 1  # the left half may change
    decoded, decode = [], pipe.vae.decode

    def record_and_decode(latents, **kwargs):
        decoded.append(latents)
        return decode(latents, **kwargs)

    pipe.vae.decode = record_and_decode
    inpaint = {"mask_image": mask, "output_type": "np"}
    pipe(**family.arguments(**family.stock | inpaint))
    spotedit.enable(pipe, judge="l2", threshold=0.0).preview(**family.arguments(**inpaint))
    final, draft = decoded
    half = final.shape[-1] // 2
    assert torch.allclose(draft[..., half:], final[..., half:], atol=1e-5)
    assert not torch.allclose(draft[..., :half], final[..., :half], atol=1e-2)


def test_the_draft_is_the_predicted_clean_picture(pipe):
    forwards = []

    def record(module, args, kwargs, output):
        forwards.append((kwargs["hidden_states"][:, :NUM_TOKENS], output[0][:, :NUM_TOKENS]))

    hook = pipe.transformer.register_forward_hook(record, with_kwargs=True)
    handle = spotedit.enable(pipe, judge="l2")
    preview = handle.preview(**call_arguments())
    hook.remove()
    sample, velocity = forwards[-1]
    x0 = sample - handle.report.steps[0]["sigma"] * velocity
    latents = pipe._unpack_latents(x0, HEIGHT, WIDTH, pipe.vae_scale_factor)
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    with torch.no_grad():
        expected = pipe.image_processor.postprocess(pipe.vae.decode(latents).sample)[0]
    difference = np.asarray(preview.image).astype(int) - np.asarray(expected)
    assert np.abs(difference).max() <= 1  # of 255 levels


def test_a_mask_bounds_the_region(pipe):
    mask = torch.zeros(HEIGHT, WIDTH)
    mask[:16] = 1  # the first two rows of tokens
    handle = spotedit.enable(pipe, judge="l2", threshold=0.0)
    handle.set_mask(mask)
    region = handle.preview(**call_arguments()).region
    assert region[:2].all()
    assert not region[2:].any()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"num_inference_steps": 1}, "no region to preview: too few steps"),
        ({"height": 32, "width": 96, "max_area": 32 * 96}, "token grid"),
        ({"batch": 2}, "2 images"),
    ],
)
def test_a_call_without_a_region_to_show_is_refused(pipe, extra, message):
    handle = spotedit.enable(pipe, judge="l2")
    with pytest.raises(ValueError, match=message):
        handle.preview(**call_arguments(**extra))
    handle.preview(**call_arguments())


def test_a_preview_is_refused_if_the_mask_replaces_the_judgement(pipe):
    handle = spotedit.enable(pipe, judge="l2")
    handle.set_mask(torch.ones(HEIGHT, WIDTH), mode="replace")
    with pytest.raises(ValueError, match="replaces the judgement"):
        handle.preview(**call_arguments())
    handle.set_mask(None)
    handle.preview(**call_arguments())


def test_a_preview_is_refused_after_disable(pipe):
    handle = spotedit.enable(pipe, judge="l2")
    handle.disable()
    with pytest.raises(RuntimeError, match="not in force"):
        handle.preview(**call_arguments())


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_the_tiny_editors_draft_shows_where_the_edit_will_be(kind):
    pipe = tiny.load()
    pipe.set_progress_bar_config(disable=True)
    scene = tiny.make_scene(2, kind=kind)
    preview = spotedit.enable(pipe).preview(
        image=scene.source_image,
        prompt=scene.instruction,
        generator=torch.Generator().manual_seed(0),
    )
    edited = scene.mask.reshape(16, 8, 16, 8).any(axis=(1, 3))  # 16 x 16 tokens of 8 x 8 pixels
    assert (preview.region & edited).sum() >= 0.9 * edited.sum()
    assert preview.region.mean() < 0.5
    assert preview.scores[edited].mean() > 5 * preview.scores[~preview.region].mean()


def test_a_heat_map_colours_high_scores_and_outlines_the_region():
    scores = np.zeros((3, 4), np.float32)
    scores[1, 2], scores[2, 3] = 0.9, 0.3
    grey = Image.new("RGB", (40, 30), "grey")  # a token is 10 x 10 pixels
    picture = np.asarray(heat(grey, scores, scores > 0.5, 0.5)).astype(int)
    corner_of_region = picture[10, 20]
    assert (corner_of_region == 255).all()

    def colourfulness(row, col):
        """Return the range of the channels in the middle of a token."""
        return np.ptp(picture[10 * row + 5, 10 * col + 5])

    assert colourfulness(1, 2) > colourfulness(2, 3) > colourfulness(0, 0) == 0


def test_a_heat_map_without_scores_and_region_is_the_picture():
    grey = Image.new("RGB", (40, 30), "grey")
    no_scores = np.zeros((3, 4), np.float32)
    assert np.array_equal(np.asarray(heat(grey, no_scores, no_scores > 1)), np.asarray(grey))


def test_a_modular_pipeline_has_no_preview():
    family = FAMILIES["FluxKontextModularPipeline"]
    handle = spotedit.enable(family.make(0))
    with pytest.raises(ValueError, match="cannot be interrupted"):
        handle.preview(**family.arguments())
