"""The full and spot forwards of a call: full ones keep keys and values, and spot ones use them.

Before a spot forward, the keys and values of the reused tokens are blended from their cached ones
and the source's (see `cache.blend`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from spotedit_kernels.rows import gather_rows
from torch import Tensor

from ..judge.select import Selection
from ..models.spec import Arguments, Spec
from ..options.config import SpotEditConfig
from .cache import LayerCache, SequenceLayout, allocate, blend, remember_noise_rows
from .processor import ForwardState, SpotProcessor

StockForward = Callable[..., Any]


@dataclass
class Branch:
    """The state that is kept of one guidance branch.

    Attributes:
        layout: where the tokens lie in the joint sequence.
        prompt_index: joint index of each prompt token, [P].
        rope: cos and sin of the joint sequence, fp32 [S, D] each.
        rope_ref: cos and sin [R, D] for the keys of the source and of the condition images after
            it, R tokens. They rotate the source's keys to the noise tokens' positions, and the
            others to their own. None if nothing is ever blended.
        caches: buffers of every attention layer, by its name.
        weight: weight of the cached keys and values in the last blend; 1 before any.
    """

    layout: SequenceLayout
    prompt_index: Tensor
    rope: tuple[Tensor, Tensor]
    rope_ref: tuple[Tensor, Tensor] | None
    caches: dict[str, LayerCache]
    weight: float = 1.0


class Forwards:
    """Runs full and spot forwards, and keeps what later ones need, for each guidance branch.

    A branch is known by its index: the position of its forward among the forwards of a step.

    Args:
        processors: our attention processors, by the layers' names.
        num_noise: number of noise tokens.
        source_start: index of the source's first token among the image tokens.
        needs_blend: whether reused rows are ever blended.

    Attributes:
        state: what the attention layers read about the running forward.
        branches: what is kept, by the branch's index.
        bypassed_layer: name of a layer that did not run in the last full forward, so that nothing
            was kept of that forward; None if all layers ran.
    """

    def __init__(
        self,
        transformer: Any,
        spec: Spec,
        config: SpotEditConfig,
        processors: Mapping[str, SpotProcessor],
        num_noise: int,
        source_start: int,
        needs_blend: bool,
    ) -> None:
        self.transformer = transformer
        self.spec = spec
        self.config = config
        self.processors = processors
        self.num_noise = num_noise
        self.source_start = source_start
        self.needs_blend = needs_blend
        self.state = ForwardState(spec, config.impl)
        self.branches: dict[int, Branch] = {}
        self.bypassed_layer: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers."""
        return sum(
            cache.nbytes for branch in self.branches.values() for cache in branch.caches.values()
        )

    def has_kept(self, branch_index: int, num_prompt: int) -> bool:
        """Tell whether a full forward of this branch was kept, with a prompt of this length."""
        branch = self.branches.get(branch_index)
        return branch is not None and branch.layout.num_prompt == num_prompt

    def run_full(self, branch_index: int, forward: StockForward, kwargs: dict[str, Any]) -> Any:
        """Run all rows, and keep every layer's keys and values."""
        num_prompt = kwargs["encoder_hidden_states"].shape[1]
        num_image = kwargs["hidden_states"].shape[1]
        layout = SequenceLayout(
            num_prompt, self.num_noise, self.source_start, num_prompt + num_image
        )
        branch = self.branches.get(branch_index)
        if branch is None or branch.layout != layout:
            branch = self.branches[branch_index] = self._new_branch(layout, kwargs)
        branch.weight = 1.0  # this forward overwrites what was blended
        self._set_state(branch, kwargs)
        self.state.joint_index = None
        self.state.rope_ref = branch.rope_ref
        output, self.bypassed_layer = self._run("full", branch, forward, kwargs)
        if self.bypassed_layer is not None:
            del self.branches[branch_index]  # some of its buffers were never written
            return output
        for cache in branch.caches.values():
            remember_noise_rows(cache, layout)
        return output

    def run_spot(
        self,
        branch_index: int,
        forward: StockForward,
        kwargs: dict[str, Any],
        selection: Selection,
        weight: float,
    ) -> tuple[Any, int]:
        """Run the transformer on the active tokens.

        The prompt's rows run too unless `config.cache_text` is set, and the conditions' rows unless
        `config.condition_cache` is set.

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
        no_prompt = branch.prompt_index[:0]
        prompt_index = no_prompt if self.config.cache_text else branch.prompt_index
        state.prompt_index = prompt_index
        state.image_index = image_index
        state.joint_index = torch.cat(
            [prompt_index.expand(*image_index.shape[:-1], -1), joint_index], dim=-1
        )
        if self.config.cache_dtype == "int8":
            # With int8, the keys of the rows that run are rotated in a temporary buffer and then
            # rounded, so cos and sin must have these rows only.
            rows = state.joint_index.clamp(min=0)
            cos, sin = branch.rope
            state.rope = cos[rows], sin[rows]
        # the source's keys change only if the rows of the condition images run
        conditions_run = not self.config.condition_cache
        state.rope_ref = branch.rope_ref if conditions_run else None
        narrowed = kwargs | self.spec.narrow(kwargs, image_index)
        narrowed["hidden_states"] = gather_rows(kwargs["hidden_states"], image_index)
        if self.config.cache_text:
            narrowed |= self.spec.without_prompt(kwargs)
        output, bypassed_layer = self._run("spot", branch, forward, narrowed)
        if bypassed_layer is not None:
            raise RuntimeError(
                f"{bypassed_layer} ran in a full step and not in this spot step; expected every "
                "layer to run: something skips blocks of the transformer (a cache, a patched "
                "forward). Remove it, or edit after spotedit.disable(pipe)"
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
        for name, processor in self.processors.items():
            cache = branch.caches[name]
            cache.has_run = False
            processor.thread.state = self.state
            processor.thread.cache = cache
        try:
            output = forward(**kwargs)
        finally:
            for processor in self.processors.values():
                processor.thread.state = None
                processor.thread.cache = None
        bypassed_layers = [name for name, cache in branch.caches.items() if not cache.has_run]
        return output, bypassed_layers[0] if bypassed_layers else None

    def _blend(self, branch: Branch, selection: Selection, weight: float) -> None:
        """Bring the reused rows up to date.

        Blended rows stay right while the weight stays the same. Only newly reused rows then need a
        blend.
        """
        no_index = selection.dropped_index[..., :0]
        if weight != branch.weight:  # all reused rows must be blended with the new weight
            stale_index = selection.reused_index
        elif weight != 1.0:  # the tokens that the previous step computed are not blended yet
            stale_index = selection.dropped_index
        else:  # the weight stays 1: the rows hold the cached keys and values already
            stale_index = no_index
        branch.weight = weight
        for cache in branch.caches.values():
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
        self.state.prompt_index = branch.prompt_index
        self.state.rope = branch.rope
        mask = self.spec.prompt_mask(kwargs)
        if mask is not None:
            num_image = branch.layout.num_tokens - branch.layout.num_prompt
            mask = torch.cat([mask, mask.new_ones(len(mask), num_image)], dim=1)
        self.state.key_mask = mask

    def _new_branch(self, layout: SequenceLayout, kwargs: Arguments) -> Branch:
        """Allocate the buffers of a branch whose tokens lie as `layout` says."""
        hidden = kwargs["hidden_states"]
        dtype, device = hidden.dtype, hidden.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        like = hidden.new_empty(0, dtype=dtype)
        head_shape = self.spec.heads(self.transformer)
        is_int8 = self.config.cache_dtype == "int8"
        caches = {
            name: allocate(len(hidden), layout, head_shape, self.needs_blend, is_int8, like)
            for name in self.processors
        }
        return self._branch_with(caches, layout, kwargs)

    def _branch_with(
        self, caches: dict[str, LayerCache], layout: SequenceLayout, kwargs: Arguments
    ) -> Branch:
        """Return a branch with these buffers, and with cos and sin for its tokens."""
        cos, sin = self.spec.rotary(self.transformer, kwargs)
        rope_ref = None
        if self.needs_blend:
            later_conditions = slice(layout.source.stop, None)
            rope_ref = (
                torch.cat([cos[layout.noise], cos[later_conditions]]),
                torch.cat([sin[layout.noise], sin[later_conditions]]),
            )
        prompt_index = torch.arange(layout.num_prompt, device=cos.device)
        return Branch(layout, prompt_index, (cos, sin), rope_ref, caches)
