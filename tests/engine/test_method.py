"""What the method promises about the steps and tokens of a call."""

import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from small_kontext import (
    CORNER,
    GRID,
    HEIGHT,
    LATENT_CHANNELS,
    NUM_CORNER_TOKENS,
    NUM_TOKENS,
    STOCK_SIZE,
    TOKEN_CHANNELS,
    WIDTH,
    call_arguments,
)
from synchronisations import CountSynchronisations

import spotedit
from spotedit.engine.schedule import VERIFY_SIGMA
from spotedit.models import flux

FULL_ROWS = 2 * NUM_TOKENS  # image rows of a full step: noise and condition tokens


def condition_tokens(pipe, arguments) -> torch.Tensor:
    """Return the source's tokens [B, N, C] as the stock pipeline passes them to the transformer."""
    inputs = []

    def record_input(module, args, kwargs):
        inputs.append(kwargs["hidden_states"])

    hook = pipe.transformer.register_forward_pre_hook(record_input, with_kwargs=True)
    pipe(**arguments | STOCK_SIZE | {"num_inference_steps": 1})
    hook.remove()
    return inputs[0][:, NUM_TOKENS:]


def active_counts(report) -> list[int]:
    """Return the number of active tokens in each step."""
    return [step["active"] for step in report.steps]


def judge_with_fixed_scores(scores):
    """Make a judge that gives the tokens the same scores [B, N] in every judgement."""

    def judge(y, grid, features, impl):
        return lambda x0: scores

    return judge


# -- reused and active tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reused_tokens_end_exactly_at_the_source(pipe, dtype):
    pipe.to(dtype)
    arguments = {
        name: value.to(dtype) if torch.is_tensor(value) else value
        for name, value in call_arguments().items()
    }
    source = condition_tokens(pipe, arguments)
    handle = spotedit.enable(pipe)
    handle.set_mask(CORNER, mode="replace")
    latents = pipe(**arguments | {"generator": torch.Generator().manual_seed(1)}).images
    active = handle.report._record.region[0]
    assert active.sum() == NUM_CORNER_TOKENS
    assert torch.equal(latents[:, ~active], source[:, ~active])
    assert not torch.equal(latents[:, active], source[:, active])


def test_reused_tokens_move_on_the_straight_line(pipe):
    """After every spot step a reused token is (1 - sigma) source + sigma noise."""
    latents_after_step = []

    def record_latents(pipe, step, timestep, tensors):
        latents_after_step.append(tensors["latents"].clone())
        return {}

    source = condition_tokens(pipe, call_arguments())
    handle = spotedit.enable(pipe, reset_steps=())
    handle.set_mask(CORNER, mode="replace")
    pipe(**call_arguments(num_inference_steps=14, callback_on_step_end=record_latents))
    reused = ~handle.report._record.region[0]
    sigmas = [step["sigma"] for step in handle.report.steps[1:]] + [0.0]  # after each step
    noise = (latents_after_step[0] - (1 - sigmas[0]) * source) / sigmas[0]
    for sigma, latents in zip(sigmas, latents_after_step, strict=True):
        expected = (1 - sigma) * source + sigma * noise
        assert torch.allclose(latents[:, reused], expected[:, reused], atol=1e-5)


@pytest.mark.parametrize(
    ("condition_cache", "spot_rows"),
    [(True, NUM_CORNER_TOKENS), (False, NUM_CORNER_TOKENS + NUM_TOKENS)],
)
def test_a_spot_step_computes_only_active_rows(pipe, condition_cache, spot_rows):
    rows = []

    def count_rows(module, args, output):
        rows.append(output.shape[1])

    pipe.transformer.proj_out.register_forward_hook(count_rows)
    handle = spotedit.enable(pipe, condition_cache=condition_cache)
    handle.set_mask(CORNER, mode="replace")
    pipe(**call_arguments())
    expected = {"full": FULL_ROWS, "spot": spot_rows}
    kinds = ["full", "spot", "spot", "full", "spot", "full", "spot", "spot"]  # resets at 3 and 5
    assert rows == [expected[kind] for kind in kinds]
    assert handle.report.steps[1]["active"] == NUM_CORNER_TOKENS


def test_a_call_without_an_active_token_returns_the_source(pipe):
    source = condition_tokens(pipe, call_arguments())
    handle = spotedit.enable(pipe)
    handle.set_mask(torch.zeros(HEIGHT, WIDTH), mode="replace")
    assert torch.equal(pipe(**call_arguments()).images, source)
    assert handle.report.mean_ratio == 0


# -- judgements


def test_a_reset_judges_every_token_afresh(pipe):
    """Between resets, a token that was once judged unchanged stays reused."""

    def judge_multiples(y, grid, features, impl):
        """Judge multiples of 20 as changed in the first judgement, then of 19, 18, ..."""
        divisors = itertools.count(20, -1)

        def score(x0):
            changed = torch.arange(NUM_TOKENS)[None] % next(divisors) == 0
            return changed.float()

        return score

    handle = spotedit.enable(
        pipe,
        preset="paper",
        judge=judge_multiples,
        threshold=0.5,
        initial_steps=1,
        reset_steps=(4,),
    )
    pipe(**call_arguments())
    # 0, 20 and 40 are active after step 0; of these only 0 is a multiple of 19, and then of 18.
    # 0, 17 and 34 are active after the reset in step 4; of these only 0 is a multiple of 16.
    assert active_counts(handle.report) == [NUM_TOKENS, 3, 1, 1, NUM_TOKENS, 3, 1, 1]


