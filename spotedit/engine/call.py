"""What a call is asked to do, and what its first forward tells about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..judge.features import Reuse
from ..judge.judging import Judging
from ..judge.mask import UserMask, allowed_tokens
from ..models.spec import Arguments, Spec, reference_index
from ..options.choices import Box, Grid
from ..options.config import SpotEditConfig
from .forwards import Forwards
from .fusion import weights
from .processor import SpotProcessor
from .record import StepProgress
from .rounds import Round
from .schedule import plan, with_verification

# On a GPU and in compiled blocks, the number of active tokens is rounded up to a multiple of this,
# because matrix products and compiled code want few different shapes.
PAD_TO = 64


@dataclass(frozen=True)
class Request:
    """A call of an enabled pipeline, before its loop begins.

    Attributes:
        pipe, spec, config: the pipeline, its model family, and the configuration in force.
        arguments: the call's arguments by name, with the pipeline's defaults.
        mask: the user's mask, or None.
        on_step: called after every step, or None.
        round: what a session keeps for this call, or None outside of a session.
    """

    pipe: Any
    spec: Spec
    config: SpotEditConfig
    arguments: Arguments
    mask: UserMask | None = None
    on_step: Callable[[StepProgress], object] | None = None
    round: Round | None = None


@dataclass(frozen=True)
class Hooks:
    """Our ways into the running pipeline; see `patch.attached`.

    Attributes:
        processors: our attention processors, by the layers' names.
        modulated_input: returns the first block's modulated image input [B, S, D] for the
            transformer's keyword arguments; see `Spec.modulated`.
        stop: ends the call's loop after this step.
    """

    processors: Mapping[str, SpotProcessor]
    modulated_input: Callable[[dict[str, Any]], Tensor]
    stop: Callable[[], None]


@dataclass(frozen=True)
class Loop:
    """The denoising loop of a call.

    Attributes:
        grids: token grids (rows, cols) of the noise and of every condition image.
        batch: number of images.
        sigmas: noise level at the start of every step, 1 (noise) to 0 (image).
    """

    grids: tuple[Grid, ...]
    batch: int
    sigmas: list[float]

    @property
    def grid(self) -> Grid:
        """The noise tokens' grid (rows, cols)."""
        return self.grids[0]

    @property
    def num_noise(self) -> int:
        """Number of noise tokens of an image."""
        rows, cols = self.grid
        return rows * cols

    @property
    def num_steps(self) -> int:
        """Number of denoising steps."""
        return len(self.sigmas)


def read_loop(request: Request, first_arguments: Arguments) -> Loop:
    """Read the loop from the scheduler, and from the arguments of the first forward."""
    scheduler = request.pipe.scheduler
    first_step = scheduler.begin_index or 0
    last = len(scheduler.timesteps)
    return Loop(
        grids=tuple(request.spec.grids(first_arguments)),
        batch=first_arguments["hidden_states"].shape[0],
        sigmas=scheduler.sigmas[first_step:last].tolist(),
    )


def read_source_box(request: Request, loop: Loop) -> Box | None:
    """Return the part of the source picture that the output shows, or None if there is none."""
    index, _ = reference_index(loop.grids, request.config.reference, request.spec.followed)
    if index is None:
        return None
    return request.spec.source_box(request.pipe, request.arguments, index)


@dataclass
class TokenReuse:
    """What a call works with if it may reuse tokens.

    Attributes:
        kinds: kind of every step, "full" or "spot"; later ones may become "dense".
        weights: weight of the cached value at every step, see `fusion`.
        source: the source's tokens y, [B, N, C].
        judging: judges after each step, and holds the tokens selected for the next one.
        forwards: runs full and spot forwards, and holds their keys and values.
        mask_note: a sentence about a mask that protects every token or none, or None.
    """

    kinds: list[str]
    weights: list[float]
    source: Tensor
    judging: Judging
    forwards: Forwards
    mask_note: str | None


def start_token_reuse(
    request: Request, hooks: Hooks, loop: Loop, first_arguments: Arguments
) -> tuple[TokenReuse | None, str | None]:
    """Prepare a call to reuse tokens.

    Args:
        first_arguments: the keyword arguments of the first forward.

    Returns:
        What the call works with, and None; or None, and the reason why it reuses no tokens.

    Raises:
        ValueError: the mask's size is wrong, there is no condition image of the number asked for,
            or the pipeline has no VAE decoder, which the judge needs.
    """
    config, spec = request.config, request.spec
    number, reason = reference_index(loop.grids, config.reference, spec.followed)
    if not config.spatial:
        return None, "no token may be reused (spatial=False)"
    if number is None:
        return None, reason
    kinds = _plan_steps(config, loop)
    if "spot" not in kinds:
        return None, f"too few steps ({loop.num_steps}): all are initial steps or resets"

    # The source's tokens follow the noise and the condition images before it.
    hidden = first_arguments["hidden_states"]
    source_start = sum(rows * cols for rows, cols in loop.grids[: number + 1])
    source = hidden[:, source_start : source_start + loop.num_noise].clone()

    mask, allowed, mask_note = allowed_tokens(
        request.pipe, spec, request.arguments, request.mask, loop.grid, loop.batch, number
    )
    if allowed is not None:
        allowed = allowed.to(hidden.device)
    wants_few_shapes = hidden.is_cuda or _is_compiled(request.pipe.transformer)
    judging = Judging(
        request.pipe,
        spec,
        config,
        source,
        loop.grid,
        mask,
        allowed,
        pad_to=PAD_TO if wants_few_shapes else 1,
        reuse=request.round or Reuse(),
    )

    step_weights = weights(config.fusion, loop.sigmas)
    forwards = Forwards(
        request.pipe.transformer,
        spec,
        config,
        hooks.processors,
        loop.num_noise,
        source_start,
        needs_blend=any(weight != 1.0 for weight in step_weights),
    )
    return TokenReuse(kinds, step_weights, source, judging, forwards, mask_note), None


def _plan_steps(config: SpotEditConfig, loop: Loop) -> list[str]:
    """Return the kind of every step."""
    kinds = plan(
        loop.num_steps,
        config.initial_steps,
        config.reset_steps,
        config.reset_every,
        config.settings.reset_fractions,
    )
    return with_verification(kinds, loop.sigmas) if config.verify_last else kinds


def _is_compiled(transformer: Any) -> bool:
    """Tell whether `torch.compile` was applied to the model or to a part of it."""
    return hasattr(transformer, "_orig_mod") or any(
        module._compiled_call_impl is not None for module in transformer.modules()
    )
