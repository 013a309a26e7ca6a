"""Kernels of spatially selective image editing, usable on their own.

Six operations on tensors in diffusers' layout ``[B, S, H, D]`` (batch, rows of the joint sequence,
heads, head dim), where the joint sequence is ``[prompt, noise, condition]``. Each takes
``impl="auto" | "triton" | "reference"``; an explicit choice never falls back to another.
"auto" takes the Triton kernels on a GPU and the PyTorch references elsewhere.
"""

from .gathered_attention import gathered_attention
from .kv_blend import cosine_weight, kv_blend
from .latent_distance import latent_distance
from .qk_norm_rope import qk_norm_rope
from .select_tokens import select_tokens
from .token_distance import token_distance

__all__ = [
    "cosine_weight",
    "gathered_attention",
    "kv_blend",
    "latent_distance",
    "qk_norm_rope",
    "select_tokens",
    "token_distance",
]
