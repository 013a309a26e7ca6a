"""The forwards of one call that keep keys and values (full) or use them (spot)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from spotedit_kernels.rows import gather_rows
from torch import Tensor

from ..judge.select import Selection
from ..models.spec import Arguments, Spec
from ..options.config import SpotEditConfig
from .cache import LayerCache, SequenceLayout, allocate, blend, keep
from .processor import ForwardState, SpotProcessor

StockForward = Callable[..., Any]


@dataclass
class Branch:
    """What is kept of one guidance branch.

    Attributes:
        layout: where the tokens lie in the joint sequence.
        prompt: row of each prompt token, [P].
        rope: cos and sin of the joint sequence, fp32 [S, D] each.
        rope_ref: cos and sin [R, D] that rotate the keys of the source, and of the conditions after
            it, to the noise tokens' positions. None if nothing is ever blended.
        layers: buffers of every attention layer, by its name.
        weight: weight of the cached value with which the reused rows were last blended.
    """

    layout: SequenceLayout
    prompt: Tensor
    rope: tuple[Tensor, Tensor]
    rope_ref: tuple[Tensor, Tensor] | None
    layers: dict[str, LayerCache]
    weight: float = 1.0


class Forwards:
    """Runs full and spot forwards, and keeps what later ones need, for each guidance branch.

    A branch is known by its index: the position of its forward among the forwards of a step.

    Args:
        layers: the attention processors by the layers' names.
        num_noise: number of noise tokens.
        source_start: index of the source's first token among the image tokens.
        needs_blend: whether reused rows are ever blended.

    Attributes:
        state: what the attention layers read about the running forward.
        branches: what is kept, by the branch's index.
        bypassed: name of a layer that did not run in the last full forward, so that nothing was
            kept of that forward; None if all layers ran.
    """

    def __init__(
        self,
        transformer: Any,
        spec: Spec,
        config: SpotEditConfig,
        layers: Mapping[str, SpotProcessor],
        num_noise: int,
        source_start: int,
        needs_blend: bool,
    ) -> None:
        self.transformer = transformer
        self.spec = spec
        self.config = config
        self.layers = layers
        self.num_noise = num_noise
        self.source_start = source_start
        self.needs_blend = needs_blend
        self.state = ForwardState(spec, config.impl)
        self.branches: dict[int, Branch] = {}
        self.bypassed: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(
            cache.nbytes for branch in self.branches.values() for cache in branch.layers.values()
        )

    def holds(self, branch_index: int, num_prompt: int) -> bool:
        """Tell whether a full forward of this branch was kept, with a prompt of this length."""
        branch = self.branches.get(branch_index)
        return branch is not None and branch.layout.num_prompt == num_prompt

    def full(self, branch_index: int, forward: StockForward, kwargs: dict[str, Any]) -> Any:
        """Run all rows, and keep every layer's keys and values."""
        num_prompt = kwargs["encoder_hidden_states"].shape[1]
        num_image = kwargs["hidden_states"].shape[1]
        layout = SequenceLayout(
            num_prompt, self.num_noise, self.source_start, num_prompt + num_image
        )
        branch = self.branches.get(branch_index)
        if branch is None or branch.layout != layout:
            branch = self.branches[branch_index] = self._new_branch(layout, kwargs)
        branch.weight = 1.0
        self._set_state(branch, kwargs)
        self.state.joint_index = None
        self.state.rope_ref = branch.rope_ref
        output, self.bypassed = self._run("full", branch, forward, kwargs)
        if self.bypassed is not None:
            del self.branches[branch_index]  # some of its buffers were never written
            return output
        for cache in branch.layers.values():
            keep(cache, layout)
        return output

    def spot(
        self,
        branch_index: int,
        forward: StockForward,
        kwargs: dict[str, Any],
        selection: Selection,
        weight: float,
    ) -> tuple[Any, int]:
        """Run the transformer on the active tokens.

        Prompt rows are included unless `cache_text`; condition rows only without
        `condition_cache`.

        Returns:
            The output, and the number of rows that were run.

        Raises:
            RuntimeError: a layer did not run, so that the output is wrong.
        """
        branch, state = self.branches[branch_index], self.state
        self._blend(branch, selection, weight)
        self._set_state(branch, kwargs)
        image_index = self._image_index(selection, kwargs)
        joint_index = torch.where(
            image_index < 0, image_index, image_index + branch.layout.num_prompt
        )
        prompt = branch.prompt[:0] if self.config.cache_text else branch.prompt
        state.prompt = prompt
        state.image_index = image_index
        state.joint_index = torch.cat(
            [prompt.expand(*image_index.shape[:-1], -1), joint_index], dim=-1
        )
        if self.config.cache_dtype == "int8":
            # The rows are computed in buffers of their own, so cos and sin are gathered for them.
            rows = state.joint_index.clamp(min=0)
            cos, sin = branch.rope
            state.rope = cos[rows], sin[rows]
        state.rope_ref = None if self.config.condition_cache else branch.rope_ref
        narrowed = kwargs | self.spec.narrow(kwargs, image_index)
        narrowed["hidden_states"] = gather_rows(kwargs["hidden_states"], image_index)
        if self.config.cache_text:
            narrowed |= self.spec.without_prompt(kwargs)
        output, bypassed = self._run("spot", branch, forward, narrowed)
        if bypassed is not None:
            raise RuntimeError(
                f"{bypassed} ran in a full step and not in this spot step; expected every layer to "
                "run: something skips blocks of the transformer (a cache, a patched forward). "
                "Remove it, or edit after spotedit.disable(pipe)"
            )
        return output, state.joint_index.shape[-1]

    def _image_index(self, selection: Selection, kwargs: Arguments) -> Tensor:
        """Return the image tokens that a spot forward runs, [M] or [B, M], padded with -1."""
        active_index = selection.active_index
        if self.config.condition_cache:
            return active_index
        num_image = kwargs["hidden_states"].shape[1]
        condition_index = torch.arange(self.num_noise, num_image, device=active_index.device)
        condition_index = condition_index.expand(*active_index.shape[:-1], -1)
        return torch.cat([active_index, condition_index], dim=-1)

    def _run(
        self, mode: str, branch: Branch, forward: StockForward, kwargs: dict[str, Any]
    ) -> tuple[Any, str | None]:
        """Run a forward; return its output, and the first layer that did not run in it, or None."""
        self.state.mode = mode
        for name, layer in self.layers.items():
            cache = branch.layers[name]
            cache.has_run = False
            layer.thread.forward, layer.thread.cache = self.state, cache
        try:
            output = forward(**kwargs)
        finally:
            for layer in self.layers.values():
                layer.thread.forward = layer.thread.cache = None
        bypassed = (name for name, cache in branch.layers.items() if not cache.has_run)
        return output, next(bypassed, None)

    def _blend(self, branch: Branch, selection: Selection, weight: float) -> None:
        """Bring the reused rows up to date."""
        if weight != branch.weight:
            stale_index = selection.reused_index
        elif weight != 1.0:
            stale_index = selection.dropped_index
        else:
            stale_index = selection.dropped_index[..., :0]  # the rows are the cached ones already
        branch.weight = weight
        for cache in branch.layers.values():
            blend(
                cache,
                branch.layout,
                selection.dropped_index,
                stale_index,
                weight,
                self.config.impl,
            )

    def _set_state(self, branch: Branch, kwargs: Arguments) -> None:
        """Set the per-forward state that full and spot forwards share."""
        self.state.prompt = branch.prompt
        self.state.rope = branch.rope
        mask = self.spec.prompt_mask(kwargs)
        if mask is not None:
            num_image = branch.layout.num_tokens - branch.layout.num_prompt
            mask = torch.cat([mask, mask.new_ones(len(mask), num_image)], dim=1)
        self.state.key_mask = mask

    def _new_branch(self, layout: SequenceLayout, kwargs: Arguments) -> Branch:
        hidden = kwargs["hidden_states"]
        dtype, device = hidden.dtype, hidden.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        like = hidden.new_empty(0, dtype=dtype)
        heads, int8 = self.spec.heads(self.transformer), self.config.cache_dtype == "int8"
        layers = {
            name: allocate(len(hidden), layout, heads, self.needs_blend, int8, like)
            for name in self.layers
        }
        return self._branch(layout, kwargs, layers)

    def _branch(
        self, layout: SequenceLayout, kwargs: Arguments, layers: dict[str, LayerCache]
    ) -> Branch:
        cos, sin = self.spec.rotary(self.transformer, kwargs)
        rope_ref = None
        if self.needs_blend:
            later_conditions = slice(layout.source.stop, None)
            rope_ref = (
                torch.cat([cos[layout.noise], cos[later_conditions]]),
                torch.cat([sin[layout.noise], sin[later_conditions]]),
            )
        prompt = torch.arange(layout.num_prompt, device=cos.device)
        return Branch(layout, prompt, (cos, sin), rope_ref, layers)
