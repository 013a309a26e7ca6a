"""Test kv_blend and cosine_weight against element-wise fp64."""

import math

import pytest
import torch
from kernel_oracle import (
    EACH_IMPL,
    HALVES_AND_FP32,
    NoSync,
    assert_bounded,
    each_impl_in,
    entries,
    seeded,
)
from spotedit_kernels import cosine_weight, kv_blend

B, S, H, D = 2, 11, 3, 10
INDICES = {
    "one": [4],
    "all": list(range(S)),
    "padding and row 0": [-1, 7, -1, 0, 3],
    "only padding": [-1, -1],
    "none": [],
    "per row": [[0, 9, -1], [-1, 2, 5]],
    "per row, one all padding": [[-1, -1, -1], [10, 0, -1]],
}


def tensors(dtype=torch.float32, rows=S, seed=0):
    """Return random k_cached, v_cached, k_ref and v_ref."""
    g = seeded(seed)
    return tuple(torch.randn(B, r, H, D, generator=g).to(dtype) for r in (S, S, rows, rows))


@each_impl_in([*HALVES_AND_FP32, torch.float64])
@pytest.mark.parametrize("rows", INDICES.values(), ids=INDICES)
def test_blends_the_indexed_rows_only(dtype, rows, impl):
    index, t = torch.tensor(rows, dtype=torch.long), 0.3
    real = entries(index, B)
    cached_k, cached_v, ref_k, ref_v = tensors(dtype)
    written = torch.zeros(B, S, dtype=torch.bool)
    for b, _, r in real:
        written[b, r] = True
    poisoned = [x.clone() for x in (cached_k, cached_v, ref_k, ref_v)]
    for x in poisoned:
        x[~written] = math.nan
    k_out, v_out = torch.full_like(cached_k, 5.0), torch.full_like(cached_v, math.nan)
    assert kv_blend(k_out, v_out, *poisoned, index, t=t, impl=impl) is None
    assert (k_out[~written] == 5).all()
    assert v_out[~written].isnan().all()
    w = math.cos(math.pi * t / 2) ** 2
    for out, cached, ref in ((k_out, cached_k, ref_k), (v_out, cached_v, ref_v)):
        if real:
            oracle = (w * cached.double() + (1 - w) * ref.double())[written]
            eager = (w * cached + (1 - w) * ref)[written]
            assert_bounded(out[written], oracle, eager, dtype)


@each_impl_in([torch.float16, torch.bfloat16])
def test_halves_are_rounded_once(dtype, impl):
    cached_k, cached_v, ref_k, ref_v = tensors(dtype)
    k_out, v_out = torch.empty_like(cached_k), torch.empty_like(cached_v)
    kv_blend(k_out, v_out, cached_k, cached_v, ref_k, ref_v, torch.arange(S), weight=0.3, impl=impl)
    exact = 0.3 * cached_k.double() + 0.7 * ref_k.double()
    gap = (k_out.double() - exact).abs()
    assert (gap <= 0.5001 * torch.finfo(dtype).eps * exact.abs().clamp(min=1e-2)).all()


@EACH_IMPL
def test_in_place_and_a_reference_with_fewer_rows(impl):
    k, v, _, _ = tensors()
    noise, rows = 4, torch.tensor([1, 3, -1])  # condition row = noise row + 4
    want_k, want_v = ((0.25 * x + 0.75 * x.roll(-noise, 1))[:, [1, 3]] for x in (k, v))
    others = [r for r in range(S) if r not in (1, 3)]
    kept = k.clone()
    kv_blend(k, v, k, v, k[:, noise:], v[:, noise:], rows, weight=0.25, impl=impl)
    torch.testing.assert_close(k[:, [1, 3]], want_k)
    torch.testing.assert_close(v[:, [1, 3]], want_v)
    assert torch.equal(k[:, others], kept[:, others])


@EACH_IMPL
def test_strided_views(impl):
    wide = torch.randn(B, S, 6, H, 2 * D)
    k, v, k_ref, v_ref, k_out, v_out = wide[..., ::2].unbind(2)
    want = 0.5 * k[:, [8, 0]] + 0.5 * k_ref[:, [8, 0]]
    kv_blend(k_out, v_out, k, v, k_ref, v_ref, torch.tensor([8, -1, 0]), weight=0.5, impl=impl)
    torch.testing.assert_close(k_out[:, [8, 0]], want)


@EACH_IMPL
@pytest.mark.parametrize("wrap", [float, torch.tensor, lambda x: torch.tensor(x).double()])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_end_points_are_exact(wrap, weight, impl):
    k, v, k_ref, v_ref = tensors()
    k_out, v_out = torch.empty_like(k), torch.empty_like(v)
    kv_blend(k_out, v_out, k, v, k_ref, v_ref, torch.arange(S), weight=wrap(weight), impl=impl)
    assert torch.equal(k_out, k if weight else k_ref)
    assert torch.equal(v_out, v if weight else v_ref)


