"""After `disable`, an exception or Ctrl-C, nothing of ours remains and the next call is right."""

import copy
import multiprocessing
import os
import sys
import threading

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from small_kontext import (
    HEIGHT,
    NUM_PROMPT_TOKENS,
    POOLED_CHANNELS,
    PROMPT_CHANNELS,
    STOCK_SIZE,
    WIDTH,
    call_arguments,
    guidance,
    random_kontext,
)
from traces import traces

import spotedit


def snapshot(pipe) -> dict:
    """Describe everything that a patch could have left behind."""
    return {
        "class": type(pipe),
        "attributes": set(vars(pipe)),
        "components": traces(pipe.transformer, pipe.vae, pipe.scheduler),
    }


@pytest.fixture
def untouched(pipe):
    """Return `pipe` after one stock call, which sets attributes of the pipeline, and a snapshot."""
    pipe(**call_arguments(**STOCK_SIZE))
    return pipe, snapshot(pipe)


def raise_after_step_5(error):
    """Make a callback that raises the error."""

    def callback(pipe, step, timestep, tensors):
        if step == 5:
            raise error
        return {}

    return callback


@pytest.mark.parametrize(
    "error", [RuntimeError("stop"), KeyboardInterrupt(), torch.cuda.OutOfMemoryError("no memory")]
)
def test_an_exception_leaves_the_pipeline_enabled_and_the_next_call_right(untouched, error):
    pipe, before = untouched
    handle = spotedit.enable(pipe)
    expected = pipe(**call_arguments()).images
    with pytest.raises(type(error)):
        pipe(**call_arguments(3, callback_on_step_end=raise_after_step_5(error)))
    assert len(handle.report.steps) == 6
    assert handle.enabled
    assert {**snapshot(pipe), "class": None} == {**before, "class": None}
    assert torch.equal(pipe(**call_arguments()).images, expected)
    handle.disable()
    assert snapshot(pipe) == before


def test_an_interrupt_inside_the_transformer_leaves_nothing_behind(untouched):
    pipe, before = untouched

    def interrupt(module, args, output):
        raise KeyboardInterrupt

    handle = spotedit.enable(pipe)
    hook = pipe.transformer.proj_out.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        pipe(**call_arguments())
    hook.remove()
    handle.disable()
    assert snapshot(pipe) == before


def test_the_pipelines_own_interrupt_leaves_nothing_behind(untouched):
    pipe, before = untouched
    handle = spotedit.enable(pipe)

    def interrupt_after_step_5(pipe, step, timestep, tensors):
        pipe._interrupt = step >= 5
        return {}

    expected = pipe(**call_arguments()).images
    pipe(**call_arguments(callback_on_step_end=interrupt_after_step_5))
    assert len(handle.report.steps) == 6
    assert torch.equal(pipe(**call_arguments()).images, expected)
    handle.disable()
    assert snapshot(pipe) == before


def test_disable_is_exact_and_idempotent(untouched):
    pipe, before = untouched
    handle = spotedit.enable(pipe)
    assert isinstance(pipe, FluxKontextPipeline)
    assert type(pipe).__name__ == "FluxKontextPipeline"
    pipe(**call_arguments())
    handle.disable()
    assert snapshot(pipe) == before
    handle.disable()
    assert snapshot(pipe) == before
    spotedit.disable(pipe)
    assert snapshot(pipe) == before
    assert not handle.enabled


def test_a_second_enable_replaces_the_first(untouched):
    pipe, before = untouched
    first = spotedit.enable(pipe)
    second = spotedit.enable(pipe, threshold=0.5)
    assert second.enabled
    assert not first.enabled
    first.disable()
    assert second.enabled
    pipe(**call_arguments())
    assert first.report is None
    assert second.report.threshold == 0.5
    spotedit.disable(pipe)
    assert snapshot(pipe) == before


def test_the_end_of_a_nested_with_restores_the_outer_one(untouched):
    pipe, before = untouched
    with spotedit.enable(pipe) as outer:
        with spotedit.enable(pipe, threshold=0.5) as inner:
            assert inner.enabled
            assert not outer.enabled
        assert outer.enabled
        assert not inner.enabled
        with pytest.raises(RuntimeError), spotedit.enable(pipe):
            raise RuntimeError
        assert outer.enabled
    assert snapshot(pipe) == before


def test_disable_inside_a_nested_with_disables_for_good(untouched):
    pipe, before = untouched
    with spotedit.enable(pipe), spotedit.enable(pipe):
        spotedit.disable(pipe)
    assert snapshot(pipe) == before


