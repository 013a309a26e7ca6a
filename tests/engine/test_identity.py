"""The spot path equals the stock pipeline, and the method as naive.py writes it down."""

import itertools

import pytest
import torch
from compare import relative_error
from naive import naive_edit
from small_kontext import (
    CORNER,
    HEIGHT,
    NUM_CORNER_TOKENS,
    NUM_TOKENS,
    STOCK_SIZE,
    TOKEN_CHANNELS,
    WIDTH,
    call_arguments,
    enable_all_active,
    guidance,
    random_kontext,
)
from spotedit_kernels.impl import HAS_TRITON

import spotedit
from spotedit.engine.fusion import weights

LEFT_HALF = torch.arange(WIDTH).expand(HEIGHT, WIDTH) < WIDTH // 2
GUIDED = guidance(2.5)


def only_cached(sigma: float) -> float:
    """A fusion that gives reused tokens their cached keys and values, unblended."""
    return 1.0


def mostly_condition(sigma: float) -> float:
    return 0.3


def kinds_of(handle) -> list[str]:
    return [step["kind"] for step in handle.report.steps]


# -- the stock pipeline


@pytest.mark.parametrize(
    "extra", [{}, GUIDED, {"num_inference_steps": 28}], ids=["8 steps", "CFG", "28 steps"]
)
def test_all_tokens_active_equals_stock(pipe, extra):
    dense = pipe(**call_arguments(**STOCK_SIZE, **extra)).images
    handle = enable_all_active(pipe)
    spot = pipe(**call_arguments(**extra)).images
    assert kinds_of(handle).count("spot") >= 4
    assert relative_error(spot, dense) <= 1e-4


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_triton_kernels_equal_stock_and_the_references(pipe):
    """On a CPU the kernels run in Triton's interpreter."""
    steps = {"num_inference_steps": 5}  # full, spot, spot, full, spot
    dense = pipe(**call_arguments(**STOCK_SIZE, **steps)).images
    enable_all_active(pipe, impl="triton")
    assert relative_error(pipe(**call_arguments(**steps)).images, dense) <= 1e-4
    pictures = {}
    for impl in ("reference", "triton"):
        handle = spotedit.enable(pipe, impl=impl, reset_every=3)
        handle.set_mask(LEFT_HALF)
        pictures[impl] = pipe(**call_arguments(**steps)).images
        assert 0 < handle.report.mean_ratio < 1
    assert relative_error(pictures["triton"], pictures["reference"]) <= 1e-4
    handle.disable()
    assert torch.equal(pipe(**call_arguments(**STOCK_SIZE, **steps)).images, dense)


def test_all_tokens_active_equals_stock_in_bfloat16():
    """The spot path errs by at most twice what bfloat16 costs the stock pipeline."""

    def bfloat16_arguments(**extra):
        arguments = call_arguments(**extra)
        for name in ("prompt_embeds", "pooled_prompt_embeds"):
            arguments[name] = arguments[name].bfloat16()
        return arguments

    pipe = random_kontext(guidance_embeds=True)
    exact = pipe(**call_arguments(**STOCK_SIZE)).images
    pipe.to(torch.bfloat16)
    dense = pipe(**bfloat16_arguments(**STOCK_SIZE)).images
    enable_all_active(pipe)
    spot = pipe(**bfloat16_arguments()).images
    assert relative_error(spot.float(), exact) <= 2 * relative_error(dense.float(), exact)


def test_one_forward_with_unchanged_tokens_equals_the_full_one(pipe):
    """If the latents do not change, a spot forward repeats the rows of the full one before it."""
    noise = torch.randn(1, NUM_TOKENS, TOKEN_CHANNELS, generator=torch.Generator().manual_seed(3))
    outputs = []

    def record_output(module, args, output):
        outputs.append(output[0])

    def reset_latents(pipe, step, timestep, tensors):
        return {"latents": noise.clone()}

    pipe.transformer.register_forward_hook(record_output)
    handle = spotedit.enable(pipe, fusion=only_cached, initial_steps=1, reset_steps=())
    handle.set_mask(CORNER, mode="replace")
    pipe(
        **call_arguments(
            latents=noise,
            sigmas=[1.0, 1.0 - 1e-7],  # as near as makes no difference to the transformer
            num_inference_steps=2,
            callback_on_step_end=reset_latents,
        )
    )
    full, spot = outputs[0][:, :NUM_TOKENS], outputs[1]
    active = handle.report._record.region[0]
    assert spot.shape[1] == active.sum() == NUM_CORNER_TOKENS
    assert (spot - full[:, active]).abs().max() <= 1e-5 * full.abs().max()


