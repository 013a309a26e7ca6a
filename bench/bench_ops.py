"""Microbenchmarks of every operation and implementation: ``pytest bench/bench_ops.py``.

On a CUDA device it measures the kernels and their references at the models' shapes, elsewhere the
references at the tiny editor's shape. The host takes the time until the device has finished; unlike
in ``python -m bench``, launches count. The default test run does not include this file.
"""

from collections.abc import Iterator

import pytest
import torch

from .cases import Case, Inputs
from .measure import FLUSH, check
from .suite import GPU_SHAPES, suite

CUDA = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
CASES = suite(GPU_SHAPES if CUDA else ("tiny",), DEVICE, DTYPE)
IMPLS = Inputs(DEVICE, DTYPE).implementations()
ROUNDS = 20 if CUDA else 2


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Case, dict[str, str]]]:
    """Yield a case, and the status of each of its calls."""
    with torch.no_grad():
        built = CASES[request.param]()
        yield built, {outcome.name: outcome.status for outcome in check(built, IMPLS)}


@pytest.mark.parametrize("impl", IMPLS)
def test_op(benchmark, case, impl):
    case, statuses = case
    assert statuses[impl] == "ok"
    call, wait = case.calls[impl], torch.cuda.synchronize if CUDA else lambda: None
    flush = torch.rand(FLUSH if CUDA else 1, device=DEVICE)

    def before():
        case.before()
        flush.sum()
        wait()

    def run():
        call()
        wait()

    benchmark.group = case.op
    benchmark.extra_info.update(case.parameters)
    with torch.no_grad():
        benchmark.pedantic(run, setup=before, rounds=ROUNDS, warmup_rounds=1)
