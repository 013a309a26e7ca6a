"""Stage 1, the autoencoder: its encoder is the principal components of 4x4 pixels, exactly; its
decoder is trained to undo them.

The encoder is linear and frozen: latents are known in closed form, smooth, of unit mean variance,
and never change while the editor learns. Its residual blocks are switched off and its last
GroupNorm is made linear by constant channels that dominate each group's variance.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from spotedit.tiny.scenes import make_scene, photo_crop

FACTOR = 4
_LEVEL = 64.0  # of the constant channels; pixels are in -1..1
_LATENT_NOISE = 0.03
_LOG_VARIANCE = -9.0


def components(images: np.ndarray, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoding filters [channels, 3, 4, 4] and bias [channels] from pictures [N, H, W, 3] in -1..1.

    Rows are principal directions scaled by std**-0.5 (half-way between pixel units and whitened),
    then all by one factor so that the latents' mean variance is 1.
    """
    n, height, width, _ = images.shape
    blocks = images.reshape(n, height // FACTOR, FACTOR, width // FACTOR, FACTOR, 3)
    flat = blocks.transpose(0, 1, 3, 5, 2, 4).reshape(-1, 3 * FACTOR * FACTOR)
    mean = flat.mean(axis=0)
    variance, directions = np.linalg.eigh(np.cov(flat.T))
    variance, directions = variance[::-1][:channels], directions[:, ::-1][:, :channels]
    scale = variance**-0.25
    scale /= np.sqrt((variance * scale**2).mean())
    rows = torch.tensor((directions * scale).T.copy(), dtype=torch.float32)
    bias = -rows @ torch.tensor(mean, dtype=torch.float32)
    return rows.reshape(channels, 3, FACTOR, FACTOR), bias


@torch.no_grad()
def install_components(vae: AutoencoderKL, filters: torch.Tensor, bias: torch.Tensor) -> None:
    """Make `vae.encoder` compute the filters (stride 4) as its latent mean, and freeze it."""
    encoder, channels = vae.encoder, filters.shape[0]
    for parameter in encoder.parameters():
        parameter.zero_()
        parameter.requires_grad_(False)
    encoder.conv_in.weight[:3, :, 1, 1] = torch.eye(3)
    first, second, third = encoder.down_blocks
    for dy in (0, 1):
        for dx in (0, 1):
            for c in range(3):
                first.downsamplers[0].conv.weight[c * 4 + dy * 2 + dx, c, dy, dx] = 1
                quarter = filters[:, c, 2 * dy : 2 * dy + 2, 2 * dx : 2 * dx + 2]
                second.downsamplers[0].conv.weight[:channels, 4 * c : 4 * c + 4, dy, dx] = (
                    quarter.reshape(channels, 4)
                )
    second.resnets[0].conv_shortcut.weight[:12, :12, 0, 0] = torch.eye(12)
    second.downsamplers[0].conv.bias[:channels] = bias
    groups = encoder.conv_norm_out.num_groups
    width = encoder.conv_norm_out.num_channels // groups
    if channels != groups or width < 4 or width % 2:
        raise ValueError(f"{channels} latents need as many groups of even width, got {groups}")
    level = torch.tensor([_LEVEL, -_LEVEL]).repeat(width // 2 - 1)
    shortcut = third.resnets[0].conv_shortcut
    gain = _LEVEL * ((width - 2) / width) ** 0.5
    encoder.conv_norm_out.weight.fill_(gain)
    for c in range(channels):
        base = c * width
        shortcut.weight[base, c], shortcut.weight[base + 1, c] = 1.0, -1.0
        shortcut.bias[base + 2 : base + width] = level
        encoder.conv_out.weight[c, base, 1, 1] = 1.0
        encoder.conv_out.weight[c, base + 1, 1, 1] = -1.0
    encoder.conv_out.bias[channels:] = _LOG_VARIANCE


@torch.no_grad()
def read_components(vae: AutoencoderKL, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Filters and bias of an installed encoder, from its answers to single pixels."""
    impulses = torch.eye(3 * FACTOR * FACTOR).reshape(-1, 3, FACTOR, FACTOR)
    black = torch.zeros(1, 3, FACTOR, FACTOR)
    latents = vae.encode(torch.cat([black, impulses])).latent_dist.mode()[..., 0, 0]
    bias, filters = latents[0], (latents[1:] - latents[0]).T
    return filters.reshape(channels, 3, FACTOR, FACTOR).contiguous(), bias


def encode_linear(images: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What the installed encoder computes, as one convolution: [N, 3, H, W] -> [N, C, H/4, W/4]."""
    return F.conv2d(images, filters, bias, stride=FACTOR)


def calm_residuals(vae: AutoencoderKL) -> None:
    """Start the decoder's residual blocks as identities."""
    for name, module in vae.decoder.named_modules():
        if name.endswith("conv2"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


def picture_bank(photos: Sequence[np.ndarray], count: int, seed: int, size: int) -> np.ndarray:
    """uint8 [count, size, size, 3]: half bare crops of photographs, half composed scenes."""
    bank = np.empty((count, size, size, 3), dtype=np.uint8)
    for i in range(count):
        rng = np.random.default_rng([seed, i])
        if i % 2:
            bank[i] = make_scene(i // 2, size=size, split="train", photos=photos).target
        else:
            photo = photos[int(rng.integers(len(photos)))]
            bank[i] = np.clip(np.rint(photo_crop(rng, photo, (size, size))), 0, 255)
    return bank


def reconstruction_loss(
    vae: AutoencoderKL, images: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """L1 and L2 of pixels, L1 of their differences; a little noise keeps the latents smooth."""
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    with torch.autocast(latents.device.type, torch.bfloat16):
        decoded = vae.decoder(latents + _LATENT_NOISE * noise).float()
    error = decoded - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.25 * edges
