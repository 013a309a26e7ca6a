"""Rounds: several edits of one source, which share what depends on the source alone."""

import copy
import itertools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self, TypeVar

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from ..judge.features import Reuse
from ..models.vae import state_of_vae
from .record import Elapsed, timestamp

T = TypeVar("T")
PICTURES = (Image, np.ndarray, Tensor)


@dataclass(frozen=True, eq=False)
class Kept:
    """A thing that a call made and that later calls may use.

    Attributes:
        name: what it is.
        key: what decided the result.
        value: the result.
        elapsed: when making it began and ended.
    """

    name: str
    key: tuple[Any, ...]
    value: Any
    elapsed: Elapsed


class Round(Reuse):
    """One call of a session: takes what earlier calls made, and makes the rest.

    Attributes:
        earlier: what the session kept when the call began.
        saved: when what this call took had been made: begin and end of each.
    """

    def __init__(self, earlier: list[Kept]) -> None:
        self.earlier = earlier
        self.saved: list[Elapsed] = []
        self._current: list[Kept] = []

    def reuse(self, name: str, like: Tensor, key: tuple[Any, ...], make: Callable[[], T]) -> T:
        device_type = like.device.type
        if torch.is_autocast_enabled(device_type):
            key = (torch.get_autocast_dtype(device_type), *key)
        for kept in self._current:
            if kept.name == name and _equal(kept.key, key):
                return kept.value
        for kept in self.earlier:
            if kept.name == name and _equal(kept.key, key):
                self._current.append(kept)
                self.saved.append(kept.elapsed)
                return kept.value
        key = tuple(part.clone() if isinstance(part, Tensor) else part for part in key)
        start = timestamp(like)
        value = make()
        self._current.append(Kept(name, key, value, (start, timestamp(like))))
        return value

    def encode(
        self, pipe: Any, stock: Callable[..., Any], pixels: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Stand in for `pipe.vae.encode`, which is `stock`.

        The pipeline draws from the returned distribution itself, so that its generator advances as
        without a session.
        """
        if not isinstance(pixels, Tensor) or torch.is_grad_enabled():
            return stock(pixels, *args, **kwargs)
        options = (*args, *itertools.chain(*sorted(kwargs.items())))
        key = (stock, *state_of_vae(pipe), torch.is_inference_mode_enabled(), *options)
        key = (*key, pixels.stride(), pixels)
        encoded = self.reuse("encoding", pixels, key, lambda: stock(pixels, *args, **kwargs))
        return copy.deepcopy(encoded)  # the caller may change it

    def kept(self) -> list[Kept]:
        """Return what later calls may use: of each name, what the last call with it used."""
        names = {kept.name for kept in self._current}
        return self._current + [kept for kept in self.earlier if kept.name not in names]


# For each owner, the innermost session around the current code.
_OPEN: ContextVar[Mapping[object, "Rounds"]] = ContextVar(
    "spotedit_rounds", default=MappingProxyType({})
)


class Rounds:
    """A session of `Handle.session`: calls that edit one source, and what they share.

    It keeps the VAE's encodings of the last call's pictures and masked pictures, the copy of the
    decoder's first layers that judges, and the source's feature maps. Each belongs to the very
    tensors and the VAE from which it was made, and equals what a call of its own would compute.

    It keeps nothing that depends on the instruction, the noise or the step. The condition's keys
    and values do: in all supported families the condition's tokens attend to the prompt and the
    noise. A family in which they do not could keep them by `Reuse.reuse`, under a name of their
    own.

    As a context manager it applies to the calls of the thread, or asynchronous task, that enters
    the block, and is closed at the end of the block.
    """

    def __init__(self, owner: object, image: Any) -> None:
        """Start a session of `owner`; `image` is the source, or several pictures in a list."""
        self._owner = owner
        self._images = list(_pictures(image))
        others = [type(item).__name__ for item in self._images if not isinstance(item, PICTURES)]
        if others or not self._images:
            raise TypeError(
                f"the image of a session is {', '.join(others) or 'missing'}; expected a PIL "
                "image, an array or a tensor, or several in a list: open files first"
            )
        self._lock = threading.Lock()
        self._kept: list[Kept] | None = []  # None after `close`
        self._token: Token[Mapping[object, Rounds]] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that are kept for the next call."""
        kept_now = self._kept or ()
        tensors = [part for kept in kept_now for part in kept.key if isinstance(part, Tensor)]
        tensors += [tensor for kept in kept_now for tensor in _tensors(kept.value)]
        storages = [tensor.untyped_storage() for tensor in tensors]
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def clear(self) -> None:
        """Free everything that is kept. The next call makes it anew."""
        with self._lock:
            if self._kept is not None:
                self._kept = []

    def close(self) -> None:
        """Free everything that is kept, for good. Calls go on without it."""
        with self._lock:
            self._kept = None
            self._images = []

    def belongs_to(self, owner: object) -> bool:
        """Return whether this is a session of `owner`."""
        return self._owner is owner

    def begin(self, image: Any) -> Round | None:
        """Begin a call with these pictures; return None if none of them is the session's."""
        kept = self._kept
        if kept is None:
            return None
        images = list(_pictures(image))
        is_same = any(_same_picture(a, b) for a in images for b in self._images)
        return Round(kept) if is_same else None

    def end(self, round: Round) -> None:
        """Take over what a call leaves, unless the session was cleared or closed meanwhile."""
        with self._lock:
            if self._kept is round.earlier:
                self._kept = round.kept()

    def __enter__(self) -> Self:
        if self._token is not None or self._kept is None:
            raise RuntimeError(
                "this session was entered or closed before; make one with handle.session"
            )
        self._token = _OPEN.set({**_OPEN.get(), self._owner: self})
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._token is not None
        self.close()
        _OPEN.reset(self._token)


def open_rounds(owner: object) -> Rounds | None:
    """Return the innermost session of `owner` around the current code."""
    return _OPEN.get().get(owner)


def _pictures(image: Any) -> Iterator[Any]:
    """Yield the pictures of a pipeline's argument `image`, whose lists may be nested."""
    if isinstance(image, list | tuple):
        for item in image:
            yield from _pictures(item)
    elif image is not None:
        yield image


def _same_picture(a: Any, b: Any) -> bool:
    """Return whether two pictures are of the same kind and have the same pixels."""
    if a is b:
        return True
    if isinstance(a, Image) and isinstance(b, Image):
        return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    return isinstance(a, Tensor) and isinstance(b, Tensor) and _equal((a,), (b,))


def _equal(key: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    """Return whether two keys are equal, their tensors in dtype and device as well."""
    return len(key) == len(other) and all(map(_equal_parts, key, other))


def _equal_parts(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.device == b.device and torch.equal(a, b)
    return a is b or (type(a) is type(b) and bool(a == b))


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers and modules, and those that an object holds."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from itertools.chain(value.parameters(), value.buffers())
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__"):  # such as the distribution that an encoder returns
        yield from (item for item in vars(value).values() if isinstance(item, Tensor))
