"""Set up a test run before anything imports PyTorch or Triton; define fixtures of many tests.

This file imports neither, so that the process that only hands out tests starts its workers at once.
"""

import os
import re
from collections.abc import Callable, Iterator

import pytest

MOST_WORKERS = 8


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment of this process, of the workers and of programs that tests start.

    The kernels are interpreted, except where ``-m`` selects the tests for a GPU. Values of
    `OMP_NUM_THREADS` and `TRITON_INTERPRET` that are set already are kept.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for a hub
    # Threads of several workers would wait for each other at every small operation.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    on_gpu = re.search(r"(?<!not )\bgpu\b", config.option.markexpr)
    os.environ.setdefault("TRITON_INTERPRET", "0" if on_gpu else "1")


@pytest.hookimpl(tryfirst=True)  # before xdist's, which starts the workers
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Without ``-n``, start a worker for every core. Tests named one by one run in this process."""
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    if option.numprocesses is None and not option.tx:
        named = all("::" in argument for argument in config.args)
        watched = option.usepdb or option.capture == "no"
        option.numprocesses = 0 if named or watched else min(available_cores(), MOST_WORKERS)
    if option.numprocesses:
        option.dist = "worksteal" if option.dist == "no" else option.dist
        option.benchmark_disable = True  # else pytest-benchmark warns that it is


def available_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@pytest.fixture(autouse=True)
def _row(request, record_property) -> None:
    """Write the columns of a test's row of docs/interoperability.md into the run's report."""
    marker = request.node.get_closest_marker("row")
    for name, value in (marker.kwargs if marker else {}).items():
        record_property(name, value)


@pytest.fixture
def impl(request) -> Iterator[str]:
    """Return the implementation of a parameter (implementation, device); make tensors there."""
    import torch

    name, device = request.param
    torch.set_default_device(device)
    yield name
    torch.set_default_device(None)


@pytest.fixture
def pipe():
    from small_kontext import random_kontext

    return random_kontext()


@pytest.fixture
def arguments() -> Callable[..., dict]:
    from small_kontext import call_arguments

    return call_arguments


@pytest.fixture
def random_editor(monkeypatch):
    """The benches edit their scenes with a random pipeline in place of the trained editor."""
    from small_kontext import call_arguments, random_kontext

    from bench import edits

    pipe = random_kontext()

    def arguments(scene, seed, steps, guidance=1.0):
        height, width = scene.mask.shape
        size = {"height": height, "width": width, "max_area": height * width}
        given = {"image": scene.source_image, "output_type": "pil", "num_inference_steps": steps}
        return call_arguments(seed, **size, **given) | given

    monkeypatch.setattr(edits, "load", lambda *args: pipe)
    monkeypatch.setattr(edits, "arguments", arguments)
    return pipe
