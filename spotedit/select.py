"""SpotSelector: which noise tokens still have to be computed.

The predicted clean image is compared with the source token by token; a token whose score is at most
the threshold already equals the source and is reused (SpotEdit, arXiv 2512.22323, section 3).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from spotedit_kernels import latent_distance, select_tokens, token_distance
from spotedit_kernels.impl import Impl
from spotedit_kernels.select_tokens import Mode
from spotedit_kernels.token_distance import normalise_features
from torch import Tensor

Grid = tuple[int, int]
Features = Callable[[Tensor], list[Tensor]]
JudgeName = Literal["calibrated", "perceptual", "cosine", "l2"]
# (y [B, N, C], grid, features, impl) -> (x0 [B, N, C] -> scores [B, N]); see `SpotEditConfig.judge`
CustomJudge = Callable[[Tensor, Grid, Features, Impl], Callable[[Tensor], Tensor]]

CUT_MULTIPLE = 20.0  # cut of a calibrated distance / the lower quartile of its scores
LATENT_CUTS = (0.03, 0.1)  # lowest and highest cut of the latent distance
PERCEPTUAL_CUTS = (0.06, 0.3)  # the same of the perceptual distance


@dataclass(frozen=True)
class Prediction:
    """The clean image that a step predicts.

    Attributes:
        sample: x_t, [B, N, C]; without a velocity the clean tokens themselves.
        velocity: v, [B, N, C], or None.
        sigma: noise level of the step, 1 (noise) to 0 (image), or None.
    """

    sample: Tensor
    velocity: Tensor | None = None
    sigma: float | None = None

    @cached_property
    def x0(self) -> Tensor:
        """``x_t - sigma v``, fp32 [B, N, C]."""
        if self.velocity is None or self.sigma is None:
            return self.sample.float()
        return self.sample.float() - self.sigma * self.velocity.float()


class Judge(Protocol):
    """Scores the tokens of a prediction, fp32 [B, N]; `fresh`: all of them are judged anew."""

    def __call__(self, prediction: Prediction, fresh: bool = True) -> Tensor: ...


def perceptual(y: Tensor, grid: Grid, features: Features, impl: Impl) -> Judge:
    """Return the judge by decoder features; those of the source `y` are computed here, once."""
    reference = normalise_features(features(y))

    def score(prediction: Prediction, fresh: bool = True) -> Tensor:
        shown = features(prediction.x0)
        return token_distance(shown, reference, grid, y_normalised=True, impl=impl)

    return score


def cosine(y: Tensor, grid: Grid, features: Features, impl: Impl) -> Judge:
    """Return the judge by one minus the cosine of a token's latent vectors."""

    def score(prediction: Prediction, fresh: bool = True) -> Tensor:
        return 1.0 - F.cosine_similarity(prediction.x0, y.float(), dim=-1)

    return score


def l2(y: Tensor, grid: Grid, features: Features, impl: Impl) -> Judge:
    """Return the judge by the mean squared difference of latents (of about unit variance)."""

    def score(prediction: Prediction, fresh: bool = True) -> Tensor:
        return latent_distance(
            prediction.sample, y, velocity=prediction.velocity, sigma=prediction.sigma, impl=impl
        )

    return score


class Calibrated:
    """The judge by latent and perceptual distance together, calibrated on the picture.

    Each distance is divided by its cut, and the larger quotient is the score: at a threshold of 1,
    a token is reused only if both distances call it unchanged. A cut is `CUT_MULTIPLE` times the
    lower quartile of the distances in this picture at this step, which most unchanged tokens are
    below, and stays between two bounds. The latent distance is measured at every judgement. The
    perceptual one needs the decoder's first layers, so it is measured where all tokens are judged
    afresh and kept until the next time.
    """

    def __init__(self, y: Tensor, grid: Grid, features: Features, impl: Impl) -> None:
        self._latent = l2(y, grid, features, impl)
        self._perceptual = perceptual(y, grid, features, impl)
        self._kept: Tensor | None = None

    def __call__(self, prediction: Prediction, fresh: bool = True) -> Tensor:
        latent = relative(self._latent(prediction, fresh), LATENT_CUTS)
        if fresh or self._kept is None:
            self._kept = relative(self._perceptual(prediction, fresh), PERCEPTUAL_CUTS)
        return torch.maximum(latent, self._kept)


