"""`enable`, `disable` and the handle between them."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Unpack

from spotedit_kernels.select_tokens import Mode

from . import models  # noqa: F401, registers the families
from .engine import guards, patch
from .engine.record import StepProgress
from .engine.session import Session
from .judge.mask import MODES, UserMask, as_mask
from .models.spec import spec_for, supported_pipelines
from .options.config import Overrides, SpotEditConfig, resolve
from .options.temporal import resolve as resolve_temporal
from .preview import Preview, PreviewSession
from .report import EditReport, announce

__all__ = ["Handle", "disable", "enable", "supported_pipelines"]


OnStep = Callable[[StepProgress], object]


@dataclass
class Call:
    """Holds what belongs to the calls in a block of `Handle.call`.

    Attributes:
        mask: where the picture may change, or None.
        on_step: called after every step, or None.
        report: `EditReport` of the last of these calls, also of one that was cut short; None
            before any, and of a refused one.
    """

    mask: UserMask | None
    on_step: OnStep | None
    report: EditReport | None = None


# handle -> the block of `Handle.call` around the current code, by thread and asynchronous task
_BLOCKS: ContextVar[Mapping["Handle", Call]] = ContextVar(
    "spotedit_calls", default=MappingProxyType({})
)


class Handle:
    """An enabled pipeline: its configuration, the report of its last call, and the way back.

    As a context manager it disables the pipeline at the end of the block, or hands it back to the
    handle that it replaced.

    Attributes:
        config: the `SpotEditConfig` in force.
        report: `EditReport` of the last call, also of one that was cut short; None before any.
    """

    def __init__(self, pipe: Any, config: SpotEditConfig) -> None:
        self._spec = spec_for(pipe)
        resolve_temporal(config.settings.temporal, self._spec.tea, type(pipe).__name__)
        guards.refuse(pipe, self._spec)
        self.config = config
        self.report: EditReport | None = None
        self._pipe = pipe
        self._mask: UserMask | None = None
        self._mask_in_use: UserMask | None = None  # by the last call that was not refused
        self._running = threading.Lock()
        self._views: patch.Views = {}
        self._outer: Handle | None = patch.owner_of(pipe)
        if self._outer is not None:
            self._outer.disable()
        self._install()

    def _install(self) -> None:
        self._base = patch.swap_class(self._pipe, self._call, self, self._views)

    @property
    def enabled(self) -> bool:
        """Whether calls of the pipeline go through this handle."""
        return patch.owner_of(self._pipe) is self

    def disable(self) -> None:
        """Put the pipeline back as it was. Does nothing if this handle is not in force.

        Raises:
            RuntimeError: a call is running.
        """
        if self.enabled:
            if self._running.locked():
                raise RuntimeError("the pipeline is running; disable it after the call")
            self._pipe.__class__ = self._base

    def set_mask(self, mask: Any, mode: Mode = "intersect") -> None:
        """Say where the picture may change, for the calls that follow.

        Where several threads make calls, use `call`: a mask that is set while another call runs is
        dropped with the call that is refused.

        Args:
            mask: PIL image of any mode, or array or tensor [H, W], [B, H, W], [B, 1, H, W],
                [H, W, C] or [B, H, W, C] of any number type; of the size of the source picture, of
                the output or of the token grid, or of the aspect of one of the first two. What is
                brighter than half of white may change. On transparency, paint of any colour may
                change, or, where it is a drawing in black and white, its white. None clears it.
            mode: `"intersect"`: only what is judged edited and lies in the mask is regenerated;
                `"union"`: either; `"replace"`: the mask, with no judgement.

        Raises:
            TypeError, ValueError: not a mask, or an unknown mode. Its size is checked by the call.
        """
        self._mask = _user_mask(mask, mode)

    @contextmanager
    def call(
        self, *, mask: Any = None, mode: Mode = "intersect", on_step: OnStep | None = None
    ) -> Iterator[Call]:
        """Give the calls in a block a mask, a progress callback and a report of their own.

        ``with handle.call(mask=mask) as run: image = pipe(...).images[0]`` and then `run.report`.
        The block counts for the thread, or the asynchronous task, that enters it.

        Args:
            mask, mode: as for `set_mask`, whose mask does not count in the block.
            on_step: called with a `StepProgress` after every denoising step. An exception that it
                raises ends the call.

        Raises:
            TypeError, ValueError: see `set_mask`.
        """
        run = Call(_user_mask(mask, mode), on_step)
        token = _BLOCKS.set({**_BLOCKS.get(), self: run})
        try:
            yield run
        finally:
            _BLOCKS.reset(token)

    def preview(self, **call: Any) -> Preview:
        """Run a call up to its first judgement, and decode the picture that it predicts there.

        For people who set the mask or the threshold: with the same arguments and generator, the
        call itself begins its first spot step with the same region. It costs the initial full
        steps and one decoding.

        Args:
            **call: the pipeline's own arguments, for one picture. Without `output_type` and
                `return_dict`, and with the number of steps of the call that is to follow.

        Raises:
            ValueError: nothing would be skipped (the message says why), several pictures, a mask
                that replaces the judgement, or a pipeline that cannot be interrupted.
            RuntimeError: this handle is not in force, or a call is running.
        """
        if not self.enabled:
            raise RuntimeError("this handle is not in force; enable the pipeline again")
        run = _BLOCKS.get().get(self)
        mask = self._mask if run is None else run.mask
        if mask is not None and mask.mode == "replace":
            raise ValueError(
                "the mask replaces the judgement, so there is nothing to preview; "
                'clear it with set_mask(None), or set it with mode="intersect" or "union"'
            )
        if not hasattr(type(self._pipe), "interrupt"):
            raise ValueError(
                f"{type(self._pipe).__name__} cannot be interrupted; expected a pipeline whose "
                "loop can: preview with the stock one of the same components"
            )
        given = call | {"output_type": "pil", "return_dict": True}
        output = self._run(PreviewSession, self._base, (), given)
        assert self.report is not None  # the call has returned
        return Preview(output.images[0], self.report)

    def _call(self, base: type, *args: Any, **kwargs: Any) -> Any:
        return self._run(Session, base, args, kwargs)

    def _run(
        self, kind: Callable[..., Session], base: type, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        pipe, config, run = self._pipe, self.config, _BLOCKS.get().get(self)
        if not self._running.acquire(blocking=False):
            self._mask = self._mask_in_use  # one set since then was for this call
            raise RuntimeError(
                "this pipeline is already running; an enabled pipeline makes one call at a time: "
                "wait, or give each thread a pipeline of its own (copy.copy(pipe)) and enable that"
            )
        try:
            self._mask_in_use = self._mask
            own = Call(self._mask, None) if run is None else run
            own.report = None
            guards.refuse(pipe, self._spec)
            given, arguments = patch.bind(base, pipe, args, kwargs)
            # a modular pipeline may be given them in its state
            asked = {**getattr(given.get("state"), "values", {}), **given}
            if config.match_size and asked.get("height") is asked.get("width") is None:
                size = self._spec.matched_size(pipe, arguments, config.reference)
                area, most = size.get("max_area", 0), asked.get("max_area")
                if most is None or area <= most:
                    given |= size
            session = kind(pipe, self._spec, config, own.mask, arguments, own.on_step)
            try:
                with patch.attached(pipe, session, self._views):
                    output = base.__call__(pipe, **given)
            finally:
                record = session.record()
                if record is not None:
                    own.report = self.report = EditReport(record)
            announce(own.report, dense_asked=not config.spatial)
            return output
        finally:
            self._running.release()

    def __enter__(self) -> "Handle":
        return self

    def __exit__(self, *exc: object) -> None:
        if self.enabled:
            self.disable()
            if self._outer is not None:
                self._outer._install()


def _user_mask(mask: Any, mode: Mode) -> UserMask | None:
    if mode not in MODES:
        raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
    return None if mask is None else UserMask(as_mask(mask), mode)


def enable(
    pipe: Any, config: SpotEditConfig | None = None, **overrides: Unpack[Overrides]
) -> Handle:
    """Make an editing pipeline regenerate only what its instruction changes.

    The pipeline is used as before: `pipe(image=..., prompt=...)`. A second `enable` replaces the
    first, whose handle becomes inert.

    Args:
        pipe: a diffusers pipeline; see `supported_pipelines()`.
        config: defaults to `SpotEditConfig()`.
        **overrides: fields of `SpotEditConfig`, such as `preset="fast"` or `threshold=0.5`.

    Raises:
        ValueError: the pipeline is not supported, something else decides what its transformer
            computes (a cache, an attention processor, an IP-Adapter, a patched forward; the
            message says what to do), or a field is out of range.
        TypeError: an unknown field.
    """
    return Handle(pipe, resolve(config, overrides))


def disable(pipe: Any) -> None:
    """Put a pipeline back as it was before `enable`. Does nothing if it is not enabled."""
    handle = patch.owner_of(pipe)
    if handle is not None:
        handle.disable()
