"""Fit the coefficients of TeaCache to a model without published ones, from dense edits."""

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

DEGREE = 4  # degree of the polynomial, as published


@dataclass(frozen=True)
class Calibration:
    """A polynomial that maps the change of the modulated input to the change of the velocity.

    Attributes:
        coefficients: coefficients for `TeaCache(coefficients=...)`, the highest power first.
        r2: fraction of the variance that the polynomial explains.
        inputs, outputs: the relative L1 changes from step to step to which it was fitted.
    """

    coefficients: tuple[float, ...]
    r2: float
    inputs: tuple[float, ...]
    outputs: tuple[float, ...]


class CalibrationSession(Session):
    """Run the stock pipeline's steps and record both changes at every step after the first."""

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
    """Edit dense and fit a polynomial to the changes from step to step.

    Args:
        pipe: a supported pipeline.
        calls: keyword arguments of each call. The published coefficients come from about 70
            prompts. Take as many steps as in the edits that TeaCache will run.

    Raises:
        ValueError: the pipeline is not supported, or the calls have too few steps for a fit.
    """
    changes: list[tuple[float, float]] = []
    with Handle(pipe, SpotEditConfig(spatial=False)) as handle:
        for call in calls:
            handle._run(partial(CalibrationSession, changes), handle._base, (), dict(call))
    return fit(changes)


def fit(changes: Sequence[tuple[float, float]]) -> Calibration:
    """Fit a polynomial by least squares, with no coefficient below 0.

    So a larger change of the input never predicts a smaller change of the output, even outside the
    range of the measured changes.

    Args:
        changes: (change of the input, change of the output) from step to step.

    Raises:
        ValueError: there are too few changes.
    """
    if len(changes) <= DEGREE + 1:
        raise ValueError(
            f"{len(changes)} pairs of steps; expected more than {DEGREE + 1}: more calls or steps"
        )
    x, y = np.array(changes).T
    terms = x[:, None] ** np.arange(DEGREE, -1, -1)
    coefficients = np.zeros(DEGREE + 1)
    kept = list(range(DEGREE + 1))
    while kept:  # drop the most negative coefficient until none is left below 0
        solution = np.linalg.lstsq(terms[:, kept], y, rcond=None)[0]
        if solution.min() >= 0:
            coefficients[kept] = solution
            break
        del kept[int(solution.argmin())]
    residuals = y - terms @ coefficients
    r2 = 1 - float((residuals**2).sum() / ((y - y.mean()) ** 2).sum())
    return Calibration(tuple(coefficients.tolist()), r2, tuple(x.tolist()), tuple(y.tolist()))
