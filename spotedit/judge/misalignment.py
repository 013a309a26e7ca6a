"""Does the whole picture move, grow or change colour between the source and the edit?

Editors sometimes shift or zoom the frame by a few per cent. Then no token matches its place in the
source and nothing can be reused, although little was edited. Candidate zooms of the source's
latents are each registered on the predicted clean ones by phase correlation; the best one counts
only if it explains the difference, and nearly everywhere where it would make one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MUCH = 0.5  # share of the tokens judged to change below which nobody needs to look
ZOOMS = tuple(1 + step / 100 for step in (*range(-10, 0), *range(1, 11), 0))
REACH = 6  # a shift is at most the frame's side divided by it
SMOOTH = 1.0  # cells, of the Gaussian that both pictures pass: fine latents do not follow a shift
BLOCKS = 8  # the frame is looked at in BLOCKS x BLOCKS parts
LEAST = 0.75  # cells that the frame's edge has to move
# how much of the difference has to go, where the source may fit better, how alike both are then
MOVED = (0.4, 0.04, 0.9)
COLOURED = (0.93, 0.02, 0.9)
# a part stands still where it differs by less than this share of the mean; so many may, of colours
STILL = (0.02, 0.12)


@dataclass(frozen=True)
class Misalignment:
    """How the frame of the edit differs from the source's.

    Attributes:
        kind: "shift", "zoom" or "colour".
        shift: (down, right) in output pixels: where the source's centre went.
        scale: size of the edit's content over the source's; 1 = unchanged.
        confidence: share of the squared difference that this explains, 0..1.
    """

    kind: str
    shift: tuple[float, float]
    scale: float
    confidence: float

    def __str__(self) -> str:
        if self.kind == "colour":
            return "the colours of the whole picture changed"
        down, right = self.shift
        moved = f"moved by {down:+.0f} px down, {right:+.0f} px right"
        return moved if self.kind == "shift" else f"scaled by {self.scale:.2f} and {moved}"


def detect(edit: Tensor, source: Tensor, pixels: float) -> Misalignment | None:
    """The transformation of the whole frame that turns the source into the edit, or None.

    None also for local edits, whatever their size, for other pictures and for new textures. Reads
    the device once.

    Args:
        edit, source: predicted clean latents and the source's, [C, h, w]; on less than 16 x 16
            cells the answer is None.
        pixels: side of a cell in output pixels.
    """
    sides = edit.shape[1:]
    if min(sides) < 16:
        return None
    # half precision has no FFT of every size
    with torch.autocast(edit.device.type, enabled=False):
        edit, source = edit.float(), source.float()
        colour = _fit(edit, source, _affine(edit, source), torch.ones_like(edit[0]))
        place, moved = _register(_smooth(edit), _smooth(source))
        still = _still(edit, source)[None]
        down, right, scale, *fits, still_parts = torch.cat([place, moved, colour, still]).tolist()
    reach = [
        abs(by) + abs(scale - 1) * side / 2 for by, side in zip((down, right), sides, strict=True)
    ]
    whole = still_parts <= STILL[1]
    if whole and _holds(fits[3:], COLOURED) and fits[3] > fits[0]:
        return Misalignment("colour", (0.0, 0.0), 1.0, fits[3])
    if _holds(fits[:3], MOVED) and max(reach) >= LEAST:
        kind = "zoom" if abs(scale - 1) * max(sides) / 2 >= LEAST else "shift"
        return Misalignment(kind, (down * pixels, right * pixels), scale, fits[0])
    return None


def _holds(fit: Sequence[float], limits: tuple[float, float, float]) -> bool:
    explained, against, alike = fit
    return explained >= limits[0] and against <= limits[1] and alike >= limits[2]


def _affine(edit: Tensor, source: Tensor) -> Tensor:
    """The source with each channel's mean and slope fitted to the edit's."""
    a, b = (z - z.mean((1, 2), keepdim=True) for z in (edit, source))
    slope = (a * b).sum((1, 2), keepdim=True) / b.square().sum((1, 2), keepdim=True).clamp_min(1e-9)
    return slope * b + edit.mean((1, 2), keepdim=True)


def _still(edit: Tensor, source: Tensor) -> Tensor:
    """Share of the parts that hardly differ, fp32 scalar: many of them where a large object alone
    has another colour."""
    difference = F.adaptive_avg_pool2d((edit - source).square().sum(0)[None], BLOCKS)
    return (difference < STILL[0] * difference.mean()).float().mean()


def _fit(edit: Tensor, source: Tensor, changed: Tensor, known: Tensor) -> Tensor:
    """How well `changed`, made of the source [C, h, w], fits the edit where `known` [h, w] is 1.

    Returns:
        fp32 [3]: share of the squared difference to the source that it removes; share of its own
        changes, by size, that lie in parts where the source fits better; its correlation with the
        edit, over the channels.
    """

    def parts(a: Tensor, b: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(((a - b).square().sum(0) * known)[None], BLOCKS)

    old, new, change = parts(edit, source), parts(edit, changed), parts(changed, source)
    a, b = (
        (z - (z * known).sum((1, 2), keepdim=True) / known.sum()) * known for z in (edit, changed)
    )
    alike = (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp_min(1e-9)
    against = (change * (new > old)).sum() / change.sum().clamp_min(1e-9)
    least = 1e-3 * edit.square().mean() * len(edit)  # equal pictures have nothing to explain
    return torch.stack([1 - (new.mean() + least) / (old.mean() + least), against, alike])


def _smooth(z: Tensor) -> Tensor:
    """z [C, h, w] without the means of its channels and what is finer than `SMOOTH` cells."""
    reach = int(3 * SMOOTH)
    taps = torch.arange(-reach, reach + 1, device=z.device)
    taps = torch.exp(-(taps**2) / (2 * SMOOTH**2))
    taps = (taps / taps.sum()).expand(len(z), 1, 1, -1)
    z = F.pad(z[None], (reach,) * 4, mode="replicate")
    z = F.conv2d(F.conv2d(z, taps, groups=len(taps)), taps.mT, groups=len(taps))[0]
    return z - z.mean((1, 2), keepdim=True)


def _register(edit: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The zoom and shift that explain most: down and right in cells, scale [3]; its `_fit` [3]."""
    none = torch.zeros(len(ZOOMS), device=edit.device)
    scale = torch.tensor(ZOOMS, device=edit.device)
    zoomed, _ = _warp(source, scale, none, none)
    down, right = _shift(edit, zoomed)
    changed, known = _warp(source, scale, down, right)
    fits = [_fit(edit, source, z, ok) for z, ok in zip(changed, known, strict=True)]
    fit = torch.stack(fits)
    best = fit[:, 0].argmax(keepdim=True)
    return torch.stack([down, right, scale])[:, best].flatten(), fit[best].flatten()


