"""The kernels at a model's real shapes: ``python -m bench.ops``."""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spotedit_kernels import (
    gathered_attention,
    kv_blend,
    qk_norm_rope,
    select_tokens,
    token_distance,
)
from spotedit_kernels.impl import Impl

from . import environment, rows
from .rows import Row
from .timing import Stopwatch, alternate

NOTES = (
    "One layer (the judge: one picture) with random values; medians [20th, 80th percentile]; the "
    "implementations that an op has alternate, and a buffer larger than the caches is overwritten "
    "before every call.",
    "Ceilings, measured in the same run: a square matrix product for attention, a copy for the "
    "others. Each op is charged for what it must compute or move, not for what it does.",
)


@dataclass(frozen=True)
class Shape:
    """Token counts, heads and head dim of a layer, and channels of the judge's feature maps."""

    prompt: int
    grid: tuple[int, int]
    heads: int
    dim: int
    channels: int

    @property
    def noise(self) -> int:
        return self.grid[0] * self.grid[1]


IMPLEMENTATIONS: tuple[Impl, ...] = ("triton", "reference")
SHAPES = {
    "kontext": Shape(512, (64, 64), 24, 128, 512),  # 1024 x 1024 pixels
    "tiny": Shape(16, (32, 32), 3, 64, 96),  # 256 x 256 pixels
}


@dataclass(frozen=True)
class Case:
    """An op's call, which takes the implementation's name, and the work that it cannot avoid."""

    call: Callable[[Impl], Any]
    work: float  # floating-point operations or bytes
    ceiling: str  # "matmul" or "copy"


def cases(shape: Shape, ratio: float, device: str, dtype: torch.dtype) -> dict[str, Case]:
    """Every op in a spot step with `ratio` of the noise tokens active."""
    generator = torch.Generator(device).manual_seed(0)

    def random(*size: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(size, generator=generator, device=device, dtype=dtype)

    heads, dim, noise = shape.heads, shape.dim, shape.noise
    active = round(ratio * noise)
    m, s = shape.prompt + active, shape.prompt + 2 * noise
    k, v = random(1, s, heads, dim), random(1, s, heads, dim)
    q, k_new, v_new = (random(1, m, heads, dim) for _ in range(3))
    order = torch.randperm(noise, generator=generator, device=device)
    slots = torch.cat([torch.arange(shape.prompt, device=device), shape.prompt + order[:active]])
    k_out, v_out, k_cached, v_cached, k_ref, v_ref = (
        random(1, noise, heads, dim) for _ in range(6)
    )
    blend = partial(kv_blend, k_out, v_out, k_cached, v_cached, k_ref, v_ref, order[active:])
    weight, cos, sin = random(dim), random(1, m, dim).float(), random(1, m, dim).float()
    rope = partial(
        qk_norm_rope, q, k_new, v_new, k, v, slots, cos, sin, text_len=shape.prompt,
        q_weight=weight, k_weight=weight, text_q_weight=weight, text_k_weight=weight,
        eps=1e-6, interleaved=True,
    )  # fmt: skip
    latent = tuple(2 * side for side in shape.grid)
    sizes = (latent, latent, tuple(2 * side for side in latent))
    x, y = ([random(1, shape.channels, *size) for size in sizes] for _ in range(2))
    scores = random(1, noise, dtype=torch.float32)
    row, feature = heads * dim * k.element_size(), 2 * x[0].element_size() * shape.channels
    return {
        "gathered_attention": Case(
            lambda impl: gathered_attention(q, k, v, impl=impl), 4.0 * m * s * heads * dim, "matmul"
        ),
        "qk_norm_rope": Case(lambda impl: rope(impl=impl), 6.0 * m * row, "copy"),
        "kv_blend": Case(
            lambda impl: blend(weight=0.5, impl=impl), 6.0 * (noise - active) * row, "copy"
        ),
        "token_distance": Case(
            lambda impl: token_distance(x, y, shape.grid, y_normalised=True, impl=impl),
            float(feature * sum(h * w for h, w in sizes)),
            "copy",
        ),
        "select_tokens": Case(
            lambda impl: select_tokens(
                scores, shape.grid, threshold=0.0, dilation=1, pad_to=64, impl=impl
            ),
            9.0 * noise,  # fp32 scores in; flags and an int32 index out
            "copy",
        ),
    }


def ceilings(device: str, dtype: torch.dtype) -> dict[str, Case]:
    """The fastest matrix product and copy that PyTorch does here."""
    side, count = (8192, 2**30) if device == "cuda" else (2048, 2**26)
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    return {
        "matmul": Case(lambda impl: torch.mm(a, b), 2.0 * side**3, ""),
        "copy": Case(lambda impl: target.copy_(source), 2.0 * source.nbytes, ""),
    }


def time_calls(case: Case, device: str, repeats: int) -> dict[str, list[float]]:
    """Seconds of `repeats` calls of every implementation that the op has."""
    found: list[Impl] = []
    for impl in IMPLEMENTATIONS if device == "cuda" else IMPLEMENTATIONS[1:]:
        try:
            case.call(impl)  # the first call may compile
        except Exception as error:  # a kernel that fails must not cost the others' rows
            print(f"{impl} failed: {error!r}", file=sys.stderr)
        else:
            found.append(impl)
    flush = torch.empty(2**26, device=device)
    watch = Stopwatch(torch.device(device))
    for impl in alternate(found, (repeats + 1) // 2):
        flush.zero_()
        watch.wrap(impl, case.call)(impl)
    return {impl: watch.seconds(impl) for impl in found}


def report(device: str, dtype: torch.dtype, chosen: dict, repeats: int) -> Iterator[Row]:
    """Ceilings, then time and share of the ceiling of every op; `chosen`: (name, r) -> cases."""
    peak = {}
    for name, case in ceilings(device, dtype).items():
        rates = [case.work / s / 1e12 for s in time_calls(case, device, repeats)["reference"]]
        peak[name] = float(np.median(rates))
        yield Row.median(name, rates, "TFLOP/s" if name == "matmul" else "TB/s")
    for (shape, ratio), ops in chosen.items():
        for op, case in ops.items():
            for impl, seconds in time_calls(case, device, repeats).items():
                at = {"shape": shape, "r": ratio, "impl": impl}
                yield Row.median(op, [1e6 * s for s in seconds], "us", parameters=at)
                share = case.work / float(np.median(seconds)) / 1e12 / peak[case.ceiling]
                yield Row(f"{op}, of the {case.ceiling}'s speed", share, "share", parameters=at)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.ops", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["kontext"])
    parser.add_argument("--ratio", type=float, nargs="+", default=[0.05, 0.2, 0.4])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    machine, dtype = environment.describe(args.device), getattr(torch, args.dtype)
    chosen = {
        (name, ratio): cases(SHAPES[name], ratio, args.device, dtype)
        for name, ratio in product(args.shapes, args.ratio)
    }
    found = list(report(args.device, dtype, chosen, args.repeats))
    print(rows.save("ops", found, machine | {"dtype": args.dtype}, NOTES, args.out))


if __name__ == "__main__":
    main()
