"""A `Spec` tells SpotEdit about one model family. The registry lists the known families."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..options.choices import Box, Grid, Size
from ..options.temporal import TeaCache
from .vae import decode_with_vae

Arguments = Mapping[str, Any]  # keyword arguments of the transformer or of the pipeline
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


class FeatureMaps(NamedTuple):
    """Computes the feature maps [B, C_l, h_l, w_l] that the judge compares, from tokens [B, N, C].

    Attributes:
        to_latents: from tokens to latents, see `Spec.vae_input`.
        layers: from latents to maps, see `Spec.decoder_layers`.
    """

    to_latents: Callable[[Tensor], Tensor]
    layers: Callable[[Tensor], list[Tensor]]

    def __call__(self, tokens: Tensor) -> list[Tensor]:
        return self.layers(self.to_latents(tokens))


class Projection(NamedTuple):
    """Queries, keys and values before normalisation, with the prompt's rows first.

    Attributes:
        q, k, v: [B, M, H, D].
        norms: weights of the RMS norms, as arguments of `qk_norm_rope`: `q_weight`, `k_weight`,
            `text_q_weight` and `text_k_weight` ([D] or None), and `eps`. `copies.weight_of` gets
            the weight of a norm that is offloaded.
        rest: anything else that `Spec.output` needs. It is passed on unchanged.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    norms: Mapping[str, Any]
    rest: Any = None


def _cut_prompt(arguments: Arguments) -> dict[str, Any]:
    """Return the transformer's arguments for the prompt, cut to zero tokens."""
    return {"encoder_hidden_states": arguments["encoder_hidden_states"][:, :0]}


def _configured_heads(transformer: Any) -> tuple[int, int]:
    """Return the number of attention heads and the head dimension of the model's configuration."""
    return transformer.config.num_attention_heads, transformer.config.attention_head_dim


@dataclass(frozen=True)
class Spec:
    """Describes a model family by data and a few functions.

    The image tokens are [noise, condition 1, condition 2, ...], and the joint sequence is [prompt,
    image tokens]. Shapes use these letters:

        B   number of images in the batch
        P   number of prompt tokens
        N   number of noise tokens; the source has as many tokens
        S   length of the joint sequence
        M   number of rows that a step computes, of image tokens and, unless cached, of the prompt
        X   length of an image-token index
        H   number of attention heads, D the head dimension

    An "image-token index" holds positions of image tokens, of which 0 is the first noise token. It
    is int64 [X] or [B, X], padded with -1. "Transformer arguments" are the keyword arguments of the
    transformer's forward. "Call arguments" are those of the pipeline's call, with its defaults.

    Attributes:
        pipelines: class names of the pipelines that this spec serves. Subclasses are served too.
        grids: takes the transformer arguments. Returns the token grids (rows, cols) of the noise
            and of every condition image, in the order of their tokens.
        rotary: takes the transformer and its arguments. Returns cos and sin of the joint sequence,
            fp32 [S, D] each.
        narrow: takes the transformer arguments and an image-token index. Returns those arguments
            that have a row for every image token, cut to X rows. `hidden_states` is not among them.
            Position ids may have any value, because attention takes its positions from `rotary`.
        project: takes an attention module, the hidden states, and the prompt's hidden states or
            None. Returns a `Projection`.
        output: takes an attention module, the attention result [B, M, H, D], the prompt's hidden
            states or None, and the `Projection`. Returns what the stock attention processor does.
        vae_input: takes the pipeline, tokens [B, N, C] and their grid. Returns a function from
            tokens of that grid and device to the latents [B, c, h, w] that the VAE decodes. That
            function needs its own copy of any weights, because the pipeline's VAE may be offloaded.
        decoder_layers: takes the pipeline and the source's tokens y [B, N, C]. Returns a function
            from the result of `vae_input` to the feature maps [B, C_l, h_l, w_l] of the VAE
            decoder's first layers. That function needs its own copy of the layers on y's device.
        matched_size: takes the pipeline, the call arguments and `SpotEditConfig.reference`. Returns
            call arguments (such as height and width) with which the output has the grid of the
            condition image. It returns none if there is no image, if the pipeline takes no size, or
            if the pipeline chooses the right size by itself.
        source_size: takes the call arguments and the index of the condition image that is the
            source. Returns the (height, width) of the source picture, which a user's mask may also
            have, or None if no mask of that size would fit.
        token_pixels: takes the pipeline. Returns the side of a token in output pixels.
        prompt_mask: takes the transformer arguments. Returns bool [B, P], True for the prompt
            tokens to attend to, or None to attend to all.
        narrow_block: takes the arguments of a block of `transformer_blocks` and an image-token
            index. Returns those arguments that have a row for every image token, cut to X rows. It
            is needed only if the transformer's own forward makes such arguments for its blocks, at
            full length. None otherwise.
        modulated: takes the first block of `transformer_blocks` and its arguments. Returns the
            block's modulated image input [B, S - P, width], which TeaCache watches.
            `copies.with_loaded_weights` gets a part of the block whose weights are offloaded. The
            field is None if the family has no TeaCache.
        without_prompt: takes the transformer arguments. Returns the arguments that make a forward
            run without the prompt's rows.
        tea: the default threshold and coefficients of TeaCache. Coefficients belong to a
            checkpoint. They are None if none are published.
        processors: class names of the attention processors that `project` and `output` can replace.
            They come from the model's own module, and a pipeline with another processor is refused.
            Empty if every processor of that module can be replaced.
        own_mask: takes the pipeline, the call arguments and the output's (height, width). Returns
            the mask that the call gives the pipeline itself, or None: bool [b, H, W] in output
            pixels, True where the picture may change, with b a divisor of B. It is used if the user
            has set no mask.
        latents: takes tokens [B, N, C] and their grid. Returns the latents [B, c, h, w], in which a
            shift of the whole picture can be found. None turns that check off.
        decode: takes the pipeline and the result of `vae_input`. Returns the pictures [B, 3, H, W],
            in -1..1, as the whole VAE of the pipeline decodes them.
        heads: takes the transformer. Returns H and D.
        followed: index of the condition image whose size the pipeline's output follows: 0 for the
            first, -1 for the last.
        source_box: takes the pipeline, the call arguments and the index of the condition image that
            is the source. Returns the part of that picture that the output shows. A mask of the
            source's size is cut to it, and `EditReport.composite` puts an edit back there. Most
            pipelines resize the whole picture, which is the default. None if the output cannot be
            placed on the picture.
        interleaved: whether a rotary pair is (2i, 2i + 1). Otherwise it is (i, i + D / 2).
    """

    pipelines: tuple[str, ...]
    grids: Callable[[Arguments], Sequence[Grid]]
    rotary: Callable[[Any, Arguments], tuple[Tensor, Tensor]]
    narrow: Callable[[Arguments, Tensor], dict[str, Any]]
    project: Callable[[nn.Module, Tensor, Tensor | None], Projection]
    output: Callable[[nn.Module, Tensor, Tensor | None, Projection], Tensor | tuple[Tensor, Tensor]]
    vae_input: Callable[[Any, Tensor, Grid], Callable[[Tensor], Tensor]]
    decoder_layers: Callable[[Any, Tensor], Callable[[Tensor], list[Tensor]]]
    matched_size: Callable[[Any, Arguments, int | str], dict[str, Any]]
    source_size: Callable[[Arguments, int], Size | None]
    token_pixels: Callable[[Any], int]
    prompt_mask: Callable[[Arguments], Tensor | None] = lambda arguments: None
    narrow_block: Callable[[Arguments, Tensor], dict[str, Any]] | None = None
    modulated: Callable[[nn.Module, Arguments], Tensor] | None = None
    without_prompt: Callable[[Arguments], dict[str, Any]] = _cut_prompt
    tea: TeaCache = field(default_factory=lambda: TeaCache(threshold=0.25))
    processors: tuple[str, ...] = ()
    own_mask: Callable[[Any, Arguments, Size], Tensor | None] = lambda pipe, arguments, size: None
    latents: Callable[[Tensor, Grid], Tensor] | None = None
    decode: Callable[[Any, Tensor], Tensor] = decode_with_vae
    heads: Callable[[Any], tuple[int, int]] = _configured_heads
    followed: int = 0
    source_box: Callable[[Any, Arguments, int], Box | None] = lambda pipe, arguments, index: WHOLE
    interleaved: bool = True

    def features(self, pipe: Any, y: Tensor, grid: Grid) -> FeatureMaps:
        """Make the function that computes what the judge compares.

        Args:
            pipe: the pipeline.
            y: the source's tokens, [B, N, C].
            grid: their grid.
        """
        layers = self.decoder_layers(pipe, y)
        return FeatureMaps(self.vae_input(pipe, y, grid), layers)


