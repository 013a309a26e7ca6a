"""The presets: which settings go together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from .choices import LATE_RESETS, PUBLISHED_RESETS, CustomJudge, JudgeName
from .temporal import TaylorSeer, Temporal

PresetName = Literal["default", "fast", "paper"]

# The threshold that belongs to each judge.
THRESHOLDS: Mapping[str, float] = {"calibrated": 1.0, "perceptual": 0.2, "cosine": 0.05, "l2": 0.05}


@dataclass(frozen=True)
class Settings:
    """The settings that a preset chooses together.

    All fields but one are those of `SpotEditConfig`. `reset_fractions` holds the positions of the
    resets as fractions of the number of steps, for calls with neither `reset_steps` nor
    `reset_every`.
    """

    judge: JudgeName | CustomJudge
    threshold: float | Literal["auto"]
    dilation: int
    hysteresis: float
    judge_every: int
    reset_fractions: tuple[float, ...]
    temporal: Temporal | None


_DEFAULT = Settings(
    judge="calibrated",
    threshold=THRESHOLDS["calibrated"],
    dilation=1,
    hysteresis=0.1,
    judge_every=4,
    reset_fractions=LATE_RESETS,
    temporal=None,
)
_PAPER = Settings(
    judge="perceptual",
    threshold=THRESHOLDS["perceptual"],
    dilation=0,
    hysteresis=0.0,
    judge_every=1,
    reset_fractions=PUBLISHED_RESETS,
    temporal=None,
)
PRESETS: Mapping[PresetName, Settings] = {
    "default": _DEFAULT,
    "fast": replace(_DEFAULT, temporal=TaylorSeer()),
    "paper": _PAPER,
}
