"""Shared parts of the kernel tests: fp64 oracles, the error bound and a ban on synchronising."""

from __future__ import annotations

import math
from importlib.metadata import version
from itertools import product

import pytest
import torch
from packaging.version import Version
from spotedit_kernels.impl import HAS_TRITON, is_interpreted
from torch.utils._python_dispatch import TorchDispatchMode

if HAS_TRITON:
    import triton

NEEDS_TRITON = pytest.mark.skipif(not HAS_TRITON, reason="Triton is not installed")
NEEDS_INTERPRETER = pytest.mark.skipif(
    is_interpreted()  # which implies that Triton is installed
    and Version(triton.__version__) < Version("3.7.1")
    and Version(version("numpy")) >= Version("2.4"),
    reason="Triton before 3.7.1 cannot interpret loops with NumPy 2.4 or later",
)
HALVES_AND_FP32 = [torch.float16, torch.bfloat16, torch.float32]
SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique")


def _case(impl, device, *dtype):
    """Return a parameter for the fixture `impl`: an implementation, a device, maybe a dtype."""
    marks = [pytest.mark.gpu] if device == "cuda" else []
    if impl == "triton":
        marks += [NEEDS_TRITON, NEEDS_INTERPRETER]
    names = [impl, *(str(each).removeprefix("torch.") for each in dtype)]
    if device == "cuda":
        names.append("cuda")
    return pytest.param((impl, device), *dtype, id="-".join(names), marks=marks)


IMPLS, DEVICES = ("reference", "triton"), ("cpu", "cuda")
EACH_IMPL = pytest.mark.parametrize(
    "impl", [_case(*each) for each in product(IMPLS, DEVICES)], indirect=True
)
TRITON = pytest.mark.parametrize(
    "impl", [_case("triton", device) for device in DEVICES], indirect=True
)


def each_impl_in(dtypes, impls=IMPLS):
    """Parametrise by implementation, device and dtype.

    Triton's interpreter is wrong in bf16, and no kernel takes fp64, so these cases are left out.
    """
    left_out = {("triton", "cpu", torch.bfloat16)}
    left_out |= {("triton", device, torch.float64) for device in DEVICES}
    cases = [each for each in product(impls, DEVICES, dtypes) if each not in left_out]
    return pytest.mark.parametrize(
        ("impl", "dtype"), [_case(*each) for each in cases], indirect=["impl"]
    )


def seeded(seed):
    """Return a seeded generator on the default device, where a test makes its tensors."""
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def assert_bounded(actual, oracle, eager, dtype, what=""):
    """Check that |actual - oracle| <= 2 |eager - oracle| + 2 eps(dtype) max|oracle|.

    The differences are taken in the maximum norm. `oracle` is the fp64 result, and `eager` that of
    the plain composition in `dtype`.
    """
    assert not actual.isnan().any(), f"{what}: NaN in the result"
    error = (actual.double() - oracle).abs().max().item()
    eager_error = (eager.double() - oracle).abs().max().item()
    bound = 2 * eager_error + 2 * torch.finfo(dtype).eps * oracle.abs().max().item()
    assert error <= bound, f"{what}: error {error:.3e} exceeds the bound {bound:.3e}"


class NoSync(TorchDispatchMode):
    """Raise an error where an operation would make the host wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in SYNCHRONISING, f"{name} synchronises with the device"
        if name in ("index", "index_put", "index_put_"):
            assert all(i is None or i.dtype != torch.bool for i in args[1]), f"{name} by a mask"
        return func(*args, **(kwargs or {}))


def entries(index, batch):
    """Return a triple (batch row, position, row) for each real entry of an index."""
    index = index.expand(batch, -1) if index.ndim == 1 else index
    return [
        (b, m, r) for b, rows in enumerate(index.tolist()) for m, r in enumerate(rows) if r >= 0
    ]


def attention_row(q, k, v, scale, keep=None):
    """Attend with one query ``[D]`` to keys and values ``[S, D]`` of one head, in fp64."""
    logits = [
        scale * sum(a * b for a, b in zip(q.tolist(), row, strict=True)) for row in k.tolist()
    ]
    kept = [s for s in range(len(logits)) if keep is None or keep[s]]
    if not kept:
        return torch.zeros_like(v[0])
    largest = max(logits[s] for s in kept)
    weights = {s: math.exp(logits[s] - largest) for s in kept}
    return sum(weights[s] * v[s] for s in kept) / sum(weights.values())


def attention(q, k, v, scale=None, key_mask=None):
    """Attend with ``[B, M, H, D]`` to ``[B, S, H, D]`` in fp64, row by row."""
    device = q.device
    q, k, v = (x.double().cpu() for x in (q, k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    result = torch.zeros_like(q)
    for b in range(q.shape[0]):
        keep = None if key_mask is None else key_mask[b].tolist()
        for h in range(q.shape[2]):
            for m in range(q.shape[1]):
                result[b, m, h] = attention_row(q[b, m, h], k[b, :, h], v[b, :, h], scale, keep)
    return result.to(device)


def eager_attention(q, k, v, scale=None, key_mask=None):
    """Compute attention by the plain composition in q's dtype."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = torch.einsum("bmhd,bshd->bhms", q, k) * scale
    if key_mask is not None:
        logits = logits.masked_fill(~key_mask[:, None, None], -math.inf)
    return torch.einsum("bhms,bshd->bmhd", logits.softmax(-1).nan_to_num(), v)


