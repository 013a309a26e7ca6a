"""Test each launcher against Triton's real compiler and argument checks, without a GPU.

The interpreter takes arguments that the real launcher refuses; with stub_driver.py these tests find
them. Each test works in a process of its own, because Triton reads TRITON_INTERPRET at its import.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from kernel_oracle import NEEDS_TRITON
from spotedit_kernels import (
    gathered_attention,
    kv_blend,
    latent_distance,
    qk_norm_rope,
    select_tokens,
    token_distance,
)
from test_triton_ops import uninterpreted
from torch import Tensor

pytestmark = NEEDS_TRITON
HEADS, DIM, KEYS = 4, 32, 300
TRITON = {"impl": "triton"}
CAPABILITIES = [90, *(pytest.param(c, marks=pytest.mark.full) for c in (80, 89))]
FLAGS = {  # compile-time arguments that select a kernel's branches
    "_attend": ("INDEX", "KEY_MASK", "INT8", "SPLIT", "DESCRIPTORS"),
    "_reduce": ("INDEX",),
    "_kv_blend": ("WEIGHT",),
    "_qk_norm_rope": ("TABLES_BY_ENTRY", "INTERLEAVED"),
    "_cut": (),
    "_list": (),
    "_mark": ("AUTO", "RULE", "PREVIOUS"),
    "_distance": ("UNIT_Y",),
    "_pool": ("PATCH",),
    "_latent_distance": ("SIGMA",),
}


def in_a_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Return what `function` of this file returns in a process with compiled kernels."""
    code = (
        f"import json, sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from test_launchers import {function.__name__}\n"
        f"print(json.dumps({function.__name__}(*json.loads({json.dumps(arguments)!r}))))"
    )
    return json.loads(uninterpreted("-c", code, timeout=600).splitlines()[-1])


def rows(count: int, dtype: torch.dtype, dim: int = DIM, batch: int = 1) -> Tensor:
    return torch.randn(batch, count, HEADS, dim, dtype=dtype)


def attention_calls(dtype: torch.dtype) -> None:
    """Launch attention with every kind of index, mask, cache, head dim and memory layout."""
    q, joint, k = rows(37, dtype), rows(KEYS, dtype), rows(KEYS, dtype)
    index = torch.arange(0, KEYS, 3)
    padded = torch.stack([index, -torch.ones_like(index)]).int()
    mask = torch.rand(1, KEYS) < 0.5
    k8 = torch.ones(k.shape, dtype=torch.int8)
    scales = {"k_scale": torch.rand(1, KEYS, HEADS), "v_scale": torch.rand(1, KEYS, HEADS)}
    gathered_attention(q, k, k, **TRITON)
    gathered_attention(q, k, k, out=q, scale=-0.5, **TRITON)
    gathered_attention(q[:, :1], k, k, scale=0, **TRITON)
    gathered_attention(q[:, ::2], k[:, 1:], k[:, 1:], **TRITON)  # another address and stride
    gathered_attention(*(rows(n, dtype, 24) for n in (37, KEYS, KEYS)), **TRITON)
    gathered_attention(joint, k, k, index=index, **TRITON)
    gathered_attention(joint, k, k, index=index.int()[::2], out=joint, **TRITON)
    both = [rows(KEYS, dtype, batch=2) for _ in range(3)]
    gathered_attention(*both, index=padded, key_mask=mask.expand(2, -1), **TRITON)
    gathered_attention(q, k, k, key_mask=mask, **TRITON)
    gathered_attention(q, k8, k8, **scales, **TRITON)
    gathered_attention(joint, k8, k8, index=index, key_mask=mask, **scales, **TRITON)
    long = rows(4096, dtype)  # enough keys for several partitions
    gathered_attention(q, long, long, **TRITON)
    gathered_attention(long, long, long, index=index, **TRITON)
    gathered_attention(q[:, :0], k, k, **TRITON)


