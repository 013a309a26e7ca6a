"""A copy of an enabled pipeline is a stock one, can be enabled, and never affects the original."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
from compare import relative_error
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


COPIES = {  # name in docs/interoperability.md -> function that copies a pipeline
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "from_pipe of the class": FluxKontextPipeline.from_pipe,
    "from_pipe of its type": lambda pipe: type(pipe).from_pipe(pipe),
    "from_pipe of the instance": lambda pipe: pipe.from_pipe(pipe),
    "its type of its components": lambda pipe: type(pipe)(**pipe.components),
    "pickle": lambda pipe: pickle.loads(pickle.dumps(pipe)),
    "torch.save": through_torch_save,
}


def is_nearly_equal(images, expected):
    """Compare with a small tolerance: copied weights may be summed in another order."""
    return relative_error(images, expected) <= 1e-5


@pytest.mark.parametrize("during", [False, True], ids=["between calls", "during a call"])
@pytest.mark.parametrize(
    "how",
    [
        pytest.param(name, marks=pytest.mark.row(what="copies", how=name, instead=""))
        for name in COPIES
    ],
)
def test_a_copy_is_stock_and_the_original_stays_enabled(world, how, during):
    pipe, copies = world.pipeline(), []
    handle = enable(pipe, "judged")

    def copy_in_the_middle(pipe, step, timestep, tensors):
        if during and step == 2:
            copies.append(COPIES[how](pipe))
        return {}

    images = pipe(**arguments("batch of two", callback_on_step_end=copy_in_the_middle)).images
    assert torch.equal(images, world.alone("judged", "batch of two")[0])
    twin = copies[0] if during else COPIES[how](pipe)
    assert isinstance(twin, FluxKontextPipeline)
    twin.scheduler = world.scheduler()
    twin.set_progress_bar_config(disable=True)
    stock_picture, _ = world.alone(STOCK, "four steps")
    judged_picture, _ = world.alone("judged", "four steps")
    masked_picture, _ = world.alone("masked", "four steps")

    report = handle.report
    assert is_nearly_equal(twin(**arguments("four steps")).images, stock_picture)
    assert handle.report is report, "the copy's call reports to the original's handle"

    spotedit.disable(twin)
    assert handle.enabled, "disable(copy) disables the original"
    assert enable(twin, "masked").enabled
    assert handle.enabled, "enable(copy) disables the original"
    assert is_nearly_equal(twin(**arguments("four steps")).images, masked_picture)
    assert torch.equal(pipe(**arguments("four steps")).images, judged_picture)

    spotedit.disable(twin)
    assert is_nearly_equal(twin(**arguments("four steps")).images, stock_picture)
    assert handle.enabled
    spotedit.disable(pipe)
    assert torch.equal(pipe(**arguments("four steps")).images, stock_picture)


def traces_without_processors(*components):
    """Describe what may be left behind, without the processors: a deep copy has its own."""
    found = traces(*components)
    for trace in found:
        del trace["processor"]
    return found


def processor_classes(transformer):
    return {type(processor) for processor in transformer.attn_processors.values()}


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_made_during_a_call_has_nothing_of_ours(world, how):
    world.alone(STOCK, "four steps")
    clean = traces_without_processors(*world.shared_modules)
    pipe, copies = world.pipeline(), []

    def copy_after_every_step(pipe, step, timestep, tensors):
        copies.append(COPIES[how](pipe))
        return {}

    with enable(pipe, "judged"):
        pipe(**arguments("four steps", callback_on_step_end=copy_after_every_step))
    twin = copies[2]
    assert traces_without_processors(twin.transformer, twin.vae) == clean
    stock_classes = processor_classes(world.components["transformer"])
    assert processor_classes(twin.transformer) == stock_classes
    assert "step" not in vars(twin.scheduler)
    assert set(vars(twin)) <= world.stock_attributes


def call_in_another_process(pipe):
    return pipe(**arguments("four steps")).images.numpy()


@pytest.mark.full
@pytest.mark.row(
    what="multiprocessing", how="an enabled pipeline sent to a spawned process arrives stock",
    instead="enable it there",
)  # fmt: skip
def test_an_enabled_pipeline_arrives_stock_in_another_process(world):
    pipe = world.pipeline()
    with (
        enable(pipe, "judged") as handle,
        multiprocessing.get_context("spawn").Pool(1) as processes,
    ):
        result = processes.apply_async(call_in_another_process, (pipe,))
        images = torch.from_numpy(result.get(timeout=240))
        assert handle.enabled
    stock_picture, _ = world.alone(STOCK, "four steps")
    assert is_nearly_equal(images, stock_picture)
