"""Test gathered_attention against a row-by-row fp64 oracle."""

import math
from unittest.mock import MagicMock

import pytest
import torch
from kernel_oracle import (
    EACH_IMPL,
    HALVES_AND_FP32,
    HAS_TRITON,
    NEEDS_INTERPRETER,
    NEEDS_TRITON,
    TRITON,
    NoSync,
    assert_bounded,
    attention,
    each_impl_in,
    eager_attention,
    entries,
    seeded,
)
from spotedit_kernels import gathered_attention
from spotedit_kernels.gathered_attention import plan, reference
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.shapes import ODD_ROWS

if HAS_TRITON:
    from spotedit_kernels.gathered_attention import kernel

B, S, H, D = 2, 13, 2, 24


def qkv(dtype=torch.float32, m=S, s=S, d=D, seed=0):
    g = seeded(seed)
    return tuple(torch.randn(B, rows, H, d, generator=g).to(dtype) for rows in (m, s, s))


@each_impl_in(HALVES_AND_FP32)
@pytest.mark.parametrize("name", [name for name, shape in ODD_ROWS.items() if shape.m])
def test_compact_queries(dtype, name, impl):
    shape = ODD_ROWS[name]
    q, k, v = qkv(dtype, shape.m, shape.s, shape.dim)
    result = gathered_attention(q, k, v, impl=impl)
    assert result.shape == q.shape
    assert result.dtype == dtype
    assert_bounded(result, attention(q, k, v), eager_attention(q, k, v), dtype)


@EACH_IMPL
@pytest.mark.parametrize("scale", [0.5, 1, -0.3, 0.0])
def test_scale(scale, impl):
    q, k, v = qkv(m=3)
    result = gathered_attention(q, k, v, scale=scale, impl=impl)
    oracle = attention(q, k, v, scale=scale)
    assert_bounded(result, oracle, eager_attention(q, k, v, scale=scale), torch.float32)


@EACH_IMPL
def test_no_queries(impl):
    none = ODD_ROWS["no rows"]
    q, k, v = qkv(m=none.m, s=none.s, d=none.dim)
    assert gathered_attention(q, k, v, impl=impl).shape == q.shape
    assert gathered_attention(q, k, v, out=q, impl=impl) is q


def test_fp64_and_scale():
    q, k, v = qkv(torch.float64, m=3)
    result = gathered_attention(q, k, v, scale=0.5, impl="reference")
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, attention(q, k, v, scale=0.5), rtol=0, atol=1e-13)


INDICES = {
    "one": [5],
    "row 0": [0],
    "all": list(range(S)),
    "padding first, row 0 real": [-1, 4, 0, -1, 12, -1],
    "padding last, other sentinels": [11, 3, -1, -7],
    "only padding": [-1, -1, -1],
    "none": [],
    "per row": [[3, 0, -1, 12], [-1, -1, 7, 1]],
    "per row, one all padding": [[-1, -1], [0, 5]],
}


