"""The transformer's forwards of one call: full ones that are kept, and spot ones."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from spotedit_kernels.rows import gather_rows
from torch import Tensor

from ..judge.select import Selection
from ..models.spec import Arguments, Spec
from ..options.config import SpotEditConfig
from .cache import LayerCache, Place, allocate, blend, keep
from .processor import Forward, SpotProcessor

Call = Callable[..., Any]  # the stock forward


@dataclass
class Branch:
    """What is kept of one guidance branch: the forwards of equal rank among a step's.

    Attributes:
        prompt: its rows of the joint sequence, [P].
        rope: cos, sin fp32 [S, D] of the joint sequence.
        rope_ref: cos, sin [R, D] that rotate the source's keys, and those of what follows it, to
            the noise tokens' positions; None where nothing is ever blended.
        layers: buffers of every attention layer, by its name.
        weight: of the cached value, in the reused rows as the buffers hold them.
    """

    place: Place
    prompt: Tensor
    rope: tuple[Tensor, Tensor]
    rope_ref: tuple[Tensor, Tensor] | None
    layers: dict[str, LayerCache]
    weight: float = 1.0


class Forwards:
    """Runs forwards and keeps what later ones need, for each guidance branch.

    Args:
        told, layers: what the layers read, and their processors by name.
        noise: tokens.
        reference: image token at which the source begins.
        mixed: whether reused rows are ever blended.

    Attributes:
        bypassed: a layer that did not run in the last full forward, so that nothing was kept of
            that forward; None: all ran.
    """

    def __init__(
        self,
        transformer: Any,
        spec: Spec,
        config: SpotEditConfig,
        told: Forward,
        layers: Mapping[str, SpotProcessor],
        noise: int,
        reference: int,
        mixed: bool,
    ) -> None:
        self.transformer, self.spec, self.config = transformer, spec, config
        self.told, self.layers = told, layers
        self.noise, self.reference, self.mixed = noise, reference, mixed
        self.branches: dict[int, Branch] = {}
        self.bypassed: str | None = None

    @property
    def nbytes(self) -> int:
        return sum(c.nbytes for branch in self.branches.values() for c in branch.layers.values())

    def holds(self, rank: int, prompt: int) -> bool:
        """Whether a full forward of this rank and prompt length was kept."""
        return rank in self.branches and self.branches[rank].place.prompt == prompt

    def full(self, rank: int, forward: Call, kwargs: dict[str, Any]) -> Any:
        """Run all rows, and keep every layer's keys and values."""
        prompt, image = (
            kwargs[name].shape[1] for name in ("encoder_hidden_states", "hidden_states")
        )
        place = Place(prompt, self.noise, self.reference, prompt + image)
        branch = self.branches.get(rank)
        if branch is None or branch.place != place:
            branch = self.branches[rank] = self._new_branch(place, kwargs)
        branch.weight = 1.0
        self._tell(branch, kwargs)
        self.told.slots, self.told.rope_ref = None, branch.rope_ref
        output, self.bypassed = self._run("capture", branch, forward, kwargs)
        if self.bypassed is not None:
            del self.branches[rank]  # some of its buffers were never written
            return output
        for layer in branch.layers.values():
            keep(layer, place)
        return output

    def spot(
        self, rank: int, forward: Call, kwargs: dict[str, Any], spot: Selection, weight: float
    ) -> tuple[Any, int]:
        """Run the active tokens' rows; the prompt's unless `cache_text`, and the conditions' only
        without `condition_cache`.

        Returns:
            The output and the number of rows.

        Raises:
            RuntimeError: a layer did not run, so that the output is wrong.
        """
        branch, hidden, told = self.branches[rank], kwargs["hidden_states"], self.told
        self._blend(branch, spot, weight)
        index = spot.active_index
        if not self.config.condition_cache:
            condition = torch.arange(self.noise, hidden.shape[1], device=index.device)
            index = torch.cat([index, condition.expand(*index.shape[:-1], -1)], dim=-1)
        joint = torch.where(index < 0, index, index + branch.place.prompt)
        self._tell(branch, kwargs)
        told.index = index
        told.prompt = branch.prompt[: 0 if self.config.cache_text else None]
        prompt = told.prompt.expand(*index.shape[:-1], -1)
        told.slots = torch.cat([prompt, joint], dim=-1)
        if self.config.cache_dtype == "int8":  # its rows are computed in buffers of their own
            rows = told.slots.clamp(min=0)
            told.rope = branch.rope[0][rows], branch.rope[1][rows]
        told.rope_ref = None if self.config.condition_cache else branch.rope_ref
        narrowed = kwargs | self.spec.narrow(kwargs, index)
        narrowed["hidden_states"] = gather_rows(hidden, index)
        if self.config.cache_text:
            narrowed |= self.spec.without_prompt(kwargs)
        output, bypassed = self._run("spot", branch, forward, narrowed)
        if bypassed is not None:
            raise RuntimeError(
                f"{bypassed} ran in a full step and not in this spot step; expected every layer to "
                "run: something skips blocks of the transformer (a cache, a patched forward). "
                "Remove it, or edit after spotedit.disable(pipe)"
            )
        return output, told.slots.shape[-1]

    def _run(
        self, mode: str, branch: Branch, forward: Call, kwargs: dict[str, Any]
    ) -> tuple[Any, str | None]:
        """The output of a forward, and the first layer that did not run in it, or None."""
        self.told.mode = mode
        for name, layer in self.layers.items():
            cache = branch.layers[name]
            cache.ran = False
            layer.here.forward, layer.here.cache = self.told, cache
        try:
            output = forward(**kwargs)
        finally:
            for layer in self.layers.values():
                layer.here.forward = layer.here.cache = None
        bypassed = (name for name, cache in branch.layers.items() if not cache.ran)
        return output, next(bypassed, None)

    def _blend(self, branch: Branch, spot: Selection, weight: float) -> None:
        """Bring the reused rows up to date."""
        changed = weight != branch.weight
        stale = (
            spot.reused_index
            if changed
            else spot.dropped_index[..., : None if weight != 1.0 else 0]
        )
        branch.weight = weight
        for layer in branch.layers.values():
            blend(layer, branch.place, spot.dropped_index, stale, weight, self.config.impl)

    def _tell(self, branch: Branch, kwargs: Arguments) -> None:
        """Set the state that full and spot forwards share."""
        self.told.prompt, self.told.rope = branch.prompt, branch.rope
        mask = self.spec.prompt_mask(kwargs)
        if mask is not None:
            image = mask.new_ones(len(mask), branch.place.sequence - branch.place.prompt)
            mask = torch.cat([mask, image], dim=1)
        self.told.key_mask = mask

    def _new_branch(self, place: Place, kwargs: Arguments) -> Branch:
        hidden = kwargs["hidden_states"]
        dtype, device = hidden.dtype, hidden.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        like = hidden.new_empty(0, dtype=dtype)
        heads, int8 = self.spec.heads(self.transformer), self.config.cache_dtype == "int8"
        layers = {
            name: allocate(len(hidden), place, heads, self.mixed, int8, like)
            for name in self.layers
        }
        return self._branch(place, kwargs, layers)

    def _branch(self, place: Place, kwargs: Arguments, layers: dict[str, LayerCache]) -> Branch:
        cos, sin = rope = self.spec.rotary(self.transformer, kwargs)
        after, rope_ref = slice(place.source.stop, None), None
        if self.mixed:
            rope_ref = (
                torch.cat([cos[place.rows], cos[after]]),
                torch.cat([sin[place.rows], sin[after]]),
            )
        prompt = torch.arange(place.prompt, device=cos.device)
        return Branch(place, prompt, rope, rope_ref, layers)
