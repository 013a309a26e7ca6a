"""The spot path equals what it stands for: the stock pipeline, and the method written naively."""

import itertools

import pytest
import torch
from naive import naive_edit
from small_kontext import call_arguments, random_kontext
from spotedit_kernels.impl import HAS_TRITON

import spotedit
from spotedit.engine.fusion import weights

EVERYTHING = torch.ones(48, 64)
HALF = torch.arange(64).expand(48, 64) < 32
CFG = {
    "true_cfg_scale": 2.5,
    "negative_prompt_embeds": torch.ones(1, 5, 12),
    "negative_pooled_prompt_embeds": torch.ones(1, 10),
}


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def stock_size(**extra) -> dict:
    return {"height": 48, "width": 64, "max_area": 48 * 64, **extra}


@pytest.mark.parametrize(
    "extra", [{}, CFG, {"num_inference_steps": 28}], ids=["8 steps", "CFG", "28 steps"]
)
def test_all_tokens_active_equals_stock(pipe, extra):
    dense = pipe(**call_arguments(**stock_size(), **extra)).images
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(EVERYTHING, mode="replace")
    spot = pipe(**call_arguments(**extra)).images
    assert [s["kind"] for s in handle.report.steps].count("spot") >= 4
    assert relative(spot, dense) <= 1e-4


@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_triton_kernels_equal_stock_and_the_references(pipe):
    """On a CPU the kernels run in Triton's interpreter."""
    steps = {"num_inference_steps": 5}  # full, spot, spot, full, spot
    dense = pipe(**call_arguments(**stock_size(**steps))).images
    handle = spotedit.enable(pipe, condition_cache=False, impl="triton")
    handle.set_mask(EVERYTHING, mode="replace")
    assert relative(pipe(**call_arguments(**steps)).images, dense) <= 1e-4
    pictures = []
    for impl in ("reference", "triton"):
        handle = spotedit.enable(pipe, impl=impl, reset_every=3)
        handle.set_mask(HALF)
        pictures.append(pipe(**call_arguments(**steps)).images)
        assert 0 < handle.report.mean_ratio < 1
    assert relative(pictures[1], pictures[0]) <= 1e-4
    handle.disable()
    assert torch.equal(pipe(**call_arguments(**stock_size(**steps))).images, dense)


def test_all_tokens_active_equals_stock_in_bfloat16():
    pipe = random_kontext(guidance_embeds=True)
    exact = pipe(**call_arguments(**stock_size())).images
    pipe.to(torch.bfloat16)
    half = {
        k: v.bfloat16() if torch.is_tensor(v) and k != "image" else v
        for k, v in call_arguments().items()
    }
    dense = pipe(**{**half, **stock_size(), "generator": torch.Generator().manual_seed(1)}).images
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(EVERYTHING, mode="replace")
    spot = pipe(**{**half, "generator": torch.Generator().manual_seed(1)}).images
    assert relative(spot.float(), exact) <= 2 * relative(dense.float(), exact)


def test_one_forward_with_unchanged_tokens_equals_the_full_one(pipe):
    """Same latents twice: a spot forward with weight 1 repeats the full one on its rows."""
    outputs = []
    pipe.transformer.register_forward_hook(
        lambda m, a, kw, out: outputs.append(out[0]), with_kwargs=True
    )

    def keep_latents(pipe, step, timestep, tensors):
        return {"latents": latents.clone()}

    start = pipe.prepare_latents(
        None, 1, 4, 48, 64, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(3)
    )
    latents = start[0]
    mask = torch.zeros(48, 64)
    mask[8:24, 16:48] = 1
    handle = spotedit.enable(pipe, fusion=lambda sigma: 1.0, initial_steps=1, reset_steps=())
    handle.set_mask(mask, mode="replace")
    # two steps at nearly the same sigma, so that the transformer's input does not change
    pipe(
        **call_arguments(
            latents=latents,
            sigmas=[1.0, 1.0 - 1e-7],
            num_inference_steps=2,
            callback_on_step_end=keep_latents,
        )
    )
    full, spot = outputs[0][:, :48], outputs[1]
    active = handle.report._record.region[0]
    assert spot.shape[1] == active.sum() == 8
    assert (spot - full[:, active]).abs().max() <= 1e-5 * full.abs().max()


@pytest.fixture
def shrinking_judge():
    """Judges ever fewer tokens active, scattered; starts again at every sixth judgement."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(5))

    def judge(y, grid, features, impl):
        counts = itertools.cycle([30, 29, 20, 20, 7])
        return lambda x0: (order < next(counts)).float().expand(len(x0), -1)

    return judge


@pytest.mark.parametrize("fusion", ["cosine", lambda sigma: 1.0, lambda sigma: 0.3])
@pytest.mark.parametrize("extra", [{}, CFG], ids=["", "CFG"])
def test_a_whole_edit_equals_the_naive_one(pipe, shrinking_judge, fusion, extra):
    calls, actives = [], []
    pipe.transformer.register_forward_pre_hook(lambda m, a, kw: calls.append(kw), with_kwargs=True)
    handle = spotedit.enable(
        pipe,
        preset="paper",
        judge=shrinking_judge,
        threshold=0.5,
        fusion=fusion,
        initial_steps=2,
        reset_steps=(7,),
    )

    def watch(pipe, step, timestep, tensors):
        session = pipe.transformer._spotedit_run.func.__self__.session
        selection = session.reuse.judging.selection
        actives.append(None if selection is None else selection.active_mask[0].clone())
        return {}

    given = call_arguments(num_inference_steps=12, callback_on_step_end=watch, **extra)
    spot = pipe(**given).images
    kinds = [s["kind"] for s in handle.report.steps]
    sigmas = [s["sigma"] for s in handle.report.steps] + [0.0]
    spotedit.disable(pipe)
    assert [s["active"] for s in handle.report.steps] == [
        48,
        48,
        30,
        29,
        20,
        20,
        7,
        48,
        30,
        29,
        20,
        20,
    ]

    first = calls[0]
    naive = naive_edit(
        pipe,
        {
            **given,
            "latents": first["hidden_states"][:, :48],
            "y": first["hidden_states"][:, 48:],
            "img_ids": first["img_ids"],
            "sigmas": sigmas,
        },
        kinds,
        [None, *actives[:-1]],
        weights(fusion, sigmas[:-1]),
    )
    assert relative(spot, naive) <= 1e-4


def test_disabled_is_bit_equal(pipe):
    given = stock_size()
    before = pipe(**call_arguments(**given)).images
    with spotedit.enable(pipe):
        pipe(**call_arguments())
    assert torch.equal(pipe(**call_arguments(**given)).images, before)


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
        ({"image": None, "height": 48, "width": 64, "max_area": 48 * 64}, {}, "no condition image"),
    ],
)
def test_where_the_method_does_not_apply_the_call_is_stock_and_says_why(
    pipe, extra, options, reason
):
    size = {} if "height" in extra else stock_size()
    dense = pipe(**call_arguments(**{**size, **extra})).images
    handle = spotedit.enable(pipe, **options)
    assert torch.equal(pipe(**call_arguments(**extra)).images, dense)
    assert reason in handle.report.reason
    assert {s["kind"] for s in handle.report.steps} == {"dense"}
