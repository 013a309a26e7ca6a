"""Run spot steps as they are usually written: PyTorch operations one after the other."""

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
    """The state that all layers of a spot forward share.

    Attributes:
        layout: where prompt, noise and condition lie in the joint sequence.
        slots: joint indices of the prompt and active rows.
        reused: joint indices of the reused rows.
        weight: weight of the cached keys and values in the blend.
        query_tables: cos and sin of the query rows, padding included, each [M, D].
        key_tables: cos and sin in the order [prompt, active, reused, condition], each [S, D].
    """

    layout: SequenceLayout
    slots: Tensor
    reused: Tensor
    weight: float
    query_tables: list[Tensor]
    key_tables: list[Tensor]


@dataclass
class UnfusedCache(LayerCache):
    """Holds normalised keys before rotation, values, and the state of the running spot forward."""

    step: Step | None = None


class UnfusedForwards(Forwards):
    """Leaves the buffers and the blending to the layers."""

    def _new_branch(self, layout: SequenceLayout, kwargs: Arguments) -> Branch:
        empty = torch.empty(0)
        caches: dict[str, LayerCache] = {
            name: UnfusedCache(CachedRows(empty), CachedRows(empty), None)
            for name in self.processors
        }
        return self._branch_with(caches, layout, kwargs)

    def _blend(self, branch: Branch, selection: Selection, weight: float) -> None:
        layout, device = branch.layout, selection.reused_index.device
        prompt = branch.prompt_index
        condition = torch.arange(layout.noise.stop, layout.num_tokens, device=device)
        active_index = selection.active_index
        slots = torch.cat([prompt, layout.num_prompt + active_index[active_index >= 0]])
        reused = layout.num_prompt + selection.reused_index
        order = torch.cat([slots, reused, condition])
        padded_slots = torch.cat([prompt, layout.num_prompt + active_index.clamp(min=0)])
        queries = [table[padded_slots] for table in branch.rope]
        keys = [table[order] for table in branch.rope]
        for layer in branch.caches.values():
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
    """Replace `engine.processor.attend` with the condition cache on, for FLUX's attention.

    A spot forward concatenates the keys and values of [prompt, active, reused, condition] tokens,
    rotates all the keys, and attends.
    """
    assert isinstance(cache, UnfusedCache)
    assert forward.rope is not None
    q, k, v = _project(attn, hidden, prompt)
    query_tables: Sequence[Tensor] = forward.rope  # for all tokens, [S, D]
    key_tables = query_tables
    if forward.mode == "full":
        cache.k, cache.v = CachedRows(k), CachedRows(v)
    else:
        assert cache.step is not None
        query_tables, key_tables = cache.step.query_tables, cache.step.key_tables
        k, v = joint(cache.step, k, cache.k.data), joint(cache.step, v, cache.v.data)
    out = dispatch_attention_fn(
        apply_rotary_emb(q, query_tables, sequence_dim=1),
        apply_rotary_emb(k, key_tables, sequence_dim=1),
        v,
        backend=backend,
    )
    return forward.spec.output(attn, out, prompt, Projection(q, k, v, {}))


def joint(step: Step, fresh: Tensor, cached: Tensor) -> Tensor:
    """Return rows [prompt, active, reused, condition] of keys or values, [B, S, H, D]."""
    fresh = fresh[:, : len(step.slots)]  # without padding
    cached.index_copy_(1, step.slots, fresh)
    source = cached[:, step.reused + step.layout.source_start]
    reused = step.weight * cached[:, step.reused] + (1 - step.weight) * source
    return torch.cat([fresh, reused, cached[:, step.layout.noise.stop :]], dim=1)


def _project(attn: Any, hidden: Tensor, prompt: Tensor | None) -> list[Tensor]:
    """Return normalised queries and keys, and values, each [B, M, H, D], prompt rows first."""
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
    """Make enabled pipelines run the unfused spot steps of this module inside the block."""
    with (
        patch.object(spotedit.engine.processor, "attend", attend),
        patch.object(spotedit.engine.call, "Forwards", UnfusedForwards),
    ):
        yield
