"""One call of an enabled pipeline, step by step.

The session is told of every forward of the transformer and of every step of the scheduler. It picks
the kind of the step, narrows the forward to the rows that have to be computed, widens its output
with the straight-line velocity of the reused tokens, and judges the predicted clean image.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from spotedit_kernels.select_tokens import Mode
from torch import Tensor

from .cache import Cache, LayerCache
from .config import SpotEditConfig
from .fusion import weights
from .mask import UserMask, token_mask
from .models.spec import Grid, Spec
from .report import EditReport, Mark, StepRecord
from .schedule import plan
from .select import JUDGES, NotFiniteError, Selection, SpotSelector, unchanged


def mark(like: Tensor) -> Mark:
    """A point in time: an event on the stream of a CUDA device, read later, or host seconds."""
    if like.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


class Session:
    """State of one call. It ends with the call, however that ends."""

    # known from the first forward on
    grid: Grid
    batch: int
    noise: int  # tokens
    sigmas: list[float]
    weights: list[float]
    y: Tensor  # [B, N, C], the source
    reference: int  # image token at which `y` starts
    allowed: Tensor | None  # bool [B, N], the user's mask
    # of the running forward
    prompt: int  # tokens
    rows: int
    sequence: int
    slots: Tensor  # int64 [M], joint index of each row
    latents: Tensor  # [B, N, C], what came in
    rope_ref: tuple[Tensor, Tensor]  # cos, sin [N, D] of the noise tokens
    # of the running spot step
    weight: float  # of the cached value
    stale: Tensor  # int64, the tokens whose rows in the buffers have to be blended again

    def __init__(
        self,
        pipe: Any,
        spec: Spec,
        config: SpotEditConfig,
        mask: UserMask | None,
        arguments: Mapping[str, Any],
    ) -> None:
        self.pipe, self.spec, self.config = pipe, spec, config
        self.mask, self.arguments = mask, arguments
        own = spec.thresholds[config.judge]
        self.threshold = own if config.threshold is None else config.threshold
        self.judge_every = spec.judge_every if config.judge_every is None else config.judge_every
        self.begun = False
        self.reason: str | None = None  # why this call is dense
        self.kinds: list[str] = []  # of the steps; empty in a dense call
        self.index = 0  # of the denoising step
        self.branch = 0  # guidance branch: ordinal of the forward since the last scheduler step
        self.mode: str | None = None  # of the running forward: "capture", "spot" or None (stock)
        self.caches = Cache()
        self.records: list[StepRecord] = []
        self._selector: SpotSelector | None = None
        self._spot: Selection | None = None  # of the last judgement
        self._judged = 0  # step of the last judgement
        self._start: Mark | None = None

    @property
    def spot(self) -> Selection:
        assert self._spot is not None, "a spot step without a judgement before it"
        return self._spot

    def kind(self, ahead: int = 0) -> str | None:
        """Kind of this step or a later one; None past the end and in a dense call."""
        index = self.index + ahead
        return self.kinds[index] if index < len(self.kinds) else None

    # -- the transformer

    def before_forward(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Forward pre-hook: on a spot step, only the active tokens go in."""
        hidden = kwargs["hidden_states"]
        if not self.begun:
            self._begin(kwargs)
        if self._start is None:
            self._start = mark(hidden)
        self.prompt = kwargs["encoder_hidden_states"].shape[1]
        self.sequence = self.rows = self.prompt + hidden.shape[1]
        if self.kind() != "spot":
            self.mode = "capture" if self.kind(1) == "spot" else None
            return None
        self.mode = "spot"
        index = self.spot.active
        if not self.config.condition_cache:
            condition = torch.arange(self.noise, hidden.shape[1], device=index.device)
            index = torch.cat([index, condition])
        prompt = torch.arange(self.prompt, device=index.device)
        self.slots = torch.cat([prompt, index + self.prompt])
        self.rows = self.slots.numel()
        self.latents = hidden[:, : self.noise]
        return args, self.spec.gather(kwargs, index)

    def after_forward(
        self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        """Forward hook: reused tokens get the velocity whose clean estimate is the source."""
        self.branch += 1
        mode, self.mode = self.mode, None
        if mode != "spot":
            return None
        sample, active = output[0], self.spot.active
        velocity = (self.latents.float() - self.y.float()) / self.sigmas[self.index]
        velocity = velocity.to(sample.dtype)
        computed = sample[:, : active.numel()]
        if self.batch > 1:  # the images share the queries, not the active set
            keep = self.spot.rows.index_select(1, active)[..., None]
            computed = torch.where(keep, computed, velocity.index_select(1, active))
        velocity.index_copy_(1, active, computed)
        if isinstance(output, tuple):
            return (velocity, *output[1:])
        output.sample = velocity
        return output

    def layer_cache(self, layer: str, k: Tensor) -> LayerCache:
        """Buffers of a layer in the running branch, made at its first captured forward."""
        cache = self.caches.get((self.branch, layer))
        if cache is None:
            blend = any(w != 1.0 for w in self.weights)
            cache = self.caches[self.branch, layer] = LayerCache.like(k, self.noise, blend)
        return cache

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
        """In place of `scheduler.step`: judges, and at the end puts the source in reused tokens."""
        result = step(output, timestep, sample, *args, **kwargs)
        active: int | Tensor = self.noise
        if self.kind() == "spot":
            spot = self.spot
            active = spot.active.numel() if self.batch == 1 else spot.rows.sum(dim=1)
        if self.kind(1) == "spot":
            self._select(output, sample)
        elif self.kind() == "spot" and self.kind(1) is None:
            result = self._replace(result)
        self._record(active, mark(sample))
        self.index += 1
        self.branch = 0
        return result

    def _select(self, output: Tensor, sample: Tensor) -> None:
        """Find the tokens of the next step, and how much of their rows has to be blended."""
        after_full = self.kind() == "full"
        if after_full or self.index - self._judged == self.judge_every:
            x0 = sample.float() - self.sigmas[self.index] * output.float()
            spot = self._judge(x0, None if after_full else self.spot)
        else:
            spot = unchanged(self.spot)
        # a full step leaves every row as computed: weight 1
        held, self.weight = 1.0 if after_full else self.weight, self.weights[self.index + 1]
        if self.weight != held:
            self.stale = spot.reused
        else:
            self.stale = spot.dropped if self.weight != 1.0 else spot.dropped[:0]
        self._spot = spot

    def _judge(self, x0: Tensor, previous: Selection | None) -> Selection:
        self._judged = self.index
        if self._selector is None:
            self._selector = self._make_selector()
        try:
            return self._selector(x0, previous)
        except NotFiniteError:
            raise ValueError(
                f"step {self.index}: the latents are not finite; check the image and `latents`, or "
                "use bfloat16 or float32 if the model overflows in float16"
            ) from None

    def _replace(self, result: Any) -> Any:
        """Token replacement: reused tokens are the source, exactly."""
        previous = result[0] if isinstance(result, tuple) else result.prev_sample
        final = torch.where(self.spot.rows[..., None], previous, self.y.to(previous.dtype))
        if isinstance(result, tuple):
            return (final, *result[1:])
        result.prev_sample = final
        return result

    def _record(self, active: int | Tensor, end: Mark) -> None:
        assert self._start is not None
        self.records.append(
            StepRecord(
                index=self.index,
                kind=self.kind() or "dense",
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
        scheduler, hidden = self.pipe.scheduler, arguments["hidden_states"]
        first = scheduler.begin_index or 0
        steps = len(scheduler.timesteps) - first
        layout = self.spec.layout(arguments)
        self.sigmas = scheduler.sigmas[first : first + steps].tolist()
        self.grid, self.batch = layout.grid, hidden.shape[0]
        self.noise = self.grid[0] * self.grid[1]
        self.begun = True
        config = self.config
        kinds = plan(steps, config.initial_steps, config.reset_steps, config.reset_every)
        if layout.reference is None:
            self.reason = layout.reason
        elif "spot" not in kinds:
            self.reason = f"too few steps: of {steps}, all are initial steps or resets"
        else:
            self.reference = layout.reference
            self.y = hidden[:, self.reference : self.reference + self.noise].clone()
            self.weights = weights(config.fusion, self.sigmas)
            self.allowed = self._allowed(hidden.device)
            self.kinds = kinds

    def _make_selector(self) -> SpotSelector:
        spec, config = self.spec, self.config
        judge = None
        if self.mask is None or self.mask.mode != "replace":
            features = spec.features(self.pipe, self.y, self.grid)
            judge = JUDGES[config.judge](self.y, self.grid, features, config.impl)
        dilation = spec.dilation if config.dilation is None else config.dilation
        mode: Mode = "intersect" if self.mask is None else self.mask.mode
        threshold = None if self.threshold == "auto" else self.threshold
        return SpotSelector(judge, threshold, dilation, self.grid, self.allowed, mode, config.impl)

    def _allowed(self, device: torch.device) -> Tensor | None:
        if self.mask is None:
            return None
        side = self.spec.token_pixels(self.pipe)
        sizes = [self.spec.source_size(self.arguments), (self.grid[0] * side, self.grid[1] * side)]
        known = [size for size in sizes if size is not None]
        return token_mask(self.mask.pixels, self.grid, self.batch, known).to(device)

    def report(self) -> EditReport | None:
        """What the call did so far; None before its first forward."""
        if not self.begun:
            return None
        return EditReport(
            pipeline=type(self.pipe).__name__,
            grid=self.grid,
            records=self.records,
            region=None if self._spot is None else self._spot.rows,
            scores=None if self._selector is None else self._selector.scores,
            batch=self.batch,
            cache_bytes=self.caches.nbytes,
            reason=self.reason,
            threshold=self.threshold,
            judge=self.config.judge,
        )
