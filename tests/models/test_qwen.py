"""What is special about Qwen-Image-Edit: prompt masks, several images, a 3-D decoder, rescaling."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageEditInpaintPipeline,
    QwenImageEditPlusPipeline,
)
from families.qwen import GUIDED, call, inpainting, picture, random_qwen
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import spotedit
from spotedit.models import flux, qwen

GRID = (6, 8)
EVERYTHING = torch.ones(GRID)
HALF = (torch.arange(8) < 4).float().expand(GRID)
RIGHT = (HALF == 0).flatten()


def relative(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def watch_inputs(pipe, inputs):
    """Append the transformer's hidden states to `inputs`. Returns the hook."""
    return pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.append(kwargs["hidden_states"]), with_kwargs=True
    )


def test_features_are_those_of_the_decoder():
    pipe = random_qwen()
    before = {name: p.data_ptr() for name, p in pipe.vae.named_parameters()}
    latents = torch.randn(2, 4, 1, 12, 16)
    tokens = pipe._pack_latents(latents, 2, 4, *latents.shape[3:])
    maps = qwen.EDIT.features(pipe, tokens, GRID)(tokens)
    assert {name: p.data_ptr() for name, p in pipe.vae.named_parameters()} == before
    config, decoder, expected = pipe.vae.config, pipe.vae.decoder, []
    for layer in (decoder.conv_in, decoder.mid_block, decoder.up_blocks[0]):
        layer.register_forward_hook(lambda module, args, output: expected.append(output[:, :, 0]))
    mean, std = (
        torch.tensor(v).view(1, 4, 1, 1, 1) for v in (config.latents_mean, config.latents_std)
    )
    with torch.no_grad():
        pipe.vae.decode(latents * std + mean)
    assert decoder.up_blocks[0].upsamplers[0].mode == "upsample3d"  # as in the checkpoints
    assert [m.shape for m in maps] == [m.shape for m in expected]
    assert all(relative(ours, theirs) <= 1e-5 for ours, theirs in zip(maps, expected, strict=True))


def test_one_frame_saves_half_of_the_judges_operations():
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage()
        latents = torch.empty(1, 16, 128, 128)
    tflop = []
    for prefix, frame in (
        (flux.DecoderPrefix(vae, latents), latents[:, :, None]),
        (qwen.FramePrefix(vae, latents), latents),
    ):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            prefix(frame)
        tflop.append(round(counter.get_total_flops() / 1e12, 2))
    assert tflop == [1.83, 0.96]


def test_the_judge_scores_every_token():
    pipe = random_qwen()
    handle = spotedit.enable(pipe, threshold=1e9)
    pipe(**call(batch=2))
    scores = handle.report.scores
    assert scores.shape == (2, *GRID)
    assert 0 < scores.min() < scores.max() < 1e9
    assert handle.report.mean_ratio < 1


def test_all_tokens_active_equals_stock_in_bfloat16():
    def half(**extra):
        given = call(**extra)
        return given | {k: given[k].bfloat16() for k in given if k.endswith("prompt_embeds")}

    pipe = random_qwen(zero_cond_t=True)
    exact = pipe(**call(**GUIDED)).images
    pipe.to(torch.bfloat16)
    dense = pipe(**half(**GUIDED)).images
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(EVERYTHING, mode="replace")
    assert relative(pipe(**half(**GUIDED)).images, exact) <= 2 * relative(dense, exact)


def test_fused_projections():
    pipe = random_qwen()
    dense = pipe(**call()).images
    for block in pipe.transformer.transformer_blocks:
        block.attn.fuse_projections()
        # every step is a kept full step or a spot step, and neither uses these layers
        del block.attn.to_q, block.attn.add_q_proj
    handle = spotedit.enable(pipe, condition_cache=False, initial_steps=1, reset_steps=(4,))
    handle.set_mask(EVERYTHING, mode="replace")
    assert relative(pipe(**call()).images, dense) <= 1e-4