def test_a_running_pipeline_may_be_neither_disabled_nor_called(pipe):
    def try_both(pipe, step, timestep, tensors):
        with pytest.raises(RuntimeError, match="is running"):
            spotedit.disable(pipe)
        with pytest.raises(RuntimeError, match="already running"):
            pipe(**call_arguments())
        steps.append(step)
        return {}

    steps = []
    spotedit.enable(pipe)
    pipe(**call_arguments(num_inference_steps=2, callback_on_step_end=try_both))
    assert steps == [0, 1]


def test_a_call_from_another_thread_is_refused_while_one_is_running(pipe):
    spotedit.enable(pipe)
    entered, may_leave = threading.Event(), threading.Event()

    def wait(pipe, step, timestep, tensors):
        entered.set()
        may_leave.wait(30)
        return {}

    def long_call():
        pipe(**call_arguments(num_inference_steps=2, callback_on_step_end=wait))

    thread = threading.Thread(target=long_call)
    thread.start()
    assert entered.wait(30)
    try:
        with pytest.raises(RuntimeError):
            pipe(**call_arguments())
    finally:
        may_leave.set()
        thread.join()


def test_siblings_and_copies_stay_stock(pipe):
    sibling = FluxPipeline.from_pipe(pipe)
    sibling.set_progress_bar_config(disable=True)

    def text_to_image():
        return sibling(
            prompt_embeds=torch.ones(1, NUM_PROMPT_TOKENS, PROMPT_CHANNELS),
            pooled_prompt_embeds=torch.ones(1, POOLED_CHANNELS),
            num_inference_steps=3,
            height=HEIGHT,
            width=WIDTH,
            output_type="latent",
            generator=torch.Generator().manual_seed(0),
        ).images

    before = text_to_image()
    stock = pipe(**call_arguments(**STOCK_SIZE)).images
    handle = spotedit.enable(pipe)
    pipe(**call_arguments())
    report = handle.report
    assert torch.equal(text_to_image(), before)
    for other in (type(pipe).from_pipe(pipe), copy.copy(pipe)):
        other.set_progress_bar_config(disable=True)
        assert torch.equal(other(**call_arguments(**STOCK_SIZE)).images, stock)
    assert handle.report is report


def test_a_new_scheduler_is_used_and_neither_is_changed(untouched):
    pipe, _ = untouched
    handle = spotedit.enable(pipe)
    expected = pipe(**call_arguments()).images
    old_scheduler = pipe.scheduler
    pipe.scheduler = type(old_scheduler).from_config(old_scheduler.config)
    assert torch.equal(pipe(**call_arguments()).images, expected)
    assert "step" not in vars(old_scheduler)
    assert "step" not in vars(pipe.scheduler)
    assert handle.report.reason is None


def test_save_pretrained_saves_an_enabled_pipeline_as_a_stock_one(pipe, tmp_path):
    spotedit.enable(pipe)
    pipe.save_pretrained(tmp_path)
    index = (tmp_path / "model_index.json").read_text()
    assert '"_class_name": "FluxKontextPipeline"' in index
    assert "spotedit" not in index


SCENARIOS = {
    "another image": {"seed": 7},
    "non-square": {"seed": 8, "size": (64, 40)},
    "batch of two": {"seed": 9, "batch": 2},
    "guidance": {"seed": 10, **guidance(3.0)},
    "more steps": {"seed": 11, "num_inference_steps": 14},
}
# About the median of these scores, so that some tokens are reused and some are not.
OPTIONS = {"judge": "l2", "threshold": 1.5, "dilation": 0}


def first_call(scenario):
    """Make the call as the first of its process; return the latents and the share computed."""
    pipe = random_kontext()
    handle = spotedit.enable(pipe, **OPTIONS)
    images = pipe(**call_arguments(**scenario)).images
    return images.numpy(), handle.report.mean_ratio


def test_a_call_does_not_depend_on_the_calls_before_it(monkeypatch):
    """A call after others, some aborted, equals the same call as the first of a process."""
    # Workers are forked from a server that has imported this file, and has run nothing of it. It
    # finds the file's imports only by this variable.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with context.Pool(1, maxtasksperchild=1) as processes:
        first_calls = {
            name: processes.apply_async(first_call, (scenario,))
            for name, scenario in SCENARIOS.items()
        }
        pipe = random_kontext()
        spotedit.enable(pipe, **OPTIONS)
        for name, scenario in SCENARIOS.items():
            images = pipe(**call_arguments(**scenario)).images
            for error in (RuntimeError("stop"), KeyboardInterrupt()):
                with pytest.raises(type(error)):
                    pipe(**call_arguments(1, callback_on_step_end=raise_after_step_5(error)))
            expected, ratio = first_calls[name].get(timeout=120)
            assert np.array_equal(images, expected), name
            assert 0 < ratio < 1, name