# -- the naive method


SHRINKING = [30, 29, 20, 20, 7]  # active tokens after the judgements that follow a full step


@pytest.fixture
def shrinking_judge():
    """Make a judge that finds ever fewer of the tokens changed, scattered over the picture.

    At every sixth judgement it begins again.
    """
    order = torch.randperm(NUM_TOKENS, generator=torch.Generator().manual_seed(5))

    def judge(y, grid, features, impl):
        counts = itertools.cycle(SHRINKING)

        def score(x0):
            changed = order < next(counts)
            return changed.float().expand(len(x0), -1)

        return score

    return judge


@pytest.mark.parametrize("fusion", ["cosine", only_cached, mostly_condition])
@pytest.mark.parametrize("extra", [{}, GUIDED], ids=["", "CFG"])
def test_a_whole_edit_equals_the_naive_one(pipe, shrinking_judge, fusion, extra):
    inputs, active_after_step = [], []

    def record_input(module, args, kwargs):
        inputs.append(kwargs)

    def record_active_tokens(pipe, step, timestep, tensors):
        session = pipe.transformer._spotedit_run.func.__self__.session
        selection = session.reuse.judging.selection
        active_after_step.append(None if selection is None else selection.active_mask[0].clone())
        return {}

    pipe.transformer.register_forward_pre_hook(record_input, with_kwargs=True)
    handle = spotedit.enable(
        pipe,
        preset="paper",
        judge=shrinking_judge,
        threshold=0.5,
        fusion=fusion,
        initial_steps=2,
        reset_steps=(7,),
    )
    arguments = call_arguments(
        num_inference_steps=12, callback_on_step_end=record_active_tokens, **extra
    )
    spot = pipe(**arguments).images
    active_counts = [step["active"] for step in handle.report.steps]
    # Two initial steps, five spot steps, the reset, and four spot steps.
    assert active_counts == [NUM_TOKENS] * 2 + SHRINKING + [NUM_TOKENS] + SHRINKING[:4]
    sigmas = [step["sigma"] for step in handle.report.steps] + [0.0]
    spotedit.disable(pipe)

    image_tokens = inputs[0]["hidden_states"]
    naive = naive_edit(
        pipe,
        {
            **arguments,
            "latents": image_tokens[:, :NUM_TOKENS],
            "y": image_tokens[:, NUM_TOKENS:],
            "img_ids": inputs[0]["img_ids"],
            "sigmas": sigmas,
        },
        kinds_of(handle),
        [None, *active_after_step[:-1]],
        weights(fusion, sigmas[:-1]),
    )
    assert relative_error(spot, naive) <= 1e-4


# -- stock calls


def test_disabled_is_bit_equal(pipe):
    before = pipe(**call_arguments(**STOCK_SIZE)).images
    with spotedit.enable(pipe):
        pipe(**call_arguments())
    assert torch.equal(pipe(**call_arguments(**STOCK_SIZE)).images, before)


@pytest.mark.parametrize(
    ("extra", "options", "reason"),
    [
        (
            {"height": 64, "width": 64, "max_area": 64 * 64},
            {},
            "8 x 8, differs from the condition image's, 6 x 8",
        ),
        ({"num_inference_steps": 3}, {"initial_steps": 3}, "too few steps"),
        ({"num_inference_steps": 1}, {}, "too few steps"),
        ({"image": None, **STOCK_SIZE}, {}, "no condition image"),
    ],
)
def test_a_call_that_cannot_reuse_tokens_is_stock_and_says_why(pipe, extra, options, reason):
    dense = pipe(**call_arguments(**STOCK_SIZE | extra)).images
    handle = spotedit.enable(pipe, **options)
    assert torch.equal(pipe(**call_arguments(**extra)).images, dense)
    assert reason in handle.report.reason
    assert set(kinds_of(handle)) == {"dense"}
