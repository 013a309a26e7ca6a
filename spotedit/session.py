"""One call of an enabled pipeline, step by step.

The session is told of every forward of the transformer and of every step of the scheduler. It picks
the kind of the step, narrows the forward to the rows that have to be computed, widens its output
with the straight-line velocity of the reused tokens, and judges the predicted clean image.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from spotedit_kernels.rows import gather_rows, scatter_rows
from spotedit_kernels.select_tokens import Mode
from torch import Tensor

from .cache import LayerCache, Place, allocate, blend, keep
from .config import SpotEditConfig
from .fusion import weights
from .mask import UserMask, token_mask
from .models.spec import Arguments, Grid, Spec, reference_number
from .processor import Forward, SpotProcessor
from .report import EditReport, Mark, StepRecord
from .schedule import plan
from .select import JUDGES, NotFiniteError, Selection, SpotSelector, unchanged

NO_VELOCITY = 1e-6  # its square is not 0 in float32, and it moves no latent noticeably
PAD_TO = 64  # tokens, where matrix products and compiled blocks want few shapes


def mark(like: Tensor) -> Mark:
    """A point in time: an event on the stream of a CUDA device, read later, or host seconds."""
    if like.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def compiled(transformer: Any) -> bool:
    """Whether `torch.compile` was applied to the model or to any part of it."""
    return hasattr(transformer, "_orig_mod") or any(
        module._compiled_call_impl is not None for module in transformer.modules()
    )


@dataclass
class Branch:
    """What is kept of one guidance branch: the forwards of equal rank among a step's.

    Attributes:
        rope: cos, sin fp32 [S, D] of the joint sequence.
        weight: of the cached value, in the reused rows as the buffers hold them.
        layers: buffers of every attention layer, by its name.
    """

    place: Place
    rope: tuple[Tensor, Tensor]
    weight: float = 1.0
    layers: dict[str, LayerCache] = field(default_factory=dict)

    def rope_ref(self) -> tuple[Tensor, Tensor]:
        """The tables that rotate the source's keys to the noise tokens' positions."""
        rows, after = self.place.rows, slice(self.place.source.stop, None)
        cos, sin = (torch.cat([table[rows], table[after]]) for table in self.rope)
        return cos, sin


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
    pad_to: int  # the number of active tokens is a multiple of it

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
        self.forward = Forward()
        self.layers: dict[str, SpotProcessor] = {}  # set by `patch.attached`
        self.branch = 0  # ordinal of the forward since the last scheduler step
        self.branches: dict[int, Branch] = {}
        self.rows = self.sequence = 0  # of the last forward
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

    def run(self, forward: Callable[..., Any], kwargs: dict[str, Any]) -> Any:
        """In place of the transformer's forward."""
        hidden = kwargs["hidden_states"]
        if not self.begun:
            self._begin(kwargs)
        if self._start is None:
            self._start = mark(hidden)
        prompt = kwargs["encoder_hidden_states"].shape[1]
        self.sequence = self.rows = prompt + hidden.shape[1]
        spot = self.kind() == "spot"
        try:
            if not spot and self.kind(1) != "spot":
                return forward(**kwargs)
            branch = self.branches.get(self.branch)
            if spot and branch is not None and branch.place.prompt == prompt:
                return self._spot_forward(forward, kwargs, branch)
            output = self._captured_forward(forward, kwargs, prompt)
            if not spot:
                return output
            # a prompt or a guidance branch that no full step has seen
            return self._widen(output, hidden, gather_rows(output[0], self.spot.active))
        finally:
            self.forward.mode = "stock"
            self.branch += 1

    def _captured_forward(
        self, forward: Callable[..., Any], kwargs: dict[str, Any], prompt: int
    ) -> Any:
        """All rows run, and every layer's keys and values are kept."""
        place = Place(prompt, self.noise, self.reference, self.sequence)
        branch = self.branches.get(self.branch)
        if branch is None or branch.place != place:
            branch = self._new_branch(place, kwargs)
        branch.weight = 1.0
        self._tell_layers("capture", branch, kwargs)
        self.forward.slots, self.forward.rope_ref = None, branch.rope_ref()
        output = forward(**kwargs)
        for layer in branch.layers.values():
            keep(layer, place)
        return output

    def _spot_forward(
        self, forward: Callable[..., Any], kwargs: dict[str, Any], branch: Branch
    ) -> Any:
        """The prompt's and the active tokens' rows run."""
        hidden, spot = kwargs["hidden_states"], self.spot
        self._blend(branch)
        index = spot.active
        if not self.config.condition_cache:
            condition = torch.arange(self.noise, hidden.shape[1], device=index.device)
            index = torch.cat([index, condition.expand(*index.shape[:-1], -1)], dim=-1)
        joint = torch.where(index < 0, index, index + branch.place.prompt)
        self._tell_layers("spot", branch, kwargs)
        told = self.forward
        told.index = index
        assert told.prompt is not None
        told.slots = torch.cat([told.prompt.expand(*index.shape[:-1], -1), joint], dim=-1)
        if self.config.cache_dtype == "int8":  # its rows are computed in buffers of their own
            rows = told.slots.clamp(min=0)
            told.rope = branch.rope[0][rows], branch.rope[1][rows]
        told.rope_ref = None if self.config.condition_cache else branch.rope_ref()
        self.rows = told.slots.shape[-1]
        narrowed = kwargs | self.spec.narrow(kwargs, index)
        output = forward(**narrowed | {"hidden_states": gather_rows(hidden, index)})
        return self._widen(output, hidden, output[0][:, : spot.active.shape[-1]])

    def _blend(self, branch: Branch) -> None:
        spot, weight = self.spot, self.weights[self.index]
        changed = weight != branch.weight
        stale = spot.reused if changed else spot.dropped[..., : None if weight != 1.0 else 0]
        branch.weight = weight
        for layer in branch.layers.values():
            blend(layer, branch.place, spot.dropped, stale, weight, self.config.impl)

    def _tell_layers(self, mode: str, branch: Branch, kwargs: Arguments) -> None:
        device = kwargs["hidden_states"].device
        self.forward.mode = mode
        self.forward.prompt = torch.arange(branch.place.prompt, device=device)
        self.forward.rope = branch.rope
        mask = self.spec.prompt_mask(kwargs)
        if mask is not None:
            image = mask.new_ones(len(mask), branch.place.sequence - branch.place.prompt)
            mask = torch.cat([mask, image], dim=1)
        self.forward.key_mask = mask
        for name, layer in self.layers.items():
            layer.cache = branch.layers[name]

    def _new_branch(self, place: Place, kwargs: Arguments) -> Branch:
        hidden, transformer = kwargs["hidden_states"], self.pipe.transformer
        dtype, device = hidden.dtype, hidden.device
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        like = hidden.new_empty(0, dtype=dtype)
        mixed = any(weight != 1.0 for weight in self.weights)
        int8 = self.config.cache_dtype == "int8"
        branch = Branch(place, self.spec.rotary(transformer, kwargs))
        heads = self.spec.heads(transformer)
        for name in self.layers:
            branch.layers[name] = allocate(len(hidden), place, heads, mixed, int8, like)
        self.branches[self.branch] = branch
        return branch

    def _widen(self, output: Any, hidden: Tensor, computed: Tensor) -> Any:
        """The output with, in reused tokens, the velocity whose clean estimate is the source."""
        latents = hidden[:, : self.noise].float()
        velocity = (latents - self.y.float()) / self.sigmas[self.index]
        velocity = velocity.to(computed.dtype)
        # guidance that rescales a token by its norm would divide 0 by 0
        velocity.masked_fill_(velocity == 0, NO_VELOCITY)
        scatter_rows(self.spot.active, (velocity, computed))
        if isinstance(output, tuple):
            return (velocity, *output[1:])
        output.sample = velocity
        return output

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
        active = self.spot.rows.sum(dim=1) if self.kind() == "spot" else self.noise
        if self.kind(1) == "spot":
            self._select(output, sample)
        elif self.kind() == "spot" and self.kind(1) is None:
            result = self._replace(result)
        self._record(active, mark(sample))
        self.index += 1
        self.branch = 0
        return result

    def _select(self, output: Tensor, sample: Tensor) -> None:
        """Find the tokens of the next step."""
        after_full = self.kind() == "full"
        if after_full or self.index - self._judged == self.judge_every:
            x0 = sample.float() - self.sigmas[self.index] * output.float()
            self._spot = self._judge(x0, None if after_full else self.spot)
        else:
            self._spot = unchanged(self.spot)

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
        grids = self.spec.grids(arguments)
        self.sigmas = scheduler.sigmas[first : first + steps].tolist()
        self.grid, self.batch = grids[0], hidden.shape[0]
        self.noise = self.grid[0] * self.grid[1]
        self.begun = True
        config = self.config
        kinds = plan(steps, config.initial_steps, config.reset_steps, config.reset_every)
        number, self.reason = reference_number(grids, config.reference, self.spec.followed)
        if number is not None and "spot" not in kinds:
            self.reason = f"too few steps: of {steps}, all are initial steps or resets"
        elif number is not None:
            self.reference = sum(rows * cols for rows, cols in grids[: number + 1])
            few = hidden.is_cuda or compiled(self.pipe.transformer)
            self.pad_to = PAD_TO if few else 1
            self.y = hidden[:, self.reference : self.reference + self.noise].clone()
            self.weights = weights(config.fusion, self.sigmas)
            self.allowed = self._allowed(hidden.device, number)
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
        return SpotSelector(
            judge, threshold, dilation, self.grid, self.allowed, mode, config.impl, self.pad_to
        )

    def _allowed(self, device: torch.device, number: int) -> Tensor | None:
        side = self.spec.token_pixels(self.pipe)
        size = (self.grid[0] * side, self.grid[1] * side)
        if self.mask is None:
            own = self.spec.own_mask(self.pipe, self.arguments, size)
            if own is None:
                return None
            self.mask = UserMask(own.repeat(self.batch // len(own), 1, 1), "intersect")
        source = self.spec.source_size(self.arguments, number)
        sizes = [size] if source is None else [source, size]
        return token_mask(self.mask.pixels, self.grid, self.batch, sizes).to(device)

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
            cache_bytes=sum(c.nbytes for b in self.branches.values() for c in b.layers.values()),
            reason=self.reason,
            threshold=self.threshold,
            judge=self.config.judge,
        )
