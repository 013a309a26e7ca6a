"""What the wrapper has to know about a model family, and the registry of the families known."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..options.choices import Grid
from ..options.temporal import TeaCache

Arguments = Mapping[str, Any]  # keyword arguments, of the transformer or of the pipeline


class Projection(NamedTuple):
    """Queries, keys and values [B, M, H, D] before normalisation, prompt rows first.

    `norms` are the arguments of `qk_norm_rope` for the RMS norms: `q_weight`, `k_weight`,
    `text_q_weight`, `text_k_weight` ([D] or None) and `eps`; `copies.weight_of` finds offloaded
    ones. `rest` is handed to `Spec.output`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    norms: Mapping[str, Any]
    rest: Any = None


def without_prompt(arguments: Arguments) -> dict[str, Any]:
    """A prompt of no tokens."""
    return {"encoder_hidden_states": arguments["encoder_hidden_states"][:, :0]}


def heads(transformer: Any) -> tuple[int, int]:
    """Number of attention heads and head dim, from the model's configuration."""
    return transformer.config.num_attention_heads, transformer.config.attention_head_dim


@dataclass(frozen=True)
class Spec:
    """A model family: data and a few functions.

    The image tokens are [noise, condition 1, condition 2, ...] and the joint sequence is
    [prompt, image tokens]. B is the batch, M the rows that a step computes, P, N, S the numbers of
    prompt, noise and all rows.

    Attributes:
        pipelines: class names of the pipelines it serves; subclasses are served too.
        grids: transformer's keyword arguments -> token grids (rows, cols) of the noise and of
            every condition image, in the tokens' order.
        rotary: (transformer, its keyword arguments) -> cos, sin fp32 [S, D] of the joint sequence.
        narrow: (transformer's keyword arguments, image-token index [M] or [B, M], padded with -1)
            -> those that have a row for every image token, with M of them; not `hidden_states`.
            Positions do not matter: the attention takes those of `rotary`.
        project: (attention module, hidden states, prompt's hidden states or None) -> `Projection`.
        output: (attention module, heads' output [B, M, H, D], prompt's hidden states or None,
            projection) -> what the stock attention processor returns.
        features: (pipeline, condition tokens y [B, N, C], grid) -> a function of tokens [B, N, C]
            that returns the feature maps [B, C_l, h_l, w_l] of the VAE decoder's first layers. It
            has layers of its own on y's device: the pipeline's VAE may be offloaded.
        matched_size: (pipeline, call's arguments with defaults, `SpotEditConfig.reference`) ->
            arguments that give the output the condition image's grid; empty where there is no
            image, no choice, or the pipeline's own choice is right.
        source_size: (call's arguments, number of the condition image that is the source) ->
            (height, width) that a user's mask may have for being the source picture's, or None.
        token_pixels: pipeline -> side of a token in output pixels.
        prompt_mask: transformer's keyword arguments -> bool [B, P], True = attend, or None.
        narrow_block: (keyword arguments of a block of `transformer_blocks`, image-token index) ->
            narrowed ones, where the model makes some from the whole sequence; None: it does not.
        modulated: (first block of `transformer_blocks`, its keyword arguments) -> its modulated
            image input [B, S - P, D], which TeaCache watches; `copies.with_loaded_weights` finds the weights of
            offloaded parts. None: there is no TeaCache.
        without_prompt: transformer's keyword arguments -> those that make a forward without the
            prompt's rows.
        tea: default threshold and coefficients of TeaCache. Coefficients belong to a checkpoint;
            None where none are published.
        processors: class names of the attention processors that `project` and `output` stand in
            for, from the model's own module; others are refused. Empty: all of that module.
        own_mask: (pipeline, call's arguments, output's (height, width)) -> bool [b, H, W] in output
            pixels, True where the pipeline lets the source change, b a divisor of B; or None. It
            counts as the user's where they have set none.
        latents: (tokens [B, N, C], grid) -> latents [B, c, h, w], whose motion as a whole is looked
            for where much changes; None: it is not.
        heads: transformer -> (heads, head dim).
        followed: which condition image gives the output its size, 0 or -1 (the last).
        interleaved: rotary pairs are (2i, 2i+1), not (i, i + D/2).
    """

    pipelines: tuple[str, ...]
    grids: Callable[[Arguments], Sequence[Grid]]
    rotary: Callable[[Any, Arguments], tuple[Tensor, Tensor]]
    narrow: Callable[[Arguments, Tensor], dict[str, Any]]
    project: Callable[[nn.Module, Tensor, Tensor | None], Projection]
    output: Callable[[nn.Module, Tensor, Tensor | None, Projection], Tensor | tuple[Tensor, Tensor]]
    features: Callable[[Any, Tensor, Grid], Callable[[Tensor], list[Tensor]]]
    matched_size: Callable[[Any, Arguments, int | str], dict[str, Any]]
    source_size: Callable[[Arguments, int], Grid | None]
    token_pixels: Callable[[Any], int]
    prompt_mask: Callable[[Arguments], Tensor | None] = lambda arguments: None
    narrow_block: Callable[[Arguments, Tensor], dict[str, Any]] | None = None
    modulated: Callable[[nn.Module, Arguments], Tensor] | None = None
    without_prompt: Callable[[Arguments], dict[str, Any]] = without_prompt
    tea: TeaCache = field(default_factory=lambda: TeaCache(threshold=0.25))
    processors: tuple[str, ...] = ()
    own_mask: Callable[[Any, Arguments, Grid], Tensor | None] = lambda pipe, arguments, size: None
    latents: Callable[[Tensor, Grid], Tensor] | None = None
    heads: Callable[[Any], tuple[int, int]] = heads
    followed: int = 0
    interleaved: bool = True


