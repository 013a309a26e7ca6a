"""Keys and values kept between steps, per guidance branch and layer."""

from dataclasses import dataclass

import torch
from spotedit_kernels import kv_blend
from spotedit_kernels.impl import Impl
from spotedit_kernels.rows import gather_rows, scatter_rows
from torch import Tensor


@dataclass
class Rows:
    """Keys or values of the joint sequence or a part of it.

    Attributes:
        data: [B, S, H, D], in the model's dtype or in int8.
        scale: fp32 [B, S, H] of int8 data, else None.
    """

    data: Tensor
    scale: Tensor | None = None

    def tensors(self) -> list[Tensor]:
        return [self.data] if self.scale is None else [self.data, self.scale]

    def part(self, rows: slice) -> "Rows":
        """A view of some rows."""
        return Rows(self.data[:, rows], None if self.scale is None else self.scale[:, rows])

    def read(self, index: Tensor) -> Tensor:
        """The indexed rows, [B, M, H, D]; fp32 where they are int8."""
        data = gather_rows(self.data, index)
        if self.scale is None:
            return data
        return data.float() * gather_rows(self.scale, index)[..., None]

    def write(self, index: Tensor, values: Tensor) -> None:
        """Overwrite the indexed rows with `values` [B, M, H, D]."""
        if self.scale is None:
            scatter_rows(index, (self.data, values))
        else:
            data, scale = quantise(values)
            scatter_rows(index, (self.data, data), (self.scale, scale))

    def fill(self, values: Tensor) -> None:
        """Overwrite all rows."""
        new = Rows(values) if self.scale is None else Rows(*quantise(values))
        self.copy(new)

    def copy(self, other: "Rows") -> None:
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(theirs)


def quantise(values: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [B, S, H, D] and fp32 scales [B, S, H], one for each row and head."""
    scale = values.abs().amax(dim=-1).float() / 127
    safe = scale.clamp(min=torch.finfo(torch.float32).tiny)
    return (values.float() / safe[..., None]).round_().to(torch.int8), scale


@dataclass
class BlendSources:
    """What SpotFusion mixes, in noise-token order.

    Attributes:
        k, v: each noise token's values at the last step that computed it.
        k_ref: the condition's keys rotated to the noise tokens' positions; rows beyond the N belong
            to condition images after the source. Its values need no rotation: they are rows of
            `LayerCache.v`.
    """

    k: Rows
    v: Rows
    k_ref: Rows


@dataclass
class LayerCache:
    """Buffers of one attention layer in one guidance branch; S = prompt + noise + condition tokens.

    Attributes:
        k, v: S rows, what attention reads: fresh, blended and condition rows in joint order.
        sources: None where the weight is 1 throughout: then the rows of `k` and `v` that a spot
            step leaves alone are the right ones.
        ran: whether the layer ran in the last forward, and with it wrote its rows.
    """

    k: Rows
    v: Rows
    sources: BlendSources | None
    ran: bool = False

    @property
    def nbytes(self) -> int:
        sources = self.sources
        rows = [self.k, self.v, *((sources.k, sources.v, sources.k_ref) if sources else ())]
        return sum(tensor.nbytes for part in rows for tensor in part.tensors())


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
    batch: int, place: Place, heads: tuple[int, int], mixed: bool, int8: bool, like: Tensor
) -> LayerCache:
    """Uninitialised buffers of a layer.

    Args:
        heads: their number and dim.
        mixed: whether reused rows are ever blended.
        int8: keep them in int8.
        like: gives the device, and the dtype otherwise.
    """

    def empty(rows: int) -> Rows:
        shape = (batch, rows, *heads)
        if not int8:
            return Rows(like.new_empty(shape))
        scale = like.new_empty(shape[:-1], dtype=torch.float32)
        return Rows(like.new_empty(shape, dtype=torch.int8), scale)

    cache = LayerCache(empty(place.sequence), empty(place.sequence), None)
    if mixed:
        after = place.sequence - place.source.start
        cache.sources = BlendSources(empty(place.noise), empty(place.noise), empty(after))
    return cache


def keep(cache: LayerCache, place: Place) -> None:
    """After a captured forward: remember the noise tokens' keys and values."""
    if cache.sources is not None:
        cache.sources.k.copy(cache.k.part(place.rows))
        cache.sources.v.copy(cache.v.part(place.rows))


def blend(
    cache: LayerCache, place: Place, dropped: Tensor, stale: Tensor, weight: float, impl: Impl
) -> None:
    """Before a spot forward: bring the reused rows up to date.

    Args:
        dropped: noise tokens that the step before computed last: their values become the cached
            ones.
        stale: noise tokens whose rows have to be blended again.
        weight: of the cached value.
    """
    sources = cache.sources
    if sources is None:
        return
    k, v = cache.k.part(place.rows), cache.v.part(place.rows)
    if dropped.numel():
        sources.k.write(dropped, k.read(dropped))
        sources.v.write(dropped, v.read(dropped))
    if not stale.numel():
        return
    k_ref, v_ref = sources.k_ref.part(slice(place.noise)), cache.v.part(place.source)
    if cache.k.scale is None:
        kv_blend(
            k.data,
            v.data,
            sources.k.data,
            sources.v.data,
            k_ref.data,
            v_ref.data,
            stale,
            weight=weight,
            impl=impl,
        )
    else:
        for out, kept, reference in ((k, sources.k, k_ref), (v, sources.v, v_ref)):
            out.write(stale, reference.read(stale).lerp_(kept.read(stale), weight))