def test_a_last_check_finds_an_edit_that_the_first_judgement_missed(pipe):
    def judge_missing_the_edit_at_first(y, grid, features, impl):
        judgements = itertools.count()

        def score(x0):
            changed = next(judgements) > 0
            return torch.full((1, NUM_TOKENS), float(changed))

        return score

    options = {
        "judge": judge_missing_the_edit_at_first,
        "threshold": 0.5,
        "judge_every": 9,  # a call of 8 steps judges once, after its initial steps
        "reset_steps": (),
    }
    handle = spotedit.enable(pipe, **options)
    pipe(**call_arguments())
    assert handle.report.unedited == 1
    handle = spotedit.enable(pipe, verify_last=True, **options)
    pipe(**call_arguments())
    steps = handle.report.steps
    (check,) = [step for step in steps[1:] if step["kind"] == "full"]
    following = steps[check["index"] + 1]
    assert check["sigma"] >= VERIFY_SIGMA > following["sigma"]
    assert steps[-1]["active"] == NUM_TOKENS


def test_decoder_features_of_the_source_are_computed_once_a_call(pipe, monkeypatch):
    calls = []
    forward = flux.DecoderPrefix.forward

    def counted_forward(self, x):
        calls.append(1)
        return forward(self, x)

    monkeypatch.setattr(flux.DecoderPrefix, "forward", counted_forward)
    spotedit.enable(pipe, preset="paper", reset_steps=(3, 5))
    pipe(**call_arguments())
    # One for the source, one for each judgement: after steps 0, 1, 3, 5 and 6. Steps 2 and 4
    # precede a full step, and step 7 is the last, so nothing is judged after them.
    assert len(calls) == 1 + 5


def test_judge_every_judges_less_often(pipe):
    judgements = []

    def judge(y, grid, features, impl):
        def score(x0):
            judgements.append(1)
            return torch.ones(1, NUM_TOKENS)

        return score

    handle = spotedit.enable(
        pipe, judge=judge, threshold=0.5, initial_steps=1, reset_steps=(6,), judge_every=3
    )
    pipe(**call_arguments(num_inference_steps=10))
    # After steps 0 and 3, and after the reset in step 6. Step 9 is the last.
    assert len(judgements) == 3
    assert set(active_counts(handle.report)) == {NUM_TOKENS}


def test_the_auto_threshold_splits_the_scores_into_two_groups(pipe):
    scores = torch.linspace(0.0, 0.01, NUM_TOKENS)[None]
    high = torch.arange(NUM_TOKENS) % 9 == 4
    judge = judge_with_fixed_scores(scores + 0.1 * high)
    handle = spotedit.enable(pipe, judge=judge, threshold="auto", dilation=0)
    pipe(**call_arguments())
    spot_steps = [step for step in handle.report.steps if step["kind"] == "spot"]
    assert {step["active"] for step in spot_steps} == {int(high.sum())} == {5}
    assert handle.report.threshold == "auto"


def test_the_auto_threshold_reuses_nothing_if_the_scores_are_one_group(pipe):
    judge = judge_with_fixed_scores(torch.linspace(0.0, 1.0, NUM_TOKENS)[None])
    handle = spotedit.enable(pipe, judge=judge, threshold="auto", dilation=0)
    pipe(**call_arguments())
    assert handle.report.mean_ratio == 1


# -- latents and features


def test_decoder_prefix_computes_the_decoders_first_feature_maps(pipe):
    vae, latents = pipe.vae, torch.randn(1, LATENT_CHANNELS, *GRID)
    features = flux.DecoderPrefix(vae, latents)(latents)
    expected = []

    def record_output(module, args, output):
        expected.append(output)

    for layer in (vae.decoder.conv_in, vae.decoder.mid_block, vae.decoder.up_blocks[0]):
        layer.register_forward_hook(record_output)
    vae.decode(latents)
    assert len(features) == 3
    for ours, decoders in zip(features, expected, strict=True):
        assert torch.equal(ours, decoders)


