"""The attention of a captured or a spot forward: projection, `qk_norm_rope`, attention, output.

Nothing here depends on a number that changes from step to step, so that a compiled block is
compiled once for captured and once for spot forwards.
"""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from spotedit_kernels import gathered_attention, qk_norm_rope
from spotedit_kernels.impl import Impl
from torch import Tensor

from .cache import LayerCache
from .models.spec import Spec


@dataclass
class Forward:
    """What the layers have to know about the running forward. One object serves all of them.

    Attributes:
        mode: "capture": all rows run and are kept; "spot": the rows `slots` run; else "stock".
        prompt: the prompt's rows, [P]. A tensor, as graphs take its size as a variable.
        slots: joint index of each row, int64 [M] or [B, M], -1 = padding; None: all, in order.
        index: image token of each row after the prompt's, as `slots`; of spot forwards.
        rope: cos, sin fp32 [S, D] of the joint sequence; with an int8 cache those of the rows,
            [M, D] or [B, M, D].
        rope_ref: cos, sin [R, D] for `BlendSources.k_ref`; None: it stays as it is.
        key_mask: bool [B, S], True = attend, or None.
    """

    mode: str = "stock"
    prompt: Tensor | None = None
    slots: Tensor | None = None
    index: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None
    rope_ref: tuple[Tensor, Tensor] | None = None
    key_mask: Tensor | None = None


class SpotProcessor:
    """Stands in for a layer's attention processor during a call.

    A captured forward writes the keys and values of all tokens into the layer's buffers; a spot
    forward overwrites those of its rows, in place, and attends to the whole buffer. Any other
    forward is the stock processor's.
    """

    cache: LayerCache  # of the running guidance branch

    def __init__(self, stock: Any, spec: Spec, impl: Impl, forward: Forward) -> None:
        self.stock, self.spec, self.impl, self.forward = stock, spec, impl, forward
        # diffusers sets and reads these on the processor
        self._attention_backend = stock._attention_backend
        self._parallel_config = stock._parallel_config

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
        encoder_hidden_states_mask: Tensor | None = None,
    ) -> Any:
        if self.forward.mode == "stock":
            extra = {}
            if encoder_hidden_states_mask is not None:
                extra = {"encoder_hidden_states_mask": encoder_hidden_states_mask}
            return self.stock(
                attn,
                hidden_states,
                encoder_hidden_states=encoder_hidden_states,
                attention_mask=attention_mask,
                image_rotary_emb=image_rotary_emb,
                **extra,
            )
        return self._attend(attn, hidden_states, encoder_hidden_states, attention_mask)

    def _attend(
        self, attn: Any, hidden: Tensor, prompt: Tensor | None, attention_mask: Tensor | None
    ) -> Any:
        if attention_mask is not None:
            raise ValueError("spotedit takes no attention_mask; expected the prompt's mask alone")
        forward, cache = self.forward, self.cache
        assert forward.rope is not None
        assert forward.prompt is not None
        rows = self.spec.project(attn, hidden, prompt)
        direct = cache.k.scale is None
        k = cache.k.data if direct else torch.empty_like(rows.k)
        v = cache.v.data if direct else torch.empty_like(rows.v)
        cos, sin = forward.rope
        reference: dict[str, Any] = {}
        if cache.sources is not None and forward.rope_ref is not None:
            cos_ref, sin_ref = forward.rope_ref
            k_ref = cache.sources.k_ref.data
            if not direct:
                k_ref = torch.empty_like(k_ref, dtype=k.dtype)
            reference = {"k_ref": k_ref, "cos_ref": cos_ref, "sin_ref": sin_ref}
        q = qk_norm_rope(
            rows.q,
            rows.k,
            rows.v,
            k,
            v,
            forward.slots if direct else None,
            cos,
            sin,
            text_len=forward.prompt.shape[0],
            interleaved=self.spec.interleaved,
            impl=self.impl,
            **rows.norms,
            **reference,
        )
        if not direct:
            self._quantise(k, v, reference.get("k_ref"))
        if forward.mode == "spot":
            k, v = cache.k.data, cache.v.data
        return self.spec.output(attn, self._heads(q, k, v), prompt, rows)

    def _quantise(self, k: Tensor, v: Tensor, k_ref: Tensor | None) -> None:
        """Write a forward's rows to the int8 buffers."""
        slots = self.forward.slots
        for kept, fresh in ((self.cache.k, k), (self.cache.v, v)):
            if slots is None:
                kept.fill(fresh)
            else:
                kept.write(slots, fresh)
        if k_ref is not None:
            assert self.cache.sources is not None
            self.cache.sources.k_ref.fill(k_ref)

    def _heads(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Captured forwards, and all where the user chose a backend, go through diffusers."""
        mask, scales = self.forward.key_mask, (self.cache.k.scale, self.cache.v.scale)
        chosen = self._attention_backend is not None and scales[0] is None
        if self.forward.mode == "spot" and not chosen:
            return gathered_attention(
                q, k, v, key_mask=mask, k_scale=scales[0], v_scale=scales[1], impl=self.impl
            )
        return dispatch_attention_fn(
            q,
            k,
            v,
            attn_mask=None if mask is None else mask[:, None, None],
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )


class SingleStreamProcessor(SpotProcessor):
    """The same for layers whose processors take no prompt."""

    def __call__(  # type: ignore[override]
        self,
        attn: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        if self.forward.mode == "stock":
            return self.stock(attn, hidden_states, attention_mask, image_rotary_emb)
        return self._attend(attn, hidden_states, None, attention_mask)


def spot_processor(stock: Any, spec: Spec, impl: Impl, forward: Forward) -> SpotProcessor:
    """The processor that stands in for `stock`."""
    joint = "encoder_hidden_states" in inspect.signature(stock.__call__).parameters
    return (SpotProcessor if joint else SingleStreamProcessor)(stock, spec, impl, forward)
