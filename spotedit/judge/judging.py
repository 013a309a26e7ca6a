"""Judging: keep track of which tokens are active, from step to step of a call."""

from typing import Any

from torch import Tensor

from ..models.spec import Spec
from ..options.choices import Grid
from ..options.config import SpotEditConfig
from .features import Reuse, SourceFeatures
from .judges import Prediction, make_judge
from .mask import UserMask
from .misalignment import MIN_CHANGED_SHARE, Misalignment, detect
from .select import NotFiniteError, Selection, SpotSelector, carry_over, select_all


class Judging:
    """Keeps the selection of the next step up to date. One object serves one call.

    Args:
        y: the source's tokens, [B, N, C].
        mask: the user's mask, or None.
        allowed: the same mask on tokens, bool [B, N], or None.
        pad_to: the list of active token indices is padded to a multiple of this length.
        reuse: may know the source's features already.

    Attributes:
        selection: the tokens of the next spot step, or None before the first judgement.
        max_active: largest number of active tokens that a judgement found.
        reactivated: (step, number of tokens) for each judgement after a full step that made tokens
            active which had been reused until then.
        misalignment: how the whole frame moved, if the first judgement found that it did. Every
            token is active from there on. None otherwise, also if the frame was not checked.

    Raises:
        ValueError: the pipeline has no VAE decoder that the judge could use.
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
        reuse: Reuse,
    ) -> None:
        self.pipe, self.spec, self.config = pipe, spec, config
        self.settings, self.y, self.grid = config.settings, y, grid
        self.mask, self.allowed, self.pad_to = mask, allowed, pad_to
        self.selection: Selection | None = None
        self.max_active = 0
        self.reactivated: list[tuple[int, int]] = []
        self.misalignment: Misalignment | None = None
        self._selector = self._make_selector(reuse)
        self._judged_step = 0  # index of the step that was judged last

    @property
    def scores(self) -> Tensor | None:
        """Scores of the last judgement, fp32 [B, N], or None before the first."""
        return self._selector.scores

    def update(self, step: int, full: bool, prediction: Prediction) -> None:
        """Bring the selection up to date after a step that ran a forward.

        Args:
            step: 0-based index of the step.
            full: whether it was a full step. Every token is judged afresh after one.
            prediction: the clean image that the step predicts.

        Raises:
            ValueError: the model's output is not finite.
        """
        if self.misalignment is not None:  # every token stays active
            return
        previous = self.selection
        is_due = full or step - self._judged_step >= self.settings.judge_every
        if previous is not None and not is_due:
            self.selection = carry_over(previous)
            return
        self._judged_step = step
        try:
            self.selection = self._selector(prediction, previous, full)
        except NotFiniteError:
            raise ValueError(
                f"step {step}: the model's output is not finite; check the image and `latents`, "
                "or use bfloat16 or float32 if the model overflows in float16"
            ) from None
        self.max_active = max(self.max_active, self.selection.num_active)
        if self.selection.num_reactivated:
            self.reactivated.append((step, self.selection.num_reactivated))
        if previous is None and self._is_frame_suspect(self.selection):
            self._check_frame(prediction.x0, self.selection)

    def _is_frame_suspect(self, selection: Selection) -> bool:
        """Return whether so many tokens change that the whole frame may have moved.

        The question is asked only for calls of one image without a mask.
        """
        batch, num_tokens = self.y.shape[:2]
        if self.mask is not None or batch > 1:
            return False
        return selection.num_active >= MIN_CHANGED_SHARE * num_tokens

    def _check_frame(self, x0: Tensor, selection: Selection) -> None:
        """Make every token active if the whole frame moved, grew or changed colour."""
        if self.spec.latents is None:
            return
        edit = self.spec.latents(x0, self.grid)[0]  # [c, h, w]
        source = self.spec.latents(self.y, self.grid)[0]
        height_in_pixels = self.spec.token_pixels(self.pipe) * self.grid[0]
        pixels_per_latent = height_in_pixels / edit.shape[1]
        self.misalignment = detect(edit, source, pixels_per_latent)
        if self.misalignment is not None:
            self.selection = select_all(selection, self.pad_to)

    def _make_selector(self, reuse: Reuse) -> SpotSelector:
        settings, mask = self.settings, self.mask
        judge = None
        # in mode "replace", the mask alone decides
        if mask is None or mask.mode != "replace":
            features = SourceFeatures(self.pipe, self.spec, self.y, self.grid, reuse)
            judge = make_judge(settings.judge, self.y, self.grid, features, self.config.impl)
        return SpotSelector(
            judge=judge,
            # for the selector, None is the threshold that it finds itself
            threshold=None if settings.threshold == "auto" else settings.threshold,
            dilation=settings.dilation,
            hysteresis=settings.hysteresis,
            grid=self.grid,
            allowed=self.allowed,
            mode="intersect" if mask is None else mask.mode,  # no effect without a mask
            impl=self.config.impl,
            pad_to=self.pad_to,
        )
