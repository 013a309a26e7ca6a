"""Copies of an enabled pipeline are stock, can be enabled, and leave the original as it is."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from diffusers import FluxKontextPipeline
from traces import traces
from world import STOCK, World, arguments, enable

import spotedit


@pytest.fixture(scope="module")
def world():
    return World()


def through_torch_save(pipe):
    file = io.BytesIO()
    torch.save(pipe, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = {
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "from_pipe of the class": FluxKontextPipeline.from_pipe,
    "from_pipe of its type": lambda pipe: type(pipe).from_pipe(pipe),
    "from_pipe of the instance": lambda pipe: pipe.from_pipe(pipe),
    "its type of its components": lambda pipe: type(pipe)(**pipe.components),
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)),
    "torch.save": through_torch_save,
}


def same(images, expected):
    """Weights at other addresses may be summed in another order."""
    return (images - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("during", [False, True], ids=["between calls", "during a call"])
@pytest.mark.parametrize(
    "how",
    [pytest.param(n, marks=pytest.mark.row(what="copies", how=n, instead="")) for n in COPIES],
)
def test_a_copy_is_stock_and_the_original_stays_enabled(world, how, during):
    pipe, twins = world.pipeline(), []
    handle = enable(pipe, 0)

    def middle(pipe, step, timestep, tensors):
        if during and step == 2:
            twins.append(COPIES[how](pipe))
        return {}

    images = pipe(**arguments(1, callback_on_step_end=middle)).images
    assert torch.equal(images, world.alone(0, 1)[0])
    twin = twins[0] if during else COPIES[how](pipe)
    twin.scheduler = world.scheduler()
    twin.set_progress_bar_config(disable=True)
    report = handle.report
    assert same(twin(**arguments(0)).images, world.alone(STOCK, 0)[0])
    assert handle.report is report
    assert isinstance(twin, FluxKontextPipeline)

    spotedit.disable(twin)
    assert handle.enabled, "disable(copy) disables the original"
    other = enable(twin, 2)
    assert other.enabled
    assert handle.enabled, "enable(copy) disables the original"
    assert same(twin(**arguments(0)).images, world.alone(2, 0)[0])
    assert torch.equal(pipe(**arguments(0)).images, world.alone(0, 0)[0])
    spotedit.disable(twin)
    assert same(twin(**arguments(0)).images, world.alone(STOCK, 0)[0])
    assert handle.enabled
    spotedit.disable(pipe)
    assert torch.equal(pipe(**arguments(0)).images, world.alone(STOCK, 0)[0])


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_during_a_call_has_nothing_of_ours(world, how):
    world.alone(STOCK, 0)
    clean, twins = traces(*world.shared), []
    for trace in clean:
        del trace["processor"]  # a deep copy has its own
    pipe = world.pipeline()
    with enable(pipe, 0):
        keep = lambda pipe, *_: twins.append(COPIES[how](pipe)) or {}  # noqa: E731
        pipe(**arguments(0, callback_on_step_end=keep))
    twin = twins[2]
    found = traces(twin.transformer, twin.vae)
    for trace in found:
        del trace["processor"]
    assert found == clean
    processors = {type(p) for p in world.components["transformer"].attn_processors.values()}
    assert {type(p) for p in twin.transformer.attn_processors.values()} == processors
    assert "step" not in vars(twin.scheduler)
    assert set(vars(twin)) <= world.stock_attributes


def in_another_process(pipe):
    return pipe(**arguments(0)).images.numpy()


@pytest.mark.full
@pytest.mark.row(
    what="multiprocessing", how="an enabled pipeline sent to a spawned process arrives stock",
    instead="enable it there",
)  # fmt: skip
def test_an_enabled_pipeline_arrives_stock_in_another_process(world):
    pipe = world.pipeline()
    with enable(pipe, 0) as handle, multiprocessing.get_context("spawn").Pool(1) as processes:
        images = processes.apply_async(in_another_process, (pipe,)).get(240)
        assert handle.enabled
    assert same(torch.from_numpy(images), world.alone(STOCK, 0)[0])