def reference_index(
    grids: Sequence[Grid], choice: int | str, followed: int
) -> tuple[int | None, str | None]:
    """The number of the condition image that is the source, or None and the reason.

    Args:
        grids: of the noise and of every condition image.
        choice: which condition image is the source, or `"auto"`: of those whose grid is the
            noise's, the first or last.
        followed: 0 or -1: the first or last.

    Raises:
        ValueError: there is no condition image of that number.
    """
    noise, *conditions = grids
    if not conditions:
        return None, "the call has no condition image"
    equal = [i for i, grid in enumerate(conditions) if grid == noise]
    if choice == "auto":
        index = (equal or range(len(conditions)))[followed]
    else:
        index = int(choice)
        if index >= len(conditions):
            raise ValueError(
                f"SpotEditConfig.reference is {choice}; expected less than the {len(conditions)} "
                "condition images of the call, or 'auto'"
            )
    if conditions[index] != noise:
        rows, cols = conditions[index]
        return None, (
            f"the output's token grid, {noise[0]} x {noise[1]}, differs from the condition "
            f"image's, {rows} x {cols}; leave height, width and max_area to match_size"
        )
    return index, None


_REGISTRY: dict[str, Spec] = {}
_REFUSALS: dict[str, str] = {}


def register(spec: Spec) -> None:
    """Make the pipelines of `spec` known to `spotedit.enable`; see `docs/new_pipeline.md`.

    A later spec of the same class name replaces the earlier one, for pipelines enabled after it.
    """
    _REGISTRY.update(dict.fromkeys(spec.pipelines, spec))


def register_refusal(pipeline: str, reason: str) -> None:
    """Let `spotedit.enable` say why it does not take a pipeline, and what to do instead."""
    _REFUSALS[pipeline] = reason


def supported_pipelines() -> list[str]:
    """Class names of the pipelines that `spotedit.enable` takes; their subclasses work too."""
    return sorted(_REGISTRY)


def spec_for(pipe: object) -> Spec:
    """The spec of `pipe`'s class or its nearest registered base class.

    Raises:
        ValueError: none is registered; lists those that are, or gives the reason of a refusal.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in _REGISTRY:
            return _REGISTRY[cls.__name__]
        if cls.__name__ in _REFUSALS:
            raise ValueError(f"{type(pipe).__name__} is not supported: {_REFUSALS[cls.__name__]}")
    raise ValueError(
        f"{type(pipe).__name__} is not supported; expected one of these or a subclass: "
        f"{', '.join(supported_pipelines())}; to add it, describe it with spotedit.register "
        "(docs/new_pipeline.md)"
    )
