"""The Triton schedules of all ops, for ahead-of-time compilation. Needs Triton."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Schedule:
    """A kernel with one choice of its compile-time arguments.

    Attributes:
        name: op, dtype and what distinguishes it from the op's other schedules.
        kernel: the jitted function.
        types: Triton types of its run-time arguments, e.g. ``"*fp16"``; others are ``"i32"``.
        constants: values of its compile-time arguments.
        aligned: integer arguments that are multiples of 16.
        tensor_cores: it multiplies matrices.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 3
    aligned: tuple[str, ...] = field(default=())
    tensor_cores: bool = False


def schedules(target: str) -> list[Schedule]:
    """What `target`, one of `TARGETS`, runs at the shapes of the models known."""
    from .gathered_attention import aot as gathered_attention
    from .kv_blend import aot as kv_blend
    from .latent_distance import aot as latent_distance
    from .qk_norm_rope import aot as qk_norm_rope
    from .select_tokens import aot as select_tokens
    from .token_distance import aot as token_distance

    ops = (
        gathered_attention,
        kv_blend,
        latent_distance,
        qk_norm_rope,
        select_tokens,
        token_distance,
    )
    return [schedule for op in ops for schedule in op.schedules(target)]
