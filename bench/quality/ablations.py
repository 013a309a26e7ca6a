"""Define context managers that change the method in ways that the package does not offer.

Each one stands for a mistake, or for a reading of the paper that the public settings do not cover.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from spotedit.engine import forwards
from spotedit.engine.cache import LayerCache, SequenceLayout
from spotedit.engine.forwards import Branch, Forwards
from spotedit.engine.session import TINY_VELOCITY, Session
from spotedit.judge.judges import JUDGES, Judge, Prediction
from spotedit.options.choices import Grid

SHIFT = 2  # number of tokens


@contextmanager
def recursive() -> Iterator[None]:
    """Blend with the previous step's blended value instead of the cached one.

    K_R(t) = w K_R(t+1) + (1 - w) K_y, and the same for V, as the paper prints eqs. 7-9.
    """
    stock = forwards.blend

    def blend(
        cache: LayerCache, layout: SequenceLayout, dropped: Tensor, stale: Tensor, *more: Any
    ) -> None:
        stock(cache, layout, dropped, stale, *more)
        if cache.blend_inputs is not None and stale.numel():
            for kept, blended in ((cache.blend_inputs.k, cache.k), (cache.blend_inputs.v, cache.v)):
                kept.write(stale, blended.part(layout.noise).read(stale))

    with patch.object(forwards, "blend", blend):
        yield


@contextmanager
def naive() -> Iterator[None]:
    """Hide the reused tokens from attention."""
    stock = Forwards._run

    def run(self: Forwards, mode: str, branch: Branch, forward: Any, kwargs: dict[str, Any]) -> Any:
        state = self.state
        if mode == "spot":
            assert state.joint_index is not None
            assert state.prompt_index is not None
            assert state.rope is not None
            rows = state.joint_index.reshape(-1, state.joint_index.shape[-1])
            first, sequence = len(state.prompt_index), state.rope[0].shape[-2]
            seen = torch.ones(len(rows), sequence + 1, dtype=torch.bool, device=rows.device)
            seen[:, first : first + self.num_noise] = False
            seen.scatter_(1, rows.where(rows >= 0, sequence), True)  # the last column is padding
            seen = seen[:, :-1].expand(len(kwargs["hidden_states"]), -1)
            state.key_mask = seen if state.key_mask is None else seen & state.key_mask
        return stock(self, mode, branch, forward, kwargs)

    with patch.object(Forwards, "_run", run):
        yield


@contextmanager
def shifted() -> Iterator[None]:
    """Move the scores `SHIFT` columns to the right, so that the wrong tokens are selected."""

    def moved(make: Callable[..., Judge]) -> Callable[..., Judge]:
        def judge(y: Tensor, grid: Grid, *more: Any) -> Judge:
            stock = make(y, grid, *more)

            def score(prediction: Prediction, fresh: bool = True) -> Tensor:
                scores = stock(prediction, fresh)
                return scores.unflatten(1, grid).roll(SHIFT, dims=2).flatten(1)

            return score

        return judge

    with patch.dict(JUDGES, {name: moved(make) for name, make in JUDGES.items()}):
        yield


@contextmanager
def unreplaced() -> Iterator[None]:
    """Keep reused tokens at the latents of their last computation, without token replacement."""
    stock = Session._fill_reused_tokens

    def widen(self: Session, output: Any, hidden: Tensor, computed: Tensor) -> Any:
        widened = stock(self, output, hidden, computed)
        velocity = widened[0] if isinstance(widened, tuple) else widened.sample
        velocity.masked_fill_(~self.selection.active_mask[..., None], TINY_VELOCITY)
        return widened

    with (
        patch.object(Session, "_fill_reused_tokens", widen),
        patch.object(Session, "_restore_source", lambda self, result: result),
    ):
        yield


ABLATIONS: Mapping[str, Callable[[], AbstractContextManager[None]]] = {
    "recursive": recursive,
    "naive": naive,
    "shifted": shifted,
    "unreplaced": unreplaced,
}