@each_impl_in(HALVES_AND_FP32)
@pytest.mark.parametrize("rows", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_index_reads_and_writes_only_its_rows(dtype, rows, integer, impl):
    q, k, v = qkv(dtype)
    index = torch.tensor(rows, dtype=integer)
    real = entries(index, B)
    poisoned = torch.full_like(q, math.nan)
    for b, _, r in real:
        poisoned[b, r] = q[b, r]
    out = torch.full_like(q, math.nan)
    assert gathered_attention(poisoned, k, v, index=index, out=out, impl=impl) is out
    fresh = gathered_attention(poisoned, k, v, index=index, impl=impl)
    written = torch.zeros(B, S, dtype=torch.bool)
    for b, _, r in real:
        written[b, r] = True
    assert out[~written].isnan().all()
    assert (fresh[~written] == 0).all()
    if real:
        oracle, eager = attention(q, k, v), eager_attention(q, k, v)
        for result in (out, fresh):
            assert_bounded(result[written], oracle[written], eager[written], dtype)


@EACH_IMPL
def test_strided_views_and_out_in_place_of_q(impl):
    fused = torch.randn(B, S, 3, H, 2 * D)
    q, k, v = fused[..., ::2].unbind(2)
    index = torch.tensor([2, -1, 9])
    oracle = attention(q, k, v)
    kept = q.clone()
    assert gathered_attention(q, k, v, index=index, out=q, impl=impl) is q
    eager = eager_attention(kept, k, v)
    assert_bounded(q[:, [2, 9]], oracle[:, [2, 9]], eager[:, [2, 9]], torch.float32)
    others = [r for r in range(S) if r not in (2, 9)]
    assert torch.equal(q[:, others], kept[:, others])


@EACH_IMPL
def test_out_without_index(impl):
    q, k, v = qkv(m=4)
    out = torch.full_like(q, math.nan)
    assert gathered_attention(q, k, v, out=out, impl=impl) is out
    assert torch.equal(out, gathered_attention(q, k, v, impl=impl))
    want = out.clone()
    assert torch.equal(gathered_attention(q, k, v, out=q, impl=impl), want)


@each_impl_in(HALVES_AND_FP32)
def test_key_mask(dtype, impl):
    q, k, v = qkv(dtype, m=5)
    mask = torch.rand(B, S, generator=seeded(1)) > 0.4
    oracle, eager = attention(q, k, v, key_mask=mask), eager_attention(q, k, v, key_mask=mask)
    assert_bounded(gathered_attention(q, k, v, key_mask=mask, impl=impl), oracle, eager, dtype)
    mask[1] = False
    result = gathered_attention(q, k, v, key_mask=mask, impl=impl)
    assert (result[1] == 0).all()
    assert_bounded(result[:1], oracle[:1], eager[:1], dtype)


def test_fully_masked_rows_do_not_rely_on_the_backend(monkeypatch):
    q, k, v = qkv(m=3)
    mask = torch.tensor([[True] * S, [False] * S])
    stock = torch.nn.functional.scaled_dot_product_attention

    def poisoned(*args, **kwargs):
        result = stock(*args, **kwargs).clone()
        result[1] = math.nan
        return result

    want = gathered_attention(q, k, v, key_mask=mask, impl="reference")
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", poisoned)
    assert torch.equal(gathered_attention(q, k, v, key_mask=mask, impl="reference"), want)


@EACH_IMPL
def test_key_mask_with_index(impl):
    q, k, v = qkv()
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[0, ::2], mask[1] = False, False
    out = torch.full_like(q, 7.0)
    index = torch.tensor([-1, 0, 6])
    gathered_attention(q, k, v, index=index, key_mask=mask, out=out, impl=impl)
    oracle, eager = attention(q, k, v, key_mask=mask), eager_attention(q, k, v, key_mask=mask)
    assert_bounded(out[:, [0, 6]], oracle[:, [0, 6]], eager[:, [0, 6]], torch.float32)
    assert (out[1, [0, 6]] == 0).all()
    assert (out[:, 1:6] == 7).all()


def int8_cache(s=S):
    """Return int8 k and v, their scales, and the fp64 values that they stand for."""
    g = seeded(2)
    k, v = (torch.randint(-127, 128, (B, s, H, D), generator=g).to(torch.int8) for _ in range(2))
    k_scale, v_scale = (torch.rand(B, s, H, generator=g) / 64 for _ in range(2))
    wide = (k.double() * k_scale[..., None], v.double() * v_scale[..., None])
    return k, v, {"k_scale": k_scale, "v_scale": v_scale}, wide


@each_impl_in(HALVES_AND_FP32)
def test_int8_cache(dtype, impl):
    q, _, _ = qkv(dtype, m=5)
    k, v, scales, wide = int8_cache()
    eager = eager_attention(q, *(x.to(dtype) for x in wide))
    for factor in (1, 2.0**-10):  # products of fp16 would be lost below 6e-8
        scaled = {"k_scale": scales["k_scale"], "v_scale": scales["v_scale"] * factor}
        result = gathered_attention(q, k, v, **scaled, impl=impl)
        assert_bounded(result.double() / factor, attention(q, *wide), eager, dtype)


@EACH_IMPL
@pytest.mark.parametrize(("spread", "error"), [(1, 0.009), (4, 0.017)])
def test_what_an_int8_cache_costs_in_accuracy(spread, error, impl):
    """Measure the relative error on normal data, by the standard deviation of the logits."""
    g = torch.Generator("cpu").manual_seed(0)  # the error is that of these numbers on any device
    device = torch.get_default_device()
    q, k, v = (
        torch.randn(1, n, 2, 128, generator=g, device="cpu").to(device) for n in (32, 1024, 1024)
    )
    scales = [x.abs().amax(-1) / 127 for x in (k, v)]
    small = [(x / s[..., None]).round().to(torch.int8) for x, s in zip((k, v), scales, strict=True)]
    want = gathered_attention(spread * q, k, v, impl="reference")
    k_scale, v_scale = scales
    result = gathered_attention(spread * q, *small, k_scale=k_scale, v_scale=v_scale, impl=impl)
    assert ((result - want).norm() / want.norm()).item() == pytest.approx(error, rel=0.1)


OPTIONS = ("plain", "index", "index and mask", "int8")


@each_impl_in(HALVES_AND_FP32, impls=["triton"])
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("splits", [2, 4])
def test_split_keys(dtype, option, splits, impl, monkeypatch):
    """Split the keys, where the mask empties one partition of batch row 0 and all of row 1."""
    s = 131  # prime; five tiles of keys in fp32, three in fp16
    q, k, v = qkv(dtype, s if "index" in option else 3, s)
    index = torch.tensor([7, -1, 130, 0]) if "index" in option else None
    rows = [7, 130, 0] if "index" in option else [0, 1, 2]
    mask, scales = None, None
    if "mask" in option:
        mask = torch.rand(B, s, generator=seeded(1)) > 0.4
        mask[0, :64], mask[1] = False, False
    wide = (k, v)
    if option == "int8":
        k, v, scales, wide = int8_cache(s)
        scales = (scales["k_scale"], scales["v_scale"])
    oracle = attention(q[:, rows], *wide, key_mask=mask)
    eager = eager_attention(q[:, rows], *(x.to(dtype) for x in wide), key_mask=mask)
    spies = []
    for name in ("_attend", "_reduce"):
        spies.append(MagicMock())
        spies[-1].__getitem__.side_effect = getattr(kernel, name).__getitem__
        monkeypatch.setattr(kernel, name, spies[-1])
    out = torch.full_like(q, math.nan)
    result = kernel.gathered_attention(q, k, v, index, mask, scales, None, out, splits)
    assert [spy.__getitem__.call_count for spy in spies] == [1, 1]  # each was launched once
    assert_bounded(result[:, rows], oracle, eager, dtype)
    assert result[:, [r for r in range(q.shape[1]) if r not in rows]].isnan().all()


def test_splits_only_where_multiprocessors_would_idle():
    split = plan.choose_splits
    assert split(132, 8704, 132) == 1  # one full wave
    assert split(1320 + 120, 8704, 132) == 1  # the last of many waves is nearly full
    assert split(24, 500, 132) == 1  # too few keys
    assert split(24, 8704, 132) > 1
    assert split(6 * 24, 8704, 132) > 1  # M = 717 of 24 heads: 1.1 waves take as long as 2
    assert split(24, 2048, 132) == 2  # no more than the keys allow


@NEEDS_TRITON
@NEEDS_INTERPRETER
@pytest.mark.parametrize("d", [24, 64])
def test_descriptors_pointers_and_what_lies_beyond_the_keys(d, monkeypatch):
    """Without a GPU the target is sm_90: at head dim 64 the kernel reads by tensor descriptor."""
    q, _, _ = qkv(torch.float16, 5, d=d)
    storage = torch.full((2, B, 150, H, d), math.nan, dtype=torch.float16)
    storage[:, :, :131] = torch.randn(2, B, 131, H, d)
    k, v = storage[:, :, :131]
    described = []
    describe = kernel._describe
    monkeypatch.setattr(
        kernel, "_describe", lambda *args: described.append(describe(*args)) or described[-1]
    )
    results = [gathered_attention(q, k, v, impl="triton")]
    assert (None in described) == (d == 24)
    monkeypatch.setattr(kernel, "TensorDescriptor", None)
    results.append(gathered_attention(q, k, v, impl="triton"))
    assert len(described) == 3
    for result in results:
        assert_bounded(result, attention(q, k, v), eager_attention(q, k, v), torch.float16)


@TRITON
def test_out_of_range_entries_and_masked_values_are_not_read(impl):
    q, k, v = qkv()
    index = torch.tensor([S, 4, -(2**40), 2**40, 0])
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[0, 3], mask[1, ::2] = False, False
    oracle, eager = attention(q, k, v, key_mask=mask), eager_attention(q, k, v, key_mask=mask)
    k[~mask], v[~mask] = math.nan, math.inf
    out = torch.full_like(q, 7.0)
    gathered_attention(q, k, v, index=index, key_mask=mask, out=out, impl=impl)
    assert_bounded(out[:, [0, 4]], oracle[:, [0, 4]], eager[:, [0, 4]], torch.float32)
    assert (out[:, [r for r in range(S) if r not in (0, 4)]] == 7).all()


@NEEDS_TRITON
@pytest.mark.parametrize(
    ("capability", "head_dim", "options", "want"),
    [((9, 0), 128, {}, "reference"), ((10, 0), 128, {}, "reference"), ((8, 9), 128, {}, "kernel"),
     ((9, 0), 128, {"index": (3,)}, "kernel"), ((9, 0), 128, {"key_mask": (B, S)}, "kernel"),
     ((9, 0), 128, {"k_scale": (B, S, H), "v_scale": (B, S, H)}, "kernel"),
     ((8, 0), 640, {"index": (3,)}, "reference")],
)  # fmt: skip
def test_what_auto_takes_on_a_gpu(capability, head_dim, options, want, monkeypatch):
    dtypes = {"index": torch.int64, "key_mask": torch.bool}
    chosen = []
    for name, module in (("kernel", kernel), ("reference", reference)):
        monkeypatch.setattr(module, "gathered_attention", lambda *_, name=name: chosen.append(name))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    with FakeTensorMode():
        q = torch.empty(B, S, H, head_dim, dtype=torch.bfloat16, device="cuda")
        k = q.to(torch.int8) if "k_scale" in options else q
        tensors = {
            name: torch.empty(shape, dtype=dtypes.get(name, torch.float32), device="cuda")
            for name, shape in options.items()
        }
        gathered_attention(q, k, k, **tensors)
        assert chosen == [want]
        if head_dim > plan.MAX_HEAD_DIM:
            with pytest.raises(RuntimeError, match="head dims up to 512, got 640; pass impl="):
                gathered_attention(q, k, k, **tensors, impl="triton")


def test_no_synchronisation():
    q, k, v = qkv()
    mask = torch.ones(B, S, dtype=torch.bool)
    with NoSync():
        gathered_attention(q, k, v, key_mask=mask)
        gathered_attention(q, k, v, index=torch.tensor([3, -1, 0]), key_mask=mask)
        gathered_attention(q, k, v, index=torch.tensor([[3, -1], [0, 1]]))


def test_compiles_as_one_graph():
    q, k, v = qkv()
    index = torch.tensor([[3, -1, 0], [-1, -1, -1]])
    compiled = torch.compile(gathered_attention, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q, k, v, index=index), gathered_attention(q, k, v, index=index))