@pytest.mark.parametrize("index", [[3, 9, -1], [[3, 9, -1], [10, 0, 1]]], ids=["[M]", "[B, M]"])
@pytest.mark.parametrize("images", [1, 2])
def test_modulate_index_is_cut_to_the_indexed_rows(index, images):
    """The pipeline gives one row of `modulate_index` for all images of a prompt."""
    modulate_index = (torch.arange(12) >= 8).int().expand(images, -1)
    arguments = {"modulate_index": modulate_index}
    rows = qwen.narrow_block(arguments, torch.tensor(index))["modulate_index"]
    expected = [[0, 1, 0]] if index[0] == 3 else [[0, 1, 0], [1, 0, 0]]
    assert torch.equal(rows, torch.tensor(expected).int().expand(max(images, len(expected)), -1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_guidance_of_a_token_that_already_equals_the_source(dtype):
    """Its velocity is 0 in both branches, and guidance divides one norm by the other."""
    pipe = random_qwen().to(dtype)
    given = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in GUIDED.items() if k[0] == "n"
    }
    given = call(true_cfg_scale=2.5, **given)
    given["prompt_embeds"] = given["prompt_embeds"].to(dtype)
    hook = watch_inputs(pipe, inputs := [])

    def to_the_source(pipe, step, timestep, tensors):
        return {"latents": inputs[0][:, 48:].clone()} if step < 6 else {}

    handle = spotedit.enable(pipe, initial_steps=1, reset_steps=(4,))
    handle.set_mask(HALF, mode="replace")
    result = pipe(**given, callback_on_step_end=to_the_source).images
    hook.remove()
    assert result.isfinite().all()
    assert torch.equal(result[:, RIGHT], inputs[0][:, 48:][:, RIGHT])
    assert all(x[:, :24].isfinite().all() for x in inputs)


SQUARE, WIDE = (7, 7), (6, 8)  # tokens


@pytest.mark.parametrize(("reference", "source"), [("auto", 1), (0, 0), (1, 1)])
@pytest.mark.parametrize("grids", [(SQUARE, WIDE), (WIDE, WIDE)], ids=["two sizes", "one size"])
@pytest.mark.parametrize("zero_cond_t", [False, True], ids=["2509", "2511"])
def test_two_images(reference, source, grids, zero_cond_t):
    pipe = random_qwen(cls=QwenImageEditPlusPipeline, zero_cond_t=zero_cond_t)
    generator = torch.Generator().manual_seed(5)
    sizes = [(rows * 16, cols * 16) for rows, cols in grids]  # larger than the output
    images = {"image": [picture(generator, size) for size in sizes]}
    height, width = (side // 2 for side in sizes[source])
    dense = pipe(**call(height=height, width=width, **images, **GUIDED)).images
    handle = spotedit.enable(pipe, reference=reference, condition_cache=False)
    handle.set_mask(torch.ones(sizes[source]), mode="replace")
    assert relative(pipe(**call(**images, **GUIDED)).images, dense) <= 1e-4

    grid = grids[source]
    tokens = grid[0] * grid[1]
    hook = watch_inputs(pipe, inputs := [])
    handle = spotedit.enable(pipe, reference=reference)
    handle.set_mask(torch.eye(*grid), mode="replace")
    branches = []

    def watch(pipe, step, timestep, tensors):
        session = pipe.transformer._spotedit_run.func.__self__.session
        branches[:] = session.reuse.forwards.branches.values()
        return {}

    result = pipe(**call(**images, **GUIDED, callback_on_step_end=watch)).images
    hook.remove()
    start = tokens + (grids[0][0] * grids[0][1] if source else 0)
    reused = torch.eye(*grid).flatten() == 0
    assert torch.equal(result[:, reused], inputs[0][:, start : start + tokens][:, reused])

    # the condition keys for reused tokens are the source's, at the noise tokens' positions
    shapes = [[(1, *sides) for sides in (grid, *grids)]]
    turns, _ = pipe.transformer.pos_embed(shapes, max_txt_seq_len=1, device=torch.device("cpu"))
    assert len(branches) == 2
    for branch in branches:
        for layer in branch.caches.values():
            k = layer.k.data[:, branch.layout.num_prompt :][:, start : start + tokens]
            plain = torch.view_as_complex(k.unflatten(-1, (-1, 2))) / turns[start:, None][:tokens]
            moved = torch.view_as_real(plain * turns[:tokens, None]).flatten(-2)
            assert relative(layer.blend_inputs.k_ref.data[:, :tokens], moved) <= 1e-5


def left_mask():
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 32, 48))
    return mask


def test_inpainting_with_a_mask():
    pipe = random_qwen(cls=QwenImageEditInpaintPipeline)
    given = {"mask_image": left_mask(), **GUIDED}
    dense = pipe(**inpainting(**given)).images
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(EVERYTHING, mode="replace")
    assert relative(pipe(**inpainting(**given)).images, dense) <= 1e-4
    handle = spotedit.enable(pipe)
    handle.set_mask(left_mask(), mode="replace")
    spot = pipe(**inpainting(**given)).images
    assert handle.report.mean_ratio == 0.5
    assert torch.equal(spot[:, RIGHT], dense[:, RIGHT])
    assert not torch.equal(spot[:, ~RIGHT], dense[:, ~RIGHT])


def test_inpainting_starts_late_with_less_strength():
    pipe = random_qwen(cls=QwenImageEditInpaintPipeline)
    given = {"mask_image": left_mask(), "strength": 0.6, "num_inference_steps": 12}
    dense = pipe(**inpainting(**given)).images
    handle = spotedit.enable(pipe, condition_cache=False, initial_steps=2, reset_steps=())
    handle.set_mask(EVERYTHING, mode="replace")
    assert relative(pipe(**inpainting(**given)).images, dense) <= 1e-4
    sigmas = [step["sigma"] for step in handle.report.steps]
    assert sigmas == pipe.scheduler.sigmas[-len(sigmas) - 1 : -1].tolist()
    assert len(sigmas) == 8


def test_inpainting_a_crop():
    """The token grid covers the part of the picture around the pipeline's mask."""
    pipe = random_qwen(cls=QwenImageEditInpaintPipeline)
    image = picture(torch.Generator().manual_seed(2), (96, 128))
    given = {"image": image, "mask_image": left_mask(), "padding_mask_crop": 8}
    given["output_type"] = "pil"
    dense = np.asarray(pipe(**inpainting(**given)).images[0]).astype(int)
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(EVERYTHING, mode="replace")
    assert abs(np.asarray(pipe(**inpainting(**given)).images[0]) - dense).max() <= 1
    handle.set_mask(left_mask().resize(image.size))
    with pytest.raises(ValueError, match="96"):
        pipe(**inpainting(**given))
