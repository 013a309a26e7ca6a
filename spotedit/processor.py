"""The attention of a captured or a spot forward, in terms of the four kernels."""

from typing import Any

from diffusers.models.attention_dispatch import dispatch_attention_fn
from spotedit_kernels import gathered_attention, kv_blend, qk_norm_rope
from torch import Tensor

from .cache import LayerCache
from .session import Session


class SpotProcessor:
    """Stands in for a layer's attention processor during a call.

    A captured forward writes the keys and values of all tokens into the layer's buffers; a spot
    forward overwrites the rows of the active tokens, in place, and attends to the whole buffer.
    Any other forward is the stock processor's.
    """

    def __init__(self, stock: Any, layer: str, session: Session) -> None:
        self.stock, self.layer, self.session = stock, layer, session
        # diffusers sets and reads these on the processor
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
        if attention_mask is not None or image_rotary_emb is None:
            raise ValueError(
                "spotedit needs attention with rotary embeddings and without an attention mask"
            )
        spec, config, capture = session.spec, session.config, session.mode == "capture"
        rows = spec.project(attn, hidden_states, encoder_hidden_states)
        cache = session.layer_cache(self.layer, rows.k)
        cos, sin = image_rotary_emb  # [M, D]
        if capture:
            noise = slice(session.prompt, session.prompt + session.noise)
            session.rope_ref = cos[noise], sin[noise]
        else:
            self._blend(cache)
            cos, sin = (table.expand(rows.q.shape[0], -1, -1) for table in (cos, sin))
        reference: dict[str, Any] = {}
        if cache.sources is not None and (capture or not config.condition_cache):
            cos_ref, sin_ref = session.rope_ref
            reference = {"k_ref": cache.sources.k_ref, "cos_ref": cos_ref, "sin_ref": sin_ref}
        q = qk_norm_rope(
            rows.q,
            rows.k,
            rows.v,
            cache.k,
            cache.v,
            None if capture else session.slots,
            cos,
            sin,
            text_len=session.prompt,
            interleaved=spec.interleaved,
            impl=config.impl,
            **rows.norms,
            **reference,
        )
        if capture and cache.sources is not None:
            cache.sources.k.copy_(self._noise_rows(cache.k))
            cache.sources.v.copy_(self._noise_rows(cache.v))
        return spec.output(attn, self._attend(q, cache, capture), encoder_hidden_states)

    def _noise_rows(self, joint: Tensor, offset: int = 0) -> Tensor:
        """Rows [B, N, H, D] of a joint buffer [B, S, H, D], from image token `offset` on."""
        return joint.narrow(1, self.session.prompt + offset, self.session.noise)

    def _blend(self, cache: LayerCache) -> None:
        """Bring the reused rows up to date, before the active rows are overwritten."""
        session, spot, sources = self.session, self.session.spot, cache.sources
        if sources is None:
            return
        k, v = self._noise_rows(cache.k), self._noise_rows(cache.v)
        if spot.dropped.numel():
            for cached, last in ((sources.k, k), (sources.v, v)):
                cached.index_copy_(1, spot.dropped, last.index_select(1, spot.dropped))
        if session.stale.numel():
            kv_blend(
                k,
                v,
                sources.k,
                sources.v,
                sources.k_ref,
                self._noise_rows(cache.v, session.reference),
                session.stale,
                weight=session.weight,
                impl=session.config.impl,
            )

    def _attend(self, q: Tensor, cache: LayerCache, capture: bool) -> Tensor:
        """Captured forwards, and all where the user chose a backend, go through diffusers."""
        if not capture and self._attention_backend is None and self._parallel_config is None:
            return gathered_attention(q, cache.k, cache.v, impl=self.session.config.impl)
        return dispatch_attention_fn(
            q,
            cache.k,
            cache.v,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