def blend_calls(dtype: torch.dtype) -> None:
    """Launch the blend with its three kinds of weight, and with fewer reference rows."""
    k_out, v_out, k, v, k_ref, v_ref = (rows(KEYS, dtype, batch=2) for _ in range(6))
    index = torch.arange(0, 200, 3)
    for weight in ({"t": 0.3}, {"t": torch.tensor(0.3)}, {"weight": 1},
                   {"weight": torch.tensor(0.5, dtype=dtype)}):  # fmt: skip
        kv_blend(k_out, v_out, k, v, k_ref, v_ref, index, **weight, **TRITON)
    both = torch.stack([index, index]).int()
    kv_blend(k, v, k, v, k_ref[:, 100:], v_ref[:, 100:], both, t=0.3, **TRITON)
    odd = [rows(KEYS, dtype, 24) for _ in range(6)]
    kv_blend(*odd, index[::2], t=0.3, **TRITON)
    kv_blend(*odd, index[:0], t=0.3, **TRITON)


def rope_calls(dtype: torch.dtype) -> None:
    """Launch norm and rotation as full and spot steps do, with every kind of weight and table."""
    slots = torch.randperm(KEYS)[:40]
    for dim, interleaved, weight in ((DIM, True, dtype), (24, False, torch.float32)):
        full, fresh, caches = (
            [rows(n, dtype, dim) for _ in range(3)] for n in (KEYS, len(slots), KEYS)
        )
        table, aligned = torch.rand(2, KEYS, dim), torch.rand(2, 1, len(slots), dim)
        ref = {"k_ref": caches[2][:, :100], "cos_ref": table[0, :100], "sin_ref": table[1, :100]}
        settings = dict.fromkeys(("q_weight", "k_weight", "text_q_weight", "text_k_weight"))
        settings |= {"text_len": 5, "eps": 1e-6, "interleaved": interleaved} | TRITON
        qk_norm_rope(*fresh, *caches[:2], slots, *table, **settings)
        q_weight, k_weight = torch.rand(dim, dtype=weight), torch.rand(dim).to(dtype)
        settings |= {"q_weight": q_weight, "k_weight": k_weight}
        qk_norm_rope(*full, *caches[:2], None, *table, **ref, **settings)
        settings |= {"text_q_weight": k_weight, "text_k_weight": q_weight}
        qk_norm_rope(*fresh, *caches[:2], slots[None].int(), *aligned, **settings)
    qk_norm_rope(*(x[:, :0] for x in fresh), *caches[:2], slots[:0], *table,
                 **settings | {"text_len": 0})  # fmt: skip


def select_calls(dtype: torch.dtype) -> None:
    """Launch the selection with every rule; its scores are always fp32."""
    scores, flags = torch.rand(2, 48), torch.rand(2, 96) < 0.5
    for threshold in (None, 1):
        select_tokens(scores, (6, 8), threshold=threshold, **TRITON)
        for mode in ("replace", "union", "intersect"):
            select_tokens(
                scores, (6, 8), threshold=threshold, previous=flags[:, :48], mask=flags[:, ::2],
                mode=mode, dilation=1, hysteresis=1, pad_to=64, **TRITON,
            )  # fmt: skip


def distance_calls(dtype: torch.dtype) -> None:
    """Launch the distance on maps in both memory formats, with one reference for a batch."""
    x = [torch.randn(2, c, h, 8, dtype=dtype) for c, h in ((40, 6), (3, 12))]
    y = [torch.randn(1, *layer.shape[1:]) for layer in x]
    last = [layer.to(memory_format=torch.channels_last) for layer in x]
    token_distance(x, x, (3, 4), **TRITON)
    token_distance(x[:1], y[:1], (5, 7), patch=3, y_normalised=True, **TRITON)
    token_distance(last, y, (3, 4), weights=[0, 2], **TRITON)


