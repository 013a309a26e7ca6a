"""Keys and values kept between steps, per guidance branch and layer."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass
class BlendSources:
    """What SpotFusion mixes, [B, N, H, D] in noise-token order.

    Attributes:
        k, v: each noise token's values at the last step that computed it.
        k_ref: the condition's keys rotated to the noise tokens' positions. Its values need no
            rotation: they are rows of `LayerCache.v`.
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

    @classmethod
    def like(cls, k: Tensor, noise: int, blend: bool) -> "LayerCache":
        """Uninitialised buffers for keys of the shape and type of `k` [B, S, H, D]."""
        rows = k[:, :noise]
        sources = BlendSources(*(rows.new_empty(rows.shape) for _ in range(3))) if blend else None
        return cls(k.new_empty(k.shape), k.new_empty(k.shape), sources)

    def tensors(self) -> Iterator[Tensor]:
        yield from (self.k, self.v)
        if self.sources is not None:
            yield from (self.sources.k, self.sources.v, self.sources.k_ref)


class Cache(dict[tuple[int, str], LayerCache]):
    """(branch, layer name) -> `LayerCache`."""

    @property
    def nbytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self.values() for t in layer.tensors())
