"""Coefficients of TeaCache for a model that has none, from dense edits with it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from ..api import Handle
from ..engine.session import Session
from ..engine.temporal import relative_change
from ..options.config import SpotEditConfig

DEGREE = 4  # of the polynomial, as in the published ones


@dataclass(frozen=True)
class Calibration:
    """A polynomial from the change of the modulated input to that of the velocity.

    Attributes:
        coefficients: the highest power first, for `TeaCache(coefficients=...)`.
        r2: share of the variance that it explains.
        inputs, outputs: relative L1 changes from step to step, which it was fitted to.
    """

    coefficients: tuple[float, ...]
    r2: float
    inputs: tuple[float, ...]
    outputs: tuple[float, ...]


class CalibrationSession(Session):
    """The stock pipeline's steps; appends the two changes at every step but the first."""

    def __init__(self, changes: list[tuple[float, float]], *args: Any) -> None:
        super().__init__(*args)
        self._changes = changes
        self._before: tuple[Tensor, Tensor] | None = None

    def run(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        output = super().run(forward, kwargs)
        if self.branch_index == 1:  # that was the step's first forward, which TeaCache watches
            velocity = output[0][:, : self.loop.num_noise].float()
            now = self.hooks.modulated_input(kwargs).float(), velocity
            if self._before is not None:
                x, y = map(relative_change, now, self._before)
                self._changes.append((x, y))
            self._before = now
        return output


def calibrate(pipe: Any, calls: Iterable[Mapping[str, Any]]) -> Calibration:
    """Edit dense and fit.

    Args:
        pipe: a supported pipeline.
        calls: keyword arguments of its calls. The published coefficients come from about 70
            prompts; the number of steps should be that of the edits to come.

    Raises:
        ValueError: the pipeline is not supported, or the calls have too few steps for a fit.
    """
    changes: list[tuple[float, float]] = []
    with Handle(pipe, SpotEditConfig(spatial=False)) as handle:
        for call in calls:
            handle._run(partial(CalibrationSession, changes), handle._base, (), dict(call))
    return fit(changes)


def fit(changes: Sequence[tuple[float, float]]) -> Calibration:
    """Least squares with no coefficient below 0, so that more change never predicts less, also
    beyond the changes that were seen.

    Raises:
        ValueError: there are no more changes than coefficients.
    """
    if len(changes) <= DEGREE + 1:
        raise ValueError(
            f"{len(changes)} pairs of steps; expected more than {DEGREE + 1}: more calls or steps"
        )
    x, y = np.array(changes).T
    terms, powers = x[:, None] ** np.arange(DEGREE, -1, -1), np.zeros(DEGREE + 1)
    kept = list(range(DEGREE + 1))
    while kept:
        found = np.linalg.lstsq(terms[:, kept], y, rcond=None)[0]
        if found.min() >= 0:
            powers[kept] = found
            break
        del kept[int(found.argmin())]
    left = y - terms @ powers
    r2 = 1 - float((left**2).sum() / ((y - y.mean()) ** 2).sum())
    coefficients, inputs, outputs = (tuple(values.tolist()) for values in (powers, x, y))
    return Calibration(coefficients, r2, inputs, outputs)
