"""SpotSelector: decide which noise tokens still have to be computed.

The predicted clean image is compared with the source token by token. A token whose score is at most
the threshold already equals the source and is reused (SpotEdit, arXiv 2512.22323, section 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from spotedit_kernels import select_tokens
from spotedit_kernels.impl import Impl
from spotedit_kernels.select_tokens import Mode
from torch import Tensor

from ..options.choices import Grid
from .judges import Judge, Prediction


@dataclass(frozen=True)
class Selection:
    """The active and the reused tokens of a spot step.

    An index is int64 [X] for one image. For several images it is [B, X], padded with -1 to the
    longest one. A fresh judgement judges every token again, and follows a full step.

    Attributes:
        active_mask: bool [B, N], True for the tokens to compute.
        active_index: index of the active tokens, padded with -1 to a multiple of `pad_to`.
        reused_index: index of the tokens that are not active.
        dropped_index: index of the tokens that were active in the previous step and are reused from
            now on. Empty after a fresh judgement.
        num_active: number of active tokens, over all images.
        num_reactivated: number of tokens that were reused before and that a fresh judgement made
            active.
        num_empty: number of images without an active token.
    """

    active_mask: Tensor
    active_index: Tensor
    reused_index: Tensor
    dropped_index: Tensor
    num_active: int = 0
    num_reactivated: int = 0
    num_empty: int = 0


class NotFiniteError(ValueError):
    """Raised when the model's output has NaN or infinite values."""


def select_all(previous: Selection, pad_to: int) -> Selection:
    """Return a selection in which every token is active.

    Args:
        previous: a selection for one image, whose number of tokens and device are taken.
        pad_to: see `SpotSelector`.
    """
    num_tokens = previous.active_mask.shape[1]
    all_indices = torch.arange(num_tokens, device=previous.active_mask.device)
    no_index = all_indices[:0]
    return Selection(
        active_mask=torch.ones_like(previous.active_mask),
        active_index=F.pad(all_indices, (0, -num_tokens % pad_to), value=-1),
        reused_index=no_index,
        dropped_index=no_index,
        num_active=num_tokens,
    )


def carry_over(selection: Selection) -> Selection:
    """Return the selection for another step with the same active tokens, without a judgement."""
    no_index = selection.dropped_index[..., :0]
    return replace(selection, dropped_index=no_index, num_reactivated=0)


class SpotSelector:
    """Selects the tokens of the next step from the clean image that a step predicts.

    One selector serves one call of the pipeline.

    Args:
        judge: scores the tokens. None if the mask alone decides.
        threshold: tokens with a higher score are active. None finds a threshold for each image, see
            `spotedit_kernels.select_tokens`.
        dilation: number of tokens by which the active region grows on every side.
        hysteresis: a token joins the region by dilation only if its score is at least this fraction
            of the threshold.
        grid: token grid (rows, cols).
        allowed: the user's mask on tokens, bool [B, N], or None.
        mode: how the mask and the judgement are combined.
        impl: which kernels run.
        pad_to: the index of the active tokens is padded to a multiple of this length.

    Attributes:
        scores: fp32 [B, N] of the last judgement, or None.
    """

    def __init__(
        self,
        judge: Judge | None,
        threshold: float | None,
        dilation: int,
        hysteresis: float,
        grid: Grid,
        allowed: Tensor | None,
        mode: Mode,
        impl: Impl,
        pad_to: int = 1,
    ) -> None:
        self.judge, self.threshold = judge, threshold
        self.dilation, self.hysteresis = dilation, hysteresis
        self.grid, self.allowed, self.mode = grid, allowed, mode
        self.impl, self.pad_to = impl, pad_to
        self.scores: Tensor | None = None

    def __call__(
        self, prediction: Prediction, previous: Selection | None, fresh: bool
    ) -> Selection:
        """Select the tokens of the next spot step, with one host synchronisation.

        Args:
            previous: the last selection, or None before the first.
            fresh: judge every token afresh, because a full step has cached all tokens' values.
                Otherwise a token that `previous` reuses stays reused.

        Raises:
            NotFiniteError: the model's output has NaN or infinite values.
        """
        # without a velocity, `prediction.sample` holds the predicted clean tokens themselves
        model_output = prediction.sample if prediction.velocity is None else prediction.velocity
        if self.judge is not None:
            self.scores = self.judge(prediction, fresh)
        active_mask, active_index, num_active_by_image = self._select(model_output, previous, fresh)
        reused_mask = ~active_mask
        dropped_mask = torch.zeros_like(active_mask)
        reactivated_mask = torch.zeros_like(active_mask)
        if previous is not None:
            if fresh:  # the full step has cached every token's values, so none counts as dropped
                reactivated_mask = active_mask & ~previous.active_mask
            else:
                dropped_mask = previous.active_mask & reused_mask
        numbers = _read_together(
            {
                "is_finite": model_output.isfinite().all(),
                "num_active": num_active_by_image.sum(),
                "num_reactivated": reactivated_mask.sum(),
                "num_empty": (num_active_by_image == 0).sum(),
                "max_active": num_active_by_image.max(),
                "max_reused": reused_mask.sum(dim=1).max(),
                "max_dropped": dropped_mask.sum(dim=1).max(),
            }
        )
        if not numbers["is_finite"]:
            raise NotFiniteError
        padding = -numbers["max_active"] % self.pad_to
        return Selection(
            active_mask=active_mask,
            active_index=_cut(active_index, numbers["max_active"] + padding),
            reused_index=_cut(self._index_of(reused_mask), numbers["max_reused"]),
            dropped_index=_cut(self._index_of(dropped_mask), numbers["max_dropped"]),
            num_active=numbers["num_active"],
            num_reactivated=numbers["num_reactivated"],
            num_empty=numbers["num_empty"],
        )

    def _select(
        self, model_output: Tensor, previous: Selection | None, fresh: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the active tokens as a mask [B, N] and an index [B, P], and their number [B]."""
        scores = self.scores
        if scores is None:  # the mask alone decides, and the scores have no effect
            scores = model_output.new_zeros(model_output.shape[:2], dtype=torch.float32)
        return select_tokens(
            scores,
            self.grid,
            threshold=self.threshold,
            previous=None if fresh or previous is None else previous.active_mask,
            dilation=self.dilation,
            hysteresis=self.hysteresis,
            mask=self.allowed,
            mode=self.mode,
            pad_to=self.pad_to,
            impl=self.impl,
        )

    def _index_of(self, mask: Tensor) -> Tensor:
        """Return the True entries of a mask [B, N] as an index [B, N], padded with -1."""
        # select_tokens also turns a mask into an index, if True is a score of 1 and False one of 0
        _, index, _ = select_tokens(mask.float(), self.grid, threshold=0.5, impl=self.impl)
        return index


def _read_together(numbers: Mapping[str, Tensor]) -> dict[str, int]:
    """Read scalars from the device in one transfer."""
    values = torch.stack([number.long() for number in numbers.values()]).tolist()
    return dict(zip(numbers, values, strict=True))


def _cut(index: Tensor, length: int) -> Tensor:
    """Cut an index [B, P] to a length, and drop the batch dimension of a single image."""
    index = index[:, :length].long()
    return index[0] if len(index) == 1 else index