@EACH_IMPL
def test_t_and_weight_agree_in_every_form(impl):
    k, v, k_ref, v_ref = tensors()
    results = []
    for weight in (
        {"t": 0.4},
        {"t": torch.tensor(0.4)},
        {"weight": cosine_weight(0.4)},
        {"weight": cosine_weight(torch.tensor(0.4))},
    ):
        k_out, v_out = torch.zeros_like(k), torch.zeros_like(v)
        kv_blend(k_out, v_out, k, v, k_ref, v_ref, torch.tensor([2, 5]), **weight, impl=impl)
        results.append(torch.stack((k_out, v_out)))
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=1e-6)


def test_cosine_weight():
    assert cosine_weight(0) == 1
    assert cosine_weight(1.0) < 1e-30
    assert isinstance(cosine_weight(0.5), float)
    assert abs(cosine_weight(0.5) - 0.5) < 1e-15
    t = torch.linspace(0, 1, 5)
    w = cosine_weight(t)
    assert w.shape == t.shape
    assert w.dtype == torch.float32
    assert cosine_weight(t.bfloat16()).dtype == torch.float32
    assert cosine_weight(t.double()).dtype == torch.float64
    want = torch.tensor([math.cos(math.pi * x / 2) ** 2 for x in t.tolist()])
    torch.testing.assert_close(w, want, rtol=0, atol=1e-6)
    for bad in (1.5, 1000.0, -0.1):
        with pytest.raises(ValueError, match=r"must be in \[0, 1\].*divided by 1000"):
            cosine_weight(bad)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be finite"):
            cosine_weight(bad)
    for bad in ("0.5", True, torch.tensor(1)):
        with pytest.raises(TypeError, match="t must be"):
            cosine_weight(bad)


def test_no_synchronisation():
    k, v, k_ref, v_ref = tensors()
    with NoSync():
        for index in (torch.tensor([0, -1, 4]), torch.tensor([[0, -1], [-1, -1]])):
            kv_blend(k, v, k, v, k_ref, v_ref, index, t=torch.tensor(0.3))
            kv_blend(k, v, k, v, k_ref, v_ref, index, weight=torch.tensor(0.3))
            kv_blend(k, v, k, v, k_ref, v_ref, index, t=0.3)


def test_compiles_as_one_graph():
    k, v, k_ref, v_ref = tensors()
    compiled = torch.compile(kv_blend, fullgraph=True, backend="eager")
    for t in (0.2, 0.6, torch.tensor(0.6)):
        pairs = [(torch.zeros_like(k), torch.zeros_like(v)) for _ in range(2)]
        kv_blend(*pairs[0], k, v, k_ref, v_ref, torch.tensor([3, -1]), t=t)
        compiled(*pairs[1], k, v, k_ref, v_ref, torch.tensor([3, -1]), t=t)
        torch.testing.assert_close(pairs[1], pairs[0])


def test_errors_say_what_and_how():
    k, v, k_ref, v_ref = tensors()
    index = torch.arange(3)
    good = (k, v, k, v, k_ref, v_ref, index)
    cases = [
        (ValueError, "exactly one of t and weight must be given, got neither", good, {}),
        (ValueError, "exactly one of t and weight must be given, got both", good,
         {"t": 0.1, "weight": 0.1}),
        (ValueError, "weight must be finite", good, {"weight": math.nan}),
        (ValueError, r"t must be in \[0, 1\], got 500", good, {"t": 500.0}),
        (TypeError, "weight must be a float or a tensor, got str", good, {"weight": "1"}),
        (ValueError, r"t must have shape \[\] = \(\), got \(2,\)", good, {"t": torch.zeros(2)}),
        (TypeError, "t must be of dtype .* got int64", good, {"t": torch.tensor(1)}),
        (ValueError, "t must be on cpu like", good, {"t": torch.zeros((), device="meta")}),
        (ValueError, "v_out must have shape", (k, v[:, 1:], *good[2:]), {"t": 0.1}),
        (ValueError, "k_ref must have shape .* except for the rows",
         (*good[:4], k_ref[:, :, :1], v_ref, index), {"t": 0.1}),
        (TypeError, "v_ref must be of dtype float32, got float16",
         (*good[:5], v_ref.half(), index), {"t": 0.1}),
        (TypeError, "index must be of dtype", (*good[:6], torch.ones(3, dtype=torch.bool)),
         {"t": 0.1}),
        (RuntimeError, "impl='triton' was asked for.*in fp64",
         (*(x.double() for x in good[:6]), index), {"t": 0.1, "impl": "triton"}),
    ]  # fmt: skip
    for error, message, args, kwargs in cases:
        with pytest.raises(error, match=message):
            kv_blend(*args, **kwargs)
