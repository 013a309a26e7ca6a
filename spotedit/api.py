"""`enable`, `disable`, and the `Handle` that `enable` returns."""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Unpack

from spotedit_kernels.select_tokens import Mode

from . import models  # noqa: F401, registers the families
from .engine import guards, patch
from .engine.call import Hooks, Request
from .engine.record import StepProgress
from .engine.rounds import Rounds, open_rounds
from .engine.session import Session
from .judge.mask import MODES, UserMask, as_mask
from .models.spec import Arguments, spec_for, supported_pipelines
from .options.config import Overrides, SpotEditConfig, resolve
from .options.temporal import resolve as resolve_temporal
from .preview import Preview, PreviewSession
from .report import EditReport, announce

__all__ = ["Handle", "disable", "enable", "supported_pipelines"]


OnStep = Callable[[StepProgress], object]
BeginSession = Callable[[Request, Hooks, Arguments], Session]


@dataclass
class CallScope:
    """The mask, the callback and the report of the calls inside one block of `Handle.call`.

    Attributes:
        mask: where the picture may change, or None.
        on_step: called after every step, or None.
        session: a session of `Handle.session` to which the calls belong, or None.
        report: `EditReport` of the last of these calls, even if it was cut short. None before the
            first call, and after a call that was refused.
    """

    mask: UserMask | None
    on_step: OnStep | None
    session: Rounds | None = None
    report: EditReport | None = None


# For each handle the innermost block of `Handle.call` around the current code. Each thread and each
# asynchronous task has a mapping of its own.
_SCOPES: ContextVar[Mapping["Handle", CallScope]] = ContextVar(
    "spotedit_calls", default=MappingProxyType({})
)


