"""The feature maps that judges compare."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Any, TypeVar

from spotedit_kernels.token_distance import normalise_features
from torch import Tensor

from ..models.spec import FeatureMaps, Spec
from ..models.vae import state_of_vae
from ..options.choices import Grid

T = TypeVar("T")


class Reuse:
    """Makes what depends on neither the instruction nor the noise: here anew in every call."""

    def reuse(self, name: str, like: Tensor, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        """Return what `make` returns, or what it returned in an earlier call for an equal key.

        Args:
            name: what is made.
            like: a tensor on the device that works on it.
            key: tensors and other values that decide the result. They must not be changed.
            make: makes it.
        """
        return make()


class SourceFeatures:
    """Computes the feature maps of tokens [B, N, C], and keeps those of the source.

    The decoder's first layers are copied at their first use, because not every judge needs them.
    """

    def __init__(self, pipe: Any, spec: Spec, y: Tensor, grid: Grid, reuse: Reuse) -> None:
        """Args: `y` are the source's tokens on their `grid`; `reuse` may know them already."""
        self._pipe, self._spec, self._y, self._grid, self._reuse = pipe, spec, y, grid, reuse

    def __call__(self, tokens: Tensor) -> list[Tensor]:
        """Return the maps, [B, C_l, h_l, w_l] each."""
        return self._decoder(tokens)

    @cached_property
    def of_source(self) -> tuple[Tensor, ...]:
        """The source's maps, their channel vectors scaled to unit length."""
        y, decoder = self._y, self._decoder
        key = (self._grid, *state_of_vae(self._pipe), y)
        return self._reuse.reuse("features", y, key, lambda: normalise_features(decoder(y)))

    @cached_property
    def _decoder(self) -> FeatureMaps:
        y, make = self._y, partial(self._spec.features, self._pipe, self._y, self._grid)
        key = (self._grid, *state_of_vae(self._pipe), y.device, y.dtype)
        return self._reuse.reuse("decoder", y, key, make)
