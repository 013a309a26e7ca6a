"""Which operations run at which shapes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import cases, layer
from .cases import COMPILED, Case, Inputs
from .shapes import LAYERS, ODD_ROWS, VAE_ATTENTION

RATIO = 0.1  # of the noise tokens active, where no other number of rows is said
VAE = "vae"
NAMES = (*LAYERS, VAE)
GPU_SHAPES = tuple(name for name in NAMES if name not in ("tiny", "odd"))
MAIN = "kontext"  # has the targets, and the compiled baselines: compiling takes seconds a shape


def suite(names: Sequence[str], device: str, dtype: torch.dtype) -> dict[str, Callable[[], Case]]:
    """Cases by name, as functions that allocate their tensors."""
    found: dict[str, Callable[[], Case]] = {}

    def add(build: Callable[..., Case], op: str, shape: str, what: str, *args: Any) -> None:
        *given, more = args
        found[f"{op} {shape}{what}"] = lambda: build(
            *given, {"shape": shape}, Inputs(device, dtype), *more
        )

    for name in names:
        if name == VAE:
            add(cases.attention, "gathered_attention", VAE, "", VAE_ATTENTION, ())
            continue
        at = LAYERS[name]
        m = at.rows(RATIO)
        more = (COMPILED,) if name == MAIN and device == "cuda" else ()
        for rows in at.sweep or (m,):
            what = f" M={rows}"
            add(cases.attention, "gathered_attention", name, what, at.attention(rows), ())
        for attend in (True, False):
            op = "layer" if attend else "layer without attention"
            add(layer.path, op, name, "", at, m, attend, ())
        add(cases.int8_attention, "gathered_attention int8", name, "", at.attention(m), ())
        add(cases.rope, "qk_norm_rope", name, " spot", at, m, more)
        add(cases.rope, "qk_norm_rope", name, " full", at, None, more)
        add(cases.blend, "kv_blend", name, "", at, m, more)
        add(cases.distance, "token_distance", name, "", at, more)
        if name == "odd":
            for what, shape in ODD_ROWS.items():
                add(cases.attention, "gathered_attention", name, f" {what}", shape, ())
    for name in (name for name in names if name != VAE):  # last: the slowest to compile
        more = (COMPILED,) if name == MAIN and device == "cuda" else ()
        for rule, threshold in (("threshold", 0.8), ("two means", None)):
            add(cases.select, "select_tokens", name, f" {rule}", LAYERS[name], threshold, more)
    return found
