"""One call of an enabled pipeline, step by step.

The pipeline's own loop runs. It calls `Session.run` for every forward of the transformer, and
`Session.scheduler_step` at the end of every step. A step is one of these kinds:

- dense: a step of the stock pipeline, in a call or a part of a call that reuses nothing.
- full: all tokens run. If the next step is a spot step, their keys and values are kept.
- spot: the active tokens run. The reused ones get the velocity that leads straight to the source.
- skip: no forward runs, and the velocity is predicted from those of earlier steps.

If the next step is a spot step, the predicted clean image is judged, which selects the active
tokens. After the last step, if it is a spot step, the reused tokens become the source, exactly.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from spotedit_kernels import latent_distance
from spotedit_kernels.rows import gather_rows, scatter_rows
from torch import Tensor

from ..judge.judges import LATENT_CUTS, Prediction, judge_name
from ..judge.select import Selection
from ..models.spec import Arguments
from ..options.temporal import resolve
from . import temporal
from .call import (
    Hooks,
    Request,
    TokenReuse,
    read_loop,
    read_source_box,
    start_token_reuse,
)
from .outputs import sample_of, with_sample, with_velocity
from .progress import report_progress
from .record import CallRecord, StepRecord, timestamp

# Replaces velocities of exactly 0, because guidance that rescales a token by its norm would divide
# 0 by 0. Its square is not 0 in float32, and it moves no latent noticeably.
TINY_VELOCITY = 1e-6

Forward = Callable[..., Any]  # the stock transformer's forward


class Session:
    """State of one call, from its first forward on.

    A guidance branch is known by its index: the position of its forward among those of a step.

    Attributes:
        request: what was asked for.
        hooks: the objects and functions through which we reach into the pipeline.
        loop: the denoising loop: grids, batch, sigmas.
        source_box: the part of the source picture that the output shows, or None.
        reuse: schedule, judging and cache of a call that reuses tokens; None if it reuses none.
        reason: why the call reuses no tokens, or why it stopped reusing them; None otherwise.
        temporal_method: the method that chooses the steps without a forward, or None.
        temporal_state: what that method remembers, or None.
        index: index of the current step.
        branch_index: index of the next forward among those of this step.
        is_skipping: whether this step runs no forward.
        rows: number of query rows that the last forward ran, prompt included.
        sequence: number of rows of the whole sequence, which is prompt, noise and conditions.
        num_unedited: number of images that ended as the source.
        moved: bool [B, N], the computed tokens whose final latents differ noticeably from the
            source's; None before the end.
    """

    def __init__(self, request: Request, hooks: Hooks, first_arguments: Arguments) -> None:
        """Begin a call; `first_arguments` are the keyword arguments of its first forward."""
        self._step_start = timestamp(first_arguments["hidden_states"])
        self.request = request
        self.hooks = hooks
        self.config = request.config
        self.loop = read_loop(request, first_arguments)
        self.source_box = read_source_box(request, self.loop)

        self.reuse: TokenReuse | None
        self.reason: str | None
        self.reuse, self.reason = start_token_reuse(request, hooks, self.loop, first_arguments)
        self.temporal_method = resolve(
            self.config.settings.temporal, request.spec.tea, type(request.pipe).__name__
        )
        self.temporal_state = temporal.new_state(self.temporal_method)

        self.index = 0
        self.branch_index = 0
        self.is_skipping = False
        self.rows = 0
        self.sequence = 0
        self.num_unedited = 0
        self.moved: Tensor | None = None
        self._step_records: list[StepRecord] = []
        self._last_outputs: dict[int, Any] = {}  # by branch, to predict outputs of the same type

    @property
    def kind(self) -> str | None:
        """Kind of this step; None if the call reuses nothing."""
        return self._kind_of(self.index)

    @property
    def next_kind(self) -> str | None:
        """Kind of the next step; None if the call reuses nothing, and at the last step."""
        return self._kind_of(self.index + 1)

    def _kind_of(self, index: int) -> str | None:
        if self.reuse is None or index >= self.loop.num_steps:
            return None
        return self.reuse.kinds[index]

    @property
    def selection(self) -> Selection:
        """The tokens of this spot step."""
        assert self.reuse is not None
        selection = self.reuse.judging.selection
        assert selection is not None, "a spot step without a judgement before it"
        return selection

    # -- the transformer

    def run(self, forward: Forward, kwargs: dict[str, Any]) -> Any:
        """Stand in for a forward of the transformer."""
        hidden = kwargs["hidden_states"]
        branch_index = self.branch_index
        self.branch_index += 1
        self.sequence = kwargs["encoder_hidden_states"].shape[1] + hidden.shape[1]
        self.rows = self.sequence
        if branch_index == 0:
            self.is_skipping = self._decide_to_skip(kwargs)
        if self._should_skip_forward(branch_index):
            self.rows = 0
            return self._predict(branch_index, hidden)
        output = self._compute(branch_index, forward, kwargs)
        self._remember_velocity(branch_index, output, kwargs)
        return output

    def _decide_to_skip(self, kwargs: dict[str, Any]) -> bool:
        """Let the temporal method decide whether this step runs no forward.

        TeaCache looks at the first block's modulated input for that, so it can be computed alone.
        """
        if self.temporal_state is None or self.index == 0:
            return False
        must_fill_cache = self.kind == "full" and self.next_kind == "spot"
        if must_fill_cache:
            return False
        is_last = self.index + 1 == self.loop.num_steps
        compute_input = partial(self.hooks.modulated_input, kwargs)
        return self.temporal_state.decide_to_skip(self.index, is_last, compute_input)

    def _should_skip_forward(self, branch_index: int) -> bool:
        """Tell whether to skip this forward. That takes an earlier forward of the same branch."""
        if self.temporal_state is None or not self.is_skipping:
            return False
        return branch_index in self.temporal_state.histories

    def _predict(self, branch_index: int, hidden: Tensor) -> Any:
        """Return the output of a forward that is skipped."""
        assert self.temporal_state is not None
        output = copy(self._last_outputs[branch_index])
        velocity = self.temporal_state.histories[branch_index].predict(self.index)
        velocity = velocity.to(output[0].dtype)
        if self.kind == "spot":  # reused tokens go to the source, whatever was predicted for them
            predicted = gather_rows(velocity, self.selection.active_index)
            return self._fill_reused_tokens(output, hidden, predicted)
        return with_velocity(output, velocity)

    def _compute(self, branch_index: int, forward: Forward, kwargs: dict[str, Any]) -> Any:
        """Run a forward as this step's kind asks for."""
        if self.kind == "spot":
            return self._run_spot(branch_index, forward, kwargs)
        if self.next_kind == "spot":
            return self._run_full(branch_index, forward, kwargs)
        return forward(**kwargs)

    def _run_full(self, branch_index: int, forward: Forward, kwargs: dict[str, Any]) -> Any:
        """Run all tokens, and keep their keys and values."""
        assert self.reuse is not None
        output = self.reuse.forwards.run_full(branch_index, forward, kwargs)
        bypassed_layer = self.reuse.forwards.bypassed_layer
        if bypassed_layer is not None:
            self._go_dense()
            self.reason = (
                f"{bypassed_layer} did not run its own attention: something computes it in "
                "another way (an exported or compiled program, a block of another kind, a cache)"
            )
        return output

    def _run_spot(self, branch_index: int, forward: Forward, kwargs: dict[str, Any]) -> Any:
        """Run the active tokens, and fill in the reused ones."""
        assert self.reuse is not None
        forwards, active_index = self.reuse.forwards, self.selection.active_index
        if forwards.has_kept(branch_index, kwargs["encoder_hidden_states"].shape[1]):
            cached_weight = self.reuse.weights[self.index]
            output, self.rows = forwards.run_spot(
                branch_index, forward, kwargs, self.selection, cached_weight
            )
            num_active = active_index.shape[-1]
            computed = output[0][:, :num_active]  # the active tokens come before condition rows
        else:  # no full step has kept anything of this guidance branch, or of this prompt
            output = self._run_full(branch_index, forward, kwargs)
            computed = gather_rows(output[0], active_index)
        return self._fill_reused_tokens(output, kwargs["hidden_states"], computed)

    def _remember_velocity(self, branch_index: int, output: Any, kwargs: dict[str, Any]) -> None:
        """Give the temporal method the velocity of a forward that was run."""
        if self.temporal_state is None:
            return
        self._last_outputs[branch_index] = output
        velocity = output[0][:, : self.loop.num_noise]
        if self.kind == "spot" and branch_index in self.temporal_state.histories:
            index = self.selection.active_index
            computed = gather_rows(velocity, index)
            self.temporal_state.update(branch_index, self.index, computed, index)
        else:
            self.temporal_state.update(branch_index, self.index, velocity)
        if branch_index == 0:
            compute_input = partial(self.hooks.modulated_input, kwargs)
            self.temporal_state.note_computed_step(self.index, compute_input)

    def _go_dense(self) -> None:
        """Make every later step a step of the stock pipeline."""
        assert self.reuse is not None
        for index in range(self.index + 1, self.loop.num_steps):
            self.reuse.kinds[index] = "dense"

    def _fill_reused_tokens(self, output: Any, hidden: Tensor, computed: Tensor) -> Any:
        """Fill reused tokens with the velocity `(x_t - source) / sigma`.

        Args:
            output: a result of the transformer, whose velocity is replaced.
            hidden: the image tokens x_t, noise tokens first.
            computed: the velocity of the active tokens, [B, M, C].
        """
        assert self.reuse is not None
        latents = hidden[:, : self.loop.num_noise].float()
        velocity = (latents - self.reuse.source.float()) / self.loop.sigmas[self.index]
        velocity = velocity.to(computed.dtype)
        velocity.masked_fill_(velocity == 0, TINY_VELOCITY)
        scatter_rows(self.selection.active_index, (velocity, computed))
        return with_velocity(output, velocity)

    # -- the scheduler

    def scheduler_step(
        self,
        step: Callable[..., Any],
        output: Tensor,
        timestep: Any,
        sample: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Stand in for `scheduler.step`: take the step, judge, and record.

        Raises:
            RuntimeError: no forward of this step came through the session.
        """
        if self.branch_index == 0:
            raise no_forward_error()
        result = step(output, timestep, sample, *args, **kwargs)
        num_active = self._count_active()
        if self.next_kind == "spot":
            self._select(output, sample)
        elif self.kind == "spot" and self.next_kind is None:
            result = self._restore_source(result)
        self._record_step(num_active, sample)
        if self.request.on_step is not None:
            recorded = self._step_records[-1]
            prediction = Prediction(sample, output, recorded.sigma)
            if self.index == self.loop.num_steps:  # that was the last step
                prediction = Prediction(sample_of(result))
            report_progress(self.request, self.loop, recorded, prediction)
            self._step_start = timestamp(sample)  # the time that `on_step` took is no step's
        return result

    def _count_active(self) -> int | Tensor:
        """Return the number of tokens computed: [B], or one number that holds for every image."""
        if self.is_skipping:
            return 0
        if self.kind == "spot":
            return self.selection.active_mask.sum(dim=1)
        return self.loop.num_noise

    def _select(self, output: Tensor, sample: Tensor) -> None:
        """Judge the predicted clean image, and select the tokens of the next step."""
        if self.is_skipping:  # nothing new was computed, so there is nothing new to judge
            return
        assert self.reuse is not None
        judging = self.reuse.judging
        prediction = Prediction(sample, output, self.loop.sigmas[self.index])
        judging.update(self.index, self.kind == "full", prediction)
        if judging.misalignment is not None and self.config.on_misaligned == "dense":
            self._go_dense()

    def _restore_source(self, result: Any) -> Any:
        """Make the reused tokens the source's, exactly; note which active tokens differ from it."""
        assert self.reuse is not None
        source, active_mask = self.reuse.source, self.selection.active_mask
        final = sample_of(result)
        self.num_unedited = self.selection.num_empty
        noticeable, _ = LATENT_CUTS  # the lowest distance at which the judge sees a change
        distance = latent_distance(final, source, impl=self.config.impl)
        self.moved = active_mask & (distance > noticeable)
        replaced = torch.where(active_mask[..., None], final, source.to(final.dtype))
        return with_sample(result, replaced)

    def _record_step(self, num_active: int | Tensor, sample: Tensor) -> None:
        """Record this step, and begin the next one."""
        end = timestamp(sample)
        self._step_records.append(
            StepRecord(
                index=self.index,
                kind="skip" if self.is_skipping else self.kind or "dense",
                sigma=self.loop.sigmas[self.index],
                rows=self.rows,
                sequence=self.sequence,
                total=self.loop.num_noise,
                active=num_active,
                start=self._step_start,
                end=end,
            )
        )
        self._step_start = end
        self.index += 1
        self.branch_index = 0
        self.is_skipping = False

    # -- after the call

    def record(self) -> CallRecord:
        """Return what the call has done so far."""
        settings, reuse = self.config.settings, self.reuse
        record = CallRecord(
            pipeline=type(self.request.pipe).__name__,
            grid=self.loop.grid,
            records=self._step_records,
            region=None,
            scores=None,
            batch=self.loop.batch,
            cache_bytes=0,
            reason=self.reason,
            threshold=settings.threshold,
            judge=judge_name(settings.judge),
            temporal=self.temporal_method,
            unedited=self.num_unedited,
            moved=self.moved,
            source_box=self.source_box,
            saved=None if self.request.round is None else tuple(self.request.round.saved),
        )
        if reuse is None:
            return record
        judging = reuse.judging
        return replace(
            record,
            region=None if judging.selection is None else judging.selection.active_mask,
            scores=judging.scores,
            cache_bytes=reuse.forwards.nbytes,
            misalignment=judging.misalignment,
            mask_note=reuse.mask_note,
            largest=judging.max_active,
            returned=judging.reactivated,
        )


def no_forward_error() -> RuntimeError:
    """Make the error of a step in which no forward came through the session."""
    return RuntimeError(
        "this step ran no forward of the pipeline's transformer; expected one: the "
        "transformer was replaced during the call, or its forward was called directly"
    )
