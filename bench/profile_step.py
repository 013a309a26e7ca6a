"""Profile a spot step, and time the first call of attention at a new number of rows.

`bench.pipeline` calls this after its timed edits, in the same process. So the weights are built
once, and the cost of the profiler does not enter the times.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as F
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

import spotedit
from spotedit.engine.session import Session

from .kontext import Shape, arguments
from .rows import Row
from .timing import call_seconds

NOTES = (
    "One spot step that is neither the first nor the last, from the end of the step before it to "
    "its own end, with the scheduler. `step` is the time until the device has finished, and `host` "
    "the time in which the host issues the forward; both are measured without the profiler. In "
    "another edit the profiler lists kernels and copies (on a CPU, PyTorch's operations), summed "
    "by name. `busy` is their sum / `step`.",
    "`attention` is PyTorch's SDPA alone, timed by the host until the device has finished, at "
    "numbers of query rows M that had not been run: the first call, then the second at the same M.",
)
SHOWN = 12  # number of kernels in the rows, those that take longest
_STEPS = 4  # one full step and three spot steps
_PROFILED_STEP = 2  # index
NEW_RATIOS = (0.021, 0.11, 0.23, 0.35, 0.61)  # shares of the noise tokens


def spot_step(
    pipe: Any, shape: Shape, mask: np.ndarray, parameters: Mapping[str, str]
) -> Iterator[Row]:
    """Profile a spot step whose active tokens are those of `mask`."""
    cuda = pipe.device.type == "cuda"
    with spotedit.enable(pipe, threshold=0.0, initial_steps=1, reset_steps=()) as handle:
        handle.set_mask(mask, mode="replace")
        _run_edit(pipe, shape)  # compiles, plans and warms up
        step, host = _run_edit(pipe, shape)
        profiler = profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU])
        _run_edit(pipe, shape, profiler)
    kernels = kernel_seconds(profiler.events(), cuda)
    busy = sum(map(sum, kernels.values()))
    launches = sum(map(len, kernels.values()))
    for name, value, unit in (
        ("step", 1000 * step, "ms"),
        ("host", 1000 * host, "ms"),
        ("busy", busy / step, "share"),
        ("launches", launches, "calls"),
    ):
        yield Row(f"profile: {name}", value, unit, parameters=parameters)
    longest = sorted(kernels.items(), key=lambda item: sum(item[1]), reverse=True)[:SHOWN]
    for name, seconds in longest:
        kernel = {
            "calls": len(seconds),
            "of the step": f"{sum(seconds) / step:.1%}",
            "kernel": name.replace("|", "/")[:60],  # a bar would end the column of the table
        }
        yield Row("kernel", 1000 * sum(seconds), "ms", parameters={**parameters, **kernel})


def kernel_seconds(events: Any, cuda: bool) -> dict[str, list[float]]:
    """Return the seconds of each kernel and copy, by name; on a CPU, of each operation."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if not cuda:
            seconds[event.name].append(event.self_cpu_time_total / 1e6)
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            seconds[event.name].append(event.time_range.elapsed_us() / 1e6)
    return seconds


def _run_edit(pipe: Any, shape: Shape, profiler: profile | None = None) -> tuple[float, float]:
    """Run an edit; return the seconds of the profiled step, and of the host in its forward."""
    cuda = pipe.device.type == "cuda"
    start = step = host = 0.0
    session_run = Session.run

    def run(session: Session, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        nonlocal host
        begin = time.perf_counter()
        output = session_run(session, forward, kwargs)
        if session.index == _PROFILED_STEP:
            host = time.perf_counter() - begin
        return output

    def at_step_end(_: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal start, step
        if index == _PROFILED_STEP - 1:
            if cuda:
                torch.cuda.synchronize()
            if profiler is not None:
                profiler.start()
            start = time.perf_counter()
        elif index == _PROFILED_STEP:
            if cuda:
                torch.cuda.synchronize()
            step = time.perf_counter() - start
            if profiler is not None:
                profiler.stop()
        return {}

    call = arguments(shape, pipe.device, pipe.dtype, _STEPS)
    with patch.object(Session, "run", run):
        pipe(**call, output_type="latent", callback_on_step_end=at_step_end)
    return step, host


def attention(shape: Shape, device: torch.device, dtype: torch.dtype) -> Iterator[Row]:
    """Time SDPA's first and second call at new numbers of query rows."""
    backends: dict[str, Any] = {"PyTorch's choice": nullcontext}
    if device.type == "cuda":
        backends["cuDNN"] = lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
    num_noise = (shape.pixels // 16) ** 2
    heads, dim = (shape.transformer[k] for k in ("num_attention_heads", "attention_head_dim"))
    num_keys = shape.prompt + 2 * num_noise
    k, v = torch.randn(2, 1, heads, num_keys, dim, device=device, dtype=dtype)
    for i, (name, backend) in enumerate(backends.items()):
        first, second = [], []
        for ratio in NEW_RATIOS:
            m = shape.prompt + round(ratio * num_noise) + i  # new for each backend
            q = torch.randn(1, heads, m, dim, device=device, dtype=dtype)
            call = partial(F.scaled_dot_product_attention, q, k, v)
            with backend():
                first.append(call_seconds(call, device)[1])
                second.append(call_seconds(call, device)[1])
        parameters = {"kernel": name, "calls": len(first)}
        yield Row.milliseconds("attention: first call at a new M", first, parameters)
        yield Row.milliseconds("attention: second call at a new M", second, parameters)
