"""A spot step as it is usually written: PyTorch operations one after the other."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor

import spotedit.engine.call
import spotedit.engine.processor
from spotedit.engine.cache import CachedRows, LayerCache, SequenceLayout
from spotedit.engine.forwards import Branch, Forwards
from spotedit.engine.processor import ForwardState
from spotedit.judge.select import Selection
from spotedit.models.spec import Arguments, Projection


class Step(NamedTuple):
    """What all layers of a spot forward share."""

    layout: SequenceLayout
    slots: Tensor  # joint index of the prompt's and the active tokens' rows
    reused: Tensor  # joint index
    weight: float  # of the cached value
    queries: list[Tensor]  # cos, sin [M, D] of the rows, padding included
    keys: list[Tensor]  # cos, sin [S, D] in the order [prompt, active, reused, condition]


@dataclass
class UnfusedCache(LayerCache):
    """Normalised keys before rotation, and values; `step` is that of the running spot forward."""

    step: Step | None = None


class UnfusedForwards(Forwards):
    """Leaves buffers and blending to the layers."""

    def _new_branch(self, layout: SequenceLayout, kwargs: Arguments) -> Branch:
        none = torch.empty(0)
        layers: dict[str, LayerCache] = {
            name: UnfusedCache(CachedRows(none), CachedRows(none), None) for name in self.layers
        }
        return self._branch(layout, kwargs, layers)

    def _blend(self, branch: Branch, selection: Selection, weight: float) -> None:
        layout, device = branch.layout, selection.reused_index.device
        prompt = branch.prompt
        rest = torch.arange(layout.noise.stop, layout.num_tokens, device=device)
        active_index = selection.active_index
        slots = torch.cat([prompt, layout.num_prompt + active_index[active_index >= 0]])
        reused = layout.num_prompt + selection.reused_index
        order = torch.cat([slots, reused, rest])
        rows = torch.cat([prompt, layout.num_prompt + active_index.clamp(min=0)])
        queries, keys = ([table[i] for table in branch.rope] for i in (rows, order))
        for layer in branch.layers.values():
            assert isinstance(layer, UnfusedCache)
            layer.step = Step(layout, slots, reused, weight, queries, keys)


def attend(
    forward: ForwardState,
    cache: LayerCache,
    backend: AttentionBackendName | None,
    attn: Any,
    hidden: Tensor,
    prompt: Tensor | None,
) -> Any:
    """Stand in for `engine.processor.attend` with the condition cache on, for FLUX's attention.

    A spot forward concatenates the keys and values of [prompt, active, reused, condition] tokens,
    rotates all the keys, and attends.
    """
    assert isinstance(cache, UnfusedCache)
    assert forward.rope is not None
    q, k, v = _project(attn, hidden, prompt)
    queries: Sequence[Tensor] = forward.rope  # of all tokens, [S, D]
    keys = queries
    if forward.mode == "full":
        cache.k, cache.v = CachedRows(k), CachedRows(v)
    else:
        assert cache.step is not None
        queries, keys = cache.step.queries, cache.step.keys
        k, v = joint(cache.step, k, cache.k.data), joint(cache.step, v, cache.v.data)
    out = dispatch_attention_fn(
        apply_rotary_emb(q, queries, sequence_dim=1),
        apply_rotary_emb(k, keys, sequence_dim=1),
        v,
        backend=backend,
    )
    return forward.spec.output(attn, out, prompt, Projection(q, k, v, {}))


def joint(step: Step, fresh: Tensor, kept: Tensor) -> Tensor:
    """Rows [prompt, active, reused, condition] of keys or values, [B, S, H, D]."""
    layout, slots, own, weight, *_ = step
    fresh = fresh[:, : len(slots)]  # without padding
    kept.index_copy_(1, slots, fresh)
    reused = weight * kept[:, own] + (1 - weight) * kept[:, own + layout.source_start]
    return torch.cat([fresh, reused, kept[:, layout.noise.stop :]], dim=1)


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
    """Enabled pipelines run `attend` above inside the block."""
    with (
        patch.object(spotedit.engine.processor, "attend", attend),
        patch.object(spotedit.engine.call, "Forwards", UnfusedForwards),
    ):
        yield
