"""Set up a test run before anything imports PyTorch or Triton, and define shared fixtures.

This file itself imports neither at the top, so that with xdist the workers start at once.
"""

import gc
import os
import re
from collections.abc import Callable, Iterator

import pytest

MOST_WORKERS = 8


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment of this process, of the workers and of the programs that tests start.

    Triton interprets the kernels, unless ``-m`` selects the tests for a GPU. If `OMP_NUM_THREADS`
    or `TRITON_INTERPRET` is already set, its value is kept.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"  # no test waits for the network
    # With more threads, the workers would compete for the cores at every small operation.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    on_gpu = re.search(r"(?<!not )\bgpu\b", config.option.markexpr)
    os.environ.setdefault("TRITON_INTERPRET", "0" if on_gpu else "1")


@pytest.hookimpl(tryfirst=True)  # must run before xdist's hook, which starts the workers
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Without ``-n``, start one worker per core, up to `MOST_WORKERS`.

    Tests that are named one by one, and runs with ``--pdb`` or ``-s``, stay in this process.
    """
    option = config.option
    if not config.pluginmanager.hasplugin("xdist") or hasattr(config, "workerinput"):
        return
    if option.numprocesses is None and not option.tx:
        single_tests = all("::" in argument for argument in config.args)
        interactive = option.usepdb or option.capture == "no"
        one_process = single_tests or interactive
        option.numprocesses = 0 if one_process else min(available_cores(), MOST_WORKERS)
    if option.numprocesses:
        if option.dist == "no":
            option.dist = "worksteal"
        # pytest-benchmark does not measure in workers, and warns unless it is told not to.
        option.benchmark_disable = True


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@pytest.fixture(autouse=True)
def _record_row(request, record_property) -> None:
    """Record the columns of the test's `row` marker in the JUnit report.

    `bench.interoperability` reads them from there to write docs/interoperability.md.
    """
    marker = request.node.get_closest_marker("row")
    columns = marker.kwargs if marker else {}
    for column, value in columns.items():
        record_property(column, value)


@pytest.fixture
def impl(request) -> Iterator[str]:
    """Yield the implementation of a parameter (implementation, device).

    During the test, tensors are made on that device by default.
    """
    import torch

    name, device = request.param
    torch.set_default_device(device)
    yield name
    torch.set_default_device(None)


@pytest.fixture
def pipe():
    """Return a new random FLUX.1-Kontext pipeline."""
    from small_kontext import random_kontext

    return random_kontext()


@pytest.fixture
def arguments() -> Callable[..., dict]:
    """Return the function that makes the arguments of a call of `pipe`."""
    from small_kontext import call_arguments

    return call_arguments


@pytest.fixture
def only_new_tensors() -> Iterator[None]:
    """Let `live_tensors` leave out what exists before the test; it may be freed at any time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def random_editor(monkeypatch):
    """Make the benches edit with a random pipeline in place of the trained editor; return it."""
    from small_kontext import call_arguments, random_kontext

    from bench import edits

    pipe = random_kontext()

    def arguments(scene, seed, steps, guidance=1.0):
        height, width = scene.mask.shape
        size = {"height": height, "width": width, "max_area": height * width}
        return call_arguments(
            seed,
            **size,
            image=scene.source_image,
            output_type="pil",
            num_inference_steps=steps,
        )

    monkeypatch.setattr(edits, "load", lambda *args: pipe)
    monkeypatch.setattr(edits, "arguments", arguments)
    return pipe