def norm_rope_row(x, weight, eps, cos, sin, interleaved):
    """Apply RMSNorm and rotation to one head's row ``[D]``, element by element in fp64."""
    x = x.double().tolist()
    d = len(x)
    root = math.sqrt(sum(a * a for a in x) / d + eps)
    x = [a / root * (1.0 if weight is None else weight[i].item()) for i, a in enumerate(x)]
    result = torch.empty(d, dtype=torch.float64, device="cpu")
    for i in range(d // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + d // 2)
        c, s = cos[a].item(), sin[a].item()
        result[a] = x[a] * c - x[b] * s
        result[b] = x[b] * c + x[a] * s
    return result


def norm_rope(x, weights, eps, cos, sin, interleaved):
    """Apply RMSNorm and rotation to `x` ``[B, M, H, D]`` in fp64.

    `weights` has one entry for each of the M rows; `cos` and `sin` are ``[B, M, D]``.
    """
    device, result = x.device, torch.empty(x.shape, dtype=torch.float64, device="cpu")
    x, cos, sin = x.cpu(), cos.cpu(), sin.cpu()
    weights = [None if weight is None else weight.cpu() for weight in weights]
    for b in range(x.shape[0]):
        for m in range(x.shape[1]):
            for h in range(x.shape[2]):
                result[b, m, h] = norm_rope_row(
                    x[b, m, h], weights[m], eps, cos[b, m], sin[b, m], interleaved
                )
    return result.to(device)


def latent_distance(x, y, velocity=None, sigma=0.0):
    """Return the mean squared error of each token's clean latents, by channel in fp64."""
    device, batch, sigma = x.device, x.shape[0], float(sigma)
    velocity = torch.zeros_like(x) if velocity is None else velocity
    x, y, velocity = (latents.double().cpu().tolist() for latents in (x, y, velocity))
    scores = []
    for b in range(batch):
        tokens = zip(x[b], y[b if len(y) > 1 else 0], velocity[b], strict=True)
        scores.append([
            sum((p - sigma * v - q) ** 2 for p, q, v in zip(*token, strict=True)) / len(token[0])
            for token in tokens
        ])  # fmt: skip
    return torch.tensor(scores, dtype=torch.float64, device=device)


def bilinear(image, height, width):
    """Resize a 2-d list of lists, align_corners=False, without antialiasing."""
    h, w = len(image), len(image[0])

    def taps(i, size_in, size_out):
        coordinate = max((i + 0.5) * size_in / size_out - 0.5, 0.0)
        low = min(int(coordinate), size_in - 1)
        return low, min(low + 1, size_in - 1), coordinate - low

    result = []
    for i in range(height):
        y0, y1, fy = taps(i, h, height)
        row = []
        for j in range(width):
            x0, x1, fx = taps(j, w, width)
            top = image[y0][x0] * (1 - fx) + image[y0][x1] * fx
            bottom = image[y1][x0] * (1 - fx) + image[y1][x1] * fx
            row.append(top * (1 - fy) + bottom * fy)
        result.append(row)
    return result


def token_distance(x_features, y_features, grid, patch, weights):
    """Score the tokens of single images (maps ``[C, H, W]``), cell by cell in fp64."""

    def unit(vector):
        length = max(math.sqrt(sum(a * a for a in vector)), 1e-12)
        return [a / length for a in vector]

    rows, cols = grid
    total = [[0.0] * (cols * patch) for _ in range(rows * patch)]
    for x, y, w in zip(x_features, y_features, weights, strict=True):
        x, y = x.double().cpu(), y.double().cpu()
        cells = []
        for i in range(x.shape[1]):
            cells.append([])
            for j in range(x.shape[2]):
                a, b = unit(x[:, i, j].tolist()), unit(y[:, i, j].tolist())
                cells[-1].append(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))
        for i, row in enumerate(bilinear(cells, rows * patch, cols * patch)):
            for j, value in enumerate(row):
                total[i][j] += w * value / sum(weights)
    scores = []
    for i in range(rows):
        for j in range(cols):
            block = [
                total[i * patch + di][j * patch + dj] for di in range(patch) for dj in range(patch)
            ]
            scores.append(sum(block) / len(block))
    return torch.tensor(scores, dtype=torch.float64)