def _warp(z: Tensor, scale: Tensor, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """z [C, h, w] enlarged about the centre, then moved: [K, C, h, w]; [K, h, w], 1 = known."""
    height, width = z.shape[1:]
    axes = []
    for side, by in ((height, down), (width, right)):
        centred = torch.arange(side, device=z.device) + 0.5 - side / 2
        axes.append((centred - by[:, None]) / scale[:, None] / (side / 2))  # [K, side], -1..1
    rows, cols = axes
    places = torch.stack(
        [cols[:, None].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], dim=-1
    )
    inside = (rows.abs() <= 1)[:, :, None] & (cols.abs() <= 1)[:, None]
    source = z.expand(len(scale), -1, -1, -1)
    warped = F.grid_sample(
        source, places, mode="bicubic", padding_mode="border", align_corners=False
    )
    return warped, inside.float()


def _shift(edit: Tensor, sources: Tensor) -> tuple[Tensor, Tensor]:
    """Phase correlation of [C, h, w] with each of [K, C, h, w]: down, right [K] in cells."""
    height, width = edit.shape[1:]
    windows = [torch.hann_window(n, periodic=False, device=edit.device) for n in (height, width)]
    window = windows[0][:, None] * windows[1]
    cross = (torch.fft.rfft2(edit * window) * torch.fft.rfft2(sources * window).conj()).sum(1)
    fine = [
        torch.fft.fftfreq(height, device=edit.device)[:, None].square(),
        torch.fft.rfftfreq(width, device=edit.device).square(),
    ]
    low = torch.exp(-(fine[0] + fine[1]) / (2 * 0.12**2))
    surface = torch.fft.irfft2(cross / cross.abs().clamp_min(1e-9) * low, s=(height, width))
    reach = [height // REACH, width // REACH]
    near = surface.roll(reach, dims=(1, 2))[:, : 2 * reach[0] + 1, : 2 * reach[1] + 1]
    at = near.flatten(1).argmax(dim=1)
    peak = [at // near.shape[2], at % near.shape[2]]
    each = torch.arange(len(near), device=edit.device)
    found = []
    for axis in range(2):
        steps = []
        for step in (-1, 0, 1):
            place = list(peak)
            place[axis] = (place[axis] + step).clamp(0, near.shape[axis + 1] - 1)
            steps.append(near[each, place[0], place[1]])
        below, top, above = steps
        curve = (2 * top - below - above).clamp_min(1e-9)
        found.append(peak[axis] - reach[axis] + ((above - below) / (2 * curve)).clamp(-0.5, 0.5))
    return found[0], found[1]
