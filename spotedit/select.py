"""SpotSelector: which noise tokens still have to be computed.

The predicted clean image is compared with the source token by token; a token whose score is at most
the threshold already equals the source and is reused (SpotEdit, arXiv 2512.22323, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from spotedit_kernels import select_tokens, token_distance
from spotedit_kernels.impl import Impl
from spotedit_kernels.select_tokens import Mode
from spotedit_kernels.token_distance import normalise_features
from torch import Tensor

Grid = tuple[int, int]
Judge = Callable[[Tensor], Tensor]
JudgeName = Literal["perceptual", "cosine", "l2"]


def perceptual(
    y: Tensor, grid: Grid, features: Callable[[Tensor], list[Tensor]], impl: Impl
) -> Judge:
    """Distance of decoder features; those of the source `y` are computed here, once."""
    reference = normalise_features(features(y))

    def score(x0: Tensor) -> Tensor:
        return token_distance(features(x0), reference, grid, y_normalised=True, impl=impl)

    return score


def cosine(y: Tensor, grid: Grid, features: Callable[[Tensor], list[Tensor]], impl: Impl) -> Judge:
    """One minus the cosine of a token's latent vectors."""
    return lambda x0: 1.0 - F.cosine_similarity(x0.float(), y.float(), dim=-1)


def l2(y: Tensor, grid: Grid, features: Callable[[Tensor], list[Tensor]], impl: Impl) -> Judge:
    """Mean squared difference of a token's latents (of unit variance in the models known)."""
    return lambda x0: (x0.float() - y.float()).square().mean(dim=-1)


# name -> (y [B, N, C], grid, features, impl) -> (x0 [B, N, C] -> scores [B, N] fp32)
JUDGES = {"perceptual": perceptual, "cosine": cosine, "l2": l2}


@dataclass(frozen=True)
class Selection:
    """The tokens of a spot step.

    Indices are int64 [X] for one image, and [B, X] padded with -1 for several.

    Attributes:
        rows: bool [B, N], the active set of each image.
        active: the tokens to compute, padded to the number asked for.
        reused: the others.
        dropped: those of the reused tokens that the last forward still computed.
        num_empty: number of images without an active token.
    """

    rows: Tensor
    active: Tensor
    reused: Tensor
    dropped: Tensor
    num_empty: int = 0


def everything(previous: Selection, pad_to: int) -> Selection:
    """All tokens of one image, instead of `previous`; their number is padded to `pad_to`."""
    tokens = previous.rows.shape[1]
    active = torch.arange(tokens, device=previous.rows.device)
    none = active[:0]
    active = F.pad(active, (0, -tokens % pad_to), value=-1)
    return Selection(torch.ones_like(previous.rows), active, none, none)


class NotFiniteError(ValueError):
    """The predicted clean image has NaN or infinite values."""


def unchanged(selection: Selection) -> Selection:
    """The selection of a step that follows without a judgement."""
    return replace(selection, dropped=selection.dropped[..., :0])


class SpotSelector:
    """Judges the predicted clean image after a step. Made once a call.

    Args:
        judge: scores of a predicted clean image; None where the mask alone decides.
        threshold: tokens with a score above it are active; None: each image's own cut, see
            `spotedit_kernels.select_tokens`.
        dilation: tokens by which the judged set grows on every side.
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
        grid: Grid,
        allowed: Tensor | None,
        mode: Mode,
        impl: Impl,
        pad_to: int = 1,
    ) -> None:
        self.judge, self.threshold, self.dilation = judge, threshold, dilation
        self.grid, self.allowed, self.mode = grid, allowed, mode
        self.impl, self.pad_to = impl, pad_to
        self.scores: Tensor | None = None

    def __call__(self, x0: Tensor, previous: Selection | None) -> Selection:
        """Tokens of the next spot step, with one host synchronisation.

        Args:
            x0: predicted clean tokens [B, N, C].
            previous: the running selection: a token that it reuses is judged no more. None after a
                full step, which has every token's values cached and judges all of them afresh.

        Raises:
            NotFiniteError: `x0` has NaN or infinite values.
        """
        if self.judge is not None:
            self.scores = self.judge(x0)
        scores = (
            x0.new_zeros(x0.shape[:2], dtype=torch.float32) if self.scores is None else self.scores
        )
        rows, active, count = select_tokens(
            scores,
            self.grid,
            threshold=self.threshold,
            previous=None if previous is None else previous.rows,
            dilation=self.dilation,
            mask=self.allowed,
            mode=self.mode,
            pad_to=self.pad_to,
            impl=self.impl,
        )
        computed = torch.zeros_like(rows) if previous is None else previous.rows
        left = computed & ~rows
        longest = [number.max() for number in (count, (~rows).sum(dim=1), left.sum(dim=1))]
        flags = [x0.isfinite().all(), (count == 0).sum(), *longest]
        finite, num_empty, *lengths = torch.stack([flag.long() for flag in flags]).tolist()
        if not finite:
            raise NotFiniteError
        lengths[0] = -(-lengths[0] // self.pad_to) * self.pad_to
        lists = active, self._list(~rows), self._list(left)
        cut = (index[:, :length].long() for index, length in zip(lists, lengths, strict=True))
        active, reused, dropped = (index if len(index) > 1 else index[0] for index in cut)
        return Selection(rows, active, reused, dropped, num_empty)

    def _list(self, tokens: Tensor) -> Tensor:
        """The True entries of `tokens` [B, N] as an index padded to N."""
        return select_tokens(tokens.float(), self.grid, threshold=0.5, impl=self.impl)[1]
