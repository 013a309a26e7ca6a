"""The pictures that `on_step` may read at every step, for every supported pipeline."""

import functools
import gc
import pickle
import time
import weakref

import numpy as np
import pytest
import small_kontext
import torch
from families import FAMILIES, each_family, each_family_that
from families.offload import OFFLOAD, ONE_PER_VAE, each_vae_and_way_to_offload
from PIL import Image
from synchronisations import CountSynchronisations

import spotedit
from spotedit.models.spec import spec_for

KONTEXT = "FluxKontextPipeline"
INPAINT = "Flux2KleinInpaintPipeline"

call_arguments = functools.partial(small_kontext.call_arguments, num_inference_steps=4)


def arguments(family, **extra):
    """Return the arguments of a call of four steps."""
    return family.arguments(num_inference_steps=4, **extra)


def make(name):
    """Make a random pipeline whose pictures have some contrast."""
    pipe = FAMILIES[name].make(0)
    pipe.vae.decoder.conv_out.weight.data.mul_(4)
    return pipe


def everything_may_change(name):
    """Return a white mask for the family whose mask keeps the half of the source otherwise."""
    return {"mask_image": Image.new("L", (128, 96), 255)} if name == INPAINT else {}


def run(pipe, handle, arguments, on_step=None):
    """Make a call; return its latents or pictures, and the state of the generators after it."""
    torch.manual_seed(3)
    with handle.call(on_step=on_step):
        images = pipe(**arguments).images
    generator = arguments.get("generator")
    states = [torch.get_rng_state()]
    return images, states if generator is None else [*states, generator.get_state()]


def same_run(actual, expected):
    (images, states), (expected_images, expected_states) = actual, expected
    assert torch.equal(images, expected_images)
    for state, expected_state in zip(states, expected_states, strict=True):
        assert torch.equal(state, expected_state)


def grey_levels_apart(picture, other):
    return np.abs(np.asarray(picture).astype(int) - np.asarray(other).astype(int)).max()


def hooks_of(module):
    return [
        (name, len(part._forward_hooks), len(part._forward_pre_hooks), sorted(vars(part)))
        for name, part in module.named_modules()
    ]


@each_family
def test_reading_every_picture_changes_nothing(name):
    assert_reading_changes_nothing(name, {})


@pytest.mark.full
@each_family_that(lambda family: family.guided)
def test_reading_every_picture_changes_nothing_with_guidance(name):
    assert_reading_changes_nothing(name, FAMILIES[name].guided)


def assert_reading_changes_nothing(name, extra):
    family, pipe = FAMILIES[name], make(name)
    handle = spotedit.enable(pipe, reset_every=2)
    pipe(**arguments(family, **extra, output_type="pil"))  # decoding leaves names in Qwen's VAE
    before = hooks_of(pipe.vae)
    expected = run(pipe, handle, arguments(family, **extra))
    kinds = [step["kind"] for step in handle.report.steps]
    assert {"full", "spot"} <= set(kinds)

    progress, sizes = [], set()

    def read(step):
        sizes.add(step.image.size)
        assert step.image is step.images[0]
        progress.append(step)

    same_run(run(pipe, handle, arguments(family, **extra), read), expected)
    side = spec_for(pipe).token_pixels(pipe)
    rows, cols = handle.report.grid
    assert sizes == {(cols * side, rows * side)}
    assert hooks_of(pipe.vae) == before
    assert [step.kind for step in progress] == kinds
    shares = [step["active"] / step["total"] for step in handle.report.steps]
    assert [step.ratio for step in progress] == pytest.approx(shares)
    assert len({step.image.tobytes() for step in progress}) > 1


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="spot"),
        pytest.param({"spatial": False}, id="dense", marks=pytest.mark.full),
    ],
)
@each_family
def test_the_last_picture_is_the_result(name, options):
    family, pipe = FAMILIES[name], make(name)
    handle = spotedit.enable(pipe, **options)
    pictures = []
    with handle.call(on_step=lambda step: pictures.append(step.image)):
        (result,) = pipe(
            **arguments(family, output_type="pil", **everything_may_change(name))
        ).images
    assert grey_levels_apart(pictures[-1], result) <= 1
    assert grey_levels_apart(pictures[0], pictures[-1]) > 1


