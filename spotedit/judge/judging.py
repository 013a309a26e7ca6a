"""The tokens of a call's steps, as they are judged one after the other."""

import functools
from typing import Any

from spotedit_kernels.select_tokens import Mode
from torch import Tensor

from ..models.spec import Spec
from ..options.choices import Grid
from ..options.config import SpotEditConfig
from .judges import Prediction, make_judge
from .mask import UserMask
from .misalignment import MUCH, Misalignment, detect
from .select import NotFiniteError, Selection, SpotSelector, everything, unchanged


class Judging:
    """Keeps the selection of the next step up to date. Made once a call.

    Args:
        y: [B, N, C], the source.
        mask, allowed: the user's mask, also as bool [B, N] on tokens, or None.
        pad_to: the number of active tokens is a multiple of it.

    Attributes:
        selection: of the last judgement, or None.
        max_active: largest number of active tokens in a judgement.
        reactivated: (step, number of tokens) of the fresh judgements that found tokens changed which
            had been reused.
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
        y: Tensor,
        grid: Grid,
        mask: UserMask | None,
        allowed: Tensor | None,
        pad_to: int,
    ) -> None:
        self.pipe, self.spec, self.config = pipe, spec, config
        self.settings, self.y, self.grid = config.settings, y, grid
        self.mask, self.allowed, self.pad_to = mask, allowed, pad_to
        self.selection: Selection | None = None
        self.max_active = 0
        self.reactivated: list[tuple[int, int]] = []
        self.misalignment: Misalignment | None = None
        self._selector = self._make_selector()
        self._judged = 0  # step of the last judgement

    @property
    def scores(self) -> Tensor | None:
        """fp32 [B, N] of the last judgement."""
        return self._selector.scores

    def update(self, step: int, full: bool, prediction: Prediction) -> None:
        """Bring the selection up to date after a step that was computed.

        Args:
            full: whether it was a full step, after which every token is judged afresh.
            prediction: of the step's clean image.

        Raises:
            ValueError: its velocity is not finite.
        """
        if self.misalignment is not None:
            return
        last = self.selection
        if last is not None and not full and step - self._judged < self.settings.judge_every:
            self.selection = unchanged(last)
            return
        self._judged = step
        try:
            self.selection = self._selector(prediction, last, full)
        except NotFiniteError:
            raise ValueError(
                f"step {step}: the latents are not finite; check the image and `latents`, or "
                "use bfloat16 or float32 if the model overflows in float16"
            ) from None
        self.max_active = max(self.max_active, self.selection.num_active)
        if self.selection.num_reactivated:
            self.reactivated.append((step, self.selection.num_reactivated))
        if last is None:
            self._check_frame(prediction.x0, self.selection)

    def _check_frame(self, x0: Tensor, selection: Selection) -> None:
        """Where the frame changes as a whole, every token is computed from here on."""
        batch, noise = self.y.shape[:2]
        changed, latents = noise - selection.reused_index.shape[-1], self.spec.latents
        if self.mask is not None or batch > 1 or changed < MUCH * noise or not latents:
            return
        edit, source = (latents(tokens, self.grid)[0] for tokens in (x0, self.y))
        side = self.spec.token_pixels(self.pipe) * self.grid[0]
        self.misalignment = detect(edit, source, side / edit.shape[1])
        if self.misalignment is not None:
            self.selection = everything(selection, self.pad_to)

    def _make_selector(self) -> SpotSelector:
        spec, config, y, grid = self.spec, self.config, self.y, self.grid
        settings, judge = self.settings, None
        if self.mask is None or self.mask.mode != "replace":
            # the VAE decoder's first layers, copied when a judge first looks through them
            features = functools.cache(functools.partial(spec.features, self.pipe, y, grid))
            judge = make_judge(settings.judge, y, grid, lambda x: features()(x), config.impl)
        mode: Mode = "intersect" if self.mask is None else self.mask.mode
        threshold = None if settings.threshold == "auto" else settings.threshold
        return SpotSelector(
            judge, threshold, settings.dilation, settings.hysteresis, grid,
            self.allowed, mode, config.impl, self.pad_to,
        )  # fmt: skip
