"""Stage 1: set the autoencoder's encoder in closed form, and define the loss of its decoder.

The encoder computes the principal components of blocks of 8x8 pixels. It is linear and frozen, so
its latents are known from the start, smooth and of unit mean variance, and they never change while
the editor learns. To compute them with a stock encoder, the residual blocks are switched off, and
constant channels that dominate the variance of each group make the last GroupNorm linear.
"""

from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from tqdm import tqdm

from .examples import Draw

FACTOR = 8  # pixels along a latent's side
_ENCODER_CONSTANT = 64.0  # value of the encoder's constant channels; pixels are in -1..1
_DECODER_CONSTANT = 3.0  # value of the decoder's constant channels
_LATENT_NOISE = 0.03
_LOG_VARIANCE = -9.0  # log-variance of the encoder's distribution: next to no noise


def components(images: np.ndarray, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the encoder's filters [channels, 3, 8, 8] and bias [channels].

    The filters are the principal directions of blocks of 8x8 pixels. Each is scaled by std**-0.5,
    which is half-way to whitening, and all by one factor that makes the latents' mean variance 1.

    Args:
        images: pictures [N, H, W, 3] in -1..1.
        channels: number of latent channels.
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
    """Make `vae.encoder` compute the filters with stride 8 as its latent mean, and freeze it.

    The encoder halves the resolution three times. The first two times move the pixels of a block
    into 12 and 48 channels; the third one applies the filters to them.
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
    per_group = channels // groups  # latents in a group, each as z and -z; the rest are constants
    if per_group * groups != channels or 4 * per_group > width or last.resnets[0].conv_shortcut:
        raise ValueError(
            f"{channels} latents need a number of groups that divides them, at least "
            f"{4 * per_group} channels in a group, and two equal last widths; got {groups} groups "
            f"of {width}"
        )
    latent = torch.arange(channels)
    positive = latent // per_group * width + 2 * (latent % per_group)
    negative = positive + 1
    filter_conv = third.downsamplers[0].conv
    constants = torch.tensor([_ENCODER_CONSTANT, -_ENCODER_CONSTANT])
    filter_conv.bias[:] = constants.repeat(groups * width // 2)
    filter_conv.bias[positive] = bias
    filter_conv.bias[negative] = -bias
    for dy, dx in product((0, 1), (0, 1)):
        for block, count in ((first, 3), (second, 12)):
            start = (2 * dy + dx) * count
            conv = block.downsamplers[0].conv
            conv.weight[start : start + count, :count, dy, dx] = torch.eye(count)
        quarter = filters[:, :, 4 * dy : 4 * dy + 4, 4 * dx : 4 * dx + 4]
        halves = quarter.reshape(channels, 3, 2, 2, 2, 2)  # c, then y and x from coarse to fine
        weights = halves.permute(0, 2, 4, 3, 5, 1).reshape(channels, 48)
        filter_conv.weight[positive, :48, dy, dx] = weights
        filter_conv.weight[negative, :48, dy, dx] = -weights
    share_of_constants = (width - 2 * per_group) / width
    encoder.conv_norm_out.weight.fill_(_ENCODER_CONSTANT * share_of_constants**0.5)
    encoder.conv_out.weight[latent, positive, 1, 1] = 1.0
    encoder.conv_out.weight[latent, negative, 1, 1] = -1.0
    encoder.conv_out.bias[channels:] = _LOG_VARIANCE


@torch.no_grad()
def read_components(
    vae: AutoencoderKL, channels: int, factor: int = FACTOR
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read the filters and the bias of an installed encoder from its response to single pixels."""
    impulses = torch.eye(3 * factor * factor).reshape(-1, 3, factor, factor)
    black = torch.zeros(1, 3, factor, factor)
    latents = vae.encode(torch.cat([black, impulses])).latent_dist.mode()[..., 0, 0]
    bias, filters = latents[0], (latents[1:] - latents[0]).T
    return filters.reshape(channels, 3, factor, factor).contiguous(), bias


def encode_linear(images: torch.Tensor, filters: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Encode [N, 3, H, W] to [N, C, H/8, W/8] by one convolution, as the installed encoder does."""
    return F.conv2d(images, filters, bias, stride=filters.shape[-1])


def calm_residuals(vae: AutoencoderKL) -> None:
    """Start the decoder's residual blocks as identities."""
    for name, module in vae.decoder.named_modules():
        if name.endswith("conv2"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)


@torch.no_grad()
def steady_norms(vae: AutoencoderKL) -> None:
    """Start the decoder with two constant channels in each group of its norms.

    These channels pass through all layers and make the norms' scale nearly independent of the
    picture. Without them, the colours of flat pictures change. The layers outside the residual
    branches (the first one, shortcuts and upsamplers) start with weights that keep the scale of
    their input.
    """
    decoder = vae.decoder
    decoder.conv_in.weight.mul_(3**0.5)
    before = _constants(decoder.conv_in.out_channels, decoder.conv_norm_out.num_groups)
    decoder.conv_in.weight[before] = 0
    constants = torch.tensor([_DECODER_CONSTANT, -_DECODER_CONSTANT])
    decoder.conv_in.bias[before] = constants.repeat(len(before) // 2)
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
            conv.weight[after] = 0
            conv.bias[after] = 0
            centre = conv.kernel_size[0] // 2
            inputs = before if conv is shortcut else after
            conv.weight[after, inputs, centre, centre] = 1
        before = after


def _constants(channels: int, groups: int) -> torch.Tensor:
    """Return the indices of the last two channels of every group."""
    ends = channels // groups * torch.arange(1, groups + 1)
    return torch.stack([ends - 2, ends - 1], dim=1).flatten()


def picture_bank(draw: Draw, count: int, size: int) -> np.ndarray:
    """Return the targets of the first training scenes, uint8 [count, size, size, 3]."""
    examples = tqdm(draw(range(count), size), desc="pictures", total=count)
    return np.stack([target for _, target, _, _ in examples])


def reconstruction_loss(
    vae: AutoencoderKL, images: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Return the decoder's loss, for latents with a little noise that keeps them smooth.

    It sums L1 and L2 of the pixels, L1 of the differences of neighbours (with weight 1/4), and L1
    of the means of 8x8 pixels.
    """
    noise = torch.randn(latents.shape, generator=generator, device=latents.device)
    with torch.autocast(latents.device.type, torch.bfloat16):
        decoded = vae.decoder(latents + _LATENT_NOISE * noise).float()
    error = decoded - images
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    tones = F.avg_pool2d(error, 8).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.25 * edges + tones
