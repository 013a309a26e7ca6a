"""What the method promises about a call's steps and tokens."""

import itertools

import numpy as np
import PIL.Image
import pytest
import torch
from small_kontext import call_arguments
from torch.utils._python_dispatch import TorchDispatchMode

import spotedit
from spotedit.engine.schedule import VERIFY_SIGMA
from spotedit.models import flux

CORNER = torch.zeros(48, 64)
CORNER[8:24, 16:40] = 1  # 2 x 3 tokens


def packed_source(pipe, arguments) -> torch.Tensor:
    """The condition tokens as the pipeline makes them."""
    seen = []
    hook = pipe.transformer.register_forward_pre_hook(
        lambda m, a, kw: seen.append(kw["hidden_states"]), with_kwargs=True
    )
    pipe(**{**arguments, "num_inference_steps": 1, "height": 48, "width": 64, "max_area": 48 * 64})
    hook.remove()
    return seen[0][:, 48:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reused_tokens_end_exactly_at_the_source(pipe, dtype):
    pipe.to(dtype)
    given = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in call_arguments().items()}
    y = packed_source(pipe, given)
    handle = spotedit.enable(pipe)
    handle.set_mask(CORNER, mode="replace")
    latents = pipe(**{**given, "generator": torch.Generator().manual_seed(1)}).images
    reused = ~handle.report._record.region[0]
    assert reused.sum() == 42
    assert torch.equal(latents[:, reused], y[:, reused])
    assert not torch.equal(latents[:, ~reused], y[:, ~reused])


def test_reused_tokens_move_on_the_straight_line(pipe):
    """A reused token is (1 - sigma) y + sigma noise after every spot step."""
    trace = []

    def keep(pipe, step, timestep, tensors):
        trace.append(tensors["latents"].clone())
        return {}

    given = call_arguments(num_inference_steps=14, callback_on_step_end=keep)
    y = packed_source(pipe, call_arguments())
    handle = spotedit.enable(pipe, reset_steps=())
    handle.set_mask(CORNER, mode="replace")
    pipe(**given)
    reused = ~handle.report._record.region[0]
    sigmas = [s["sigma"] for s in handle.report.steps] + [0.0]
    x1 = (trace[0] - (1 - sigmas[1]) * y) / sigmas[1]
    for sigma, latents in zip(sigmas[1:], trace, strict=True):
        assert torch.allclose(
            latents[:, reused], ((1 - sigma) * y + sigma * x1)[:, reused], atol=1e-5
        )


def test_only_active_rows_are_computed(pipe):
    rows = []
    pipe.transformer.proj_out.register_forward_hook(lambda m, a, out: rows.append(out.shape[1]))
    handle = spotedit.enable(pipe)
    handle.set_mask(CORNER, mode="replace")
    pipe(**call_arguments())
    assert rows == [96, 6, 6, 96, 6, 96, 6, 6]
    assert handle.report.steps[1]["active"] == 6
    handle.set_mask(None)
    spotedit.enable(pipe, condition_cache=False).set_mask(CORNER, mode="replace")
    rows.clear()
    pipe(**call_arguments())
    assert rows == [96, 54, 54, 96, 54, 96, 54, 54]


def test_no_active_token_at_all(pipe):
    y = packed_source(pipe, call_arguments())
    handle = spotedit.enable(pipe)
    handle.set_mask(torch.zeros(48, 64), mode="replace")
    assert torch.equal(pipe(**call_arguments()).images, y)
    assert handle.report.mean_ratio == 0


def test_a_reset_judges_every_token_afresh(pipe):
    def judge(y, grid, features, impl):
        counts = itertools.count(20, -1)  # one active token fewer each time, but for the rule
        return lambda x0: (torch.arange(48)[None] % next(counts) == 0).float()

    handle = spotedit.enable(
        pipe, preset="paper", judge=judge, threshold=0.5, initial_steps=1, reset_steps=(4,)
    )
    pipe(**call_arguments())
    # multiples of 20; of 20 and 19; of 20, 19 and 18; then of 17; ...
    assert [s["active"] for s in handle.report.steps] == [48, 3, 1, 1, 48, 3, 1, 1]


