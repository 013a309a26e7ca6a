"""Operations for spatially selective image editing, usable without the rest of spotedit.

Six operations on tensors in diffusers' layout ``[B, S, H, D]`` (batch, rows of the joint sequence,
heads, head dim). The joint sequence is ``[prompt, noise, condition]``. Each operation takes
``impl="auto" | "triton" | "reference"``: "auto" takes the Triton kernel on a GPU and the PyTorch
reference elsewhere; an explicit choice never falls back to another.

Importing this package does not import Triton. The first call that takes a kernel does.
"""

from .gathered_attention import gathered_attention
from .kv_blend import cosine_weight, kv_blend
from .latent_distance import latent_distance
from .qk_norm_rope import qk_norm_rope
from .select_tokens import select_tokens
from .token_distance import token_distance

__version__ = "0.1.0"
__all__ = [
    "cosine_weight",
    "gathered_attention",
    "kv_blend",
    "latent_distance",
    "qk_norm_rope",
    "select_tokens",
    "token_distance",
]
