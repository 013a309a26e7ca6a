"""Judges: scores that say how far a token's predicted clean image is from the source.

The perceptual score is that of SpotEdit (arXiv 2512.22323, section on SpotSelector).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from spotedit_kernels import latent_distance, token_distance
from spotedit_kernels.impl import Impl
from spotedit_kernels.token_distance import normalise_features
from torch import Tensor

from ..options.choices import CustomJudge, Features, Grid, JudgeName

CUT_MULTIPLE = 20.0  # cut of a calibrated distance / the lower quartile of its scores
LATENT_CUTS = (0.03, 0.1)  # lowest and highest cut of the latent distance
PERCEPTUAL_CUTS = (0.06, 0.3)  # the same of the perceptual distance
STILL = 0.05  # of the latent cut: below it a token is taken as unchanged


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
    afresh and kept until the next time. These layers normalise over the whole picture, so an edit
    changes the features of a flat ground far from it: where the latents have hardly moved, below
    `STILL` of their cut, the perceptual distance does not count.
    """

    def __init__(self, y: Tensor, grid: Grid, features: Features, impl: Impl) -> None:
        self._latent = l2(y, grid, features, impl)
        self._perceptual = perceptual(y, grid, features, impl)
        self._kept: Tensor | None = None

    def __call__(self, prediction: Prediction, fresh: bool = True) -> Tensor:
        latent = relative(self._latent(prediction, fresh), LATENT_CUTS)
        if fresh or self._kept is None:
            self._kept = relative(self._perceptual(prediction, fresh), PERCEPTUAL_CUTS)
        return torch.where(latent < STILL, latent, torch.maximum(latent, self._kept))


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
