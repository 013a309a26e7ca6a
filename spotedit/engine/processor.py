"""The attention of a captured or a spot forward: projection, `qk_norm_rope`, attention, output.

Nothing here depends on a number that changes from step to step, so that a compiled block is
compiled once for captured and once for spot forwards.
"""

import functools
import inspect
import threading
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from spotedit_kernels import gathered_attention, qk_norm_rope
from spotedit_kernels.impl import Impl
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..models.spec import Spec
from .cache import LayerCache
from .views import subclass, view

_TAKEN = ("encoder_hidden_states", "encoder_hidden_states_mask", "image_rotary_emb")


@dataclass
class Forward:
    """What the layers have to know about the running forward. One object serves all of them.

    Attributes:
        spec, impl: the model family, and which kernels run.
        mode: "capture": all rows run and are kept; "spot": the rows `slots` run.
        prompt: the prompt's rows, [P]. A tensor, as graphs take its size as a variable.
        slots: joint index of each row, int64 [M] or [B, M], -1 = padding; None: all, in order.
        index: image token of each row after the prompt's, as `slots`; of spot forwards.
        rope: cos, sin fp32 [S, D] of the joint sequence; with an int8 cache those of the rows,
            [M, D] or [B, M, D].
        rope_ref: cos, sin [R, D] for `BlendSources.k_ref`; None: it stays as it is.
        key_mask: bool [B, S], True = attend, or None.
    """

    spec: Spec
    impl: Impl
    mode: str = "capture"
    prompt: Tensor | None = None
    slots: Tensor | None = None
    index: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None
    rope_ref: tuple[Tensor, Tensor] | None = None
    key_mask: Tensor | None = None


class Here(threading.local):
    """What an attention layer works with in the forward that the current thread is running.

    None in a thread that runs no forward of an enabled pipeline: there, the layer is the stock one.
    """

    def __init__(self) -> None:
        # torch.compile would take defaults of the class for constants
        self.forward: Forward | None = None
        self.cache: LayerCache | None = None


class SpotProcessor:
    """Stands in for a layer's attention processor while an enabled pipeline runs.

    A captured forward writes the keys and values of all tokens into the layer's buffers; a spot
    forward overwrites those of its rows, in place, and attends to the whole buffer. Any other
    forward, and every forward of other threads, is the stock processor's. A copy is a stock one.

    Attributes:
        calls: how many running calls use it.
        narrowing: the hook of its block, see `Spec.narrow_block`, or None.
    """

    __slots__ = ("calls", "here", "narrowing", "stock")
    calls: int
    here: Here
    narrowing: RemovableHandle | None
    stock: Any


@functools.cache
def _spot_class(stock: Any) -> Any:
    """Make a subclass of a processor's class, with its signature, that calls `attend`."""
    names = tuple(inspect.signature(stock.__call__).parameters)[3:]  # after `hidden_states`

    @functools.wraps(stock.__call__)
    def __call__(self: Any, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        forward, cache = self.here.forward, self.here.cache
        if forward is None:
            return self.stock(attn, hidden_states, *args, **kwargs)
        given = dict(zip(names, args, strict=False)) | kwargs
        more = [n for n, v in given.items() if n not in _TAKEN and (isinstance(v, Tensor) or v)]
        if more:
            raise ValueError(
                f"the attention layers were given {', '.join(more)}; expected no more than the "
                "prompt and its mask: spot steps cannot apply it, so edit without spotedit"
            )
        cache.ran = True
        prompt = given.get("encoder_hidden_states")
        return attend(forward, cache, _chosen_backend(self), attn, hidden_states, prompt)

    return subclass(stock, {"__call__": __call__, "__slots__": ()}, (SpotProcessor,))


def spot_processor(stock: Any) -> Any:
    """Make the `SpotProcessor` that stands in for `stock` and shares all attributes with it."""
    kind: Any = type(stock)
    return view(stock, _spot_class(kind), stock=stock, here=Here(), calls=0, narrowing=None)


def _chosen_backend(processor: Any) -> AttentionBackendName | None:
    """Return the attention backend that the user chose for the layer or for all, or None."""
    own = getattr(processor, "_attention_backend", None)
    if own is not None:
        return own
    active, _ = _AttentionBackendRegistry.get_active_backend()
    return None if active == AttentionBackendName.NATIVE else active


def attend(
    forward: Forward,
    cache: LayerCache,
    backend: AttentionBackendName | None,
    attn: Any,
    hidden: Tensor,
    prompt: Tensor | None,
) -> Any:
    """Compute what the stock processor returns, for all rows or those of a spot forward.

    Args:
        backend: the one that the user chose, or None.
        attn: the attention module.
        hidden: image rows [B, M, C], or joint ones where `prompt` is None.
        prompt: prompt rows [B, P, C].
    """
    assert forward.rope is not None
    assert forward.prompt is not None
    rows = forward.spec.project(attn, hidden, prompt)
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
        interleaved=forward.spec.interleaved,
        impl=forward.impl,
        **rows.norms,
        **reference,
    )
    if not direct:
        _quantise(forward, cache, k, v, reference.get("k_ref"))
    if forward.mode == "spot":
        k, v = cache.k.data, cache.v.data
    heads = _heads(forward, cache, backend, q, k, v)
    return forward.spec.output(attn, heads, prompt, rows)


def _quantise(
    forward: Forward, cache: LayerCache, k: Tensor, v: Tensor, k_ref: Tensor | None
) -> None:
    """Write a forward's rows to the int8 buffers."""
    for kept, fresh in ((cache.k, k), (cache.v, v)):
        if forward.slots is None:
            kept.fill(fresh)
        else:
            kept.write(forward.slots, fresh)
    if k_ref is not None:
        assert cache.sources is not None
        cache.sources.k_ref.fill(k_ref)


def _heads(
    forward: Forward,
    cache: LayerCache,
    backend: AttentionBackendName | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """Captured forwards, and all where the user chose a backend, go through diffusers."""
    mask, scales = forward.key_mask, (cache.k.scale, cache.v.scale)
    if forward.mode == "spot" and (backend is None or scales[0] is not None):
        return gathered_attention(
            q, k, v, key_mask=mask, k_scale=scales[0], v_scale=scales[1], impl=forward.impl
        )
    mask = None if mask is None else mask[:, None, None]
    return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend)
