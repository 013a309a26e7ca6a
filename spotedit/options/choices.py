"""The named choices of `SpotEditConfig`, and the types of the functions that can replace them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor
else:
    Tensor = Any  # the command line reads the options before it imports PyTorch

Impl = Literal["auto", "triton", "reference"]  # `spotedit_kernels.impl.Impl`, which needs PyTorch
Grid = tuple[int, int]  # rows and columns of tokens
Size = tuple[int, int]  # height and width in pixels
# Left, top, right and bottom edge of a part of a picture, as fractions of its width and height.
Box = tuple[float, float, float, float]
Features = Callable[[Tensor], list[Tensor]]  # tokens [B, N, C] -> feature maps [B, C_l, H_l, W_l]

JudgeName = Literal["calibrated", "perceptual", "cosine", "l2"]
# (y [B, N, C], grid, features, impl) -> (x0 [B, N, C] -> scores [B, N]); see `SpotEditConfig.judge`
CustomJudge = Callable[[Tensor, Grid, Features, Impl], Callable[[Tensor], Tensor]]

FusionName = Literal["cosine"]
Fusion = FusionName | Callable[[float], float]  # sigma -> weight of the cached value

# Positions of the resets, as fractions of the number of steps.
PUBLISHED_RESETS = (0.26, 0.44, 0.62)
LATE_RESETS = (0.32, 0.61, 0.89)  # reach the end of the edit, where the published ones stop early
