"""Identity and inverse hold for every supported pipeline."""

import functools

import pytest
import torch
from families import FAMILIES, MARKS
from spotedit_kernels.impl import HAS_TRITON

import spotedit
from spotedit.engine.session import Session

PLAIN_AND_GUIDED = [(name, guided) for name in FAMILIES for guided in (False, True)]
PLAIN_AND_GUIDED = [
    pytest.param(name, guided, id=f"{name}{'-CFG' * guided}")
    for name, guided in PLAIN_AND_GUIDED
    if FAMILIES[name].guided or not guided
]
every_family = pytest.mark.parametrize("name", FAMILIES)


def relative(a, b):
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def whole(family):
    """Return a mask of all tokens."""
    return torch.ones(family.grid)


def half(family):
    """Return a mask of the left half of the tokens."""
    mask = torch.zeros(family.grid)
    mask[:, : family.grid[1] // 2] = 1
    return mask


def kinds(handle):
    return [step["kind"] for step in handle.report.steps]


def test_every_supported_pipeline_is_tested():
    ours = {"TinyKontextPipeline", "TinyQwenPipeline"}  # other files test these
    assert set(spotedit.supported_pipelines()) - ours == {
        name.partition(" ")[0] for name in FAMILIES
    }


@pytest.mark.parametrize(("name", "guided"), PLAIN_AND_GUIDED)
def test_all_tokens_active_equals_stock(name, guided):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    extra = family.guided if guided else {}
    dense = pipe(**family.arguments(**{**family.stock, **extra})).images
    handle = spotedit.enable(pipe, condition_cache=False)
    handle.set_mask(whole(family), mode="replace")
    spot = pipe(**family.arguments(**extra)).images
    assert kinds(handle).count("spot") >= 4
    assert relative(spot, dense) <= 1e-4
    handle.disable()
    assert torch.equal(pipe(**family.arguments(**{**family.stock, **extra})).images, dense)


# modular pipelines have the specs of the others
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=MARKS[n]) for n in FAMILIES if "Modular" not in n]
)
@pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
def test_the_triton_kernels_equal_the_references(name):
    """On a CPU, the kernels run in Triton's interpreter."""
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    pictures = []
    for impl in ("reference", "triton"):
        handle = spotedit.enable(pipe, impl=impl, reset_every=3)
        handle.set_mask(half(family), mode="replace")
        pictures.append(pipe(**family.arguments(num_inference_steps=5)).images)
        assert handle.report.mean_ratio == pytest.approx(half(family).mean().item())
    assert relative(pictures[1], pictures[0]) <= 1e-4


@every_family
def test_one_forward_with_unchanged_tokens_equals_the_full_one(name):
    """With the same input and weight 1, a spot forward repeats the full one on its rows."""
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    outputs, latents = [], []
    handle = spotedit.enable(pipe, fusion=lambda sigma: 1.0, initial_steps=1, reset_steps=())
    handle.set_mask(half(family), mode="replace")
    inner, step = pipe.transformer.forward, pipe.scheduler.step

    @functools.wraps(inner)
    def forward(**kwargs):
        if outputs:  # take the time of the first forward, so that nothing but the rows differs
            kwargs["timestep"] = times[0]
        times.append(kwargs["timestep"])
        outputs.append(inner(**kwargs))
        return outputs[-1]

    def stay(output, timestep, sample, **kwargs):
        step(output, timestep, sample, **kwargs)
        latents.append(sample)
        return (latents[0],)

    times = []
    pipe.transformer.forward, pipe.scheduler.step = forward, stay
    pipe(**family.arguments(num_inference_steps=2))
    num_branches = len(outputs) // 2
    full, spot = outputs[0][0], outputs[num_branches][0]  # the first branch of both steps
    active = torch.from_numpy(handle.report.region).flatten()
    assert spot.shape[1] == active.sum() < full.shape[1]
    full = full[:, : active.numel()][:, active]
    assert (spot - full).abs().max() <= 1e-5 * full.abs().max()


@every_family
def test_reused_tokens_end_at_the_source(name, monkeypatch):
    """Their velocity leads there within rounding. The last step makes them equal bit for bit."""
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    steps, results, sources = [], [], []
    pipe.scheduler.step = watched(pipe.scheduler.step, steps)
    monkeypatch.setattr(Session, "scheduler_step", watched(Session.scheduler_step, results))
    handle = spotedit.enable(pipe)
    handle.set_mask(half(family), mode="replace")
    pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: sources.append(kwargs["hidden_states"]), with_kwargs=True
    )
    pipe(**family.arguments())
    reused = ~torch.from_numpy(handle.report.region).flatten()
    num_tokens = reused.numel()
    source = sources[0][:, num_tokens : 2 * num_tokens]
    assert torch.isfinite(results[-1]).all()
    assert relative(steps[-1][:, reused], source[:, reused]) <= 1e-5
    assert torch.equal(results[-1][:, reused], source[:, reused])


def watched(step, results):
    """Wrap a scheduler's `step` so that it appends its latents to `results`."""

    def wrapper(*args, **kwargs):
        result = step(*args, **kwargs)
        results.append(result[0] if isinstance(result, tuple) else result.prev_sample)
        return result

    return wrapper


@every_family
def test_after_an_exception_the_next_call_is_right(name):
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    dense = pipe(**family.arguments(**family.stock)).images
    handle = spotedit.enable(pipe)
    handle.set_mask(half(family), mode="replace")
    good = pipe(**family.arguments()).images
    steps = []

    def stop(*args):
        steps.append(1)
        if len(steps) == 4:
            raise KeyboardInterrupt

    hook = pipe.transformer.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        pipe(**family.arguments())
    hook.remove()
    assert torch.equal(pipe(**family.arguments()).images, good)
    handle.disable()
    assert torch.equal(pipe(**family.arguments(**family.stock)).images, dense)


def is_per_image(value):
    return isinstance(value, torch.Tensor | list) and len(value) == 2


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].batches])
def test_every_image_of_a_batch_is_edited_as_if_alone(name):
    """The images have active sets of different sizes."""
    family, pipe = FAMILIES[name], FAMILIES[name].make(0)
    both = family.arguments(batch=2)
    masks = torch.stack([half(family), torch.zeros(family.grid)])
    masks[1, 1, :2] = 1
    handle = spotedit.enable(pipe, reset_every=3)
    handle.set_mask(masks, mode="replace")
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    together = pipe(**both | {"generator": seeds}).images
    for i in range(2):
        alone = {
            key: value[i : i + 1] if is_per_image(value) else value for key, value in both.items()
        }
        handle.set_mask(masks[i : i + 1], mode="replace")
        single = pipe(**alone | {"generator": torch.Generator().manual_seed(i + 1)}).images
        assert relative(single, together[i : i + 1]) <= 1e-4
