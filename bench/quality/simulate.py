"""Find which tokens a judge would select in a recorded dense edit, without running spot steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from spotedit_kernels import select_tokens
from torch import Tensor

from spotedit.judge.judges import Prediction, make_judge
from spotedit.models.spec import spec_for
from spotedit.options.choices import JudgeName
from spotedit.options.config import Settings

from ..edits import Trace


def judged(
    pipe: Any, trace: Trace, grid: tuple[int, int], judge: JudgeName, kinds: Sequence[str]
) -> Tensor:
    """Score the clean image that each step predicts; returns fp32 [T, N].

    Args:
        kinds: "full", "spot" or another kind for each of the T steps; the judge starts afresh at
            full steps.
    """
    features = spec_for(pipe).features(pipe, trace.source, grid)
    with torch.no_grad():
        score = make_judge(judge, trace.source, grid, features, "auto")
        return torch.cat([
            score(Prediction(x0), kind == "full")
            for x0, kind in zip(trace.estimates(), kinds, strict=True)
        ])  # fmt: skip


@dataclass(frozen=True)
class Selected:
    """A simulated selection.

    Attributes:
        region: the active tokens of the last spot step, bool [rows, cols].
        ratio: mean share of active tokens over all spot steps.
    """

    region: Tensor
    ratio: float


def selected(
    scores: Tensor,
    kinds: Sequence[str],
    grid: tuple[int, int],
    settings: Settings,
    threshold: float | None = None,
) -> Selected:
    """Select the tokens that spot steps would compute, from the scores [T, N] of all steps.

    Args:
        threshold: replaces that of the settings.
    """
    if threshold is None and settings.threshold != "auto":
        threshold = settings.threshold
    active, judged_at, shares = None, 0, []
    for step in range(1, len(kinds)):
        if kinds[step] != "spot":
            continue
        before = step - 1  # the judge sees the prediction of the step before
        is_after_full = kinds[before] == "full"
        if is_after_full or before - judged_at == settings.judge_every:
            previous = None if is_after_full else active
            judged_at = before
            active, _, _ = select_tokens(
                scores[before : before + 1],
                grid,
                threshold=threshold,
                previous=previous,
                dilation=settings.dilation,
                hysteresis=settings.hysteresis,
            )
        assert active is not None
        shares.append(float(active.float().mean()))
    assert active is not None, "there is no spot step"
    return Selected(active.reshape(grid), sum(shares) / len(shares))
