"""Test qk_norm_rope against an element-wise fp64 oracle and against diffusers' modules."""

import math

import pytest
import torch
from kernel_oracle import (
    EACH_IMPL,
    HALVES_AND_FP32,
    TRITON,
    NoSync,
    assert_bounded,
    each_impl_in,
    entries,
    norm_rope,
    seeded,
)
from spotedit_kernels import qk_norm_rope

from bench.shapes import ODD_HEAD_DIMS, ODD_ROW_COUNTS

B, S, C, H, EPS = 2, 9, 4, 2, 1e-6
MODES = [True, False]


def table(rows, d, interleaved, seed):
    angle = torch.rand(rows, d // 2, generator=seeded(seed)) * 6.3
    angle = angle.repeat_interleave(2, -1) if interleaved else torch.cat((angle, angle), -1)
    return angle.cos(), angle.sin()


class Case:
    """The inputs of one call: M random rows, poisoned caches and k_ref, tables and weights."""

    def __init__(self, dtype=torch.float32, m=S, d=24, interleaved=True, text_len=3, text=True):
        g = seeded(d + m)
        self.dtype, self.m, self.interleaved, self.text_len = dtype, m, interleaved, text_len
        self.q, self.k, self.v = (torch.randn(B, m, H, d, generator=g).to(dtype) for _ in range(3))
        self.k_cache, self.v_cache = (self.q.new_full((B, S, H, d), math.nan) for _ in range(2))
        self.k_ref = self.q.new_full((B, C, H, d), math.nan)
        self.cos, self.sin = table(S, d, interleaved, 1)
        self.cos_ref, self.sin_ref = table(C, d, interleaved, 2)
        names = ("q_weight", "k_weight", "text_q_weight", "text_k_weight")
        self.weights = {n: (1 + 0.3 * torch.randn(d, generator=g)).to(dtype) for n in names}
        if not text:
            self.weights |= {"text_q_weight": None, "text_k_weight": None}

    def __call__(self, slots, call=qk_norm_rope, ref=True, **changes):
        ref = {n: getattr(self, n) for n in ("k_ref", "cos_ref", "sin_ref")} if ref else {}
        arguments = {"text_len": self.text_len, "eps": EPS, "interleaved": self.interleaved}
        arguments = {"cos": self.cos, "sin": self.sin} | arguments | self.weights | ref | changes
        return call(self.q, self.k, self.v, self.k_cache, self.v_cache, slots, **arguments)

    def row_weights(self, name):
        text, image = self.weights[f"text_{name}_weight"], self.weights[f"{name}_weight"]
        text = image if text is None else text
        return [text if m < self.text_len else image for m in range(self.m)]

    def exact(self, name, cos, sin):
        """Return the oracle's and the eager result for "q" or "k", with tables ``[B, M, D]``."""
        x, weights = getattr(self, name), self.row_weights(name)
        oracle = norm_rope(x, weights, EPS, cos, sin, self.interleaved)
        w = torch.stack([torch.ones_like(x[0, 0, 0]) if a is None else a for a in weights])
        normed = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * w[:, None].to(x.dtype)
        c, s = (a[:, :, None].to(x.dtype) for a in (cos, sin))
        if self.interleaved:
            pairs = normed.unflatten(-1, (-1, 2))
            turned = torch.stack((-pairs[..., 1], pairs[..., 0]), -1).flatten(-2)
        else:
            a, b = normed.chunk(2, -1)
            turned = torch.cat((-b, a), -1)
        return oracle, normed * c + turned * s

    def aligned(self, slots, cos, sin, start=0):
        """Return tables aligned with the M rows; a row without a slot gets the table's row 0."""
        c, s = (torch.zeros(B, self.m, cos.shape[-1]) + t[0] for t in (cos, sin))
        for b, m, r in entries(slots, B):
            if r >= start:
                c[b, m], s[b, m] = cos[r - start], sin[r - start]
        return c, s

    def check(self, result, slots):
        """Check q on real rows, the caches and k_ref on their rows, and NaN everywhere else."""
        index = torch.arange(S) if slots is None else slots
        real = entries(index, B)
        cos, sin = self.aligned(index, self.cos, self.sin)
        q_oracle, q_eager = self.exact("q", cos, sin)
        k_oracle, k_eager = self.exact("k", cos, sin)
        r_oracle, r_eager = self.exact("k", *self.aligned(index, self.cos_ref, self.sin_ref, S - C))
        in_cache, in_ref = set(), set()
        for b, m, r in real:
            assert_bounded(result[b, m], q_oracle[b, m], q_eager[b, m], self.dtype, "q")
            assert_bounded(self.k_cache[b, r], k_oracle[b, m], k_eager[b, m], self.dtype, "k")
            assert torch.equal(self.v_cache[b, r], self.v[b, m])
            in_cache.add((b, r))
            if r >= S - C:
                j = r - (S - C)
                assert_bounded(self.k_ref[b, j], r_oracle[b, m], r_eager[b, m], self.dtype, "k_ref")
                in_ref.add((b, j))
        for b in range(B):
            for r in set(range(S)) - {x for a, x in in_cache if a == b}:
                assert self.k_cache[b, r].isnan().all()
                assert self.v_cache[b, r].isnan().all()
            for j in set(range(C)) - {x for a, x in in_ref if a == b}:
                assert self.k_ref[b, j].isnan().all()


SLOTS = {
    "full": None,
    "full, as an index": list(range(S)),
    "one": [3],
    "padding, row 0 and the reference's first row": [-1, 0, 7, -1, 5, 2],
    "only padding": [-1, -1],
    "per row": [[0, 8, -1, 4], [-1, -1, 6, 1]],
    "per row, one all padding": [[-1, -1, -1], [5, -1, 0]],
}


@each_impl_in(HALVES_AND_FP32)
@pytest.mark.parametrize("interleaved", MODES)
@pytest.mark.parametrize("rows", SLOTS.values(), ids=SLOTS)
def test_against_the_oracle(dtype, interleaved, rows, impl):
    slots = None if rows is None else torch.tensor(rows)
    m = S if slots is None else slots.shape[-1]
    case = Case(dtype, m, interleaved=interleaved, text_len=min(m, 2))
    result = case(slots, impl=impl)
    assert result.dtype == dtype
    assert result.shape == case.q.shape
    case.check(result, slots)


@EACH_IMPL
@pytest.mark.parametrize("interleaved", MODES)
@pytest.mark.parametrize("d", ODD_HEAD_DIMS)
@pytest.mark.parametrize("text_len", [0, 1, 5])
@pytest.mark.parametrize("text", [True, False])
def test_head_dims_and_segments(interleaved, d, text_len, text, impl):
    slots = torch.tensor([6, 0, -1, 2, 8], dtype=torch.int32)
    case = Case(m=5, d=d, interleaved=interleaved, text_len=text_len, text=text)
    case.check(case(slots, impl=impl), slots)


@EACH_IMPL
@pytest.mark.parametrize("interleaved", MODES)
@pytest.mark.parametrize("m", ODD_ROW_COUNTS)
def test_row_counts_at_the_models_head_dim(interleaved, m, impl):
    slots = torch.arange(8, -9, -1)[:m]  # 8, ..., 0, and padding
    case = Case(torch.float16, m, d=128, interleaved=interleaved, text_len=1)
    case.check(case(slots, impl=impl), slots)


@EACH_IMPL
def test_no_rows_and_no_reference_rows(impl):
    case = Case(m=0, text_len=0)
    assert case(torch.empty(0, dtype=torch.long), impl=impl).shape == (B, 0, H, 24)
    assert case.k_cache.isnan().all()
    assert case.k_ref.isnan().all()
    case, other = Case(), Case()
    case.k_ref, case.cos_ref, case.sin_ref = case.k_ref[:, :0], case.cos_ref[:0], case.sin_ref[:0]
    result = case(None, impl=impl)
    assert not case.k_cache.isnan().any()
    assert torch.equal(other(None, ref=False, impl=impl), result)
    assert torch.equal(other.k_cache, case.k_cache)


def test_fp64():
    case = Case(torch.float64)
    case.cos, case.sin = case.cos.double(), case.sin.double()
    case.check(case(None), None)


@EACH_IMPL
@pytest.mark.parametrize("missing", ["", "text_", "both"])
def test_missing_weights(missing, impl):
    case = Case()
    for name in case.weights:
        if missing in ("both", name.removesuffix("q_weight").removesuffix("k_weight")):
            case.weights[name] = None
    case.check(case(None, impl=impl), None)


@each_impl_in([torch.float16, torch.bfloat16])
def test_fp32_weights(dtype, impl):
    fp32_weights, half_weights = Case(dtype), Case(dtype)
    fp32_weights.weights = {n: w.float() for n, w in fp32_weights.weights.items()}
    result = fp32_weights(None, impl=impl)
    assert result.dtype == dtype
    torch.testing.assert_close(result, half_weights(None, impl=impl), rtol=1e-2, atol=1e-2)


@TRITON
@pytest.mark.parametrize("interleaved", MODES)
def test_kernel_rounds_where_the_reference_does(interleaved, impl):
    """Test the rounding: one rounding less, or elsewhere, changes a third of the elements."""
    case, other = (Case(torch.float16, interleaved=interleaved) for _ in range(2))
    same = case(None, impl=impl) == other(None, impl="reference")
    assert same.double().mean() > 0.98
    assert (case.k_cache == other.k_cache).double().mean() > 0.98


@TRITON
def test_kernel_ignores_slots_out_of_range(impl):
    slots = torch.tensor([S, 4, -7, 2**40, 0, S + 3])
    case = Case(m=6)
    case.check(case(slots, impl=impl), torch.where(slots < S, slots, -1))


@EACH_IMPL
@pytest.mark.parametrize("interleaved", MODES)
def test_tables_aligned_with_the_rows(interleaved, impl):
    slots = torch.tensor([[5, -1, 0], [1, 8, -1]])
    case, other = Case(m=3, interleaved=interleaved), Case(m=3, interleaved=interleaved)
    cos, sin = case.aligned(slots, case.cos, case.sin)
    result, want = case(slots, cos=cos, sin=sin, impl=impl), other(slots, impl=impl)
    for b, m, _ in entries(slots, B):
        assert torch.equal(result[b, m], want[b, m])
    torch.testing.assert_close(case.k_cache, other.k_cache, equal_nan=True, rtol=0, atol=0)


@EACH_IMPL
@pytest.mark.parametrize("interleaved", MODES)
def test_strided_views(interleaved, impl):
    slots, d = torch.tensor([4, -1, 0]), 24
    case, plain = Case(m=3, interleaved=interleaved), Case(m=3, interleaved=interleaved)
    fused = torch.stack((case.q, case.k, case.v), 2)
    case.q, case.k, case.v = fused.unbind(2)
    wide = torch.full((B, S, H, 2 * d + 1), math.nan)
    case.k_cache, case.v_cache = wide[..., :d], wide[..., d + 1 :]
    case.k_ref = torch.full((B, S, H, d), math.nan)[:, S - C :]
    assert torch.equal(case(slots, impl=impl), plain(slots, impl=impl))
    for name in ("k_cache", "v_cache", "k_ref"):
        torch.testing.assert_close(
            getattr(case, name), getattr(plain, name), equal_nan=True, rtol=0, atol=0
        )
    assert wide[..., d].isnan().all()


@EACH_IMPL
@pytest.mark.parametrize("interleaved", MODES)
def test_no_dimension_contiguous(interleaved, impl):
    def loosen(x):
        """Return the same values with the first and last strides swapped, and gaps between."""
        return torch.stack((x, -x), -1).transpose(0, -2).contiguous().transpose(0, -2)[..., 0]

    slots = torch.tensor([[4, -1, 0], [-1, 8, 3]])
    case = Case(m=3, interleaved=interleaved)
    for name in ("q", "k", "v", "k_cache", "v_cache", "k_ref", "cos", "sin", "cos_ref", "sin_ref"):
        setattr(case, name, loosen(getattr(case, name)))
        assert getattr(case, name).stride(-1) > 1
    case.weights = {name: loosen(weight) for name, weight in case.weights.items()}
    case.check(case(loosen(slots), impl=impl), slots)


@each_impl_in([torch.float32, torch.bfloat16])
@pytest.mark.parametrize("interleaved", MODES)
def test_agrees_with_the_stock_modules(dtype, interleaved, impl):
    """Compare with torch's RMSNorm (FLUX), diffusers' RMSNorm (Qwen) and apply_rotary_emb.

    With torch's RMSNorm on a CPU in bf16 the results are equal bit for bit.
    """
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    from diffusers.models.normalization import RMSNorm

    case = Case(dtype, interleaved=interleaved, text_len=0, text=False)
    result = case(None, impl=impl)
    rounding = 4 * torch.finfo(dtype).eps
    fused = 0.0 if result.device.type == "cpu" else rounding
    for kind, tolerance in ((torch.nn.RMSNorm, fused), (RMSNorm, rounding)):
        norm = kind(24, eps=EPS)
        norm.weight.data = case.weights["q_weight"]
        stock = embeddings.apply_rotary_emb(
            norm(case.q),
            (case.cos, case.sin),
            sequence_dim=1,
            use_real_unbind_dim=-1 if interleaved else -2,
        )
        exact = tolerance == 0 and dtype != torch.float32
        torch.testing.assert_close(
            result, stock, rtol=0, atol=0 if exact else max(tolerance, 1e-6) * 4
        )


def test_no_synchronisation():
    for rows in ([0, -1, 7], [[-1, -1, -1], [0, 5, -1]]):
        case = Case(m=3)
        with NoSync():
            case(torch.tensor(rows))
    with NoSync():
        Case()(None)


@pytest.mark.parametrize("rows", [None, [3, -1, 0]])
def test_compiles_as_one_graph(rows):
    slots = None if rows is None else torch.tensor(rows)
    m = S if rows is None else 3
    case, plain = Case(m=m), Case(m=m)
    compiled = torch.compile(qk_norm_rope, fullgraph=True, backend="eager")
    assert torch.equal(case(slots, call=compiled), plain(slots))
    torch.testing.assert_close(case.k_cache, plain.k_cache, equal_nan=True, rtol=0, atol=0)


def test_errors_say_what_and_how():
    case, slots = Case(m=3), torch.tensor([0, 1, -1])
    half, odd, double = Case(m=3), Case(m=3), Case(torch.float64, m=3)
    half.v_cache = half.v_cache.half()
    odd.q, odd.k, odd.v, odd.k_cache, odd.v_cache = (
        x[..., :23] for x in (odd.q, odd.k, odd.v, odd.k_cache, odd.v_cache)
    )
    cases = [
        (case, ValueError, "slots=None covers the cache in order and needs M = S = 9, got M = 3",
         None, {}),
        (case, ValueError, "slots must have M = 3 entries, got 2; pad it with -1", slots[:2], {}),
        (case, TypeError, "slots must be of dtype int32, int64", slots.float(), {}),
        (half, TypeError, "v_cache must be of dtype float32, got float16", slots, {}),
        (odd, ValueError, "head dim D must be even", slots, {}),
        (case, ValueError, r"text_len must be in 0..M = 3, got 4", slots, {"text_len": 4}),
        (case, ValueError, r"cos must have .* \(9, 24\) or \[B, M, D\] = \(2, 3, 24\)", slots,
         {"cos": case.cos[:4]}),
        (case, ValueError, "cos and sin must have the same shape", slots,
         {"cos": case.cos.expand(B, S, 24)[:, :3]}),
        (case, TypeError, "cos must be of dtype float32, got float16", slots,
         {"cos": case.cos.half()}),
        (case, ValueError, "k_ref, cos_ref and sin_ref must be given together, got no cos_ref;",
         slots, {"cos_ref": None}),
        (case, ValueError, r"sin_ref must have shape \[C, D\]", slots, {"sin_ref": case.sin}),
        (case, ValueError, "k_ref holds the last C of S = 9 rows, got C = 18", slots,
         {"k_ref": torch.zeros(B, 18, H, 24)}),
        (case, ValueError, r"k_weight must have shape \[D\] = \(24,\), got \(12,\)", slots,
         {"k_weight": torch.ones(12)}),
        (case, TypeError, "q_weight must be of dtype", slots, {"q_weight": torch.ones(24).half()}),
        (case, ValueError, "eps must be positive", slots, {"eps": 0.0}),
        (case, ValueError, "slots must be on cpu like", slots.to("meta"), {}),
        (double, RuntimeError, "impl='triton' was asked for", slots, {"impl": "triton"}),
    ]  # fmt: skip
    for subject, error, message, rows, changes in cases:
        with pytest.raises(error, match=message):
            subject(rows, **changes)
    assert case.k_cache.isnan().all()