class Handle:
    """An enabled pipeline: its configuration, the report of its last call, and its `disable`.

    As a context manager it disables the pipeline at the end of the block, or gives it back to the
    handle that it replaced.

    Attributes:
        config: the `SpotEditConfig` in force.
        report: `EditReport` of the last call, even if it was cut short. None before the first call.
    """

    def __init__(self, pipe: Any, config: SpotEditConfig) -> None:
        self._spec = spec_for(pipe)
        # raises if TeaCache is chosen and has no coefficients for this pipeline
        resolve_temporal(config.settings.temporal, self._spec.tea, type(pipe).__name__)
        guards.refuse_unsupported(pipe, self._spec)
        self.config = config
        self.report: EditReport | None = None
        self._pipe = pipe
        self._mask: UserMask | None = None
        self._accepted_mask: UserMask | None = None  # mask of the last call that was not refused
        self._running = threading.Lock()
        self._views: patch.Views = {}  # in place of components, during a call
        self._sessions: weakref.WeakSet[Rounds] = weakref.WeakSet()
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
        """Put the pipeline back as it was. Do nothing if this handle is not in force.

        Raises:
            RuntimeError: a call is running.
        """
        if self.enabled:
            if self._running.locked():
                raise RuntimeError("the pipeline is running; disable it after the call")
            self._pipe.__class__ = self._base
            for session in self._sessions:
                session.clear()

    def set_mask(self, mask: Any, mode: Mode = "intersect") -> None:
        """Say where the picture may change in the calls that follow.

        Use `call` if several threads make calls. A call that is refused, because another one runs,
        also undoes every `set_mask` made since that one began.

        Args:
            mask: a PIL image of any mode, or an array or tensor [H, W], [B, H, W], [B, 1, H, W],
                [H, W, C] or [B, H, W, C] of any number type. It has the size of the source picture,
                of the output or of the token grid, or the aspect ratio of one of the first two.
                Pixels brighter than mid-grey may change. If the mask has transparency, its opaque
                pixels may change instead; but if these are all black or white, only the white ones
                may. None clears the mask.
            mode: `"intersect"` regenerates what is judged to change and lies in the mask, `"union"`
                what is judged to change or lies in the mask, and `"replace"` what lies in the
                mask, without judging.

        Raises:
            TypeError, ValueError: not a mask, or an unknown mode. The call checks the size.
        """
        self._mask = _user_mask(mask, mode)

    @contextmanager
    def call(
        self,
        *,
        mask: Any = None,
        mode: Mode = "intersect",
        on_step: OnStep | None = None,
        session: Rounds | None = None,
    ) -> Iterator[CallScope]:
        """Give the calls in a block a mask, a progress callback and a report of their own.

        ``with handle.call(mask=mask) as run: image = pipe(...).images[0]`` and then `run.report`.
        The block applies to the thread, or the asynchronous task, that enters it, and to no other.

        Args:
            mask, mode: as for `set_mask`. A mask that was set there does not apply in the block.
            on_step: called with a `StepProgress` after every denoising step, which can also decode
                the clean picture that the step predicts. If it raises an exception, the call ends
                with it.
            session: the `Handle.session` to which the calls belong. By default it is the innermost
                one around the call.

        Raises:
            TypeError, ValueError: see `set_mask`; or the session is another handle's.
        """
        if session is not None and not session.belongs_to(self):
            raise ValueError("the session is another handle's; expected one of this handle.session")
        scope = CallScope(_user_mask(mask, mode), on_step, session)
        token = _SCOPES.set({**_SCOPES.get(), self: scope})
        try:
            yield scope
        finally:
            _SCOPES.reset(token)

    def session(self, image: Any) -> Rounds:
        """Let calls that edit the same source share what depends on the source alone.

        ``with handle.session(source): ...``, and in the block the pipeline's own calls,
        ``pipe(image=source, ...)``. After the first of them, each finds the source's encodings and
        the judge's features made. The pictures are the same as without a session, bit for bit. A
        call with none of the session's pictures is as without a session.

        The block applies to the thread, or the asynchronous task, that enters it. Without a block,
        pass the session to `call`, and call its `close` in the end; both may happen in any thread.
        `session.nbytes` is what it keeps between calls. Disabling frees that as well.

        Args:
            image: the source, or several pictures in a list, of the types that the pipeline takes.

        Raises:
            TypeError: that is no PIL image, array or tensor.
        """
        session = Rounds(self, image)
        self._sessions.add(session)
        return session

    def preview(self, **call: Any) -> Preview:
        """Run a call up to its first judgement, and decode the picture that it predicts there.

        It helps people to set the mask or the threshold: with the same arguments and generator, the
        call itself first computes the same region. A preview costs the initial steps, which compute
        all tokens, and one decoding.

        Args:
            **call: the pipeline's own arguments, for one picture, without `output_type` and
                `return_dict`. Pass the same number of steps as in the call to come.

        Raises:
            ValueError: nothing would be skipped (the message says why), the call makes several
                pictures, the mask replaces the judgement, or the pipeline cannot be interrupted.
            RuntimeError: this handle is not in force, or a call is running.
        """
        if not self.enabled:
            raise RuntimeError("this handle is not in force; enable the pipeline again")
        scope = _SCOPES.get().get(self)
        mask = self._mask if scope is None else scope.mask
        if mask is not None and mask.mode == "replace":
            raise ValueError(
                "the mask replaces the judgement, so there is nothing to preview; "
                'clear it with set_mask(None), or set it with mode="intersect" or "union"'
            )
        if not hasattr(type(self._pipe), "interrupt"):
            raise ValueError(
                f"{type(self._pipe).__name__} cannot be interrupted, as a preview must; expected a "
                "pipeline class of diffusers that can: make one from the same components"
            )
        for_preview = call | {"output_type": "pil", "return_dict": True}
        output = self._run(PreviewSession, self._base, (), for_preview)
        assert self.report is not None  # the call has returned
        return Preview(output.images[0], self.report)

    def _call(self, base: type, *args: Any, **kwargs: Any) -> Any:
        return self._run(Session, base, args, kwargs)

    def _run(self, begin: BeginSession, base: type, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Make one call of the pipeline, whose stock class is `base`."""
        if not self._running.acquire(blocking=False):
            self._mask = self._accepted_mask  # a newer mask was meant for the refused call
            raise RuntimeError(
                "this pipeline is already running; an enabled pipeline makes one call at a time: "
                "wait, or give each thread a pipeline of its own (copy.copy(pipe)) and enable that"
            )
        try:
            self._accepted_mask = self._mask
            scope = _SCOPES.get().get(self) or CallScope(self._mask, on_step=None)
            scope.report = None
            guards.refuse_unsupported(self._pipe, self._spec)
            passed, arguments = patch.bind(base, self._pipe, args, kwargs)
            passed |= self._size_arguments(passed, arguments)
            rounds = scope.session or open_rounds(self)
            round = None if rounds is None else rounds.begin(arguments.get("image"))
            request = Request(
                self._pipe, self._spec, self.config, arguments, scope.mask, scope.on_step, round
            )
            with patch.attached(
                self._pipe, self._spec, self._views, partial(begin, request), round
            ) as running:
                try:
                    output = base.__call__(self._pipe, **passed)
                finally:
                    if running.session is not None:
                        scope.report = self.report = EditReport(running.session.record())
                        if rounds is not None and round is not None:
                            rounds.end(round)
            announce(scope.report, dense_requested=not self.config.spatial)
            return output
        finally:
            self._running.release()

    def _size_arguments(
        self, passed: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return arguments for the condition image's own grid, if the caller gave no size.

        Args:
            passed: the arguments that the caller passed.
            arguments: all arguments, with the pipeline's defaults.
        """
        # a modular pipeline may receive its arguments in its state
        given = {**getattr(passed.get("state"), "values", {}), **passed}
        has_size = given.get("height") is not None or given.get("width") is not None
        if not self.config.match_size or has_size:
            return {}
        size = self._spec.matched_size(self._pipe, arguments, self.config.reference)
        max_area = given.get("max_area")
        if max_area is not None and size.get("max_area", 0) > max_area:
            return {}  # the caller's limit counts
        return size

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
        TypeError: an override is not a field of `SpotEditConfig`.
    """
    return Handle(pipe, resolve(config, overrides))


def disable(pipe: Any) -> None:
    """Put a pipeline back as it was before `enable`. Do nothing if it is not enabled."""
    handle = patch.owner_of(pipe)
    if handle is not None:
        handle.disable()
