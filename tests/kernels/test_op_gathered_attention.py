"""gathered_attention against a row-by-row fp64 oracle."""

import math

import pytest
import torch
from kernel_oracle import (
    HALVES_AND_FP32,
    NoSync,
    assert_bounded,
    attention,
    eager_attention,
    entries,
)
from spotedit_kernels import gathered_attention

B, S, H, D = 2, 13, 2, 24


def qkv(dtype=torch.float32, m=S, s=S, d=D, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(B, rows, H, d, generator=g).to(dtype) for rows in (m, s, s))


@pytest.mark.parametrize("dtype", HALVES_AND_FP32)
@pytest.mark.parametrize(
    ("m", "s", "d"), [(1, 1, 24), (1, 17, 40), (7, 13, 24), (13, 13, 64), (5, 29, 6)]
)
def test_compact_queries(dtype, m, s, d):
    q, k, v = qkv(dtype, m, s, d)
    result = gathered_attention(q, k, v)
    assert result.shape == q.shape
    assert result.dtype == dtype
    assert_bounded(result, attention(q, k, v), eager_attention(q, k, v), dtype)


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


@pytest.mark.parametrize("dtype", HALVES_AND_FP32)
@pytest.mark.parametrize("rows", INDICES.values(), ids=INDICES)
@pytest.mark.parametrize("integer", [torch.int32, torch.int64])
def test_index_reads_and_writes_only_its_rows(dtype, rows, integer):
    q, k, v = qkv(dtype)
    index = torch.tensor(rows, dtype=integer)
    real = entries(index, B)
    poisoned = torch.full_like(q, math.nan)
    for b, _, r in real:
        poisoned[b, r] = q[b, r]
    out = torch.full_like(q, math.nan)
    assert gathered_attention(poisoned, k, v, index=index, out=out) is out
    fresh = gathered_attention(poisoned, k, v, index=index)
    written = torch.zeros(B, S, dtype=torch.bool)
    for b, _, r in real:
        written[b, r] = True
    assert out[~written].isnan().all()
    assert (fresh[~written] == 0).all()
    if real:
        oracle, eager = attention(q, k, v), eager_attention(q, k, v)
        for result in (out, fresh):
            assert_bounded(result[written], oracle[written], eager[written], dtype)


def test_strided_views_and_out_in_place_of_q():
    fused = torch.randn(B, S, 3, H, 2 * D)
    q, k, v = fused[..., ::2].unbind(2)
    index = torch.tensor([2, -1, 9])
    oracle = attention(q, k, v)
    kept = q.clone()
    assert gathered_attention(q, k, v, index=index, out=q) is q
    eager = eager_attention(kept, k, v)
    assert_bounded(q[:, [2, 9]], oracle[:, [2, 9]], eager[:, [2, 9]], torch.float32)
    others = [r for r in range(S) if r not in (2, 9)]
    assert torch.equal(q[:, others], kept[:, others])


def test_out_without_index():
    q, k, v = qkv(m=4)
    out = torch.full_like(q, math.nan)
    assert gathered_attention(q, k, v, out=out) is out
    assert torch.equal(out, gathered_attention(q, k, v))


@pytest.mark.parametrize("dtype", HALVES_AND_FP32)
def test_key_mask(dtype):
    q, k, v = qkv(dtype, m=5)
    mask = torch.rand(B, S, generator=torch.Generator().manual_seed(1)) > 0.4
    oracle, eager = attention(q, k, v, key_mask=mask), eager_attention(q, k, v, key_mask=mask)
    assert_bounded(gathered_attention(q, k, v, key_mask=mask), oracle, eager, dtype)
    mask[1] = False
    result = gathered_attention(q, k, v, key_mask=mask)
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

    want = gathered_attention(q, k, v, key_mask=mask)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", poisoned)
    assert torch.equal(gathered_attention(q, k, v, key_mask=mask), want)


def test_key_mask_with_index():
    q, k, v = qkv()
    mask = torch.ones(B, S, dtype=torch.bool)
    mask[0, ::2], mask[1] = False, False
    out = torch.full_like(q, 7.0)
    gathered_attention(q, k, v, index=torch.tensor([-1, 0, 6]), key_mask=mask, out=out)
    oracle, eager = attention(q, k, v, key_mask=mask), eager_attention(q, k, v, key_mask=mask)
    assert_bounded(out[:, [0, 6]], oracle[:, [0, 6]], eager[:, [0, 6]], torch.float32)
    assert (out[1, [0, 6]] == 0).all()
    assert (out[:, 1:6] == 7).all()


@pytest.mark.parametrize("dtype", HALVES_AND_FP32)
def test_int8_cache(dtype):
    q, _, _ = qkv(dtype, m=5)
    g = torch.Generator().manual_seed(2)
    k, v = (torch.randint(-127, 128, (B, S, H, D), generator=g).to(torch.int8) for _ in range(2))
    k_scale, v_scale = (torch.rand(B, S, H, generator=g) / 64 for _ in range(2))
    wide_k, wide_v = k.double() * k_scale[..., None], v.double() * v_scale[..., None]
    result = gathered_attention(q, k, v, k_scale=k_scale, v_scale=v_scale)
    eager = eager_attention(q, wide_k.to(dtype), wide_v.to(dtype))
    assert_bounded(result, attention(q, wide_k, wide_v), eager, dtype)


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
        (RuntimeError, "impl='triton' was asked for.*pass impl='auto'", (q, k, v),
         {"impl": "triton"}),
    ]  # fmt: skip
    for error, message, args, kwargs in cases:
        with pytest.raises(error, match=message):
            gathered_attention(*args, **kwargs)