def latent_calls(dtype: torch.dtype) -> None:
    """Launch the latent distance with every kind of sigma, and one reference for a batch."""
    x, velocity = torch.randn(2, 2, 70, 64, dtype=dtype).unbind()
    y = torch.randn(1, 70, 64)
    latent_distance(x, y, **TRITON)
    for sigma in (0, 0.3, torch.tensor(0.3), torch.tensor(0.3, dtype=dtype)):
        latent_distance(x, x, velocity=velocity, sigma=sigma, **TRITON)
    views = (each[:, 5:42, 1::2] for each in (x, velocity))
    latent_distance(next(views), y[:, :37, :32], velocity=next(views), sigma=1, **TRITON)
    latent_distance(x[:1, :1, :1], y[:, :1, :1], **TRITON)


LAUNCHES = [
    attention_calls, blend_calls, rope_calls, select_calls, distance_calls, latent_calls,
]  # fmt: skip


def launch_everything(capability: int, dtype: str) -> tuple[list[Any], list[str]]:
    """Make all the calls in `dtype`; return the launches, and faults in their device guards.

    A stand-in for the guard counts the launches inside it: changing the device would need a GPU.
    """
    import stub_driver

    launches = stub_driver.install(capability)
    faults: list[str] = []
    num_guarded = 0

    @contextmanager
    def device_of(tensor: Tensor):
        nonlocal num_guarded
        num_before = len(launches)
        yield
        num_guarded += len(launches) - num_before
        if len(launches) == num_before:
            faults.append("a guard without a launch")

    with patch("torch.cuda.is_initialized", lambda: True), patch("torch.cuda.device_of", device_of):
        for call in LAUNCHES:
            call(getattr(torch, dtype))
    if num_guarded != len(launches):
        faults.append(f"{len(launches) - num_guarded} of {len(launches)} launches without a guard")
    return launches, faults


@pytest.mark.parametrize(
    "dtype",
    ["bfloat16", *(pytest.param(d, marks=pytest.mark.full) for d in ("float16", "float32"))],
)
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_the_real_launcher_accepts_every_branch_inside_a_device_guard(capability, dtype):
    launches, faults = in_a_process(launch_everything, capability, dtype)
    assert faults == []
    seen = {kernel: set() for kernel in FLAGS}
    for kernel, constants in launches:
        values = {flag: constants[flag] for flag in FLAGS[kernel]}
        seen[kernel].add(" ".join(
            flag if value is True else str(value)
            for flag, value in values.items() if value is not False
        ))  # fmt: skip
    attended = {
        "", "SPLIT", "INDEX", "INDEX SPLIT", "INDEX KEY_MASK", "KEY_MASK", "INT8",
        "INDEX KEY_MASK INT8",
    }  # fmt: skip
    if capability == 90 and dtype != "float32":
        # plain calls use tensor descriptors, where the memory's layout allows it
        attended = attended - {"SPLIT"} | {"DESCRIPTORS", "SPLIT DESCRIPTORS"}
    assert seen == {
        "_attend": attended,
        "_reduce": {"", "INDEX"},
        "_kv_blend": {"number", "time", "weight"},
        "_qk_norm_rope": {"", "TABLES_BY_ENTRY", "INTERLEAVED", "TABLES_BY_ENTRY INTERLEAVED"},
        "_cut": {""},
        "_list": {""},
        "_mark": {
            "none", "AUTO none", "replace PREVIOUS", "union PREVIOUS", "intersect PREVIOUS",
            "AUTO union PREVIOUS", "AUTO intersect PREVIOUS",
        },
        "_distance": {"", "UNIT_Y"},
        "_pool": {"2", "3"},
        "_latent_distance": {"none", "number", "tensor"},
    }  # fmt: skip


