"""List which operations are measured at which shapes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import attention, layer, memory_bound
from .cases import Case, Inputs
from .shapes import LAYERS, ODD_ROWS, VAE_ATTENTION

RATIO = 0.1  # share of active noise tokens, unless a number of rows is named
VAE = "vae"
NAMES = (*LAYERS, VAE)
GPU_SHAPES = tuple(name for name in NAMES if name not in ("tiny", "odd"))
# The shape with the targets. Only it has the compiled baselines, which take seconds to compile.
MAIN = "kontext"


def suite(
    names: Sequence[str], device: str, dtype: torch.dtype, with_compiled: bool = True
) -> dict[str, Callable[[], Case]]:
    """List the cases by name, as functions that allocate their tensors.

    A run may be cut short, so attention at `RATIO` and the whole layer come first for each shape.
    `with_compiled` False leaves out the baselines that torch.compile makes.
    """
    cases: dict[str, Callable[[], Case]] = {}

    def add(build: Callable[..., Case], op: str, shape: str, detail: str, *args: Any) -> None:
        compiled = with_compiled and shape == MAIN and device == "cuda"
        cases[f"{op} {shape}{detail}"] = lambda: build(
            *args, {"shape": shape}, Inputs(device, dtype, compiled)
        )

    for name in names:
        if name == VAE:
            add(attention.attention, "gathered_attention", VAE, "", VAE_ATTENTION)
            continue
        sizes = LAYERS[name]
        m = sizes.query_rows(RATIO)
        first, *others = sorted(sizes.sweep or (m,), key=lambda rows: abs(rows - m))
        add(attention.attention, "gathered_attention", name, f" M={first}", sizes.attention(first))
        add(layer.path, "layer", name, "", sizes, m, True)
        add(layer.path, "layer without attention", name, "", sizes, m, False)
        for rows in others:
            shape, detail = sizes.attention(rows), f" M={rows}"
            add(attention.attention, "gathered_attention", name, detail, shape)
        add(attention.int8_attention, "gathered_attention int8", name, "", sizes.attention(m))
        add(memory_bound.rope, "qk_norm_rope", name, " spot", sizes, m)
        add(memory_bound.rope, "qk_norm_rope", name, " full", sizes, None)
        add(memory_bound.blend, "kv_blend", name, "", sizes, m)
        add(memory_bound.distance, "token_distance", name, "", sizes)
        add(memory_bound.latents, "latent_distance", name, "", sizes)
        if name == "odd":
            for detail, shape in ODD_ROWS.items():
                add(attention.attention, "gathered_attention", name, f" {detail}", shape)
    for name in (name for name in names if name != VAE):  # these take longest to compile
        for rule, threshold in (("threshold", 0.8), ("two means", None)):
            add(memory_bound.select, "select_tokens", name, f" {rule}", LAYERS[name], threshold)
    return cases
