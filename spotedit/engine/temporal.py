"""Steps without a forward: what TeaCache and TaylorSeer need of the steps before.

Both act on the transformer's output, the velocity, so that a step left out runs nothing at all.
TaylorSeer does what diffusers' lite mode does. TeaCache hands on the last velocity itself, where
its authors' code adds the blocks' last residual to the new input: along a straight path, which
these models are trained to follow, the velocity is what stays the same.
"""

import math
from collections.abc import Callable

import torch
from spotedit_kernels.rows import gather_rows, scatter_rows
from torch import Tensor

from ..options.temporal import TaylorSeer, TeaCache, Temporal

Probe = Callable[[], Tensor]  # the first block's modulated input [B, S, D] at this step


class History:
    """Velocities of one guidance branch, of all N noise tokens, each with its own past.

    Attributes:
        factors: fp32 [B, N, C] each: a token's last velocity and its derivatives by step index.
        at, known: fp32 [B, N, 1]: the step of a token's last velocity, and how many it had.
    """

    factors: list[Tensor]
    at: Tensor
    known: Tensor

    def __init__(self, order: int) -> None:
        self.order, self.factors = order, []

    def update(self, step: int, velocity: Tensor, index: Tensor | None = None) -> None:
        """Take in what a step computed.

        Args:
            velocity: [B, N, C], or [B, M, C] of the tokens in `index`.
            index: [M] or [B, M], padded with -1; None: all tokens, as at the first time.
        """
        new = [velocity.float()]
        if not self.factors:
            self.factors = [torch.zeros_like(new[0]) for _ in range(self.order + 1)]
            self.at, self.known = (torch.zeros_like(new[0][..., :1]) for _ in range(2))
        state = [*self.factors, self.at, self.known]
        if index is not None:
            state = [gather_rows(tensor, index) for tensor in state]
        *old, at, known = state
        for order in range(self.order):
            slope = (new[order] - old[order]) / (step - at)
            new.append(torch.where(known > order, slope, 0))
        new += [torch.full_like(at, step), known + 1]
        for kept, values in zip([*self.factors, self.at, self.known], new, strict=True):
            if index is None:
                kept.copy_(values)
            else:
                scatter_rows(index, (kept, values))

    def predict(self, step: int) -> Tensor:
        """Velocities at a later step, fp32 [B, N, C]."""
        elapsed = step - self.at
        velocity = torch.zeros_like(self.factors[0])
        for order, factor in enumerate(self.factors):
            velocity += factor * elapsed**order / math.factorial(order)
        return velocity


class Reuse:
    """Which steps of a call run no forward. One decision for all guidance branches of a step.

    Attributes:
        histories: by the branch's rank among a step's forwards.
    """

    def __init__(self, order: int) -> None:
        self.histories: dict[int, History] = {}
        self.order = order

    def skips(self, step: int, last: bool, probe: Probe) -> bool:
        """Whether a step that may be left out is."""
        raise NotImplementedError

    def ran(self, step: int, probe: Probe) -> None:
        """To be told of every computed step."""

    def update(self, rank: int, step: int, velocity: Tensor, index: Tensor | None = None) -> None:
        """See `History.update`."""
        self.histories.setdefault(rank, History(self.order)).update(step, velocity, index)


class TaylorReuse(Reuse):
    def __init__(self, method: TaylorSeer) -> None:
        super().__init__(method.order)
        self.method, self.computed = method, 0

    def skips(self, step: int, last: bool, probe: Probe) -> bool:
        method = self.method
        return step >= method.warm_up and step - self.computed < method.interval

    def ran(self, step: int, probe: Probe) -> None:
        self.computed = step


class TeaReuse(Reuse):
    def __init__(self, method: TeaCache) -> None:
        super().__init__(0)
        assert method.threshold is not None
        assert method.coefficients is not None
        self.threshold, self.coefficients = method.threshold, method.coefficients
        self.change = 0.0  # added up since the last computed step
        self.seen: tuple[int, Tensor] | None = None  # the last step and its modulated input

    def skips(self, step: int, last: bool, probe: Probe) -> bool:
        if last or self.seen is None:
            return False
        _, before = self.seen
        self.seen = step, probe().float()
        x = relative_change(self.seen[1], before)
        value = 0.0
        for coefficient in self.coefficients:
            value = value * x + coefficient
        self.change += max(value, 0.0)
        return self.change < self.threshold

    def ran(self, step: int, probe: Probe) -> None:
        self.change = 0.0
        if self.seen is None or self.seen[0] != step:
            self.seen = step, probe().float()


def relative_change(now: Tensor, before: Tensor) -> float:
    """Mean absolute difference over the mean absolute value of `before`; synchronises the host."""
    return float((now - before).abs().mean() / before.abs().mean())


def begin(method: Temporal | None) -> Reuse | None:
    """The state of a call; `method` is resolved."""
    if isinstance(method, TeaCache):
        return TeaReuse(method)
    return None if method is None else TaylorReuse(method)