def test_errors_say_what_and_how():
    q, k, v = qkv()
    int8 = torch.zeros(B, S, H, D, dtype=torch.int8)
    scale = torch.ones(B, S, H)
    cases = [
        (ValueError, r"q must have shape \[B, M, H, D\] \(4 dim.*unsqueeze", (q[0], k, v), {}),
        (ValueError, r"v must have shape .*\(2, 13, 2, 24\), got \(2, 12", (q, k, v[:, 1:]), {}),
        (ValueError, "q must have k's batch, heads", (q[:1], k, v), {}),
        (ValueError, "k must have at least one row", (q, k[:, :0], v[:, :0]), {}),
        (ValueError, "gathered rows without index", (q[:, :3], k, v), {"index": torch.arange(3)}),
        (TypeError, "index must be of dtype int32, int64, got float32", (q, k, v),
         {"index": torch.zeros(3)}),
        (ValueError, r"index must have shape \[M\] or \[B, M\] with B = 2, got \(3, 1\)", (q, k, v),
         {"index": torch.zeros(3, 1, dtype=torch.long)}),
        (TypeError, "k must be of dtype float32, int8, got float16", (q, k.half(), v), {}),
        (TypeError, "q must be of dtype float16, bfloat16", (q.int(), k, v), {}),
        (TypeError, "q must be a torch.Tensor, got list", (q.tolist(), k, v), {}),
        (ValueError, "int8 k and v need k_scale and v_scale .* got no v_scale", (q, int8, int8),
         {"k_scale": scale}),
        (TypeError, "v must be of dtype int8", (q, int8, v), {"k_scale": scale, "v_scale": scale}),
        (ValueError, "belong to int8 k and v", (q, k, v), {"k_scale": scale, "v_scale": scale}),
        (TypeError, r"key_mask must be of dtype bool, got float32.*mask.bool\(\)", (q, k, v),
         {"key_mask": torch.ones(B, S)}),
        (ValueError, r"key_mask must have shape \[B, S\]", (q, k, v),
         {"key_mask": torch.ones(B, S + 1, dtype=torch.bool)}),
        (TypeError, "scale must be a float", (q, k, v), {"scale": torch.tensor(1.0)}),
        (ValueError, "out must have shape", (q, k, v), {"out": q[:, 1:]}),
        (ValueError, "must be on cpu like .* got meta.*move it", (q, k.to("meta"), v), {}),
        (ValueError, "impl must be one of", (q, k, v), {"impl": "cuda"}),
        (RuntimeError, "impl='triton' was asked for.*pass impl='auto'",
         (q.double(), k.double(), v.double()), {"impl": "triton"}),
    ]  # fmt: skip
    for error, message, args, kwargs in cases:
        with pytest.raises(error, match=message):
            gathered_attention(*args, **kwargs)
