"""Offloading before or after `enable` gives the same picture, and the judge moves no weights."""

import pytest
import torch
from accelerate.hooks import CpuOffload, attach_align_device_hook
from compare import relative_error
from diffusers.hooks.group_offloading import ModuleGroup
from families import FAMILIES
from families.offload import OFFLOAD, ONE_PER_VAE
from small_kontext import NUM_STEPS

import spotedit
from spotedit.models.copies import copy_without_hooks, weight_of

CPU = torch.device("cpu")


def each_way_to_offload(names):
    """Run a test with every way to offload each of these families."""
    return pytest.mark.parametrize(
        ("name", "how"),
        [
            pytest.param(
                name,
                how,
                id=f"{name}-{how}",
                marks=[] if name in ONE_PER_VAE else [pytest.mark.full],
            )
            for name in names
            for how in OFFLOAD
            # Modular pipelines have a ComponentsManager instead.
            if how != "model offload" or "Modular" not in name
        ],
    )


def threshold_in_widest_gap(scores):
    """Return a threshold between the middle half of the scores, as far from any as possible.

    Tiny differences of the scores then do not change which tokens are active.
    """
    ordered = torch.as_tensor(scores).flatten().sort().values
    quarter = ordered.numel() // 4
    below_gap = quarter + int(ordered[quarter:-quarter].diff().argmax())
    return float(ordered[below_gap : below_gap + 2].mean())


@each_way_to_offload(FAMILIES)
def test_offloading_before_or_after_enable_gives_the_same_picture(name, how):
    """The judge chooses the tokens. It computes features with weights that are offloaded."""
    family = FAMILIES[name]
    pipe = family.make(0)
    judge_once = {"preset": "paper", "judge_every": 9, "reset_steps": ()}
    handle = spotedit.enable(pipe, **judge_once)
    pipe(**family.arguments())
    options = judge_once | {"threshold": threshold_in_widest_gap(handle.report.scores)}
    handle = spotedit.enable(pipe, **options)
    expected = pipe(**family.arguments()).images
    assert 0 < handle.report.mean_ratio < 1
    for offloaded_first in (False, True):
        pipe = family.make(0)
        if offloaded_first:
            OFFLOAD[how](pipe)
        handle = spotedit.enable(pipe, **options)
        if not offloaded_first:
            OFFLOAD[how](pipe)
        images = pipe(**family.arguments()).images
        assert 0 < handle.report.mean_ratio < 1
        assert relative_error(images, expected) <= 1e-5


@each_way_to_offload(ONE_PER_VAE)
def test_the_judge_moves_no_component(name, how, monkeypatch):
    """Until the last step the VAE stays where it is, while the transformer moves every time."""
    family = FAMILIES[name]
    pipe = family.make(0)
    OFFLOAD[how](pipe)
    last_step = NUM_STEPS - 1
    num_moves = {"vae": 0, "transformer": 0}
    sampling = False  # whether the call is between its first and its last step

    def is_of_vae(group):
        registries = [getattr(m, "_diffusers_hook", None) for m in pipe.vae.modules()]
        hooks = [r.get_hook("group_offloading") for r in registries if r is not None]
        return any(hook is not None and hook.group is group for hook in hooks)

    def count_move(of_vae):
        if sampling:
            num_moves["vae" if of_vae else "transformer"] += 1

    onload, pre_forward = ModuleGroup.onload_, CpuOffload.pre_forward

    def counted_onload(group, *args, **kwargs):
        count_move(is_of_vae(group))
        return onload(group, *args, **kwargs)

    def counted_pre_forward(hook, module, *args, **kwargs):
        count_move(module is pipe.vae)
        return pre_forward(hook, module, *args, **kwargs)

    monkeypatch.setattr(ModuleGroup, "onload_", counted_onload)
    monkeypatch.setattr(CpuOffload, "pre_forward", counted_pre_forward)

    def after_step(pipe, step, timestep, tensors):
        nonlocal sampling
        sampling = step < last_step
        return {}

    handle = spotedit.enable(pipe)
    pipe(**family.arguments(callback_on_step_end=after_step))
    assert handle.report.scores is not None
    assert num_moves["transformer"] >= last_step
    assert num_moves["vae"] == 0


def sequential(pipe):
    """Offload as `enable_sequential_cpu_offload` does: weights are on the meta device meanwhile.

    Only a GPU can run whole calls of such a pipeline. Without one even the stock pipeline fails.
    """
    for component in (pipe.transformer, pipe.vae):
        attach_align_device_hook(component, execution_device="cpu", offload=True)
    assert {parameter.device.type for parameter in pipe.vae.parameters()} == {"meta"}


ALL_OFFLOAD = OFFLOAD | {"sequential offload": sequential}


@pytest.mark.parametrize("how", ALL_OFFLOAD)
@pytest.mark.parametrize("name", ONE_PER_VAE)
def test_a_copy_has_the_weights_of_the_offloaded(name, how):
    pipe = FAMILIES[name].make(0)
    weights = {key: weight.clone() for key, weight in pipe.vae.state_dict().items()}
    ALL_OFFLOAD[how](pipe)
    copied = {
        f"{part}.{key}": weight
        for part, module in pipe.vae.named_children()
        for key, weight in copy_without_hooks(module, pipe.vae).state_dict().items()
    }
    assert copied.keys() == weights.keys()
    assert all(torch.equal(weight, copied[key]) for key, weight in weights.items())


# With offloading by blocks, a block's own forward loads the weights of all its layers.
@pytest.mark.parametrize("how", [how for how in ALL_OFFLOAD if "block" not in how])
@pytest.mark.parametrize("name", ONE_PER_VAE)
def test_a_layer_that_is_not_called_has_its_weight(name, how):
    """We read the weights of a norm without calling it, so no hook loads them."""
    pipe = FAMILIES[name].make(0)
    norm = pipe.transformer.transformer_blocks[0].attn.norm_added_k
    weight = norm.weight.clone()
    ALL_OFFLOAD[how](pipe)
    assert torch.equal(weight_of(norm, CPU), weight)


def group_offload_with_streams(pipe):
    pipe.enable_group_offload(
        onload_device=torch.device("cuda"), offload_type="leaf_level", use_stream=True
    )


OFFLOAD_FROM_GPU = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "group": group_offload_with_streams,
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("how", OFFLOAD_FROM_GPU)
@pytest.mark.parametrize("name", ONE_PER_VAE)
def test_offloading_from_a_gpu_gives_the_same_picture(name, how, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    family = FAMILIES[name]
    mask = torch.zeros(family.grid)
    mask[:2] = 1

    def edit(place_on_gpu):
        pipe = family.make(0)
        place_on_gpu(pipe)
        handle = spotedit.enable(pipe, threshold=0.0)
        handle.set_mask(mask)
        arguments = {  # the pipeline does not move the prompt's embeddings
            name: value.cuda() if isinstance(value, torch.Tensor) else value
            for name, value in family.arguments().items()
        }
        images = pipe(**arguments).images.cpu()
        assert 0 < handle.report.mean_ratio < 1
        return images

    expected = edit(lambda pipe: pipe.to("cuda"))
    assert relative_error(edit(OFFLOAD_FROM_GPU[how]), expected) <= 1e-4