def test_a_last_check_finds_what_was_missed(pipe):
    def judge(y, grid, features, impl):
        judgements = itertools.count()
        return lambda x0: torch.full((1, 48), float(next(judgements) > 0))  # missed at first

    options = {"judge": judge, "threshold": 0.5, "judge_every": 9, "reset_steps": ()}
    handle = spotedit.enable(pipe, **options)
    pipe(**call_arguments())
    assert handle.report.unedited == 1
    handle = spotedit.enable(pipe, verify_last=True, **options)
    pipe(**call_arguments())
    checked = [step for step in handle.report.steps[1:] if step["kind"] == "full"]
    assert len(checked) == 1
    assert (
        checked[0]["sigma"] >= VERIFY_SIGMA > handle.report.steps[checked[0]["index"] + 1]["sigma"]
    )
    assert handle.report.steps[-1]["active"] == 48


def test_reference_features_are_computed_once_a_call(pipe, monkeypatch):
    calls = []
    forward = flux.DecoderPrefix.forward
    monkeypatch.setattr(
        flux.DecoderPrefix, "forward", lambda self, x: calls.append(1) or forward(self, x)
    )
    spotedit.enable(pipe, preset="paper", reset_steps=(3, 5))
    pipe(**call_arguments())
    # judged after steps 0, 1, 3, 5 and 6 (2 and 4 precede resets, 7 is the last), plus the source
    assert len(calls) == 6


def test_judging_less_often(pipe):
    judged = []

    def judge(y, grid, features, impl):
        return lambda x0: judged.append(1) or torch.ones(1, 48)

    handle = spotedit.enable(
        pipe, judge=judge, threshold=0.5, initial_steps=1, reset_steps=(6,), judge_every=3
    )
    pipe(**call_arguments(num_inference_steps=10))
    # after steps 0 and 3, after the reset at 6; 9 is the last step
    assert len(judged) == 3
    assert {s["active"] for s in handle.report.steps} == {48}


def test_a_threshold_of_each_judgements_own(pipe):
    scores = torch.linspace(0.0, 0.01, 48)[None]

    def judge(y, grid, features, impl):
        return lambda x0: scores + 0.1 * (torch.arange(48) % 9 == 4)

    handle = spotedit.enable(pipe, judge=judge, threshold="auto", dilation=0)
    pipe(**call_arguments())
    assert {s["active"] for s in handle.report.steps if s["kind"] == "spot"} == {5}
    assert handle.report.threshold == "auto"
    scores = torch.linspace(0.0, 1.0, 48)[None]  # no two groups: nothing is reused
    pipe(**call_arguments())
    assert handle.report.mean_ratio == 1


