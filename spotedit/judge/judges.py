"""Judges score how far each token of the predicted clean image is from the source.

One judge is made for each call of the pipeline, from the source's tokens `y` [B, N, C], their grid
(rows, cols), a function that computes the VAE decoder's first feature maps, and the choice of
kernels. The perceptual score is that of SpotEdit (arXiv 2512.22323, section on SpotSelector).
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
from .features import SourceFeatures

# The calibrated judge divides each distance by a cut. A token with a larger distance than its cut
# counts as changed.
CUT_MULTIPLE = 20.0  # the cut is this times the lower quartile of the picture's distances
LATENT_CUTS = (0.03, 0.1)  # lowest and highest cut of the latent distance
PERCEPTUAL_CUTS = (0.06, 0.3)  # lowest and highest cut of the perceptual distance
AT_REST_SHARE = 0.05  # a token is at rest if its latent distance is below this share of the cut


@dataclass(frozen=True)
class Prediction:
    """The clean image that a step predicts.

    Attributes:
        sample: the noisy tokens x_t, [B, N, C]. If velocity or sigma is None, the clean tokens.
        velocity: v, [B, N, C], or None.
        sigma: noise level of the step, 1 (noise) to 0 (image), or None.
    """

    sample: Tensor
    velocity: Tensor | None = None
    sigma: float | None = None

    @cached_property
    def x0(self) -> Tensor:
        """The clean tokens ``x_t - sigma v``, fp32 [B, N, C]."""
        if self.velocity is None or self.sigma is None:
            return self.sample.float()
        return self.sample.float() - self.sigma * self.velocity.float()


class Judge(Protocol):
    """Scores the tokens of a prediction, fp32 [B, N].

    With `fresh`, every token is judged anew. Otherwise a judge may use scores of its last call.
    """

    def __call__(self, prediction: Prediction, fresh: bool = True) -> Tensor: ...


def perceptual(y: Tensor, grid: Grid, features: Features, impl: Impl) -> Judge:
    """Make a judge that compares decoder features. Those of the source are computed here, once."""
    if isinstance(features, SourceFeatures):
        reference = features.of_source
    else:
        reference = normalise_features(features(y))

    def score(prediction: Prediction, fresh: bool = True) -> Tensor:
        predicted = features(prediction.x0)
        return token_distance(predicted, reference, grid, y_normalised=True, impl=impl)

    return score


def cosine(y: Tensor, grid: Grid, features: Features, impl: Impl) -> Judge:
    """Make a judge whose score is one minus the cosine of the angle between latent vectors."""

    def score(prediction: Prediction, fresh: bool = True) -> Tensor:
        return 1.0 - F.cosine_similarity(prediction.x0, y.float(), dim=-1)

    return score


def l2(y: Tensor, grid: Grid, features: Features, impl: Impl) -> Judge:
    """Make a judge whose score is the mean squared difference of latents.

    Latents have about unit variance, which sets the scale of the score.
    """

    def score(prediction: Prediction, fresh: bool = True) -> Tensor:
        return latent_distance(
            prediction.sample, y, velocity=prediction.velocity, sigma=prediction.sigma, impl=impl
        )

    return score


class Calibrated:
    """A judge that combines the latent and the perceptual distance, calibrated on the picture.

    Each distance is divided by its cut, and the larger quotient is the score. So at a threshold of
    1, a token is reused only if both distances call it unchanged.

    The cut is `CUT_MULTIPLE` times the lower quartile of the distances in this picture at this
    step, limited to the range in `LATENT_CUTS` or `PERCEPTUAL_CUTS`. Most unchanged tokens are
    below it.

    The latent distance is measured at every judgement. The perceptual distance needs the decoder's
    first layers, so it is measured only at fresh judgements and kept until the next one. These
    layers normalise over the whole picture, so an edit changes the features of a flat background
    far away from it. The perceptual distance therefore does not count for a token at rest: its
    latent distance is below `AT_REST_SHARE` of the cut.
    """

    def __init__(self, y: Tensor, grid: Grid, features: Features, impl: Impl) -> None:
        self._latent_judge = l2(y, grid, features, impl)
        self._perceptual_judge = perceptual(y, grid, features, impl)
        self._perceptual: Tensor | None = None  # scores of the last fresh judgement

    def __call__(self, prediction: Prediction, fresh: bool = True) -> Tensor:
        latent = divide_by_cut(self._latent_judge(prediction, fresh), LATENT_CUTS)
        if fresh or self._perceptual is None:
            distances = self._perceptual_judge(prediction, fresh)
            self._perceptual = divide_by_cut(distances, PERCEPTUAL_CUTS)
        return torch.where(latent < AT_REST_SHARE, latent, torch.maximum(latent, self._perceptual))


def divide_by_cut(distances: Tensor, cut_range: tuple[float, float]) -> Tensor:
    """Divide the distances [B, N] of each image by the image's cut.

    Args:
        cut_range: the lowest and the highest cut.
    """
    lower_quartile = distances.sort(dim=1).values[:, distances.shape[1] // 4, None]  # [B, 1]
    return distances / (CUT_MULTIPLE * lower_quartile).clamp(*cut_range)


JUDGES = {"calibrated": Calibrated, "perceptual": perceptual, "cosine": cosine, "l2": l2}


def judge_name(judge: JudgeName | CustomJudge) -> str:
    """Return the name of a judge for reports."""
    return judge if isinstance(judge, str) else getattr(judge, "__name__", type(judge).__name__)


def make_judge(
    judge: JudgeName | CustomJudge, y: Tensor, grid: Grid, features: Features, impl: Impl
) -> Judge:
    """Make the judge of that name, or let a custom factory make one and check its scores.

    A `CustomJudge` is a factory: it returns the scoring function.

    Raises (when the judge is called):
        ValueError: a custom scoring function did not return a tensor [B, N].
    """
    if isinstance(judge, str):
        return JUDGES[judge](y, grid, features, impl)
    score_tokens = judge(y, grid, features, impl)

    def checked(prediction: Prediction, fresh: bool = True) -> Tensor:
        scores = score_tokens(prediction.x0)  # a custom function gets only the clean tokens
        if not isinstance(scores, Tensor) or scores.shape != y.shape[:2]:
            actual = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ValueError(
                f"the custom judge's scoring function returned {actual}; expected one score for "
                f"each token, a tensor of shape [B, N] = {list(y.shape[:2])}"
            )
        return scores.to(y.device, torch.float32)

    return checked