def reference_index(
    grids: Sequence[Grid], choice: int | str, followed: int
) -> tuple[int | None, str | None]:
    """Find the condition image that is the source.

    Args:
        grids: the token grids of the noise and of every condition image.
        choice: the index of the source. `"auto"` chooses among the condition images with the
            output's grid, or among all if none has it.
        followed: which of these candidates `"auto"` takes: 0 for the first, -1 for the last. See
            `Spec.followed`.

    Returns:
        (index, None), or (None, the reason why no condition image can be the source).

    Raises:
        ValueError: there is no condition image with that index.
    """
    noise_grid, *condition_grids = grids
    if not condition_grids:
        return None, "the call has no condition image"
    if choice == "auto":
        all_indices = list(range(len(condition_grids)))
        on_the_grid = [index for index in all_indices if condition_grids[index] == noise_grid]
        candidates = on_the_grid or all_indices
        index = candidates[followed]
    else:
        index = int(choice)
        if index >= len(condition_grids):
            raise ValueError(
                f"SpotEditConfig.reference is {choice}; expected less than the "
                f"{len(condition_grids)} condition images of the call, or 'auto'"
            )
    if condition_grids[index] != noise_grid:
        rows, cols = condition_grids[index]
        return None, (
            f"the output's token grid, {noise_grid[0]} x {noise_grid[1]}, differs from the "
            f"condition image's, {rows} x {cols}; leave out height, width and max_area, and keep "
            "match_size=True"
        )
    return index, None


_REGISTRY: dict[str, Spec] = {}
_REFUSALS: dict[str, str] = {}


def register(spec: Spec) -> None:
    """Make the pipelines of `spec` known to `spotedit.enable`; see `docs/new_pipeline.md`.

    A later spec for the same class name replaces the earlier one, for pipelines enabled after it.
    """
    _REGISTRY.update(dict.fromkeys(spec.pipelines, spec))


def register_refusal(pipeline: str, reason: str) -> None:
    """Register why a pipeline class is not supported, and what to do instead, as an error message.

    Args:
        pipeline: name of the class.
    """
    _REFUSALS[pipeline] = reason


def supported_pipelines() -> list[str]:
    """Return the class names of the pipelines that `spotedit.enable` takes.

    Their subclasses work too.
    """
    return sorted(_REGISTRY)


def spec_for(pipe: object) -> Spec:
    """Return the spec of the pipeline's class, or of its nearest registered base class.

    Raises:
        ValueError: no spec is registered. The message lists the supported pipelines, or says why
            this one is refused.
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
