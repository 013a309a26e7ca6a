"""What the wrapper has to know about a model family, and the registry of the families known."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

Grid = tuple[int, int]


class Layout(NamedTuple):
    """Where things are among the image tokens of one call.

    Attributes:
        grid: noise tokens (rows, cols); they are the first rows * cols image tokens.
        reference: first image token of the condition segment whose grid equals `grid`, or None.
        reason: why `reference` is None, for the report.
    """

    grid: Grid
    reference: int | None
    reason: str | None = None


class Projection(NamedTuple):
    """Queries, keys and values [B, M, H, D] before normalisation, prompt rows first.

    `norms` are the arguments of `qk_norm_rope` for the RMS norms: `q_weight`, `k_weight`,
    `text_q_weight`, `text_k_weight` ([D] or None) and `eps`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    norms: Mapping[str, Any]


@dataclass(frozen=True)
class Spec:
    """A model family: data and a few functions.

    Attributes:
        pipelines: class names of the pipelines it serves; subclasses are served too.
        layout: transformer's keyword arguments -> `Layout`.
        gather: (transformer's keyword arguments, image-token index [A]) -> those arguments with
            only the indexed image tokens.
        project: (attention module, hidden states, prompt's hidden states or None) -> `Projection`.
        output: (attention module, heads' output [B, M, H, D], prompt's hidden states or None) ->
            what the stock attention processor returns.
        features: (pipeline, condition tokens y [B, N, C], grid) -> a function of tokens [B, N, C]
            that returns the feature maps [B, C_l, h_l, w_l] of the VAE decoder's first layers. It
            has layers of its own on y's device: the pipeline's VAE may be offloaded.
        matched_size: (pipeline, call's arguments with defaults) -> arguments that give the output
            the condition image's grid; empty where there is no image.
        source_size: call's arguments -> (height, width) of the source picture, or None.
        token_pixels: pipeline -> side of a token in output pixels.
        thresholds: judge -> default threshold.
        dilation: default dilation in tokens.
        judge_every: default number of spot steps from one judgement to the next.
        interleaved: rotary pairs are (2i, 2i+1), not (i, i + D/2).
    """

    pipelines: tuple[str, ...]
    layout: Callable[[Mapping[str, Any]], Layout]
    gather: Callable[[Mapping[str, Any], Tensor], dict[str, Any]]
    project: Callable[[nn.Module, Tensor, Tensor | None], Projection]
    output: Callable[[nn.Module, Tensor, Tensor | None], Tensor | tuple[Tensor, Tensor]]
    features: Callable[[Any, Tensor, Grid], Callable[[Tensor], list[Tensor]]]
    matched_size: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    source_size: Callable[[Mapping[str, Any]], Grid | None]
    token_pixels: Callable[[Any], int]
    thresholds: Mapping[str, float] = field(
        default_factory=lambda: {"perceptual": 0.2, "cosine": 0.05, "l2": 0.1}
    )
    dilation: int = 0
    judge_every: int = 1
    interleaved: bool = True


_REGISTRY: dict[str, Spec] = {}


def register(spec: Spec) -> None:
    """Make the pipelines of `spec` known to `spotedit.enable`."""
    _REGISTRY.update(dict.fromkeys(spec.pipelines, spec))


def supported_pipelines() -> list[str]:
    """Class names of the pipelines that `spotedit.enable` takes; their subclasses work too."""
    return sorted(_REGISTRY)


def spec_for(pipe: object) -> Spec:
    """The spec of `pipe`'s class or its nearest registered base class.

    Raises:
        ValueError: none is registered; lists those that are.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in _REGISTRY:
            return _REGISTRY[cls.__name__]
    raise ValueError(
        f"{type(pipe).__name__} is not supported; expected one of these or a subclass: "
        f"{', '.join(supported_pipelines())}"
    )