def test_decoder_prefix_matches_the_decoder(pipe):
    vae, latents = pipe.vae, torch.randn(1, 4, 6, 8)
    maps = flux.DecoderPrefix(vae, latents)(latents)
    expected = []
    for layer in (vae.decoder.conv_in, vae.decoder.mid_block, vae.decoder.up_blocks[0]):
        layer.register_forward_hook(lambda m, a, out: expected.append(out))
    vae.decode(latents)
    assert len(maps) == 3
    for ours, theirs in zip(maps, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_unpack_inverts_the_pipelines_packing(pipe):
    latents = torch.randn(2, 4, 6, 8)
    tokens = pipe._pack_latents(latents, 2, 4, 6, 8)
    unpacked = (
        flux.tokens_to_vae_input(pipe, tokens, (3, 4)) - pipe.vae.config.shift_factor
    ) * pipe.vae.config.scaling_factor
    assert torch.allclose(unpacked, latents, atol=1e-6)


def test_a_batch_keeps_its_rows_apart(pipe):
    masks = torch.zeros(2, 48, 64)
    masks[0, :16, :16] = 1
    masks[1, 32:, 40:] = 1
    given = call_arguments(batch=2)
    y = packed_source(pipe, call_arguments(batch=2))
    handle = spotedit.enable(pipe)
    handle.set_mask(masks, mode="replace")
    latents = pipe(**given).images
    region = handle.report._record.region
    assert region.sum(1).tolist() == [4, 6]
    assert torch.equal(latents[~region], y[~region])
    assert [image.steps[1]["active"] for image in handle.report.images] == [4, 6]
    assert handle.report.images[1].region.sum() == 6


def test_a_row_of_a_batch_equals_the_same_edit_alone_where_sets_agree(pipe):
    handle = spotedit.enable(pipe, judge="l2")
    handle.set_mask(CORNER, mode="replace")
    together = pipe(**call_arguments(batch=2, latents=torch.ones(2, 48, 16))).images
    one = call_arguments(batch=2)
    alone = {k: v[1:] if torch.is_tensor(v) else v for k, v in one.items()}
    assert torch.allclose(
        pipe(**{**alone, "latents": torch.ones(1, 48, 16)}).images, together[1:], atol=1e-4
    )


@pytest.mark.parametrize("shape", [(1600, 1200), (600, 1100), (90, 80), (37, 191), (512, 512)])
def test_match_size_gives_every_aspect_the_conditions_grid(pipe, shape):
    handle = spotedit.enable(pipe, judge="l2", threshold=1e9)
    arguments = call_arguments(num_inference_steps=2, image=PIL.Image.new("RGB", shape[::-1]))
    if max(shape) > 512:  # Kontext's preferred sizes are a megapixel: too large to run here
        size = flux.matched_size(pipe, {**arguments, "_auto_resize": True}, "auto")
        ratio = size["width"] / size["height"] / (shape[1] / shape[0])
        assert size["max_area"] == size["width"] * size["height"]
        assert 0.8 < ratio < 1.25
        return
    pipe(**arguments)
    assert handle.report.reason is None
    assert handle.report.mean_ratio < 1


class CountSynchronisations(TorchDispatchMode):
    NAMES = (
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::equal",
        "aten::is_nonzero",
        "aten::masked_select",
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name().split(".")[0] in self.NAMES
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("judge", ["perceptual", "l2"])
@pytest.mark.parametrize("batch", [1, 2])
def test_at_most_one_host_synchronisation_a_spot_step(pipe, judge, batch):
    counts = []

    def read(pipe, step, timestep, tensors):
        counts.append(mode.count)
        return {}

    handle = spotedit.enable(pipe, judge=judge, dilation=1)
    with CountSynchronisations() as mode:
        pipe(**call_arguments(batch=batch, callback_on_step_end=read))
    per_step = [b - a for a, b in itertools.pairwise(counts)]
    spot = [
        n
        for n, step in zip(per_step, handle.report.steps[1:], strict=True)
        if step["kind"] == "spot"
    ]
    assert len(spot) == 5
    assert max(spot) <= 1


def test_the_counter_sees_a_synchronisation():
    with CountSynchronisations() as mode:
        torch.ones(3).sum().item()
        torch.ones(3).nonzero()
    assert mode.count == 2


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_every_output_type(pipe, output_type):
    spotedit.enable(pipe).set_mask(CORNER, mode="replace")
    images = pipe(**call_arguments(batch=2, output_type=output_type)).images
    sizes = {"pil": (64, 48), "np": (48, 64, 3), "pt": (3, 48, 64), "latent": (48, 16)}
    first = images[0]
    assert len(images) == 2
    assert (first.size if output_type == "pil" else tuple(first.shape)) == sizes[output_type]
    in_tuple = pipe(**call_arguments(batch=2, output_type=output_type, return_dict=False))[0]
    assert np.array_equal(np.asarray(in_tuple[1]), np.asarray(images[1]))


def test_a_generator_for_each_image_and_several_images_a_prompt(pipe):
    spotedit.enable(pipe).set_mask(CORNER, mode="replace")
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    images = pipe(**call_arguments(num_images_per_prompt=2, generator=generators)).images
    second = pipe(**call_arguments(generator=torch.Generator().manual_seed(2))).images
    assert torch.allclose(images[1:], second, atol=1e-4)
    assert not torch.allclose(images[0], images[1])


def test_a_source_given_as_latents(pipe):
    given = call_arguments()
    with torch.no_grad():
        latents = pipe.vae.encode(2 * given["image"] - 1).latent_dist.mode()
    config = pipe.vae.config
    latents = (latents - config.shift_factor) * config.scaling_factor
    handle = spotedit.enable(pipe)
    handle.set_mask(CORNER, mode="replace")
    from_pixels = pipe(**given).images
    from_latents = pipe(**call_arguments(image=latents)).images
    assert torch.allclose(from_pixels, from_latents, atol=1e-4)
    assert handle.report.reason is None
