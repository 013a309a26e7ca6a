"""What variants need to know of the editor: thresholds of equal r, and MagCache's ratios.

Found on scenes that no figure is of.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spotedit.engine.schedule import plan
from spotedit.judge.judges import JUDGES
from spotedit.models.spec import spec_for
from spotedit.options.choices import JudgeName
from spotedit.options.config import SpotEditConfig

from .. import edits
from .record import Setting
from .rivals import calibrate_mag
from .simulate import judged, selected
from .variants import Variant

FIRST_SEED = 1000
SCENES = 12
_HALVINGS = 30


def calibrated(setting: Setting, variants: Collection[Variant]) -> Setting:
    """The setting with those of `thresholds` and `ratios` that the variants need."""
    thresholds = any(variant.equal_r for variant in variants) and not setting.thresholds
    ratios = any(variant.rival == "MagCache" for variant in variants) and not setting.ratios
    if not thresholds and not ratios:
        return setting
    pipe = setting.load()
    if thresholds:
        setting = replace(setting, thresholds=_equal_r(pipe, setting))
    if ratios:
        given = setting.arguments(edits.varied(FIRST_SEED), FIRST_SEED, Variant())
        setting = replace(setting, ratios=calibrate_mag(pipe, lambda: pipe(**given), setting.steps))
    return setting


def _equal_r(pipe: Any, setting: Setting) -> dict[str, float]:
    """Judge -> threshold at which it selects as much as the default judge at its own."""
    side, settings = spec_for(pipe).token_pixels(pipe), SpotEditConfig().settings
    kinds = plan(setting.steps, fractions=settings.reset_fractions)
    scores: dict[JudgeName, list[Tensor]] = {name: [] for name in JUDGES}
    for seed in range(FIRST_SEED, FIRST_SEED + SCENES):
        scene = edits.varied(seed)
        grid = scene.mask.shape[0] // side, scene.mask.shape[1] // side
        with edits.traced(pipe) as (trace, extra):
            pipe(**setting.arguments(scene, seed, Variant()), **extra)
        for name, known in scores.items():
            known.append(judged(pipe, trace, grid, name, kinds))

    def ratio(name: JudgeName, threshold: float | None = None) -> float:
        found = [selected(x, kinds, grid, settings, threshold) for x in scores[name]]
        return float(np.mean([each.ratio for each in found]))

    wanted = ratio(settings.judge)
    return {
        name: _threshold(scores[name], partial(ratio, name), wanted)
        for name in JUDGES
        if name != settings.judge
    }


def _threshold(scores: Sequence[Tensor], ratio: Callable[[float], float], wanted: float) -> float:
    """Return the threshold at which `ratio`, the selection's mean size, is the one wanted."""
    every = torch.cat(list(scores))
    low, high = (math.log(float(x)) for x in (every[every > 0].min(), every.max()))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if ratio(math.exp(middle)) > wanted:
            low = middle
        else:
            high = middle
    return math.exp(high)
