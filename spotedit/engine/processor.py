"""The attention layers of full and spot forwards.

A layer projects its rows, normalises and rotates them (`qk_norm_rope`), attends, and projects the
result. Nothing here depends on a number that changes from step to step, so a compiled block is
compiled once for full and once for spot forwards.
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

_SUPPORTED_ARGUMENTS = ("encoder_hidden_states", "encoder_hidden_states_mask", "image_rotary_emb")


@dataclass
class ForwardState:
    """What the attention layers read about the running forward. All layers share one object.

    A full forward here is one whose keys and values are kept.

    Attributes:
        spec: the model family.
        impl: which kernels run.
        mode: "full": all rows run and are kept. "spot": only the rows in `joint_index` run.
        prompt_index: joint index of each prompt row, [P]. Only its length is used; it is a tensor
            so that compiled graphs treat the length as a variable.
        joint_index: index of each row in the joint sequence, int64 [M] or [B, M], padded with -1.
            None: all rows, in order.
        image_index: the same for the rows after the prompt, counted from the first image token.
            It is set for spot forwards.
        rope: cos and sin of the joint sequence, fp32 [S, D] each. With an int8 cache, a spot
            forward has only those of its rows, [M, D] or [B, M, D], because it computes its keys in
            a buffer of M rows before it rounds them.
        rope_ref: cos and sin [R, D] that rotate the source's keys to the noise tokens' positions,
            where they are blended into the keys of reused tokens. None: they are not written.
        key_mask: bool [B, S], True = attend, or None.
    """

    spec: Spec
    impl: Impl
    mode: str = "full"
    prompt_index: Tensor | None = None
    joint_index: Tensor | None = None
    image_index: Tensor | None = None
    rope: tuple[Tensor, Tensor] | None = None
    rope_ref: tuple[Tensor, Tensor] | None = None
    key_mask: Tensor | None = None


class ThreadState(threading.local):
    """What an attention layer works with in the forward that the current thread is running.

    Both attributes are None in a thread that runs no forward of an enabled pipeline. In such a
    thread the layer is the stock one.
    """

    def __init__(self) -> None:
        # set here because torch.compile would treat defaults of the class as constants
        self.state: ForwardState | None = None
        self.cache: LayerCache | None = None


class SpotProcessor:
    """Stands in for a layer's attention processor while an enabled pipeline runs.

    A full forward writes the keys and values of all tokens into the layer's buffers. A spot forward
    overwrites those of its rows, in place, and attends to the whole buffer. Any other forward, and
    every forward of another thread, runs the stock processor. Copying it gives the stock processor,
    so the layers of a copied model are stock.

    Attributes:
        num_calls: number of running calls that use it.
        thread: what the layer works with in the current thread.
        narrow_hook: the hook on the layer's block (see `Spec.narrow_block`), or None.
        stock: the processor that it stands in for.
    """

    __slots__ = ("narrow_hook", "num_calls", "stock", "thread")
    num_calls: int
    thread: ThreadState
    narrow_hook: RemovableHandle | None
    stock: Any


@functools.cache
def _spot_class(stock: Any) -> Any:
    """Make a subclass of a processor's class, with its signature, that calls `attend`."""
    parameters = tuple(inspect.signature(stock.__call__).parameters)
    names = parameters[3:]  # the parameters after `self`, `attn` and `hidden_states`

    @functools.wraps(stock.__call__)
    def __call__(self: Any, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        state, cache = self.thread.state, self.thread.cache
        if state is None:
            return self.stock(attn, hidden_states, *args, **kwargs)
        arguments = dict(zip(names, args, strict=False)) | kwargs
        _refuse_unsupported(arguments)
        cache.has_run = True
        prompt = arguments.get("encoder_hidden_states")
        return attend(state, cache, _chosen_backend(self), attn, hidden_states, prompt)

    return subclass(stock, {"__call__": __call__, "__slots__": ()}, (SpotProcessor,))


def _refuse_unsupported(arguments: dict[str, Any]) -> None:
    """Refuse arguments of an attention layer that spot steps would ignore."""
    unsupported = [
        name
        for name, value in arguments.items()
        if name not in _SUPPORTED_ARGUMENTS and (isinstance(value, Tensor) or value)
    ]
    if unsupported:
        raise ValueError(
            f"the attention layers were given {', '.join(unsupported)}; expected no more than the "
            "prompt and its mask: spot steps would ignore the rest, so edit without spotedit"
        )


def spot_processor(stock: Any) -> Any:
    """Make the `SpotProcessor` that stands in for `stock` and shares all attributes with it."""
    stock_class: Any = type(stock)
    spot_class = _spot_class(stock_class)
    return view(stock, spot_class, stock=stock, thread=ThreadState(), num_calls=0, narrow_hook=None)


def _chosen_backend(processor: Any) -> AttentionBackendName | None:
    """Return the attention backend that the user chose for the layer or for all, or None."""
    for_layer = getattr(processor, "_attention_backend", None)
    if for_layer is not None:
        return for_layer
    active, _ = _AttentionBackendRegistry.get_active_backend()
    return None if active == AttentionBackendName.NATIVE else active


def attend(
    state: ForwardState,
    cache: LayerCache,
    backend: AttentionBackendName | None,
    attn: Any,
    hidden: Tensor,
    prompt: Tensor | None,
) -> Any:
    """Compute what the stock processor returns, for the rows of this state.

    Args:
        backend: the attention backend that the user chose, or None.
        attn: the attention module.
        hidden: image rows [B, M, C], or rows of the joint sequence if `prompt` is None.
        prompt: prompt rows [B, P, C].
    """
    assert state.rope is not None
    assert state.prompt_index is not None
    rows = state.spec.project(attn, hidden, prompt)
    is_int8 = cache.k.scale is not None
    # Keys and values go straight into the cache, unless they must be rounded to int8 first.
    k = torch.empty_like(rows.k) if is_int8 else cache.k.data
    v = torch.empty_like(rows.v) if is_int8 else cache.v.data
    cos, sin = state.rope
    k_ref_arguments: dict[str, Any] = {}
    if cache.blend_inputs is not None and state.rope_ref is not None:
        cos_ref, sin_ref = state.rope_ref
        k_ref = cache.blend_inputs.k_ref.data
        if is_int8:
            k_ref = torch.empty_like(k_ref, dtype=k.dtype)
        k_ref_arguments = {"k_ref": k_ref, "cos_ref": cos_ref, "sin_ref": sin_ref}
    # q is returned; keys and values are written into k, v and k_ref. With int8 they are first
    # written in order, and `_quantise` scatters them.
    q = qk_norm_rope(
        rows.q,
        rows.k,
        rows.v,
        k,
        v,
        None if is_int8 else state.joint_index,
        cos,
        sin,
        text_len=state.prompt_index.shape[0],
        interleaved=state.spec.interleaved,
        impl=state.impl,
        **rows.norms,
        **k_ref_arguments,
    )
    if is_int8:
        _quantise(state, cache, k, v, k_ref_arguments.get("k_ref"))
    if state.mode == "spot":  # it computed only some of the keys; the cache has all of them
        k, v = cache.k.data, cache.v.data
    attended = _attention(state, cache, backend, q, k, v)
    return state.spec.output(attn, attended, prompt, rows)


def _quantise(
    state: ForwardState, cache: LayerCache, k: Tensor, v: Tensor, k_ref: Tensor | None
) -> None:
    """Write the rows of a forward into the int8 buffers."""
    for cached, values in ((cache.k, k), (cache.v, v)):
        if state.joint_index is None:
            cached.fill(values)
        else:
            cached.write(state.joint_index, values)
    if k_ref is not None:
        assert cache.blend_inputs is not None
        cache.blend_inputs.k_ref.fill(k_ref)


def _attention(
    state: ForwardState,
    cache: LayerCache,
    backend: AttentionBackendName | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
) -> Tensor:
    """Attend from the rows `q` [B, M, H, D] to all keys; return [B, M, H, D].

    Spot forwards use our kernel. Full forwards use diffusers' dispatch, and so do spot forwards if
    the user chose a backend and the cache is not int8.
    """
    mask, k_scale, v_scale = state.key_mask, cache.k.scale, cache.v.scale
    if state.mode == "spot" and (backend is None or k_scale is not None):
        return gathered_attention(
            q, k, v, key_mask=mask, k_scale=k_scale, v_scale=v_scale, impl=state.impl
        )
    mask = None if mask is None else mask[:, None, None]
    return dispatch_attention_fn(q, k, v, attn_mask=mask, backend=backend)
