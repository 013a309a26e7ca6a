"""Test the registered Triton ops: schema, tracing to one graph, ahead-of-time compilation."""

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from kernel_oracle import HALVES_AND_FP32, NEEDS_INTERPRETER, NEEDS_TRITON, assert_bounded
from spotedit_kernels import (
    gathered_attention,
    kv_blend,
    latent_distance,
    qk_norm_rope,
    select_tokens,
    token_distance,
)

pytestmark = NEEDS_TRITON
ROOT = Path(__file__).parents[2]


def uninterpreted(*command: str, timeout: int) -> str:
    """Run Python in a process that compiles the Triton kernels, and return its output."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), *sys.path])
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, timeout=timeout,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def op_arguments(name, device):
    """Return small arguments for a registered op."""

    def rows(count):
        return torch.randn(2, count, 3, 16, device=device)

    index = torch.tensor([3, -1, 0], device=device)
    if name == "kv_blend":
        weight = torch.tensor(0.4, device=device)
        return (*(rows(9) for _ in range(6)), index, weight, 0.0, True)
    if name == "qk_norm_rope":
        q, k, v = (rows(3) for _ in range(3))
        cos, sin, cos_ref, sin_ref = (torch.rand(n, 16, device=device) for n in (9, 9, 4, 4))
        weights = (torch.rand(16, device=device) for _ in range(4))
        return (q, k, v, rows(9), rows(9), rows(4), index, cos, sin, cos_ref, sin_ref, *weights,
                1, 1e-6, True)  # fmt: skip
    if name == "token_distance":
        x, y = ([torch.randn(b, *s, device=device) for s in ((4, 6, 5), (3, 3, 7))] for b in (2, 1))
        return x, y, 3, 2, 2, [0.5, 0.5], False
    if name == "select_tokens":
        flags = torch.zeros(2, 15, dtype=torch.bool, device=device)
        scores = torch.randn(2, 15, device=device)
        return scores, flags, flags, 3, 5, None, 1, 0.5, "union", 8
    if name == "latent_distance":
        x, y, velocity = (torch.randn(b, 7, 5, device=device) for b in (2, 1, 2))
        return x, y, velocity, torch.tensor(0.4, device=device), 0.0
    if name.startswith("gathered_attention"):
        mask = torch.ones(2, 70, dtype=torch.bool, device=device)
        out = [rows(70)] if name.endswith("_out") else []
        return (rows(70), rows(70), rows(70), index, mask, None, None, 0.25, 2, *out)
    raise ValueError(name)


OPS = [
    "gathered_attention",
    "gathered_attention_out",
    "kv_blend",
    "latent_distance",
    "qk_norm_rope",
    "select_tokens",
    "token_distance",
]


def registered(name):
    """Return a registered op, after importing the kernel file that registers it."""
    import_module(f"spotedit_kernels.{name.removesuffix('_out')}.kernel")
    return getattr(torch.ops.spotedit, name).default


def results(impl, input_dtype, dtype, device):
    """Run every op once in `dtype`, on random tensors that are rounded to `input_dtype` first."""
    g = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g).to(input_dtype).to(device, dtype)

    def rows(count):
        return draw(2, count, 3, 64)

    q, k, v, keys, values, k_ref, v_ref = (rows(n) for n in (40, 40, 40, 150, 150, 150, 150))
    slots = torch.randperm(150, generator=g)[:40].to(device)
    angle = torch.rand(150, 32, generator=g).repeat_interleave(2, -1).to(device)
    q = qk_norm_rope(
        q, k, v, keys, values, slots, angle.cos(), angle.sin(), text_len=7, q_weight=None,
        k_weight=None, text_q_weight=None, text_k_weight=None, eps=1e-6, interleaved=True,
        impl=impl,
    )  # fmt: skip
    others = torch.arange(0, 150, 3, device=device)
    kv_blend(keys, values, keys, values, k_ref, v_ref, others, t=0.3, impl=impl)
    maps = [draw(2, 48, 13, 17) for _ in range(2)]
    scores = token_distance(maps[:1], maps[1:], (6, 9), impl=impl)
    x, y, velocity = (draw(2, 54, 48) for _ in range(3))
    errors = latent_distance(x, y, velocity=velocity, sigma=0.3, impl=impl)
    noise = torch.rand(2, 54, generator=g).to(device)
    settings = {"threshold": 0.8, "dilation": 1, "pad_to": 16, "impl": impl}
    selected = [
        result
        for hysteresis in (0.0, 0.7)
        for result in select_tokens(noise, (6, 9), hysteresis=hysteresis, **settings)
    ]
    attended = gathered_attention(q, keys, values, impl=impl)
    part = gathered_attention(rows(150), keys, values, index=others, impl=impl)
    return (q, keys, values, scores, errors, attended, part), selected


@NEEDS_INTERPRETER
@pytest.mark.parametrize(("device", "dtype"), [
    ("cpu", torch.float32),
    *(pytest.param("cuda", dtype, marks=pytest.mark.gpu) for dtype in HALVES_AND_FP32),
])  # fmt: skip
def test_kernels_agree_with_the_references(device, dtype):
    from_kernels, selected = results("triton", dtype, dtype, device)
    from_references, expected = results("reference", dtype, dtype, device)
    exact, _ = results("reference", dtype, torch.float64, "cpu")
    for actual, eager, oracle in zip(from_kernels, from_references, exact, strict=True):
        assert_bounded(actual.cpu(), oracle.double(), eager.cpu(), dtype)
    for actual, wanted in zip(selected, expected, strict=True):
        assert torch.equal(actual, wanted)


@NEEDS_INTERPRETER
@pytest.mark.parametrize("name", OPS)
def test_opcheck_on_a_cpu(name):
    """Attention is opaque and takes all checks here; tracing the others needs compiled kernels."""
    checks = ["test_schema", "test_autograd_registration"]
    if name.startswith("gathered_attention"):
        checks += ["test_faketensor", "test_aot_dispatch_dynamic"]
    torch.library.opcheck(registered(name), op_arguments(name, "cpu"), test_utils=checks)


@pytest.mark.gpu
@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    torch.library.opcheck(registered(name), op_arguments(name, "cuda"))


@pytest.mark.full
def test_traces_to_one_graph_without_a_device():
    """Dynamo and AOTAutograd trace the ops on fake CUDA tensors.

    They trace all ops down to the kernels, except attention, which is opaque.
    """
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.exc import BackendCompilerFailed
from torch._subclasses.fake_tensor import FakeTensorMode
from test_triton_ops import OPS, op_arguments, registered

graphs = []

def record(graph, inputs):
    graphs.append(graph.print_readable(print_output=False))
    raise NotImplementedError("no device to run on")

for name in OPS:
    backend = aot_autograd(fw_compiler=record)
    compiled = torch.compile(registered(name), fullgraph=True, backend=backend)
    with FakeTensorMode():
        try:
            compiled(*op_arguments(name, "cuda"))
        except BackendCompilerFailed:
            pass
    assert len(graphs) == 1, len(graphs)
    node = name if name.startswith("gathered_attention") else "triton_kernel_wrapper"
    assert node in graphs.pop(), name
"""
    uninterpreted("-c", code, timeout=240)


@pytest.mark.full
def test_every_schedule_compiles_without_spills():
    code = (
        "import json, sys; from bench.compiled import usages, faults\n"
        "pairs = [(faults(*usage), usage[0].name) for usage in usages(sys.argv[1:])]\n"
        "print(json.dumps(pairs))"
    )
    targets = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")
    pairs = json.loads(uninterpreted("-c", code, *targets, timeout=1200).splitlines()[-1])
    assert {name.split()[0] for _, name in pairs} == {op.removesuffix("_out") for op in OPS}
    assert not [fault for faults, _ in pairs for fault in faults]
