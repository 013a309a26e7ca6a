"""Keys and values kept between steps, per guidance branch and layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from spotedit_kernels import kv_blend
from spotedit_kernels.impl import Impl
from spotedit_kernels.rows import gather_rows, scatter_rows
from torch import Tensor


@dataclass
class BlendSources:
    """What SpotFusion mixes, [B, N, H, D] in noise-token order.

    Attributes:
        k, v: each noise token's values at the last step that computed it.
        k_ref: the condition's keys rotated to the noise tokens' positions; rows beyond the N belong
            to condition images after the source. Its values need no rotation: they are rows of
            `LayerCache.v`.
    """

    k: Tensor
    v: Tensor
    k_ref: Tensor


@dataclass
class LayerCache:
    """Buffers of one attention layer in one guidance branch; S = prompt + noise + condition tokens.

    Attributes:
        k, v: [B, S, H, D], what attention reads: fresh, blended and condition rows in joint order.
        sources: None where the weight is 1 throughout: then the rows of `k` and `v` that a spot
            step leaves alone are the right ones.
    """

    k: Tensor
    v: Tensor
    sources: BlendSources | None

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.k, self.v)
        if self.sources is not None:
            yield from (self.sources.k, self.sources.v, self.sources.k_ref)

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors())


@dataclass(frozen=True)
class Place:
    """Where the noise and the source are in the joint sequence [prompt, noise, conditions]."""

    prompt: int  # tokens
    noise: int  # tokens
    reference: int  # image token at which the source begins
    sequence: int  # all tokens

    @property
    def rows(self) -> slice:
        """The noise tokens."""
        return slice(self.prompt, self.prompt + self.noise)

    @property
    def source(self) -> slice:
        """The source's tokens."""
        start = self.prompt + self.reference
        return slice(start, start + self.noise)


def allocate(
    batch: int, place: Place, heads: tuple[int, int], blend: bool, like: Tensor
) -> LayerCache:
    """Uninitialised buffers of a layer with `heads` = (number, dim), of the type of `like`."""

    def empty(rows: int) -> Tensor:
        return like.new_empty(batch, rows, *heads)

    k, v = empty(place.sequence), empty(place.sequence)
    if not blend:
        return LayerCache(k, v, None)
    after = place.sequence - place.source.start
    return LayerCache(k, v, BlendSources(empty(place.noise), empty(place.noise), empty(after)))


def keep(cache: LayerCache, place: Place) -> None:
    """After a captured forward: remember the noise tokens' keys and values."""
    if cache.sources is not None:
        cache.sources.k.copy_(cache.k[:, place.rows])
        cache.sources.v.copy_(cache.v[:, place.rows])


def blend(
    cache: LayerCache, place: Place, dropped: Tensor, stale: Tensor, weight: float, impl: Impl
) -> None:
    """Before a spot forward: bring the reused rows up to date (`kv_blend`).

    Args:
        dropped: noise tokens that the step before computed last: their values become the cached
            ones.
        stale: noise tokens whose rows have to be blended again.
        weight: of the cached value.
    """
    sources = cache.sources
    if sources is None:
        return
    k, v = cache.k[:, place.rows], cache.v[:, place.rows]
    if dropped.numel():
        pairs = ((sources.k, k), (sources.v, v))
        scatter_rows(dropped, *((kept, gather_rows(last, dropped)) for kept, last in pairs))
    if stale.numel():
        source_k, source_v = sources.k_ref[:, : place.noise], cache.v[:, place.source]
        kv_blend(k, v, sources.k, sources.v, source_k, source_v, stale, weight=weight, impl=impl)
