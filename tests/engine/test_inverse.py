"""After disable, an exception or Ctrl-C nothing of ours remains, and the next call is right."""

import copy
import multiprocessing
import os
import sys
import threading

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline, FluxPipeline
from small_kontext import call_arguments, random_kontext

import spotedit

SIZE = {"height": 48, "width": 64, "max_area": 48 * 64}


def snapshot(pipe) -> dict:
    """Everything that a patch could have left behind."""
    hooks = (
        "_forward_pre_hooks",
        "_forward_hooks",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks_with_kwargs",
    )
    return {
        "class": type(pipe),
        "pipeline": set(vars(pipe)),
        "transformer": set(vars(pipe.transformer)),
        "processors": {name: id(p) for name, p in pipe.transformer.attn_processors.items()},
        "scheduler": {k for k in vars(pipe.scheduler) if not k.startswith("_")},
        "vae": set(vars(pipe.vae)),
        "hooks": [len(getattr(m, name)) for m in (pipe.transformer, pipe.vae) for name in hooks],
    }


@pytest.fixture
def untouched(pipe):
    """`pipe` after one stock call (which sets attributes of its own), and its snapshot."""
    pipe(**call_arguments(**SIZE))
    return pipe, snapshot(pipe)


def raising(error):
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
        pipe(**call_arguments(3, callback_on_step_end=raising(error)))
    assert len(handle.report.steps) == 6
    assert handle.enabled
    assert {**snapshot(pipe), "class": None} == {**before, "class": None}
    assert torch.equal(pipe(**call_arguments()).images, expected)
    handle.disable()
    assert snapshot(pipe) == before


def test_an_interrupt_inside_the_transformer(untouched):
    pipe, before = untouched
    handle = spotedit.enable(pipe)
    hook = pipe.transformer.proj_out.register_forward_hook(
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        pipe(**call_arguments())
    hook.remove()
    handle.disable()
    assert snapshot(pipe) == before


def test_a_call_cut_short_by_the_pipelines_own_interrupt(untouched):
    pipe, before = untouched
    handle = spotedit.enable(pipe)

    def callback(pipe, step, timestep, tensors):
        pipe._interrupt = step >= 5
        return {}

    expected = pipe(**call_arguments()).images
    pipe(**call_arguments(callback_on_step_end=callback))
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
    for undo in (handle.disable, handle.disable, lambda: spotedit.disable(pipe)):
        undo()
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


def test_nested_with_restores_the_outer(untouched):
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


def test_disable_inside_a_nested_with_wins(untouched):
    pipe, before = untouched
    with spotedit.enable(pipe), spotedit.enable(pipe):
        spotedit.disable(pipe)
    assert snapshot(pipe) == before


def test_disabling_or_calling_a_running_pipeline_is_refused(pipe):
    errors = []

    def callback(pipe, step, timestep, tensors):
        for forbidden in (lambda: spotedit.disable(pipe), lambda: pipe(**call_arguments())):
            with pytest.raises(RuntimeError) as caught:
                forbidden()
            errors.append(str(caught.value))
        return {}

    spotedit.enable(pipe)
    pipe(**call_arguments(num_inference_steps=2, callback_on_step_end=callback))
    assert "is running" in errors[0]
    assert "already running" in errors[1]


def test_concurrent_calls_from_threads(pipe):
    spotedit.enable(pipe)
    entered, leave, failures = threading.Event(), threading.Event(), []

    def callback(pipe, step, timestep, tensors):
        entered.set()
        leave.wait(30)
        return {}

    thread = threading.Thread(
        target=lambda: pipe(**call_arguments(num_inference_steps=2, callback_on_step_end=callback))
    )
    thread.start()
    assert entered.wait(30)
    try:
        pipe(**call_arguments())
    except RuntimeError as error:
        failures.append(error)
    leave.set()
    thread.join()
    assert len(failures) == 1


def test_siblings_and_copies_stay_stock(pipe):
    text_to_image = {
        "prompt_embeds": torch.ones(1, 5, 12),
        "pooled_prompt_embeds": torch.ones(1, 10),
        "num_inference_steps": 3,
        "height": 48,
        "width": 64,
        "output_type": "latent",
    }
    sibling = FluxPipeline.from_pipe(pipe)
    sibling.set_progress_bar_config(disable=True)
    before = sibling(**text_to_image, generator=torch.Generator().manual_seed(0)).images
    stock = pipe(**call_arguments(**SIZE)).images
    handle = spotedit.enable(pipe)
    pipe(**call_arguments())
    report = handle.report
    assert torch.equal(
        sibling(**text_to_image, generator=torch.Generator().manual_seed(0)).images, before
    )
    same_kind = type(pipe).from_pipe(pipe)
    duplicate = copy.copy(pipe)
    for other in (same_kind, duplicate):
        other.set_progress_bar_config(disable=True)
        assert torch.equal(other(**call_arguments(**SIZE)).images, stock)
    assert handle.report is report


def test_a_replaced_scheduler_is_followed_and_both_are_left_clean(untouched):
    pipe, _before = untouched
    handle = spotedit.enable(pipe)
    expected = pipe(**call_arguments()).images
    old, pipe.scheduler = pipe.scheduler, type(pipe.scheduler).from_config(pipe.scheduler.config)
    assert torch.equal(pipe(**call_arguments()).images, expected)
    assert "step" not in vars(old)
    assert "step" not in vars(pipe.scheduler)
    assert handle.report.reason is None


def test_save_pretrained_of_an_enabled_pipeline(pipe, tmp_path):
    spotedit.enable(pipe)
    pipe.save_pretrained(tmp_path)
    index = (tmp_path / "model_index.json").read_text()
    assert '"_class_name": "FluxKontextPipeline"' in index
    assert "spotedit" not in index


SCENARIOS = {
    "another image": {"seed": 7},
    "non-square": {"seed": 8, "size": (64, 40)},
    "batch of two": {"seed": 9, "batch": 2},
    "guidance": {
        "seed": 10,
        "true_cfg_scale": 3.0,
        "negative_prompt_embeds": torch.ones(1, 5, 12),
        "negative_pooled_prompt_embeds": torch.ones(1, 10),
    },
    "more steps": {"seed": 11, "num_inference_steps": 14},
}
# medians of random pipelines' scores: some tokens are reused, some are not
OPTIONS = {"judge": "l2", "threshold": 1.5, "dilation": 0}


def first_call(scenario):
    """A call as the first of its process."""
    pipe = random_kontext()
    handle = spotedit.enable(pipe, **OPTIONS)
    images = pipe(**call_arguments(**scenario)).images
    return images.numpy(), handle.report.mean_ratio


def test_a_call_does_not_depend_on_those_before(monkeypatch):
    """A call after others, some aborted, equals the same call as the first of a process."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # or it preloads nothing
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imports only; every worker is forked from there
    with context.Pool(1, maxtasksperchild=1) as processes:
        fresh = [processes.apply_async(first_call, (scenario,)) for scenario in SCENARIOS.values()]
        pipe = random_kontext()
        spotedit.enable(pipe, **OPTIONS)
        for (name, scenario), first in zip(SCENARIOS.items(), fresh, strict=True):
            images = pipe(**call_arguments(**scenario)).images
            for error in (RuntimeError("stop"), KeyboardInterrupt()):
                with pytest.raises(type(error)):
                    pipe(**call_arguments(1, callback_on_step_end=raising(error)))
            expected, ratio = first.get(120)
            assert np.array_equal(images, expected), name
            assert 0 < ratio < 1, name
