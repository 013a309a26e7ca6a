"""Which steps run no forward, and the velocities that are used there instead.

TeaCache and TaylorSeer both act on the transformer's output, the velocity, so a step that is
skipped runs no block at all. TaylorSeer does what diffusers does with
`TaylorSeerCacheConfig(use_lite_mode=True)`. TeaCache uses the last velocity again, whereas its
authors' code adds the blocks' last residual to the new input: along a straight path, which these
models are trained to follow, it is the velocity that stays the same.
"""

import math
from collections.abc import Callable

import torch
from spotedit_kernels.rows import gather_rows, scatter_rows
from torch import Tensor

from ..options.temporal import TaylorSeer, TeaCache, Temporal

# A function that computes the first block's modulated image input at this step.
ComputeInput = Callable[[], Tensor]


class VelocityHistory:
    """The velocities of one guidance branch.

    Each of the N noise tokens has a past of its own, because spot steps compute only some of them.

    Attributes:
        derivatives: each token's last velocity, and its finite differences over the steps, of
            orders 1 to `order`; fp32 [B, N, C] each.
        last_step: fp32 [B, N, 1], the step of a token's last velocity.
        num_known: fp32 [B, N, 1], how many velocities a token has had.
    """

    def __init__(self, order: int, like: Tensor) -> None:
        """Start without any velocity; `like` is [B, N, C]."""
        self.order = order
        self.derivatives = [torch.zeros_like(like, dtype=torch.float32) for _ in range(order + 1)]
        self.last_step = torch.zeros_like(self.derivatives[0][..., :1])
        self.num_known = torch.zeros_like(self.last_step)

    def update(self, step: int, velocity: Tensor, index: Tensor | None = None) -> None:
        """Take in the velocities that a step computed.

        Args:
            velocity: [B, N, C], or [B, M, C] of the tokens in `index`.
            index: [M] or [B, M], padded with -1. None: all tokens, as at the first update.
        """
        state = [*self.derivatives, self.last_step, self.num_known]
        current = state if index is None else [gather_rows(tensor, index) for tensor in state]
        *derivatives, last_step, num_known = current
        updated = [velocity.float()]
        for order in range(self.order):
            # A new token has too few velocities for a slope, and may divide by 0 here. `where`
            # discards that.
            slope = (updated[order] - derivatives[order]) / (step - last_step)
            updated.append(torch.where(num_known > order, slope, 0))
        updated += [torch.full_like(last_step, step), num_known + 1]
        for target, values in zip(state, updated, strict=True):
            if index is None:
                target.copy_(values)
            else:
                scatter_rows(index, (target, values))

    def predict(self, step: int) -> Tensor:
        """Return the velocities expected at a later step, fp32 [B, N, C]."""
        elapsed = step - self.last_step
        velocity = torch.zeros_like(self.derivatives[0])
        for order, derivative in enumerate(self.derivatives):
            velocity += derivative * elapsed**order / math.factorial(order)
        return velocity


class TemporalState:
    """What a temporal method remembers during a call.

    A step is skipped for all guidance branches or for none.

    Attributes:
        histories: the velocities of each guidance branch, by its index.
    """

    def __init__(self, order: int) -> None:
        self.order = order
        self.histories: dict[int, VelocityHistory] = {}

    def decide_to_skip(self, step: int, is_last: bool, compute_input: ComputeInput) -> bool:
        """Decide whether a step that may be skipped runs no forward. Called once a step."""
        raise NotImplementedError

    def note_computed_step(self, step: int, compute_input: ComputeInput) -> None:
        """Take note of a step that was computed."""
        raise NotImplementedError

    def update(
        self, branch_index: int, step: int, velocity: Tensor, index: Tensor | None = None
    ) -> None:
        """Take in a branch's velocities, see `VelocityHistory.update`."""
        if branch_index not in self.histories:
            self.histories[branch_index] = VelocityHistory(self.order, velocity)
        self.histories[branch_index].update(step, velocity, index)


class TaylorState(TemporalState):
    """Skips steps at fixed distances."""

    def __init__(self, method: TaylorSeer) -> None:
        super().__init__(method.order)
        self.method = method
        self.last_computed = 0

    def decide_to_skip(self, step: int, is_last: bool, compute_input: ComputeInput) -> bool:
        is_warm = step >= self.method.warm_up
        return is_warm and step - self.last_computed < self.method.interval

    def note_computed_step(self, step: int, compute_input: ComputeInput) -> None:
        self.last_computed = step


class TeaState(TemporalState):
    """Skips steps while the predicted change of the output, added up, is below the threshold."""

    def __init__(self, method: TeaCache) -> None:
        super().__init__(order=0)
        assert method.threshold is not None
        assert method.coefficients is not None
        self.threshold = method.threshold
        self.coefficients = method.coefficients
        self.accumulated_change = 0.0  # since the last computed step
        self.last_input: tuple[int, Tensor] | None = None  # a step, and its modulated input

    def decide_to_skip(self, step: int, is_last: bool, compute_input: ComputeInput) -> bool:
        if is_last or self.last_input is None:
            return False
        _, before = self.last_input
        now = compute_input().float()
        self.last_input = (step, now)
        change = self._predicted_change(relative_change(now, before))
        self.accumulated_change += max(change, 0.0)  # a polynomial may be negative
        return self.accumulated_change < self.threshold

    def _predicted_change(self, input_change: float) -> float:
        """Evaluate the polynomial that maps the input's change to the output's."""
        value = 0.0
        for coefficient in self.coefficients:
            value = value * input_change + coefficient
        return value

    def note_computed_step(self, step: int, compute_input: ComputeInput) -> None:
        self.accumulated_change = 0.0
        was_asked = self.last_input is not None and self.last_input[0] == step
        if not was_asked:  # otherwise `decide_to_skip` has stored this step's input
            self.last_input = (step, compute_input().float())


def relative_change(now: Tensor, before: Tensor) -> float:
    """Mean absolute difference over the mean absolute value of `before`. Synchronises the host."""
    return float((now - before).abs().mean() / before.abs().mean())


def new_state(method: Temporal | None) -> TemporalState | None:
    """Return the state at the beginning of a call. The coefficients of `method` must be known."""
    if method is None:
        return None
    return TeaState(method) if isinstance(method, TeaCache) else TaylorState(method)
