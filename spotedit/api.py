"""`enable`, `disable` and the handle between them."""

import threading
from collections.abc import Callable
from typing import Any, Unpack

from spotedit_kernels.select_tokens import Mode

from . import (
    models,  # noqa: F401, registers the families
    patch,
    temporal,
)
from .config import Overrides, SpotEditConfig, resolve
from .mask import MODES, UserMask, as_mask
from .models.spec import spec_for, supported_pipelines
from .preview import Preview, PreviewSession
from .report import EditReport
from .said import announce
from .session import Session

__all__ = ["Handle", "disable", "enable", "supported_pipelines"]


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
        temporal.resolve(config.temporal, self._spec.tea, type(pipe).__name__)
        patch.refuse(pipe)
        self.config = config
        self.report: EditReport | None = None
        self._pipe = pipe
        self._mask: UserMask | None = None
        self._running = threading.Lock()
        self._outer: Handle | None = patch.owner_of(pipe)
        if self._outer is not None:
            self._outer.disable()
        self._install()

    def _install(self) -> None:
        self._base = patch.swap_class(self._pipe, self._call, self)

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

        Args:
            mask: PIL image, or array or tensor [H, W] or [B, H, W], of the size of the source
                picture, of the output or of the token grid; white (True, > 0.5, > 127) may change.
                None clears it.
            mode: `"intersect"`: only what is judged edited and lies in the mask is regenerated;
                `"union"`: either; `"replace"`: the mask, with no judgement.

        Raises:
            TypeError, ValueError: not a mask, or an unknown mode. Its size is checked by the call.
        """
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; expected one of {', '.join(MODES)}")
        self._mask = None if mask is None else UserMask(as_mask(mask), mode)

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
        if self._mask is not None and self._mask.mode == "replace":
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
        pipe = self._pipe
        if not self._running.acquire(blocking=False):
            raise RuntimeError(
                "this pipeline is already running; an enabled pipeline makes one call at a time"
            )
        try:
            patch.refuse(pipe)
            given, arguments = patch.bind(base, pipe, args, kwargs)
            # a modular pipeline may be given them in its state
            asked = {**getattr(given.get("state"), "values", {}), **given}
            if self.config.match_size and asked.get("height") is asked.get("width") is None:
                given |= self._spec.matched_size(pipe, arguments, self.config.reference)
            session = kind(pipe, self._spec, self.config, self._mask, arguments)
            self.report = None
            try:
                with patch.attached(pipe, session):
                    output = base.__call__(pipe, **given)
            finally:
                self.report = session.report()
            announce(self.report, dense_asked=not self.config.spatial)
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


def enable(
    pipe: Any, config: SpotEditConfig | None = None, **overrides: Unpack[Overrides]
) -> Handle:
    """Make an editing pipeline regenerate only what its instruction changes.

    The pipeline is used as before: `pipe(image=..., prompt=...)`. A second `enable` replaces the
    first, whose handle becomes inert.

    Args:
        pipe: a diffusers pipeline; see `supported_pipelines()`.
        config: defaults to `SpotEditConfig()`.
        **overrides: fields of `SpotEditConfig`, such as `threshold=0.15`.

    Raises:
        ValueError: the pipeline is not supported, something else owns its transformer (a cache,
            context parallelism, an IP-Adapter), or a field is out of range.
        TypeError: an unknown field.
    """
    return Handle(pipe, resolve(config, overrides))


def disable(pipe: Any) -> None:
    """Put a pipeline back as it was before `enable`. Does nothing if it is not enabled."""
    handle = patch.owner_of(pipe)
    if handle is not None:
        handle.disable()
