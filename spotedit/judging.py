"""The tokens of a call's steps, as they are judged one after the other."""

import functools
from collections.abc import Callable
from typing import Any, Literal

from spotedit_kernels.select_tokens import Mode
from torch import Tensor

from .config import SpotEditConfig
from .mask import UserMask
from .misalignment import MUCH, Misalignment, detect
from .models.spec import Grid, Spec
from .select import (
    JUDGES,
    NotFiniteError,
    Selection,
    SpotSelector,
    everything,
    unchanged,
)


class Judging:
    """Keeps the selection of the next step up to date. Made once a call.

    Args:
        threshold: resolved; "auto": the scores' own cut.
        y: [B, N, C], the source.
        mask, allowed: the user's mask, also as bool [B, N] on tokens, or None.
        pad_to: the number of active tokens is a multiple of it.

    Attributes:
        selection: of the last judgement, or None.
        misalignment: how the whole frame moved, found at the first judgement; every token is
            active from there on. None: not found, or not looked for.

    Raises:
        ValueError: the judge lacks what it looks through.
    """

    def __init__(
        self,
        pipe: Any,
        spec: Spec,
        config: SpotEditConfig,
        threshold: float | Literal["auto"],
        y: Tensor,
        grid: Grid,
        mask: UserMask | None,
        allowed: Tensor | None,
        pad_to: int,
    ) -> None:
        self.pipe, self.spec, self.config = pipe, spec, config
        self.threshold, self.y, self.grid = threshold, y, grid
        self.mask, self.allowed, self.pad_to = mask, allowed, pad_to
        self.every = spec.judge_every if config.judge_every is None else config.judge_every
        self.selection: Selection | None = None
        self.misalignment: Misalignment | None = None
        self._selector = self._make_selector()
        self._judged = 0  # step of the last judgement

    @property
    def scores(self) -> Tensor | None:
        """fp32 [B, N] of the last judgement."""
        return self._selector.scores

    def after(self, step: int, full: bool, x0: Callable[[], Tensor]) -> None:
        """Bring the selection up to date after a step that was computed.

        Args:
            full: whether it was a full step, after which every token is judged afresh.
            x0: gives its predicted clean tokens [B, N, C].

        Raises:
            ValueError: they are not finite.
        """
        if self.misalignment is not None:
            return
        if self.selection is not None and not full and step - self._judged < self.every:
            self.selection = unchanged(self.selection)
            return
        first, clean = self.selection is None, x0()
        self._judged = step
        try:
            self.selection = self._selector(clean, None if full else self.selection)
        except NotFiniteError:
            raise ValueError(
                f"step {step}: the latents are not finite; check the image and `latents`, or "
                "use bfloat16 or float32 if the model overflows in float16"
            ) from None
        if first:
            self._check_frame(clean, self.selection)

    def _check_frame(self, x0: Tensor, selection: Selection) -> None:
        """Where the frame changes as a whole, every token is computed from here on."""
        batch, noise = self.y.shape[:2]
        changed, latents = noise - selection.reused.shape[-1], self.spec.latents
        if self.mask is not None or batch > 1 or changed < MUCH * noise or not latents:
            return
        edit, source = (latents(tokens, self.grid)[0] for tokens in (x0, self.y))
        side = self.spec.token_pixels(self.pipe) * self.grid[0]
        self.misalignment = detect(edit, source, side / edit.shape[1])
        if self.misalignment is not None:
            self.selection = everything(selection, self.pad_to)

    def _make_selector(self) -> SpotSelector:
        spec, config, y, grid = self.spec, self.config, self.y, self.grid
        judge = None
        if self.mask is None or self.mask.mode != "replace":
            # the VAE decoder's first layers, copied when a judge first looks through them
            features = functools.cache(functools.partial(spec.features, self.pipe, y, grid))
            judge = JUDGES[config.judge](y, grid, lambda x: features()(x), config.impl)
        dilation = spec.dilation if config.dilation is None else config.dilation
        mode: Mode = "intersect" if self.mask is None else self.mask.mode
        threshold = None if self.threshold == "auto" else self.threshold
        return SpotSelector(
            judge, threshold, dilation, grid, self.allowed, mode, config.impl, self.pad_to
        )
