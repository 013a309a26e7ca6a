"""The preview: the region of the full call, decoded by every pipeline's own code."""

import numpy as np
import pytest
import torch
from families import FAMILIES
from PIL import Image
from small_kontext import call_arguments

import spotedit
from spotedit import tiny
from spotedit.pictures.draw import heat

INTERRUPTIBLE = [name for name in FAMILIES if "Modular" not in name]


def first_active_set(pipe, call):
    """bool [N] of the first spot step."""
    seen = []

    def look(module, args):
        session = pipe.transformer._spotedit_run.func.__self__.session
        if session.kind == "spot" and not seen:
            seen.append(session.selection.active_mask[0])

    hook = pipe.transformer.register_forward_pre_hook(look)
    pipe(**call)
    hook.remove()
    return seen[0].numpy()


@pytest.mark.parametrize("name", INTERRUPTIBLE)
@pytest.mark.parametrize(("steps", "initial"), [(8, 1), (20, 2)])
def test_the_region_is_that_of_the_calls_first_spot_step(name, steps, initial):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    scores = spotedit.enable(pipe, judge="l2").preview(**family.arguments()).scores
    handle = spotedit.enable(pipe, judge="l2", threshold=float(np.quantile(scores, 0.8)))
    preview = handle.preview(**family.arguments(num_inference_steps=steps))
    assert [step["kind"] for step in preview.report.steps] == ["full"] * initial
    side = handle._spec.token_pixels(pipe)
    rows, cols = family.grid
    assert preview.image.size == preview.heat_map.size == (cols * side, rows * side)
    assert preview.scores.shape == preview.region.shape == family.grid
    assert 0 < preview.region.sum() < preview.region.size
    active = first_active_set(pipe, family.arguments(num_inference_steps=steps))
    assert np.array_equal(active.reshape(family.grid), preview.region)


@pytest.mark.parametrize("name", INTERRUPTIBLE)
def test_nothing_remains_of_a_preview(name):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    dense = pipe(**family.arguments(**family.stock)).images
    scheduler = set(vars(pipe.scheduler))
    with spotedit.enable(pipe, judge="l2") as handle:
        before = pipe(**family.arguments()).images
        handle.preview(**family.arguments())
        assert pipe._interrupt is False
        assert set(vars(pipe.scheduler)) == scheduler
        assert torch.equal(pipe(**family.arguments()).images, before)
    assert torch.equal(pipe(**family.arguments(**family.stock)).images, dense)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "Inpaint" in name])
def test_an_inpainting_draft_has_the_source_without_noise_outside_the_mask(name):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    mask = torch.zeros(1, 1, *(8 * side for side in family.grid))
    mask[..., : mask.shape[-1] // 2] = 1
    calls, decode = [], pipe.vae.decode
    pipe.vae.decode = lambda latents, **kwargs: calls.append(latents) or decode(latents, **kwargs)
    given = {"mask_image": mask, "output_type": "np"}
    pipe(**family.arguments(**{**family.stock, **given}))
    spotedit.enable(pipe, judge="l2", threshold=0.0).preview(**family.arguments(**given))
    final, draft = calls
    kept = final.shape[-1] // 2
    assert torch.allclose(draft[..., kept:], final[..., kept:], atol=1e-5)
    assert not torch.allclose(draft[..., :kept], final[..., :kept], atol=1e-2)


def test_the_draft_is_the_predicted_clean_picture(pipe):
    """Without noise to predict, the clean estimate is the sample itself."""
    seen = {}

    def watch(module, args, kwargs, output):
        seen["sample"], seen["velocity"] = kwargs["hidden_states"][:, :48], output[0][:, :48]

    hook = pipe.transformer.register_forward_hook(watch, with_kwargs=True)
    handle = spotedit.enable(pipe, judge="l2")
    preview = handle.preview(**call_arguments())
    hook.remove()
    x0 = seen["sample"] - handle.report.steps[0]["sigma"] * seen["velocity"]
    latents = pipe._unpack_latents(x0, 48, 64, pipe.vae_scale_factor)
    latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
    with torch.no_grad():
        expected = pipe.image_processor.postprocess(pipe.vae.decode(latents).sample)[0]
    assert np.abs(np.asarray(preview.image).astype(int) - np.asarray(expected)).max() <= 1


def test_a_mask_bounds_the_region(pipe):
    mask = torch.zeros(48, 64)
    mask[:16] = 1
    handle = spotedit.enable(pipe, judge="l2", threshold=0.0)
    handle.set_mask(mask)
    region = handle.preview(**call_arguments()).region
    assert region[:2].all()
    assert not region[2:].any()


def test_where_there_is_nothing_to_preview(pipe):
    handle = spotedit.enable(pipe, judge="l2")
    with pytest.raises(ValueError, match="no region to preview: too few steps"):
        handle.preview(**call_arguments(num_inference_steps=1))
    with pytest.raises(ValueError, match="token grid"):
        handle.preview(**call_arguments(height=32, width=96, max_area=32 * 96))
    with pytest.raises(ValueError, match="2 images"):
        handle.preview(**call_arguments(batch=2))
    handle.set_mask(torch.ones(48, 64), mode="replace")
    with pytest.raises(ValueError, match="replaces the judgement"):
        handle.preview(**call_arguments())
    handle.set_mask(None)
    handle.preview(**call_arguments())
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
    edited = scene.mask.reshape(16, 8, 16, 8).any(axis=(1, 3))
    assert (preview.region & edited).sum() >= 0.9 * edited.sum()
    assert preview.region.mean() < 0.5
    assert preview.scores[edited].mean() > 5 * preview.scores[~preview.region].mean()


def test_a_heat_map_colours_high_scores_and_outlines_the_region():
    scores = np.zeros((3, 4), np.float32)
    scores[1, 2], scores[2, 3] = 0.9, 0.3
    grey = Image.new("RGB", (40, 30), "grey")
    picture = np.asarray(heat(grey, scores, scores > 0.5, 0.5)).astype(int)
    assert (picture[10, 20] == 255).all()
    high, low, none = (np.ptp(picture[at]) for at in ((15, 25), (25, 35), (5, 5)))
    assert high > low > none == 0
    unchanged = np.asarray(heat(grey, 0 * scores, scores > 1))
    assert np.array_equal(unchanged, np.asarray(grey))


def test_a_modular_pipeline_has_no_preview():
    family = FAMILIES["FluxKontextModularPipeline"]
    handle = spotedit.enable(family.make(0))
    with pytest.raises(ValueError, match="cannot be interrupted"):
        handle.preview(**family.arguments())