@pytest.mark.parametrize("guided", [False, True])
def test_a_picture_is_the_decoded_clean_prediction(guided):
    """Compare it with the pictures that the stock VAE makes of `x_t - sigma v`."""
    family, pipe = FAMILIES[KONTEXT], make(KONTEXT)
    step, predicted, pictures = pipe.scheduler.step, [], []

    def record(velocity, timestep, sample, **kwargs):
        predicted.append(sample - timestep / 1000 * velocity)
        return step(velocity, timestep, sample, **kwargs)

    pipe.scheduler.step = record
    handle = spotedit.enable(pipe, temporal=spotedit.TaylorSeer())
    with handle.call(on_step=lambda step: pictures.append(step.image)):
        pipe(**family.arguments(**(family.guided if guided else {})))
    assert {"full", "spot", "skip"} == {step["kind"] for step in handle.report.steps}
    for x0, picture in zip(predicted, pictures, strict=True):
        latents = pipe._unpack_latents(x0, 48, 64, pipe.vae_scale_factor)
        latents = latents / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor
        with torch.no_grad():
            pixels = pipe.vae.decode(latents).sample
        (expected,) = pipe.image_processor.postprocess(pixels, output_type="pil")
        assert grey_levels_apart(picture, expected) <= 1


def test_the_picture_of_the_judged_step_is_the_preview():
    family, pipe = FAMILIES["QwenImageEditPipeline"], make("QwenImageEditPipeline")
    handle, pictures = spotedit.enable(pipe), []
    preview = handle.preview(**arguments(family))
    with handle.call(on_step=lambda step: pictures.append(step.image)):
        pipe(**arguments(family))
    assert grey_levels_apart(pictures[len(preview.report.steps) - 1], preview.image) <= 1


@each_family_that(lambda family: family.batches)
def test_every_image_of_a_batch_has_its_picture(name):
    family, pipe = FAMILIES[name], make(name)
    handle, steps = spotedit.enable(pipe), []

    def read(step):
        steps.append((step.images, step.ratio))

    expected = run(pipe, handle, arguments(family, batch=2))
    same_run(run(pipe, handle, arguments(family, batch=2), read), expected)
    ratios = np.mean([[s["active"] / s["total"] for s in r.steps] for r in handle.report.images], 0)
    assert [ratio for _, ratio in steps] == pytest.approx(ratios.tolist())
    first, second = steps[-1][0]
    assert first.size == second.size
    assert grey_levels_apart(first, second) > 1


@each_vae_and_way_to_offload
def test_offloaded_weights_give_the_same_pictures(name, how):
    family = FAMILIES[name]
    plain = make(name)
    expected = []
    with spotedit.enable(plain).call(on_step=lambda step: expected.append(step.image)):
        plain(**arguments(family))
    pipe, pictures = make(name), []
    OFFLOAD[how](pipe)
    handle = spotedit.enable(pipe)
    result = run(pipe, handle, arguments(family))
    same_run(run(pipe, handle, arguments(family), lambda s: pictures.append(s.image)), result)
    for picture, other in zip(pictures, expected, strict=True):
        assert grey_levels_apart(picture, other) <= 1


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.full)]
)
@pytest.mark.parametrize("name", ONE_PER_VAE)
def test_in_half_precision_the_last_picture_is_the_result(name, dtype):
    family, pipe = FAMILIES[name], make(name).to(dtype)
    call = {
        key: value.to(dtype) if torch.is_tensor(value) and value.is_floating_point() else value
        for key, value in arguments(family, output_type="pil").items()
    }
    handle, pictures = spotedit.enable(pipe, judge="l2", threshold=1.0), []
    with handle.call(on_step=lambda step: pictures.append(step.image)):
        (result,) = pipe(**call).images
    # the random VAE multiplies what is rounded on the way
    difference = np.asarray(pictures[-1]).astype(int) - np.asarray(result)
    assert np.abs(difference).mean() <= 4


def test_tiles_and_slices_are_decoded_as_the_vae_is_told():
    family, pipe = FAMILIES[KONTEXT], make(KONTEXT)
    pipe.vae.enable_slicing()
    pipe.vae.enable_tiling()
    pipe.vae.tile_latent_min_size = 8
    handle, pictures = spotedit.enable(pipe), []
    with handle.call(on_step=lambda step: pictures.append(step.images)):
        results = pipe(**arguments(family, batch=2, output_type="pil")).images
    for picture, result in zip(pictures[-1], results, strict=True):
        assert grey_levels_apart(picture, result) <= 1


