"""Offloading, before or after `enable`: the picture is the same and the judge moves nothing."""

import pytest
import torch
from accelerate.hooks import CpuOffload, attach_align_device_hook
from diffusers.hooks.group_offloading import ModuleGroup
from families import FAMILIES
from families.offload import OFFLOAD

import spotedit
from spotedit.models.copies import copy_without_hooks, weight_of

CPU = torch.device("cpu")
KINDS = ["FluxKontextPipeline", "QwenImageEditPipeline", "Flux2KleinPipeline"]  # of VAE


def each_of(names):
    return pytest.mark.parametrize(
        ("name", "how"),
        [
            pytest.param(n, how, id=f"{n}-{how}", marks=[] if n in KINDS else [pytest.mark.full])
            for n in names
            for how in OFFLOAD
            if how != "model offload" or "Modular" not in n  # these have a ComponentsManager
        ],
    )


def between(scores):
    """A threshold that half of the scores exceed, far from any of them."""
    ordered = torch.as_tensor(scores).flatten().sort().values
    middle = slice(ordered.numel() // 4, -ordered.numel() // 4)
    gap = int(ordered[middle].diff().argmax()) + middle.start
    return float(ordered[gap : gap + 2].mean())


@each_of(FAMILIES)
def test_in_either_order(name, how):
    """The judge chooses the tokens, by weights that it has to find."""
    family = FAMILIES[name]
    pipe = family.make(0)
    once = {"preset": "paper", "judge_every": 9, "reset_steps": ()}
    handle = spotedit.enable(pipe, **once)
    pipe(**family.arguments())
    options = once | {"threshold": between(handle.report.scores)}
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
        assert (images - expected).norm() <= 1e-5 * expected.norm()


@each_of(KINDS)
def test_the_judge_moves_no_component(name, how, monkeypatch):
    """Between the first and the last step the VAE stays where it is; the transformer moves."""
    family = FAMILIES[name]
    pipe = family.make(0)
    OFFLOAD[how](pipe)
    moved, watching = {"vae": 0, "transformer": 0}, [False]

    def owner(group):
        parts = pipe.vae.modules()
        hooks = [h.get_hook("group_offloading") for m in parts if (h := registry(m)) is not None]
        return "vae" if any(h is not None and h.group is group for h in hooks) else "transformer"

    def registry(module):
        return getattr(module, "_diffusers_hook", None)

    def count(kind, method, who):
        inner = getattr(kind, method)

        def counted(self, *args, **kwargs):
            if watching[0]:
                moved[who(self, *args)] += 1
            return inner(self, *args, **kwargs)

        monkeypatch.setattr(kind, method, counted)

    def component(hook, module, *args):
        return "vae" if module is pipe.vae else "transformer"

    count(ModuleGroup, "onload_", owner)
    count(CpuOffload, "pre_forward", component)

    def watch(pipe, step, timestep, tensors):
        watching[0] = step < 7
        return {}

    handle = spotedit.enable(pipe)
    pipe(**family.arguments(callback_on_step_end=watch))
    assert handle.report.scores is not None
    assert moved["transformer"] >= 7
    assert moved["vae"] == 0


def sequential(pipe):
    """With weights on the meta device. Whole edits need a GPU: here the stock pipeline fails."""
    for component in (pipe.transformer, pipe.vae):
        attach_align_device_hook(component, execution_device="cpu", offload=True)
    assert {parameter.device.type for parameter in pipe.vae.parameters()} == {"meta"}


ANY = OFFLOAD | {"sequential offload": sequential}


@pytest.mark.parametrize("how", ANY)
@pytest.mark.parametrize("name", KINDS)
def test_a_copy_has_the_weights_of_the_offloaded(name, how):
    pipe = FAMILIES[name].make(0)
    vae = {key: value.clone() for key, value in pipe.vae.state_dict().items()}
    ANY[how](pipe)
    copies = {
        f"{part}.{key}": value
        for part, module in pipe.vae.named_children()
        for key, value in copy_without_hooks(module, pipe.vae).state_dict().items()
    }
    assert copies.keys() == vae.keys()
    assert all(torch.equal(value, copies[key]) for key, value in vae.items())


@pytest.mark.parametrize("how", [how for how in ANY if "block" not in how])
@pytest.mark.parametrize("name", KINDS)
def test_a_layer_that_is_not_called_has_its_weight(name, how):
    """Whole blocks are loaded by their own forward."""
    pipe = FAMILIES[name].make(0)
    norm = pipe.transformer.transformer_blocks[0].attn.norm_added_k
    weight = norm.weight.clone()
    ANY[how](pipe)
    assert torch.equal(weight_of(norm, CPU), weight)


ON_A_GPU = {
    "model": lambda pipe: pipe.enable_model_cpu_offload(),
    "sequential": lambda pipe: pipe.enable_sequential_cpu_offload(),
    "group": lambda pipe: pipe.enable_group_offload(
        onload_device=torch.device("cuda"), offload_type="leaf_level", use_stream=True
    ),
}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("how", ON_A_GPU)
@pytest.mark.parametrize("name", KINDS)
def test_offloaded_from_a_gpu(name, how, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    family, pictures = FAMILIES[name], []
    for place in (lambda pipe: pipe.to("cuda"), ON_A_GPU[how]):
        pipe = family.make(0)
        place(pipe)
        handle = spotedit.enable(pipe, threshold=0.0)
        mask = torch.zeros(family.grid)
        mask[:2] = 1
        handle.set_mask(mask)
        given = {  # the pipeline does not move the prompt's embeddings
            name: value.cuda() if isinstance(value, torch.Tensor) else value
            for name, value in family.arguments().items()
        }
        pictures.append(pipe(**given).images.cpu())
        assert 0 < handle.report.mean_ratio < 1
    assert (pictures[1] - pictures[0]).norm() <= 1e-4 * pictures[0].norm()
