"""Stage 1, the autoencoder: its encoder is the principal components of 8x8 pixels, exactly; its
decoder is trained to undo them.

The encoder is linear and frozen: latents are known in closed form, smooth, of unit mean variance,
and never change while the editor learns. Its residual blocks are switched off and its last
GroupNorm is made linear by constant channels that dominate each group's variance.
"""

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm import tqdm

from .examples import Draw

FACTOR = 8
_LEVEL = 64.0  # of the constant channels; pixels are in -1..1
_STEADY = 3.0  # of the constant channels in the decoder
_LATENT_NOISE = 0.03
_LOG_VARIANCE = -9.0


def components(images: np.ndarray, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Encoding filters [channels, 3, 8, 8] and bias [channels] from pictures [N, H, W, 3] in -1..1.

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
    """Make `vae.encoder` compute the filters (stride 8) as its latent mean, and freeze it.

    Three halvings gather the pixels of a block in channels: 3, 12, 48; the last one weighs them.
    """
    encoder, channels = vae.encoder, filters.shape[0]
    for parameter in encoder.parameters():
        parameter.zero_()
        parameter.requires_grad_(False)
    encoder.conv_in.weight[:3, :, 1, 1] = torch.eye(3)
    first, second, third, last = encoder.down_blocks
    second.resnets[0].conv_shortcut.weight[:12, :12, 0, 0] = torch.eye(12)
    third.resnets[0].conv_shortcut.weight[:48, :48, 0, 0] = torch.eye(48)
    groups = encoder.conv_norm_out.num_groups
    width = encoder.conv_norm_out.num_channels // groups
    held = channels // groups  # latents of a group: each as z and -z, the rest constants
    if held * groups != channels or 4 * held > width or last.resnets[0].conv_shortcut:
        raise ValueError(
            f"{channels} latents need groups that divide them, at least {4 * held} channels a "
            f"group and two last widths that are equal; got {groups} groups of {width}"
        )
    latent = torch.arange(channels)
    plus = latent // held * width + 2 * (latent % held)
    weigh = third.downsamplers[0].conv
    weigh.bias[:] = torch.tensor([_LEVEL, -_LEVEL]).repeat(groups * width // 2)
    weigh.bias[plus], weigh.bias[plus + 1] = bias, -bias
    for dy, dx in product((0, 1), (0, 1)):
        for block, count in ((first, 3), (second, 12)):
            place = slice((2 * dy + dx) * count, (2 * dy + dx + 1) * count)
            block.downsamplers[0].conv.weight[place, :count, dy, dx] = torch.eye(count)
        quarter = filters[:, :, 4 * dy : 4 * dy + 4, 4 * dx : 4 * dx + 4]
        halves = quarter.reshape(channels, 3, 2, 2, 2, 2)  # c, then y and x from coarse to fine
        gathered = halves.permute(0, 2, 4, 3, 5, 1).reshape(channels, 48)
        weigh.weight[plus, :48, dy, dx], weigh.weight[plus + 1, :48, dy, dx] = gathered, -gathered
    encoder.conv_norm_out.weight.fill_(_LEVEL * ((width - 2 * held) / width) ** 0.5)
    encoder.conv_out.weight[latent, plus, 1, 1] = 1.0
    encoder.conv_out.weight[latent, plus + 1, 1, 1] = -1.0
    encoder.conv_out.bias[channels:] = _LOG_VARIANCE


@torch.no_grad()
def read_components(
    vae: AutoencoderKL, channels: int, factor: int = FACTOR
) -> tuple[torch.Tensor, torch.Tensor]:
    """Filters and bias of an installed encoder, from its answers to single pixels."""
    impulses = torch.eye(3 * factor * factor).reshape(-1, 3, factor, factor)
    black = torch.zeros(1, 3, factor, factor)
    latents = vae.encode(torch.cat([black, impulses])).latent_dist.mode()[..., 0, 0]
    bias, filters = latents[0], (latents[1:] - latents[0]).T
    return filters.reshape(channels, 3, factor, factor).contiguous(), bias


def encode_linear(images: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """What the installed encoder computes, as one convolution: [N, 3, H, W] -> [N, C, H/8, W/8]."""
    return F.conv2d(images, filters, bias, stride=filters.shape[-1])


def calm_residuals(vae: AutoencoderKL) -> None:
    """Start the decoder's residual blocks as identities."""
    for name, module in vae.decoder.named_modules():
        if name.endswith("conv2"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


@torch.no_grad()
def steady_norms(vae: AutoencoderKL) -> None:
    """Start the decoder with two constant channels in every group of its norms.

    They pass through all layers and keep the norms' scale nearly independent of the picture;
    without them, flat pictures come out in other colours. The layers between which nothing is
    added (the first one, shortcuts, upsamplers) start without shrinking what they pass on.
    """
    decoder = vae.decoder
    decoder.conv_in.weight.mul_(3**0.5)
    before = _constants(decoder.conv_in.out_channels, decoder.conv_norm_out.num_groups)
    decoder.conv_in.weight[before] = 0
    decoder.conv_in.bias[before] = torch.tensor([_STEADY, -_STEADY]).repeat(len(before) // 2)
    for block in decoder.up_blocks:
        shortcut = block.resnets[0].conv_shortcut
        after = _constants(block.resnets[0].out_channels, decoder.conv_norm_out.num_groups)
        convs = [upsampler.conv for upsampler in block.upsamplers or ()]
        for conv in convs:
            conv.weight[:, :, 1, 1] += torch.eye(conv.out_channels)
        if shortcut:
            shortcut.weight.mul_(3**0.5)
            convs.append(shortcut)
        for conv in convs:
            conv.weight[after], conv.bias[after] = 0, 0
            centre = conv.kernel_size[0] // 2
            known = before if conv is shortcut else after
            conv.weight[after, known, centre, centre] = 1
        before = after


def _constants(channels: int, groups: int) -> torch.Tensor:
    """Return the indices of the last two channels of every group."""
    ends = channels // groups * torch.arange(1, groups + 1)
    return torch.stack([ends - 2, ends - 1], dim=1).flatten()


def picture_bank(draw: Draw, count: int, size: int) -> np.ndarray:
    """Return uint8 [count, size, size, 3], targets of training scenes."""
    examples = tqdm(draw(range(count), size), desc="pictures", total=count)
    return np.stack([target for _, target, _, _ in examples])


def reconstruction_loss(
    vae: AutoencoderKL, images: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """L1 and L2 of pixels, L1 of their differences and of the means of 8x8 pixels.

    A little noise keeps the latents smooth.
    """
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    with torch.autocast(latents.device.type, torch.bfloat16):
        decoded = vae.decoder(latents + _LATENT_NOISE * noise).float()
    error = decoded - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    tones = F.avg_pool2d(error, 8).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.25 * edges + tones