def test_unpack_inverts_the_pipelines_packing(pipe):
    batch, height, width = 2, 6, 8  # of the latents; a token is 2 x 2 of them
    latents = torch.randn(batch, LATENT_CHANNELS, height, width)
    tokens = pipe._pack_latents(latents, batch, LATENT_CHANNELS, height, width)
    decoder_input = flux.vae_input(pipe, tokens, (height // 2, width // 2))(tokens)
    config = pipe.vae.config
    unpacked = (decoder_input - config.shift_factor) * config.scaling_factor
    assert torch.allclose(unpacked, latents, atol=1e-6)


# -- batches, sizes and outputs


def test_each_image_of_a_batch_has_a_region_of_its_own(pipe):
    masks = torch.zeros(2, HEIGHT, WIDTH)
    masks[0, :16, :16] = 1  # 2 x 2 tokens
    masks[1, 32:, 40:] = 1  # 2 x 3 tokens
    source = condition_tokens(pipe, call_arguments(batch=2))
    handle = spotedit.enable(pipe)
    handle.set_mask(masks, mode="replace")
    latents = pipe(**call_arguments(batch=2)).images
    region = handle.report._record.region
    assert region.sum(1).tolist() == [4, 6]
    assert torch.equal(latents[~region], source[~region])
    assert [image.steps[1]["active"] for image in handle.report.images] == [4, 6]
    assert handle.report.images[1].region.sum() == 6


def test_an_edit_in_a_batch_equals_the_same_edit_alone(pipe):
    handle = spotedit.enable(pipe, judge="l2")
    handle.set_mask(CORNER, mode="replace")
    arguments = call_arguments(batch=2, latents=torch.ones(2, NUM_TOKENS, TOKEN_CHANNELS))
    second = {
        name: value[1:] if torch.is_tensor(value) else value for name, value in arguments.items()
    }
    together = pipe(**arguments).images
    alone = pipe(**second).images
    assert torch.allclose(alone, together[1:], atol=1e-4)


@pytest.mark.parametrize("shape", [(90, 80), (37, 191), (512, 512)])
def test_match_size_gives_the_output_the_sources_grid_at_any_aspect_ratio(pipe, shape):
    height, width = shape
    handle = spotedit.enable(pipe, judge="l2", threshold=1e9)
    pipe(**call_arguments(num_inference_steps=2, image=PIL.Image.new("RGB", (width, height))))
    assert handle.report.reason is None
    assert handle.report.mean_ratio < 1


@pytest.mark.parametrize("shape", [(1600, 1200), (600, 1100)])
def test_match_size_takes_kontexts_preferred_size_for_a_large_picture(pipe, shape):
    """These sizes are about a megapixel, too many to run here."""
    height, width = shape
    picture = PIL.Image.new("RGB", (width, height))
    size = flux.matched_size(pipe, call_arguments(image=picture, _auto_resize=True), "auto")
    assert size["max_area"] == size["width"] * size["height"]
    distortion = size["width"] / size["height"] / (width / height)
    assert 0.8 < distortion < 1.25


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_every_output_type_has_its_usual_shape(pipe, output_type):
    spotedit.enable(pipe).set_mask(CORNER, mode="replace")
    arguments = {"batch": 2, "output_type": output_type}
    images = pipe(**call_arguments(**arguments)).images
    shapes = {
        "pil": (WIDTH, HEIGHT),
        "np": (HEIGHT, WIDTH, 3),
        "pt": (3, HEIGHT, WIDTH),
        "latent": (NUM_TOKENS, TOKEN_CHANNELS),
    }
    first, second = images
    shape = first.size if output_type == "pil" else tuple(first.shape)
    assert shape == shapes[output_type]
    (images_in_tuple,) = pipe(**call_arguments(**arguments, return_dict=False))
    assert np.array_equal(np.asarray(images_in_tuple[1]), np.asarray(second))


def test_each_image_of_a_prompt_follows_its_own_generator(pipe):
    spotedit.enable(pipe).set_mask(CORNER, mode="replace")
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = pipe(**call_arguments(num_images_per_prompt=2, generator=generators)).images
    second_alone = pipe(**call_arguments(generator=torch.Generator().manual_seed(2))).images
    assert torch.allclose(images[1:], second_alone, atol=1e-4)
    assert not torch.allclose(images[0], images[1])


def test_the_source_may_be_given_as_latents(pipe):
    arguments = call_arguments()
    with torch.no_grad():
        latents = pipe.vae.encode(2 * arguments["image"] - 1).latent_dist.mode()
    config = pipe.vae.config
    latents = (latents - config.shift_factor) * config.scaling_factor
    handle = spotedit.enable(pipe)
    handle.set_mask(CORNER, mode="replace")
    from_pixels = pipe(**arguments).images
    from_latents = pipe(**call_arguments(image=latents)).images
    assert torch.allclose(from_pixels, from_latents, atol=1e-4)
    assert handle.report.reason is None


# -- synchronisation with the device


@pytest.mark.parametrize("judge", ["perceptual", "l2"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_spot_step_synchronises_with_the_device_at_most_once(pipe, judge, batch):
    counts = []

    def record_count(pipe, step, timestep, tensors):
        counts.append(mode.count)
        return {}

    handle = spotedit.enable(pipe, judge=judge, dilation=1)
    with CountSynchronisations() as mode:
        pipe(**call_arguments(batch=batch, callback_on_step_end=record_count))
    in_spot_steps = [
        after - before
        for (before, after), step in zip(
            itertools.pairwise(counts), handle.report.steps[1:], strict=True
        )
        if step["kind"] == "spot"
    ]
    assert len(in_spot_steps) == 5
    assert max(in_spot_steps) <= 1


def test_the_counter_sees_a_synchronisation():
    with CountSynchronisations() as mode:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert mode.count == 2