def test_a_call_that_falls_back_has_pictures(pipe):
    handle, steps = spotedit.enable(pipe), []

    def read(step):
        steps.append((step.kind, step.ratio, step.image))

    size = {"height": 32, "width": 32, "max_area": 1024}
    with handle.call(on_step=read) as call:
        (result,) = pipe(**call_arguments(**size, output_type="pil")).images
    assert call.report.reason is not None
    assert {(kind, ratio) for kind, ratio, _ in steps} == {("dense", 1.0)}
    assert grey_levels_apart(steps[-1][2], result) <= 1


def test_nothing_is_decoded_and_nothing_waits_unless_asked(pipe, monkeypatch):
    handle, counts = spotedit.enable(pipe), []
    monkeypatch.setattr(pipe.vae, "decode", None)
    for on_step in (None, lambda step: None, lambda step: step.ratio):
        with handle.call(on_step=on_step), CountSynchronisations() as mode:
            pipe(**call_arguments())
        counts.append(mode.count)
    without_on_step, unread, with_ratio = counts
    assert unread == without_on_step < with_ratio


def test_a_kept_progress_keeps_the_pictures_that_were_read_and_no_tensors(pipe):
    handle, kept, tensors = spotedit.enable(pipe), [], []
    step = pipe.scheduler.step

    def record(velocity, timestep, sample, **kwargs):
        tensors.append(weakref.ref(velocity))
        return step(velocity, timestep, sample, **kwargs)

    pipe.scheduler.step = record

    def keep(progress):
        kept.append(progress)
        if progress.index == 1:
            progress.image  # noqa: B018

    with handle.call(on_step=keep):
        pipe(**call_arguments())
    gc.collect()
    assert [reference() for reference in tensors] == [None] * len(kept)
    assert kept[1].image.size == (64, 48)
    assert 0 < kept[3].ratio <= 1
    with pytest.raises(RuntimeError, match="before on_step returns"):
        kept[2].image  # noqa: B018
    with pytest.raises(RuntimeError, match="belongs to no call"):
        spotedit.StepProgress(0, 1, "full", 1.0).image  # noqa: B018


def test_a_progress_can_be_pickled_before_and_after_its_picture_is_read(pipe):
    handle, pickled = spotedit.enable(pipe), []

    def send(progress):
        pickled.append(pickle.dumps(progress))
        picture = progress.image
        received = pickle.loads(pickle.dumps(progress))
        assert received.image == picture
        assert received == progress

    with handle.call(on_step=send):
        pipe(**call_arguments())
    with pytest.raises(RuntimeError, match="no longer held"):
        pickle.loads(pickled[0]).image  # noqa: B018


def test_an_error_while_decoding_ends_the_call_and_the_next_is_right(pipe, monkeypatch):
    handle = spotedit.enable(pipe)
    expected = pipe(**call_arguments()).images

    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError

    with monkeypatch.context() as patch, handle.call(on_step=lambda step: step.image):
        patch.setattr(pipe.vae, "decode", fail)
        with pytest.raises(torch.OutOfMemoryError):
            pipe(**call_arguments())
    assert torch.equal(pipe(**call_arguments()).images, expected)


def test_without_a_vae_the_error_says_so(pipe):
    source = torch.rand(1, 4, 12, 16)  # latents, which need no VAE
    pipe.vae, vae = None, pipe.vae
    handle = spotedit.enable(pipe, judge="l2", match_size=False)
    refused = pytest.raises(ValueError, match="FluxKontextPipeline has no VAE")
    with handle.call(on_step=lambda step: step.image), refused:
        pipe(**call_arguments(image=source, height=48, width=64, max_area=48 * 64))
    pipe.vae = vae


def test_the_time_of_on_step_is_no_steps(pipe, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def take_long(step):
        clock[0] += 100.0

    handle = spotedit.enable(pipe)
    with handle.call(on_step=take_long):
        pipe(**call_arguments())
    assert all(step["seconds"] < 1 for step in handle.report.steps)
