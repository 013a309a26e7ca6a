"""How the editor's transformer starts: it copies the source, since most of a picture stays.

The residual stream begins with a token's own latents, room for as many of the source's, and
constants that keep the norms nearly linear. The first head of the first block finds the condition
token of the same place and puts its latents into the room. The last layer makes the velocity
(x_t - source) / t of them. Nothing else is written at first. All of it is trained further; from
random weights, copying alone took more than a thousand steps.
"""

import math

import torch
from diffusers import FluxTransformer2DModel
from torch import nn

_GATE = 0.3
_STEADY = 4.0  # constants of the residual stream; latents are about 1
_SHARP = 2.4  # gain of normalised queries and keys
_STEEPEST, _DAMPING = 6.0, 0.1  # largest 1/t that is fitted; of the least squares
_FROM_NOISE_TO_SOURCE = 1.0  # radians; the first position axis is 0 for noise and 1 for condition
_MATCH = ((1.0,), (1.0, 0.7, 0.5), (1.0, 0.7, 0.5))  # amplitudes of each axis' fastest rotations


@torch.no_grad()
def start_copying(transformer: FluxTransformer2DModel) -> None:
    """Set all weights that decide what is written into the residual stream, and read from it.

    Raises:
        ValueError: a token's latents do not fit in one head and half of the width.
    """
    latents, width = transformer.x_embedder.in_features, transformer.inner_dim
    if latents > transformer.config.attention_head_dim or 2 * latents >= width:
        raise ValueError(f"{latents} latents a token need a head of that size and three of width")
    first, singles = transformer.transformer_blocks[0], transformer.single_transformer_blocks
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            _constant_gates(norm.linear, width, (2, 5))
        for output in (block.attn.to_out[0], block.ff.net[2]):
            _clear(output)
    for block in singles:
        _constant_gates(block.norm.linear, width, (2,))
        _clear(block.proj_out)
    _clear(transformer.x_embedder)
    transformer.x_embedder.weight[:latents] = torch.eye(latents)
    constants = _STEADY * (-1.0) ** torch.arange(width - 2 * latents)
    transformer.x_embedder.bias[2 * latents :] = constants
    _match_places(first.attn, transformer.config.axes_dims_rope)
    steady, share = _STEADY**2 * (1 - 2 * latents / width), latents / width  # of the variance
    _clear(first.attn.to_v, latents)
    first.attn.to_v.weight[:latents, :latents] = torch.eye(latents)
    room = slice(latents, 2 * latents)
    first.attn.to_out[0].weight[room, :latents] = (
        torch.eye(latents) * (steady + share) ** 0.5 / _GATE
    )
    _clear(transformer.proj_out)
    spread = (steady + 2 * share) ** 0.5  # the last norm divides by it
    transformer.proj_out.weight[:, :latents] = spread * torch.eye(latents)
    transformer.proj_out.weight[:, room] = -spread * torch.eye(latents)
    _scale_by_inverse_time(transformer)


def _match_places(attention: nn.Module, axes: tuple[int, ...]) -> None:
    """Let the first head of a noise token attend to the condition token of the same place.

    Queries and keys are constants; only their rotation by position (RoPE) tells tokens apart.
    """
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.fill_(_SHARP)
    for project in (attention.to_q, attention.to_k):
        _clear(project, attention.head_dim)
    start = 0
    for axis, size in enumerate(axes):
        angle = 0.0 if axis else _FROM_NOISE_TO_SOURCE
        turned = torch.tensor([math.cos(angle), math.sin(angle)])
        for pair, amplitude in enumerate(_MATCH[axis]):
            place = slice(start + 2 * pair, start + 2 * pair + 2)
            attention.to_q.bias[place] = amplitude * turned
            attention.to_k.bias[place] = amplitude * torch.tensor([1.0, 0.0])
        start += size


def _scale_by_inverse_time(transformer: FluxTransformer2DModel) -> None:
    """Fit the last norm's scale to 1/t, from the features of t that the random layers give."""
    _clear(transformer.norm_out.linear)
    times = torch.rand(4096) * (1 - 1 / _STEEPEST) + 1 / _STEEPEST
    pooled = torch.randn(len(times), transformer.config.pooled_projection_dim)
    features = nn.functional.silu(transformer.time_text_embed(1000 * times, pooled))
    features = torch.cat([features, torch.ones(len(times), 1)], dim=1)
    damped = features.T @ features + _DAMPING * torch.eye(features.shape[1])
    *weights, bias = torch.linalg.solve(damped, features.T @ (1 / times - 1))
    transformer.norm_out.linear.weight[: transformer.inner_dim] = torch.stack(weights)
    transformer.norm_out.linear.bias[: transformer.inner_dim] = bias


def _constant_gates(linear: nn.Linear, width: int, gates: tuple[int, ...]) -> None:
    _clear(linear)
    for gate in gates:
        linear.bias[gate * width : (gate + 1) * width] = _GATE


def _clear(linear: nn.Linear, rows: int | None = None) -> None:
    """Set the weights of the first `rows` outputs, or of all, to 0."""
    linear.weight[:rows] = 0
    linear.bias[:rows] = 0
