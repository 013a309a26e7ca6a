"""SpotSelector: which noise tokens still have to be computed.

The predicted clean image is compared with the source token by token; a token whose score is at most
the threshold already equals the source and is reused (SpotEdit, arXiv 2512.22323, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from spotedit_kernels import select_tokens, token_distance
from spotedit_kernels.impl import Impl
from spotedit_kernels.select_tokens import Mode
from spotedit_kernels.token_distance import normalise_features
from torch import Tensor

Grid = tuple[int, int]
Judge = Callable[[Tensor], Tensor]


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


def dilate(active: Tensor, grid: Grid, tokens: int) -> Tensor:
    """Grow the active set [B, N] by `tokens` on every side of the token grid."""
    return select_tokens(active.float(), grid, threshold=0.5, dilation=tokens)[0]


@dataclass(frozen=True)
class Selection:
    """The tokens of a spot step.

    Attributes:
        rows: bool [B, N], the active set of each image.
        active, reused: int64 indices of noise tokens; `active` is the union over the images.
        dropped: those of the reused tokens that the step before still computed.
    """

    rows: Tensor
    active: Tensor
    reused: Tensor
    dropped: Tensor


class NotFiniteError(ValueError):
    """The predicted clean image has NaN or infinite values."""


def unchanged(selection: Selection) -> Selection:
    """The selection of a step that follows without a judgement."""
    return replace(selection, dropped=selection.dropped[:0])


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
    ) -> None:
        self.judge, self.threshold, self.dilation = judge, threshold, dilation
        self.grid, self.allowed, self.mode, self.impl = grid, allowed, mode, impl
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
        scores = self.scores
        if scores is None:  # the mask alone decides, whatever they are
            scores = x0.new_zeros(x0.shape[:2], dtype=torch.float32)
        rows, active, count = select_tokens(
            scores,
            self.grid,
            threshold=self.threshold,
            previous=None if previous is None else previous.rows,
            dilation=self.dilation,
            mask=self.allowed,
            mode=self.mode,
            impl=self.impl,
        )
        kept = rows.any(dim=0)
        computed = torch.zeros_like(kept) if previous is None else previous.rows.any(dim=0)
        reused, _ = self._list(~kept)
        dropped, new = self._list(computed & ~kept)
        n = kept.numel()
        packed = torch.where(x0.isfinite().all(), count.long() * (n + 1) + new, -1)
        code = int(packed.item())
        if code < 0:
            raise NotFiniteError
        m, d = divmod(code, n + 1)
        return Selection(rows, active[:m].long(), reused[: n - m].long(), dropped[:d].long())

    def _list(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The True entries of `tokens` [N] as an index padded to N, and their number."""
        flags = tokens[None].float()
        _, index, count = select_tokens(flags, self.grid, threshold=0.5, impl=self.impl)
        return index, count
