"""Apply other methods that skip work to the same editor: diffusers' caches and cache-dit."""

import contextlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import hooks
from diffusers.utils import logging as diffusers_logging

SETTINGS = (
    "Rivals run with their default settings, with these exceptions. TaylorSeer's factors are in "
    "float32. MagCache's ratios are calibrated on one other scene. cache-dit (DBCache) computes 1 "
    "of 8 blocks at every step, since its default of 8 is all of them, and gets the lists of "
    "blocks from us. Some caches need a cache context, which the Kontext pipelines do not enter; "
    "the benchmark enters it around the call."
)


def calibrate_mag(pipe: Any, call: Callable[[], Any], steps: int) -> list[float]:
    """Return MagCache's ratios for one dense edit, read from what MagCache prints."""
    printed = io.StringIO()
    pipe.transformer.enable_cache(hooks.MagCacheConfig(calibrate=True, num_inference_steps=steps))
    try:
        with contextlib.redirect_stdout(printed):
            call()
    finally:
        pipe.transformer.disable_cache()
    # MagCache prints one list per guidance branch; the first belongs to the prompt.
    lines = printed.getvalue().splitlines()
    return json.loads(next(x for x in lines if x.startswith("[") and x.endswith("]")))


_CONFIGS: Mapping[str, Callable[[Any, int, Sequence[float]], Any]] = {
    "FirstBlockCache": lambda pipe, steps, ratios: hooks.FirstBlockCacheConfig(),
    "MagCache": lambda pipe, steps, ratios: hooks.MagCacheConfig(
        mag_ratios=list(ratios), num_inference_steps=steps
    ),
    "TaylorSeerCache": lambda pipe, steps, ratios: hooks.TaylorSeerCacheConfig(
        taylor_factors_dtype=torch.float32
    ),
    "FasterCache": lambda pipe, steps, ratios: hooks.FasterCacheConfig(
        is_guidance_distilled=True, current_timestep_callback=lambda: pipe.current_timestep
    ),
    "PyramidAttentionBroadcast": lambda pipe, steps, ratios: hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        current_timestep_callback=lambda: pipe.current_timestep,
    ),
    "SeaCache": lambda pipe, steps, ratios: hooks.SeaCacheConfig(),
    "TextKVCache": lambda pipe, steps, ratios: hooks.TextKVCacheConfig(),
}
# These leave traces: diffusers' caches fail on a pipeline that one of them has used.
LASTING = ("cache-dit", "cache-dit, TaylorSeer")
RIVALS = (*_CONFIGS, *LASTING)


@contextmanager
def applied(pipe: Any, name: str, steps: int, ratios: Sequence[float]) -> Iterator[None]:
    """Apply a rival method inside the block. The library's own errors pass through.

    Args:
        name: one of `RIVALS`.
        steps: number of steps of the pipeline's call.
        ratios: MagCache's ratios.

    Raises:
        ModuleNotFoundError: cache-dit is not installed.
        ValueError: cache-dit is applied to another architecture than Kontext's.
    """
    if name in _CONFIGS:
        transformer = pipe.transformer
        with _silent():
            transformer.enable_cache(_CONFIGS[name](pipe, steps, ratios))
            try:
                with transformer.cache_context("cond"):
                    yield
            finally:
                transformer.disable_cache()
    else:
        with _cache_dit(pipe, seer=name.endswith("TaylorSeer")):
            yield


@contextmanager
def _cache_dit(pipe: Any, seer: bool) -> Iterator[None]:
    import cache_dit  # not a dependency

    transformer = pipe.transformer
    if not hasattr(transformer, "single_transformer_blocks"):
        raise ValueError("cache-dit is measured with Kontext's transformer only")
    logging.disable(logging.WARNING)
    lists = [transformer.transformer_blocks, transformer.single_transformer_blocks]
    adapter = cache_dit.BlockAdapter(
        pipe=pipe,
        transformer=transformer,
        blocks=lists,
        forward_pattern=[cache_dit.ForwardPattern.Pattern_1] * len(lists),
    )
    calibrator = cache_dit.TaylorSeerCalibratorConfig(taylorseer_order=1) if seer else None
    cache_dit.enable_cache(
        adapter,
        cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0),
        calibrator_config=calibrator,
    )
    try:
        yield
    finally:
        cache_dit.disable_cache(pipe)
        logging.disable(logging.NOTSET)


@contextmanager
def _silent() -> Iterator[None]:
    """Hide diffusers' warnings inside the block."""
    level = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(level)
