"""What variants need to know of the editor: thresholds of equal r, and MagCache's ratios.

Found on scenes that no figure is of.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from spotedit_kernels import select_tokens
from torch import Tensor

from spotedit.models.spec import Spec, spec_for
from spotedit.schedule import plan
from spotedit.select import JUDGES

from .. import edits
from .record import Setting
from .rivals import calibrate_mag
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
    spec, side = spec_for(pipe), spec_for(pipe).token_pixels(pipe)
    judged: dict[str, list[Tensor]] = {name: [] for name in JUDGES}
    for seed in range(FIRST_SEED, FIRST_SEED + SCENES):
        scene = edits.varied(seed)
        grid = scene.mask.shape[0] // side, scene.mask.shape[1] // side
        with edits.traced(pipe) as (trace, extra):
            pipe(**setting.arguments(scene, seed, Variant()), **extra)
        features = spec.features(pipe, trace.source, grid)
        with torch.no_grad():
            for name, make in JUDGES.items():
                judge = make(trace.source, grid, features, "auto")
                judged[name].append(torch.cat([judge(x0) for x0 in trace.estimates()]))
    kinds = plan(setting.steps, fractions=spec.reset_fractions)
    own = spec.thresholds["perceptual"]
    wanted = ratio(judged["perceptual"], kinds, grid, spec, own)
    return {
        name: _threshold(scores, kinds, grid, spec, wanted)
        for name, scores in judged.items()
        if name != "perceptual"
    }


def _threshold(
    scores: Sequence[Tensor], kinds: Sequence[str], grid: tuple[int, int], spec: Spec, wanted: float
) -> float:
    """At which the selection's mean size is `wanted`."""
    every = torch.cat(scores)
    low, high = (math.log(float(x)) for x in (every[every > 0].min(), every.max()))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if ratio(scores, kinds, grid, spec, math.exp(middle)) > wanted:
            low = middle
        else:
            high = middle
    return math.exp(high)


def ratio(
    scores: Sequence[Tensor],
    kinds: Sequence[str],
    grid: tuple[int, int],
    spec: Spec,
    threshold: float,
) -> float:
    """Mean share of the tokens that spot steps would compute on the dense edits' way.

    Args:
        scores: [T, N] of every scene, of the predicted clean image after every step.
        kinds: of the T steps.
    """
    shares = []
    for course in scores:
        running, judged = None, 0
        for step, kind in enumerate(kinds[1:]):  # `step` comes before the one of this kind
            if kind != "spot":
                continue
            after_full = kinds[step] == "full"
            if after_full or step - judged == spec.judge_every:
                previous, judged = None if after_full else running, step
                running, _, _ = select_tokens(
                    course[step : step + 1],
                    grid,
                    threshold=threshold,
                    previous=previous,
                    dilation=spec.dilation,
                )
            assert running is not None
            shares.append(float(running.float().mean()))
    return float(np.mean(shares))
