"""List the Triton schedules of all operations. Importing this file imports Triton."""

from __future__ import annotations

from .gathered_attention import aot as gathered_attention
from .kv_blend import aot as kv_blend
from .latent_distance import aot as latent_distance
from .qk_norm_rope import aot as qk_norm_rope
from .schedule import Schedule
from .select_tokens import aot as select_tokens
from .token_distance import aot as token_distance

__all__ = ["TARGETS", "Schedule", "schedules"]

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")


def schedules(target: str) -> list[Schedule]:
    """Return the schedules that `target`, one of `TARGETS`, runs for the supported models."""
    return [
        *gathered_attention.schedules(target),
        *kv_blend.schedules(target),
        *latent_distance.schedules(target),
        *qk_norm_rope.schedules(target),
        *select_tokens.schedules(target),
        *token_distance.schedules(target),
    ]
