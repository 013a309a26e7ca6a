"""A spot step as it is usually written: PyTorch operations one after the other."""

from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

import spotedit.patch
from spotedit.cache import LayerCache
from spotedit.session import Session


class UnfusedProcessor:
    """Stands in for `SpotProcessor` with the condition cache on, for FLUX's attention.

    The cache holds normalised keys before rotation. A spot forward concatenates the keys and values
    of [prompt, active, reused, condition] tokens, rotates all the keys, and attends.
    """

    def __init__(self, stock: Any, layer: str, session: Session) -> None:
        self.stock, self.layer, self.session = stock, layer, session
        self._attention_backend = stock._attention_backend
        self._parallel_config = stock._parallel_config

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Any:
        session = self.session
        if session.mode is None:
            return self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        q, k, v = _project(attn, hidden_states, encoder_hidden_states)
        place, tables = (session.branch, self.layer), image_rotary_emb
        if session.mode == "capture":
            session.caches[place] = LayerCache(k, v, None)
            session.rope_ref = image_rotary_emb  # of all tokens, [S, D]
        else:
            cache = session.caches[place]
            k, v = (self._joint(x, kept) for x, kept in ((k, cache.k), (v, cache.v)))
            tables = self._tables()
        out = dispatch_attention_fn(
            apply_rotary_emb(q, image_rotary_emb, sequence_dim=1),
            apply_rotary_emb(k, tables, sequence_dim=1),
            v,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return session.spec.output(attn, out, encoder_hidden_states)

    def _joint(self, fresh: Tensor, kept: Tensor) -> Tensor:
        """Rows [prompt, active, reused, condition] of keys or values, [B, S, H, D]."""
        session = self.session
        kept.index_copy_(1, session.slots, fresh)
        own = session.prompt + session.spot.reused
        cached, reference = kept[:, own], kept[:, own + session.reference]
        reused = session.weight * cached + (1 - session.weight) * reference
        return torch.cat([fresh, reused, kept[:, session.prompt + session.noise :]], dim=1)

    def _tables(self) -> list[Tensor]:
        """cos, sin [S, D] in the order of `_joint`, made by the first layer of a step."""
        session = self.session
        step, tables = getattr(session, "unfused_tables", (None, []))
        if step != session.index:
            own = session.prompt + session.spot.reused
            rest = torch.arange(session.prompt + session.noise, session.sequence, device=own.device)
            order = torch.cat([session.slots, own, rest])
            tables = [table[order] for table in session.rope_ref]
            session.unfused_tables = session.index, tables
        return tables


def _project(attn: Any, hidden: Tensor, prompt: Tensor | None) -> list[Tensor]:
    """Queries, keys (both normalised) and values [B, M, H, D], prompt rows first."""
    q, k, v = (
        layer(hidden).unflatten(-1, (-1, attn.head_dim))
        for layer in (attn.to_q, attn.to_k, attn.to_v)
    )
    rows = [attn.norm_q(q), attn.norm_k(k), v]
    if prompt is None:
        return rows
    q, k, v = (
        layer(prompt).unflatten(-1, (-1, attn.head_dim))
        for layer in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
    )
    text = [attn.norm_added_q(q), attn.norm_added_k(k), v]
    return [torch.cat(pair, dim=1) for pair in zip(text, rows, strict=True)]


def unfused() -> AbstractContextManager:
    """Enabled pipelines run `UnfusedProcessor` inside the block."""
    return patch.object(spotedit.patch, "SpotProcessor", UnfusedProcessor)
