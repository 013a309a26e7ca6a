"""A spot step as it is usually written: PyTorch operations one after the other."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

import spotedit.api
import spotedit.patch
from spotedit.cache import LayerCache, Place, Rows
from spotedit.models.spec import Arguments, Projection, Spec
from spotedit.processor import Forward
from spotedit.select import SpotSelector
from spotedit.session import Branch, Session


class UnfusedSession(Session):
    """Leaves blending and buffers to the processors, and the active set unpadded."""

    def _new_branch(self, place: Place, kwargs: Arguments) -> Branch:
        branch = Branch(place, self.spec.rotary(self.pipe.transformer, kwargs))
        none = torch.empty(0)
        branch.layers = {name: LayerCache(Rows(none), Rows(none), None) for name in self.layers}
        self.branches[self.branch] = branch
        return branch

    def _blend(self, branch: Branch) -> None:
        """Every layer mixes its rows in `UnfusedProcessor._joint`."""

    def _make_selector(self) -> SpotSelector:
        self.pad_to = 1
        return super()._make_selector()

    def _tell_layers(self, mode: str, branch: Branch, kwargs: Arguments) -> None:
        super()._tell_layers(mode, branch, kwargs)
        for layer in self.layers.values():
            layer.session, layer.branch = self, branch  # type: ignore[attr-defined]


class UnfusedProcessor:
    """Stands in for `SpotProcessor` with the condition cache on, for FLUX's attention.

    The cache holds normalised keys before rotation. A spot forward concatenates the keys and values
    of [prompt, active, reused, condition] tokens, rotates all the keys, and attends.
    """

    cache: LayerCache
    session: Session
    branch: Branch

    def __init__(self, stock: Any, spec: Spec, impl: str, forward: Forward) -> None:
        self.stock, self.spec, self.forward = stock, spec, forward
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
        if self.forward.mode == "stock":
            return self.stock(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        q, k, v = _project(attn, hidden_states, encoder_hidden_states)
        queries = keys = self.branch.rope  # of all tokens, [S, D]
        if self.forward.mode == "capture":
            self.cache.k, self.cache.v = Rows(k), Rows(v)
        else:
            queries, keys = self._tables()
            k, v = (
                self._joint(x, kept) for x, kept in ((k, self.cache.k.data), (v, self.cache.v.data))
            )
        out = dispatch_attention_fn(
            apply_rotary_emb(q, queries, sequence_dim=1),
            apply_rotary_emb(k, keys, sequence_dim=1),
            v,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return self.spec.output(attn, out, encoder_hidden_states, Projection(q, k, v, {}))

    def _joint(self, fresh: Tensor, kept: Tensor) -> Tensor:
        """Rows [prompt, active, reused, condition] of keys or values, [B, S, H, D]."""
        session, place = self.session, self.branch.place
        kept.index_copy_(1, self.forward.slots, fresh)
        own = place.prompt + session.spot.reused
        cached, reference = kept[:, own], kept[:, own + place.reference]
        weight = session.weights[session.index]
        reused = weight * cached + (1 - weight) * reference
        return torch.cat([fresh, reused, kept[:, place.rows.stop :]], dim=1)

    def _tables(self) -> tuple[list[Tensor], list[Tensor]]:
        """cos, sin [M, D] of the rows and [S, D] in the order of `_joint`; once a step."""
        session, place = self.session, self.branch.place
        step, *tables = getattr(session, "unfused_tables", (None,))
        if step != session.index:
            own = place.prompt + session.spot.reused
            rest = torch.arange(place.rows.stop, place.sequence, device=own.device)
            orders = self.forward.slots, torch.cat([self.forward.slots, own, rest])
            tables = [[table[order] for table in self.branch.rope] for order in orders]
            session.unfused_tables = session.index, *tables
        return tuple(tables)


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


@contextmanager
def unfused() -> Iterator[None]:
    """Enabled pipelines run `UnfusedProcessor` inside the block."""
    with (
        patch.object(spotedit.patch, "spot_processor", UnfusedProcessor),
        patch.object(spotedit.api, "Session", UnfusedSession),
    ):
        yield