def variants_of_latent_distance(channels: int) -> int:
    """Count the kernels compiled for many numbers of tokens and values of sigma."""
    import stub_driver
    from spotedit_kernels.latent_distance.kernel import _latent_distance

    launches = stub_driver.install(90)
    for n in (1, 2, 15, 16, 17, 64, 199, 4096):
        joint = [torch.randn(1, 8 + 2 * n, channels) for _ in range(2)]
        x, velocity = (latents[:, 8 : 8 + n] for latents in joint)
        y = torch.randn(1, n, channels)
        for sigma in (0.0, 0.3, 1.0):
            latent_distance(x, y, velocity=velocity, sigma=sigma, **TRITON)
    assert len(launches) == 24
    return len(_latent_distance.device_caches[90][0])


@pytest.mark.parametrize(
    "channels", [48, *(pytest.param(c, marks=pytest.mark.full) for c in (64, 5))]
)
def test_latent_distance_is_compiled_once_whatever_the_number_of_tokens(channels):
    assert in_a_process(variants_of_latent_distance, channels) == 1


def compiled(op: Callable[..., Any], graphs: list[Any]) -> Callable[..., Any]:
    """Compile `op` with torch.compile down to its kernels; append each graph made to `graphs`."""
    from torch._dynamo.backends.common import aot_autograd

    def keep(graph, inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    return torch.compile(op, backend=aot_autograd(fw_compiler=keep), fullgraph=True)


def graphs_of_attention(*capabilities: int) -> dict[str, tuple[int, list[bool]]]:
    """Compile attention and call it with 24 numbers of rows.

    Return the number of graphs and the values of SPLIT for each target and kind of call.
    """
    import stub_driver

    k = rows(4096, torch.bfloat16)
    k8, scale = torch.ones(k.shape, dtype=torch.int8), torch.rand(k.shape[:3])
    mask = torch.ones(k.shape[:2], dtype=torch.bool)
    kinds: dict[str, tuple[Tensor, dict[str, Tensor], bool]] = {
        "plain": (k, {}, False),
        "indexed": (k, {}, True),
        "masked": (k, {"key_mask": mask}, True),
        "int8": (k8, {"k_scale": scale, "v_scale": scale}, False),
    }
    results = {}
    for capability in capabilities:
        launches = stub_driver.install(capability)
        for name, (keys, options, indexed) in kinds.items():
            graphs: list[Any] = []
            attend = compiled(gathered_attention, graphs)
            launches.clear()
            for m in range(29, 4096, 176):  # 24 of them, to 4077
                if indexed:
                    attend(k, keys, keys, index=torch.arange(m), **options, **TRITON)
                else:
                    attend(k[:, :m], keys, keys, **options, **TRITON)
            splits = {
                launch.constants["SPLIT"] for launch in launches if "SPLIT" in launch.constants
            }
            results[f"sm_{capability} {name}"] = len(graphs), sorted(splits)
    return results


def graphs_of_every_op() -> list[tuple[int, int]]:
    """Compile each op, call it with several numbers of rows, and count graphs and launches."""
    import stub_driver
    from test_op_compile import CALLS, COUNTS, index

    launches = stub_driver.install(90)
    counts = []
    for op, use in CALLS:
        graphs: list[Any] = []
        call = partial(compiled(op, graphs), **TRITON)
        launches.clear()
        for m in COUNTS:
            use(call, index(m, 64))
        counts.append((len(graphs), len(launches)))
    return counts


@pytest.mark.full
def test_attention_is_two_graphs_whatever_the_number_of_rows():
    results = in_a_process(graphs_of_attention, 80, 89, 90)
    assert len(results) == 12
    for name, (num_graphs, splits) in results.items():
        assert num_graphs <= 2, name
        assert splits == [False, True], name  # the number of partitions does change


def test_every_op_is_two_graphs_whatever_the_number_of_rows():
    counts = in_a_process(graphs_of_every_op)
    assert len(counts) == 7
    for num_graphs, num_launches in counts:
        assert num_graphs <= 2
        assert num_launches >= 6  # at least one for each number of rows
