"""What judges would select on the way of a dense edit, without running spot steps."""

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
    """Score the clean image that every step predicts: fp32 [T, N].

    Args:
        kinds: of the T steps; full ones are judged afresh.
    """
    features = spec_for(pipe).features(pipe, trace.source, grid)
    with torch.no_grad():
        score = make_judge(judge, trace.source, grid, features, "auto")
        steps = zip(trace.estimates(), kinds, strict=True)
        return torch.cat([score(Prediction(x0), kind == "full") for x0, kind in steps])


@dataclass(frozen=True)
class Selected:
    """Tokens of the last spot step, bool [rows, cols], and the mean share over all spot steps."""

    region: Tensor
    ratio: float


def selected(
    scores: Tensor,
    kinds: Sequence[str],
    grid: tuple[int, int],
    settings: Settings,
    threshold: float | None = None,
) -> Selected:
    """Select what spot steps would compute, from the scores [T, N] of the steps.

    `threshold`: in place of the settings'.
    """
    cut = settings.threshold if threshold is None else threshold
    running, judged_at, shares = None, 0, []
    for step, kind in enumerate(kinds[1:]):  # `step` comes before the one of this kind
        if kind != "spot":
            continue
        fresh = kinds[step] == "full"
        if fresh or step - judged_at == settings.judge_every:
            previous, judged_at = None if fresh else running, step
            running, _, _ = select_tokens(
                scores[step : step + 1],
                grid,
                threshold=None if cut == "auto" else cut,
                previous=previous,
                dilation=settings.dilation,
                hysteresis=settings.hysteresis,
            )
        assert running is not None
        shares.append(float(running.float().mean()))
    assert running is not None, "there is no spot step"
    return Selected(running.reshape(grid), sum(shares) / len(shares))