def relative(distances: Tensor, cuts: tuple[float, float]) -> Tensor:
    """Divide each image's distances [B, N] by its cut, which lies between the two `cuts`."""
    quartile = distances.sort(dim=1).values[:, distances.shape[1] // 4, None]
    return distances / (CUT_MULTIPLE * quartile).clamp(*cuts)


JUDGES = {"calibrated": Calibrated, "perceptual": perceptual, "cosine": cosine, "l2": l2}


def judge_name(judge: JudgeName | CustomJudge) -> str:
    """Return the name of a judge for reports."""
    return judge if isinstance(judge, str) else getattr(judge, "__name__", type(judge).__name__)


def make_judge(
    judge: JudgeName | CustomJudge, y: Tensor, grid: Grid, features: Features, impl: Impl
) -> Judge:
    """Return a judge by its name, or check what a custom one returns.

    Raises (when it is called):
        ValueError: a custom judge returns something else than a tensor [B, N].
    """
    if isinstance(judge, str):
        return JUDGES[judge](y, grid, features, impl)
    score = judge(y, grid, features, impl)

    def checked(prediction: Prediction, fresh: bool = True) -> Tensor:
        scores = score(prediction.x0)
        if not isinstance(scores, Tensor) or scores.shape != y.shape[:2]:
            found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"the custom judge returned {found}; expected one score a token, a tensor of shape "
                f"[B, N] = {list(y.shape[:2])}"
            )
        return scores.to(y.device, torch.float32)

    return checked


@dataclass(frozen=True)
class Selection:
    """The tokens of a spot step.

    Indices are int64 [X] for one image, and [B, X] padded with -1 for several.

    Attributes:
        rows: bool [B, N], the active set of each image.
        active: the tokens to compute, padded to the number asked for.
        reused: the others.
        dropped: those of the reused tokens that the last forward still computed.
        num_active: number of active tokens, of all images.
        num_returned: number of tokens that a fresh judgement found changed and the last one had
            not.
        num_empty: number of images without an active token.
    """

    rows: Tensor
    active: Tensor
    reused: Tensor
    dropped: Tensor
    num_active: int = 0
    num_returned: int = 0
    num_empty: int = 0


def everything(previous: Selection, pad_to: int) -> Selection:
    """All tokens of one image, instead of `previous`; their number is padded to `pad_to`."""
    tokens = previous.rows.shape[1]
    active = torch.arange(tokens, device=previous.rows.device)
    none = active[:0]
    active = F.pad(active, (0, -tokens % pad_to), value=-1)
    rows = torch.ones_like(previous.rows)
    return Selection(rows, active, none, none, num_active=tokens)


class NotFiniteError(ValueError):
    """The predicted clean image has NaN or infinite values."""


def unchanged(selection: Selection) -> Selection:
    """The selection of a step that follows without a judgement."""
    return replace(selection, dropped=selection.dropped[..., :0], num_returned=0)


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
            previous=None if fresh or last is None else last.rows,
            dilation=self.dilation,
            hysteresis=self.hysteresis,
            mask=self.allowed,
            mode=self.mode,
            pad_to=self.pad_to,
            impl=self.impl,
        )
        before = torch.zeros_like(rows) if last is None else last.rows
        returned = (rows & ~before).sum() if fresh and last is not None else count.new_zeros(())
        left = torch.zeros_like(rows) if fresh else before & ~rows
        longest = [number.max() for number in (count, (~rows).sum(dim=1), left.sum(dim=1))]
        flags = [like.isfinite().all(), count.sum(), returned, (count == 0).sum(), *longest]
        finite, *numbers = torch.stack([flag.long() for flag in flags]).tolist()
        if not finite:
            raise NotFiniteError
        num_active, num_returned, num_empty, *lengths = numbers
        lengths[0] = -(-lengths[0] // self.pad_to) * self.pad_to
        lists = active, self._list(~rows), self._list(left)
        cut = (index[:, :length].long() for index, length in zip(lists, lengths, strict=True))
        active, reused, dropped = (index if len(index) > 1 else index[0] for index in cut)
        return Selection(rows, active, reused, dropped, num_active, num_returned, num_empty)

    def _list(self, tokens: Tensor) -> Tensor:
        """The True entries of `tokens` [B, N] as an index padded to N."""
        return select_tokens(tokens.float(), self.grid, threshold=0.5, impl=self.impl)[1]
