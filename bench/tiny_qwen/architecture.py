"""Build the parts of a Qwen-Image-Edit pipeline from those of the tiny FLUX.1-Kontext editor."""

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLQwenImage, FluxTransformer2DModel, QwenImageTransformer2DModel
from torch import nn

LATENT_CHANNELS = 8
KEPT = (0, 3, 6)  # indices of the single-stream blocks that become dual-stream blocks
_CONSTANT = 1024.0  # value of the constant channels; latents are about 1
_LOG_VARIANCE = -9.0  # log-variance of the encoder's distribution: next to no noise
_RENAMED = {  # prefix in FLUX -> prefix in Qwen-Image
    "norm1.linear": "img_mod.1",
    "norm1_context.linear": "txt_mod.1",
    "ff.": "img_mlp.",
    "ff_context.": "txt_mlp.",
}


def build_vae() -> AutoencoderKLQwenImage:
    """Build a factor-4 autoencoder with 0.6 M parameters, whose latents need no normalisation."""
    return AutoencoderKLQwenImage(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, False],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


@torch.no_grad()
def install_components(
    vae: AutoencoderKLQwenImage, filters: torch.Tensor, bias: torch.Tensor
) -> None:
    """Make `vae.encoder` apply the filters [C, 3, 4, 4] to a still picture, and freeze it.

    The residual blocks and the attention are switched off. Constant channels dominate the last
    norm and so make it linear. silu(a) - silu(-a) = a undoes the activation after the norm.
    """
    encoder, channels = vae.encoder, filters.shape[0]
    for parameter in (*encoder.parameters(), *vae.quant_conv.parameters()):
        parameter.zero_()
        parameter.requires_grad_(False)
    encoder.conv_in.weight[:3, :, -1, 1, 1] = torch.eye(3)
    _, first, widen, second, _ = encoder.down_blocks
    halve, quarter = first.resample[1], second.resample[1]
    widen.conv_shortcut.weight[:12, :12, 0, 0, 0] = torch.eye(12)
    for dy in (0, 1):
        for dx in (0, 1):
            for c in range(3):
                halve.weight[c * 4 + dy * 2 + dx, c, dy, dx] = 1
                part = filters[:, c, 2 * dy : 2 * dy + 2, 2 * dx : 2 * dx + 2].flatten(1)
                signed = torch.cat([part, -part])
                quarter.weight[: 2 * channels, 4 * c : 4 * c + 4, dy, dx] = signed
    quarter.bias[: 2 * channels] = torch.cat([bias, -bias])
    quarter.bias[2 * channels :] = _CONSTANT
    width = len(quarter.bias)
    encoder.norm_out.gamma[: 2 * channels] = _CONSTANT * (1 - 2 * channels / width) ** 0.5
    for c in range(channels):
        encoder.conv_out.weight[c, c, -1, 1, 1] = 1
        encoder.conv_out.weight[c, channels + c, -1, 1, 1] = -1
    encoder.conv_out.bias[channels:] = _LOG_VARIANCE
    vae.quant_conv.weight[..., 0, 0, 0] = torch.eye(2 * channels)
    for parameter in vae.post_quant_conv.parameters():
        parameter.zero_()
        parameter.requires_grad_(False)
    vae.post_quant_conv.weight[..., 0, 0, 0] = torch.eye(channels)


def build_transformer(kontext: FluxTransformer2DModel, blocks: int) -> QwenImageTransformer2DModel:
    """Build a transformer like `kontext` in heads, widths and rotary axes, with random weights."""
    config = kontext.config
    return QwenImageTransformer2DModel(
        patch_size=1,
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        num_layers=blocks,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        joint_attention_dim=config.joint_attention_dim,
        axes_dims_rope=config.axes_dims_rope,
    )


@torch.no_grad()
def convert(
    kontext: FluxTransformer2DModel,
    prompts: torch.Tensor,
    pooled: torch.Tensor,
    kept: Sequence[int] = KEPT,
) -> QwenImageTransformer2DModel:
    """Build a dual-stream transformer that computes nearly the same as `kontext`.

    Both streams of a former single-stream block get its weights. Its attention and MLP ran in
    parallel; here the MLP runs after the attention. The mean of the pooled text vectors becomes a
    constant.

    Args:
        kontext: the transformer to convert.
        prompts: T5's output [B, L, C], whose scale the text norm keeps.
        pooled: CLIP's pooled vectors [B, C'].
        kept: indices of the single-stream blocks that are converted.
    """
    qwen = build_transformer(kontext, len(kontext.transformer_blocks) + len(kept))
    timestep_embedder = qwen.time_text_embed.timestep_embedder
    for target, source in (
        (qwen.img_in, kontext.x_embedder),
        (qwen.txt_in, kontext.context_embedder),
        (qwen.norm_out, kontext.norm_out),
        (qwen.proj_out, kontext.proj_out),
        (timestep_embedder, kontext.time_text_embed.timestep_embedder),
    ):
        target.load_state_dict(source.state_dict())
    pooled = kontext.time_text_embed.text_embedder(pooled)
    timestep_embedder.linear_2.bias += pooled.mean(dim=0)
    qwen.txt_norm.weight.fill_(prompts.square().mean().sqrt())
    states = [_from_dual(block) for block in kontext.transformer_blocks]
    states += [_from_single(kontext.single_transformer_blocks[i]) for i in kept]
    for block, state in zip(qwen.transformer_blocks, states, strict=True):
        block.load_state_dict(state)
    return qwen


def _from_dual(block: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a Qwen-Image block for a dual-stream FLUX block."""
    state = {}
    for name, value in block.state_dict().items():
        for old, new in _RENAMED.items():
            name = new + name.removeprefix(old) if name.startswith(old) else name
        state[name] = value
    return state


def _from_single(block: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a Qwen-Image block for a single-stream FLUX block."""
    width = block.proj_out.out_features
    out, bias = block.proj_out.weight, block.proj_out.bias
    norm, attn = block.norm.linear, block.attn
    state = {}
    for stream in ("img", "txt"):
        state[f"{stream}_mod.1.weight"] = norm.weight.repeat(2, 1)
        state[f"{stream}_mod.1.bias"] = norm.bias.repeat(2)
        state[f"{stream}_mlp.net.0.proj.weight"] = block.proj_mlp.weight
        state[f"{stream}_mlp.net.0.proj.bias"] = block.proj_mlp.bias
        state[f"{stream}_mlp.net.2.weight"] = out[:, width:]
        state[f"{stream}_mlp.net.2.bias"] = torch.zeros_like(bias)
    for name in "qkv":
        for layer in (f"to_{name}", f"add_{name}_proj"):
            state[f"attn.{layer}.weight"] = getattr(attn, f"to_{name}").weight
            state[f"attn.{layer}.bias"] = getattr(attn, f"to_{name}").bias
    for layer in ("to_out.0", "to_add_out"):
        state[f"attn.{layer}.weight"] = out[:, :width]
        state[f"attn.{layer}.bias"] = bias
    for name in "qk":
        for layer in (f"norm_{name}", f"norm_added_{name}"):
            state[f"attn.{layer}.weight"] = getattr(attn, f"norm_{name}").weight
    return state
