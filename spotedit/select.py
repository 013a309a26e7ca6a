"""SpotSelector: which noise tokens still have to be computed.

The predicted clean image is compared with the source token by token; a token whose score is at most
the threshold already equals the source and is reused (SpotEdit, arXiv 2512.22323, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from spotedit_kernels import token_distance
from spotedit_kernels.impl import Impl
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
    if tokens == 0:
        return active
    image = active.unflatten(1, grid)[:, None].float()
    grown = F.max_pool2d(image, kernel_size=2 * tokens + 1, stride=1, padding=tokens)
    return grown.flatten(1) > 0


def active_set(
    scores: Tensor | None,
    threshold: float,
    grid: Grid,
    *,
    previous: Tensor | None = None,
    dilation: int = 0,
    mask: Tensor | None = None,
    mode: str = "intersect",
) -> Tensor:
    """Tokens to compute at the next step, bool [B, N].

    Args:
        scores: fp32 [B, N]; None only with `mode="replace"`, which needs no judgement.
        threshold: tokens with a score above it are judged active.
        previous: the active set before, between resets: a token once reused is judged no more.
            None at the last initial step and at a reset, where every token is judged afresh.
        dilation: tokens by which the judged set grows; the user's mask is never dilated.
        mask: bool [B, N], what may change.
        mode: `"replace"`: the mask alone; `"union"` or `"intersect"` with the judgement.
    """
    if mask is not None and mode == "replace":
        return mask
    assert scores is not None
    active = scores > threshold
    if previous is not None:
        active = active & previous
    active = dilate(active, grid, dilation)
    if mask is None:
        return active
    return active | mask if mode == "union" else active & mask


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


def compact(rows: Tensor, computed: Tensor, finite: Tensor) -> Selection:
    """Index lists of an active set, with one host synchronisation.

    Args:
        rows: bool [B, N], tokens to compute next.
        computed: bool [N], tokens that the step before computed and that no cache holds yet.
        finite: bool scalar tensor.

    Raises:
        NotFiniteError: `finite` is False; found out in the same synchronisation.
    """
    active = rows.any(dim=0)
    n = active.numel()
    dropped = computed & ~active
    key = torch.where(active, 0, torch.where(dropped, 1, 2))
    order = torch.argsort(key, stable=True)
    packed = torch.where(finite, active.sum() * (n + 1) + dropped.sum(), -1)
    code = int(packed.item())
    if code < 0:
        raise NotFiniteError
    count, new = divmod(code, n + 1)
    return Selection(rows, order[:count], order[count:], order[count : count + new])


def unchanged(selection: Selection) -> Selection:
    """The selection of a step that follows without a judgement."""
    return replace(selection, dropped=selection.dropped[:0])


class SpotSelector:
    """Judges the predicted clean image after a step. Made once a call.

    Args:
        judge: scores of a predicted clean image; None where the mask alone decides.
        threshold, dilation: see `active_set`.
        grid: token grid (rows, cols).
        allowed, mode: the user's mask on tokens, bool [B, N], or None; see `active_set`.

    Attributes:
        scores: fp32 [B, N] of the last judgement, or None.
    """

    def __init__(
        self,
        judge: Judge | None,
        threshold: float,
        dilation: int,
        grid: Grid,
        allowed: Tensor | None,
        mode: str,
    ) -> None:
        self.judge, self.threshold, self.dilation = judge, threshold, dilation
        self.grid, self.allowed, self.mode = grid, allowed, mode
        self.scores: Tensor | None = None

    def __call__(self, x0: Tensor, previous: Selection | None) -> Selection:
        """Tokens of the next spot step.

        Args:
            x0: predicted clean tokens [B, N, C].
            previous: the running selection; None after a full step, which has every token's
                values cached and judges all of them afresh.

        Raises:
            NotFiniteError: `x0` has NaN or infinite values.
        """
        if self.judge is not None:
            self.scores = self.judge(x0)
        rows = active_set(
            self.scores,
            self.threshold,
            self.grid,
            previous=None if previous is None else previous.rows,
            dilation=self.dilation,
            mask=self.allowed,
            mode=self.mode,
        )
        computed = torch.zeros_like(rows[0]) if previous is None else previous.rows.any(dim=0)
        return compact(rows, computed, x0.isfinite().all())
