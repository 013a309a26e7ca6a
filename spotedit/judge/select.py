"""SpotSelector: which noise tokens still have to be computed.

The predicted clean image is compared with the source token by token; a token whose score is at most
the threshold already equals the source and is reused (SpotEdit, arXiv 2512.22323, section 3).
"""

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
    """The tokens of a spot step.

    Indices are int64 [X] for one image, and [B, X] padded with -1 for several.

    Attributes:
        active_mask: bool [B, N], the tokens to compute.
        active_index: the same tokens as an index, padded with -1 to a multiple of `pad_to`.
        reused_index: the other tokens.
        dropped_index: the reused tokens that the last forward still computed.
        num_active: number of active tokens, of all images.
        num_reactivated: number of tokens that a fresh judgement found changed and the last one had
            not.
        num_empty: number of images without an active token.
    """

    active_mask: Tensor
    active_index: Tensor
    reused_index: Tensor
    dropped_index: Tensor
    num_active: int = 0
    num_reactivated: int = 0
    num_empty: int = 0


def everything(previous: Selection, pad_to: int) -> Selection:
    """All tokens of one image, instead of `previous`; their number is padded to `pad_to`."""
    tokens = previous.active_mask.shape[1]
    active = torch.arange(tokens, device=previous.active_mask.device)
    none = active[:0]
    active = F.pad(active, (0, -tokens % pad_to), value=-1)
    rows = torch.ones_like(previous.active_mask)
    return Selection(rows, active, none, none, num_active=tokens)


class NotFiniteError(ValueError):
    """The predicted clean image has NaN or infinite values."""


def unchanged(selection: Selection) -> Selection:
    """The selection of a step that follows without a judgement."""
    return replace(selection, dropped_index=selection.dropped_index[..., :0], num_reactivated=0)


class SpotSelector:
    """Judges the predicted clean image after a step. Made once a call.

    Args:
        judge: scores the tokens; None where the mask alone decides.
        threshold: tokens with a score above it are active; None: each image's own cut, see
            `spotedit_kernels.select_tokens`.
        dilation: tokens by which the judged set grows on every side.
        hysteresis: share of the threshold that the score of a token must reach to join so.
        grid: token grid (rows, cols).
        allowed, mode: the user's mask on tokens, bool [B, N], or None, and how it applies.
        impl: which kernels run.
        pad_to: the list of active tokens is padded to a multiple of it.

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

    def __call__(self, prediction: Prediction, last: Selection | None, fresh: bool) -> Selection:
        """Select the tokens of the next spot step, with one host synchronisation.

        Args:
            last: the last selection, or None before any.
            fresh: judge every token afresh, because a full step has cached all tokens' values.
                Otherwise a token that `last` reuses stays reused.

        Raises:
            NotFiniteError: the prediction has NaN or infinite values.
        """
        like = prediction.sample if prediction.velocity is None else prediction.velocity
        if self.judge is not None:
            self.scores = self.judge(prediction, fresh)
        scores = self.scores
        if scores is None:
            scores = like.new_zeros(like.shape[:2], dtype=torch.float32)
        rows, active, count = select_tokens(
            scores,
            self.grid,
            threshold=self.threshold,
            previous=None if fresh or last is None else last.active_mask,
            dilation=self.dilation,
            hysteresis=self.hysteresis,
            mask=self.allowed,
            mode=self.mode,
            pad_to=self.pad_to,
            impl=self.impl,
        )
        before = torch.zeros_like(rows) if last is None else last.active_mask
        returned = (rows & ~before).sum() if fresh and last is not None else count.new_zeros(())
        left = torch.zeros_like(rows) if fresh else before & ~rows
        longest = [number.max() for number in (count, (~rows).sum(dim=1), left.sum(dim=1))]
        flags = [like.isfinite().all(), count.sum(), returned, (count == 0).sum(), *longest]
        finite, *numbers = torch.stack([flag.long() for flag in flags]).tolist()
        if not finite:
            raise NotFiniteError
        num_active, num_reactivated, num_empty, *lengths = numbers
        lengths[0] = -(-lengths[0] // self.pad_to) * self.pad_to
        lists = active, self._list(~rows), self._list(left)
        cut = (index[:, :length].long() for index, length in zip(lists, lengths, strict=True))
        active, reused, dropped = (index if len(index) > 1 else index[0] for index in cut)
        return Selection(rows, active, reused, dropped, num_active, num_reactivated, num_empty)

    def _list(self, tokens: Tensor) -> Tensor:
        """The True entries of `tokens` [B, N] as an index padded to N."""
        return select_tokens(tokens.float(), self.grid, threshold=0.5, impl=self.impl)[1]
