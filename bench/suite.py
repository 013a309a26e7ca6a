"""Which operations run at which shapes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import attention, layer, memory_bound
from .cases import Case, Inputs
from .shapes import LAYERS, ODD_ROWS, VAE_ATTENTION

RATIO = 0.1  # of the noise tokens active, where no other number of rows is said
VAE = "vae"
NAMES = (*LAYERS, VAE)
GPU_SHAPES = tuple(name for name in NAMES if name not in ("tiny", "odd"))
MAIN = "kontext"  # has the targets, and the compiled baselines: compiling takes seconds a shape


def suite(
    names: Sequence[str], device: str, dtype: torch.dtype, with_compiled: bool = True
) -> dict[str, Callable[[], Case]]:
    """List the cases by name, as functions that allocate their tensors.

    Of a shape, attention with `RATIO` and the whole layer come first: a run may be cut short.
    `with_compiled` False leaves out the baselines that torch.compile makes.
    """
    found: dict[str, Callable[[], Case]] = {}

    def add(build: Callable[..., Case], op: str, shape: str, what: str, *given: Any) -> None:
        compiled = with_compiled and shape == MAIN and device == "cuda"
        found[f"{op} {shape}{what}"] = lambda: build(
            *given, {"shape": shape}, Inputs(device, dtype, compiled)
        )

    for name in names:
        if name == VAE:
            add(attention.attention, "gathered_attention", VAE, "", VAE_ATTENTION)
            continue
        at = LAYERS[name]
        m = at.rows(RATIO)
        first, *others = sorted(at.sweep or (m,), key=lambda rows: abs(rows - m))
        add(attention.attention, "gathered_attention", name, f" M={first}", at.attention(first))
        add(layer.path, "layer", name, "", at, m, True)
        add(layer.path, "layer without attention", name, "", at, m, False)
        for rows in others:
            what = f" M={rows}"
            add(attention.attention, "gathered_attention", name, what, at.attention(rows))
        add(attention.int8_attention, "gathered_attention int8", name, "", at.attention(m))
        add(memory_bound.rope, "qk_norm_rope", name, " spot", at, m)
        add(memory_bound.rope, "qk_norm_rope", name, " full", at, None)
        add(memory_bound.blend, "kv_blend", name, "", at, m)
        add(memory_bound.distance, "token_distance", name, "", at)
        add(memory_bound.latents, "latent_distance", name, "", at)
        if name == "odd":
            for what, shape in ODD_ROWS.items():
                add(attention.attention, "gathered_attention", name, f" {what}", shape)
    for name in (name for name in names if name != VAE):  # last: the slowest to compile
        for rule, threshold in (("threshold", 0.8), ("two means", None)):
            add(memory_bound.select, "select_tokens", name, f" {rule}", LAYERS[name], threshold)
    return found
