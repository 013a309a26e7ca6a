"""One call of an enabled pipeline, step by step.

The session is told of every forward of the transformer and of every step of the scheduler. It picks
the kind of the step, widens the output of a spot forward with the straight-line velocity of the
reused tokens, hands on velocities where a step runs no forward, and judges the predicted clean
image.
"""

from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from typing import Any

import torch
from spotedit_kernels import latent_distance
from spotedit_kernels.rows import gather_rows, scatter_rows
from torch import Tensor

from ..judge.judges import LATENT_CUTS, Prediction, judge_name
from ..judge.judging import Judging
from ..judge.mask import UserMask, allowed_tokens
from ..judge.select import Selection
from ..models.spec import Spec, reference_number
from ..options.choices import Grid
from ..options.config import SpotEditConfig
from ..options.temporal import resolve
from .forwards import Forwards
from .fusion import weights
from .processor import Forward, SpotProcessor
from .record import CallRecord, StepProgress, StepRecord, Timestamp, timestamp
from .schedule import plan, with_verification
from .temporal import begin

NO_VELOCITY = 1e-6  # its square is not 0 in float32, and it moves no latent noticeably
PAD_TO = 64  # tokens, where matrix products and compiled blocks want few shapes


def compiled(transformer: Any) -> bool:
    """Whether `torch.compile` was applied to the model or to any part of it."""
    return hasattr(transformer, "_orig_mod") or any(
        module._compiled_call_impl is not None for module in transformer.modules()
    )


def with_sample(result: Any, sample: Tensor) -> Any:
    """A scheduler's result, a tuple or an output object, with other latents for the next step."""
    if isinstance(result, tuple):
        return (sample, *result[1:])
    result.prev_sample = sample
    return result


def with_velocity(output: Any, velocity: Tensor) -> Any:
    """A transformer's result, a tuple or an output object, with another velocity."""
    if isinstance(output, tuple):
        return (velocity, *output[1:])
    output.sample = velocity
    return output


