"""Calibrate what variants need: thresholds of equal r, and MagCache's ratios.

The scenes for this have other seeds than those that are reported.
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
NUM_SCENES = 12
_NUM_HALVINGS = 30


def calibrated(setting: Setting, variants: Collection[Variant]) -> Setting:
    """Return the setting with the `thresholds` and `ratios` that the variants need."""
    needs_thresholds = any(variant.equal_r for variant in variants) and not setting.thresholds
    needs_ratios = any(variant.rival == "MagCache" for variant in variants) and not setting.ratios
    if not needs_thresholds and not needs_ratios:
        return setting
    pipe = setting.load()
    if needs_thresholds:
        setting = replace(setting, thresholds=_equal_r(pipe, setting))
    if needs_ratios:
        arguments = setting.arguments(edits.varied(FIRST_SEED), FIRST_SEED, Variant())
        ratios = calibrate_mag(pipe, lambda: pipe(**arguments), setting.steps)
        setting = replace(setting, ratios=ratios)
    return setting


def _equal_r(pipe: Any, setting: Setting) -> dict[str, float]:
    """Return, for each other judge, the threshold at which it selects as much as the default."""
    side, settings = spec_for(pipe).token_pixels(pipe), SpotEditConfig().settings
    kinds = plan(setting.steps, fractions=settings.reset_fractions)
    scores: dict[JudgeName, list[Tensor]] = {name: [] for name in JUDGES}
    for seed in range(FIRST_SEED, FIRST_SEED + NUM_SCENES):
        scene = edits.varied(seed)
        grid = scene.mask.shape[0] // side, scene.mask.shape[1] // side
        with edits.traced(pipe) as (trace, extra):
            pipe(**setting.arguments(scene, seed, Variant()), **extra)
        for name, of_scenes in scores.items():
            of_scenes.append(judged(pipe, trace, grid, name, kinds))

    def ratio(name: JudgeName, threshold: float | None = None) -> float:
        selections = [selected(x, kinds, grid, settings, threshold) for x in scores[name]]
        return float(np.mean([selection.ratio for selection in selections]))

    default_ratio = ratio(settings.judge)
    return {
        name: _threshold(scores[name], partial(ratio, name), default_ratio)
        for name in JUDGES
        if name != settings.judge
    }


def _threshold(scores: Sequence[Tensor], ratio: Callable[[float], float], target: float) -> float:
    """Return the lowest threshold for which `ratio`, the mean share of active tokens, is `target`.

    `scipy.optimize.bisect` would return any threshold on a plateau of `ratio`.
    """
    all_scores = torch.cat(list(scores))
    low, high = math.log(all_scores[all_scores > 0].min()), math.log(all_scores.max())
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        if ratio(math.exp(middle)) > target:
            low = middle
        else:
            high = middle
    return math.exp(high)