class Session:
    """State of one call. It ends with the call, however that ends."""

    # known from the first forward on
    grid: Grid
    batch: int
    noise: int  # tokens
    sigmas: list[float]
    weights: list[float]
    y: Tensor  # [B, N, C], the source
    forwards: Forwards
    modulated: Callable[[dict[str, Any]], Tensor]  # see `Spec`; set by `patch.attached`
    stop: Callable[[], None]  # ends the call's loop after this step; set by `patch.attached`

    def __init__(
        self,
        pipe: Any,
        spec: Spec,
        config: SpotEditConfig,
        mask: UserMask | None,
        arguments: Mapping[str, Any],
        on_step: Callable[[StepProgress], object] | None = None,
    ) -> None:
        self.pipe, self.spec, self.config = pipe, spec, config
        self.mask, self.arguments, self.on_step = mask, arguments, on_step
        self.settings = config.settings
        self.begun = False
        self.reason: str | None = None  # why this call is dense
        self.mask_note: str | None = None  # what a mask that keeps or frees all tokens does
        self.kinds: list[str] = []  # of the steps; empty in a dense call
        self.index = 0  # of the denoising step
        self.told = Forward(spec, config.impl)
        self.layers: dict[str, SpotProcessor] = {}  # set by `patch.attached`
        self.rank = 0  # of the next forward, since the last scheduler step
        self.rows = self.sequence = 0  # of the last forward
        self.records: list[StepRecord] = []
        self.judging: Judging | None = None  # of a call that may reuse tokens
        self.temporal = resolve(self.settings.temporal, spec.tea, type(pipe).__name__)
        self.reuse = begin(self.temporal)  # of velocities
        self.skipping = False  # this step runs no forward
        self.unedited = 0  # number of images that end as the source
        self.moved: Tensor | None = None  # bool [B, N], regenerated tokens that end away from it
        self._outputs: dict[int, Any] = {}  # last output by guidance branch, for its type
        self._start: Timestamp | None = None

    @property
    def spot(self) -> Selection:
        assert self.judging is not None
        assert self.judging.selection is not None, "a spot step without a judgement before it"
        return self.judging.selection

    def kind(self, ahead: int = 0) -> str | None:
        """Kind of this step or a later one; None past the end and in a dense call."""
        index = self.index + ahead
        return self.kinds[index] if index < len(self.kinds) else None

    # -- the transformer

    def run(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """In place of the transformer's forward."""
        hidden = kwargs["hidden_states"]
        if self._start is None:
            self._start = timestamp(hidden)
        if not self.begun:
            self._begin(kwargs)
        prompt = kwargs["encoder_hidden_states"].shape[1]
        self.sequence = self.rows = prompt + hidden.shape[1]
        rank, self.rank = self.rank, self.rank + 1
        reuse = self.reuse
        if reuse is None:
            return self._run(rank, prompt, forward, kwargs)
        probe = partial(self.modulated, kwargs)
        if rank == 0:
            last = self.index + 1 == len(self.sigmas)
            # of initial full steps only the last, whose keys and values are kept, has to run
            free = self.index > 0 and (self.kind() != "full" or self.kind(1) != "spot")
            self.skipping = free and reuse.skips(self.index, last, probe)
        if self.skipping and rank in reuse.histories:
            self.rows = 0
            return self._predict(rank, hidden)
        output = self._run(rank, prompt, forward, kwargs)
        self._outputs[rank] = output
        velocity, index = output[0][:, : self.noise], None
        if self.kind() == "spot" and rank in reuse.histories:
            index = self.spot.active_index
            velocity = gather_rows(velocity, index)
        reuse.update(rank, self.index, velocity, index)
        if rank == 0:
            reuse.ran(self.index, probe)
        return output

    def _predict(self, rank: int, hidden: Tensor) -> Any:
        """The output of a step that runs no forward."""
        assert self.reuse is not None
        output = copy(self._outputs[rank])
        velocity = self.reuse.histories[rank].predict(self.index).to(output[0].dtype)
        if self.kind() == "spot":
            return self._widen(output, hidden, gather_rows(velocity, self.spot.active_index))
        return with_velocity(output, velocity)

    def _run(
        self, rank: int, prompt: int, forward: Callable[..., Any], kwargs: dict[str, Any]
    ) -> Any:
        """The output of a forward, whole or as far as its rows were computed."""
        hidden, spot = kwargs["hidden_states"], self.kind() == "spot"
        if not spot and self.kind(1) != "spot":
            return forward(**kwargs)
        if not spot:
            return self._run_full(rank, forward, kwargs)
        active = self.spot.active_index
        if self.forwards.holds(rank, prompt):
            weight = self.weights[self.index]
            output, self.rows = self.forwards.spot(rank, forward, kwargs, self.spot, weight)
            return self._widen(output, hidden, output[0][:, : active.shape[-1]])
        # a prompt or a guidance branch that no full step has seen
        output = self._run_full(rank, forward, kwargs)
        return self._widen(output, hidden, gather_rows(output[0], active))

    def _run_full(self, rank: int, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """The output of a full forward; the later steps are dense if a layer did not run in it."""
        output = self.forwards.full(rank, forward, kwargs)
        if self.forwards.bypassed is not None:
            self._go_dense()
            self.reason = (
                f"{self.forwards.bypassed} did not run its own attention: something computes it in "
                "another way (an exported or compiled program, a block of another kind, a cache)"
            )
        return output

    def _go_dense(self) -> None:
        """Make every later step one of the stock pipeline's."""
        later = self.kinds[self.index + 1 :]
        self.kinds[self.index + 1 :] = ["dense"] * len(later)

    def _widen(self, output: Any, hidden: Tensor, computed: Tensor) -> Any:
        """The output with, in reused tokens, the velocity whose clean estimate is the source."""
        latents = hidden[:, : self.noise].float()
        velocity = (latents - self.y.float()) / self.sigmas[self.index]
        velocity = velocity.to(computed.dtype)
        # guidance that rescales a token by its norm would divide 0 by 0
        velocity.masked_fill_(velocity == 0, NO_VELOCITY)
        scatter_rows(self.spot.active_index, (velocity, computed))
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
        """In place of `scheduler.step`: judges, and at the end puts the source in reused tokens.

        Raises:
            RuntimeError: the transformer's forward did not come through this call's session.
        """
        if self.rank == 0:
            raise RuntimeError(
                "this step ran no forward of the pipeline's transformer; expected one: the "
                "transformer was replaced during the call, or its forward was called directly"
            )
        result = step(output, timestep, sample, *args, **kwargs)
        active = self.spot.active_mask.sum(dim=1) if self.kind() == "spot" else self.noise
        if self.kind(1) == "spot":
            self._select(output, sample)
        elif self.kind() == "spot" and self.kind(1) is None:
            result = self._replace(result)
        self._record(0 if self.skipping else active, timestamp(sample))
        self.index += 1
        self.rank, self.skipping = 0, False
        if self.on_step is not None:
            last = self.records[-1]
            self.on_step(StepProgress(last.index, len(self.sigmas), last.kind, last.sigma))
        return result

    def _select(self, output: Tensor, sample: Tensor) -> None:
        """Find the tokens of the next step."""
        if self.skipping:  # the velocity of before has its clean estimate: nothing new to judge
            return
        assert self.judging is not None
        prediction = Prediction(sample, output, self.sigmas[self.index])
        self.judging.after(self.index, self.kind() == "full", prediction)
        if self.judging.misalignment is not None and self.config.on_misaligned == "dense":
            self._go_dense()

    def _replace(self, result: Any) -> Any:
        """Token replacement: reused tokens are the source, exactly."""
        previous = result[0] if isinstance(result, tuple) else result.prev_sample
        self.unedited = self.spot.num_empty
        distance = latent_distance(previous, self.y, impl=self.config.impl)
        self.moved = self.spot.active_mask & (distance > LATENT_CUTS[0])
        final = torch.where(self.spot.active_mask[..., None], previous, self.y.to(previous.dtype))
        return with_sample(result, final)

    def _record(self, active: int | Tensor, end: Timestamp) -> None:
        assert self._start is not None
        self.records.append(
            StepRecord(
                index=self.index,
                kind="skip" if self.skipping else self.kind() or "dense",
                sigma=self.sigmas[self.index],
                rows=self.rows,
                sequence=self.sequence,
                total=self.noise,
                active=active,
                start=self._start,
                end=end,
            )
        )
        self._start = end

    # -- start and end of the call

    def _begin(self, arguments: Mapping[str, Any]) -> None:
        """Learn the call's grid and steps from the transformer's first arguments."""
        scheduler, hidden, spec = self.pipe.scheduler, arguments["hidden_states"], self.spec
        first = scheduler.begin_index or 0
        steps = len(scheduler.timesteps) - first
        grids = self.spec.grids(arguments)
        self.sigmas = scheduler.sigmas[first : first + steps].tolist()
        self.grid, self.batch = grids[0], hidden.shape[0]
        self.noise = self.grid[0] * self.grid[1]
        config = self.config
        own = config.initial_steps, config.reset_steps, config.reset_every
        kinds = plan(steps, *own, self.settings.reset_fractions)
        if config.verify_last:
            kinds = with_verification(kinds, self.sigmas[:steps])
        number, self.reason = reference_number(grids, config.reference, spec.followed)
        if not config.spatial:
            number, self.reason = None, "no token may be reused (spatial=False)"
        if number is not None and "spot" not in kinds:
            self.reason = f"too few steps: of {steps}, all are initial steps or resets"
        elif number is not None:
            start = sum(rows * cols for rows, cols in grids[: number + 1])
            few = hidden.is_cuda or compiled(self.pipe.transformer)
            self.y = hidden[:, start : start + self.noise].clone()
            self.weights = weights(config.fusion, self.sigmas)
            mask, allowed, self.mask_note = allowed_tokens(
                self.pipe, spec, self.arguments, self.mask, self.grid, self.batch, number
            )
            self.judging = Judging(
                self.pipe, spec, config, self.y, self.grid,
                mask, None if allowed is None else allowed.to(hidden.device), PAD_TO if few else 1,
            )  # fmt: skip
            self.kinds = kinds
            mixed, model = any(weight != 1.0 for weight in self.weights), self.pipe.transformer
            told, layers = self.told, self.layers
            self.forwards = Forwards(model, spec, config, told, layers, self.noise, start, mixed)
        self.begun = True

    def record(self) -> CallRecord | None:
        """What the call did so far; None before its first forward."""
        if not self.begun:
            return None
        judging = self.judging
        selection = judging.selection if judging else None
        return CallRecord(
            pipeline=type(self.pipe).__name__,
            grid=self.grid,
            records=self.records,
            region=selection.active_mask if selection else None,
            scores=judging.scores if judging else None,
            batch=self.batch,
            cache_bytes=self.forwards.nbytes if self.kinds else 0,
            reason=self.reason,
            threshold=self.settings.threshold,
            judge=judge_name(self.settings.judge),
            misalignment=judging.misalignment if judging else None,
            temporal=self.temporal,
            unedited=self.unedited,
            mask_note=self.mask_note,
            largest=judging.largest if judging else 0,
            returned=judging.returned if judging else (),
            moved=self.moved,
        )
