"""Detect whether the whole picture moves, grows or changes colour between the source and the edit.

Editors sometimes shift or zoom the frame by a few per cent. Then no token matches its place in the
source and nothing can be reused, although little was edited.

The predicted clean latents of the edit are compared with those of the source:

1. The source is zoomed by each of `ZOOMS`. Phase correlation finds the shift of each zoomed source.
   The candidate that removes most of the difference to the edit is kept.
2. The source is also recoloured, by a linear function of each channel.
3. `Fit` says how well the moved and the recoloured source explain the edit. A candidate is accepted
   only if it removes enough of the difference and worsens hardly any part of the frame. This tells
   a change of the whole frame from a large edit.

A cell is one position of the latents. A part is one field of a coarse grid over the frame.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_CHANGED_SHARE = 0.5  # with fewer tokens judged to change, the frame need not be checked
MIN_CELLS = 16  # smaller latents are not checked
ZOOMS = tuple(1 + percent / 100 for percent in range(-10, 11))
MAX_SHIFT_DIVISOR = 6  # the largest shift is the frame's side divided by this
PARTS_PER_SIDE = 8
MIN_EDGE_MOVE = 0.75  # smallest move of the frame's edge that counts, in cells
# Fine detail in latents does not shift with the picture, so it is suppressed.
BLUR_SIGMA = 1.0  # of the Gaussian that blurs both latents, in cells
LOW_PASS_SIGMA = 0.12  # of the Gaussian over the correlation's frequencies, in cycles per cell
# A part is unchanged if its squared difference is below this share of the mean over all parts.
MAX_UNCHANGED_DIFFERENCE_SHARE = 0.02
# If more of the parts than this are unchanged, one large object changed colour, not the frame.
MAX_UNCHANGED_SHARE = 0.12
NEGLIGIBLE_DIFFERENCE = 1e-3  # as a share of the edit's mean square
EPSILON = 1e-9  # keeps divisors above 0


class Fit(NamedTuple):
    """How well a changed source explains the edit.

    Attributes:
        explained: share of the squared difference between edit and source that the change removes.
        worsened: how much of the change is harmful, 0..1: the share of its squared size that falls
            in parts where it increases the difference to the edit.
        correlation: correlation of the changed source with the edit, -1..1.
    """

    explained: float
    worsened: float
    correlation: float


class Limits(NamedTuple):
    """The limits within which a `Fit` is accepted."""

    min_explained: float
    max_worsened: float
    min_correlation: float


MOVE_LIMITS = Limits(min_explained=0.4, max_worsened=0.04, min_correlation=0.9)
COLOUR_LIMITS = Limits(min_explained=0.93, max_worsened=0.02, min_correlation=0.9)


class Measurements(NamedTuple):
    """What `_measure` reads from the device.

    Attributes:
        down, right: shift of the best candidate in cells.
        scale: zoom of the best candidate.
        move_fit: fit of the best candidate.
        colour_fit: fit of the recoloured source.
        unchanged_share: share of the parts that hardly differ between edit and source.
    """

    down: float
    right: float
    scale: float
    move_fit: Fit
    colour_fit: Fit
    unchanged_share: float


@dataclass(frozen=True)
class Misalignment:
    """How the frame of the edit differs from the source's.

    Attributes:
        kind: "shift", "zoom" or "colour".
        shift: (down, right) in output pixels, by which the centre of the source moved. Negative
            numbers mean up and left.
        scale: size of the edit's content divided by the source's; 1 = unchanged.
        confidence: share of the squared difference that this explains, 0..1.
    """

    kind: str
    shift: tuple[float, float]
    scale: float
    confidence: float

    def __str__(self) -> str:
        """Describe the change in one phrase. Benchmark rows contain it, signs included."""
        if self.kind == "colour":
            return "the colours of the whole picture changed"
        down, right = self.shift
        moved = f"moved by {down:+.0f} px down, {right:+.0f} px right"
        return moved if self.kind == "shift" else f"scaled by {self.scale:.2f} and {moved}"


def detect(edit: Tensor, source: Tensor, cell_pixels: float) -> Misalignment | None:
    """Return the change of the whole frame that turns the source into the edit, or None.

    The answer is also None for local edits of any size, for an unrelated picture, for new textures,
    and for latents of less than 16 x 16 cells. The device is read once.

    Args:
        edit: predicted clean latents, [C, h, w].
        source: latents of the source, [C, h, w].
        cell_pixels: side of a cell in output pixels.
    """
    height, width = edit.shape[1:]
    if min(height, width) < MIN_CELLS:
        return None
    # autocast would use half precision, in which FFTs do not support every size
    with torch.autocast(edit.device.type, enabled=False):
        measured = _measure(edit.float(), source.float())
    if _is_colour_change(measured):
        return Misalignment("colour", (0.0, 0.0), 1.0, measured.colour_fit.explained)
    # how far the frame's edges move: through the zoom alone, and with the shift added
    vertical_zoom = abs(measured.scale - 1) * height / 2
    horizontal_zoom = abs(measured.scale - 1) * width / 2
    edge_move = max(abs(measured.down) + vertical_zoom, abs(measured.right) + horizontal_zoom)
    if _is_within(measured.move_fit, MOVE_LIMITS) and edge_move >= MIN_EDGE_MOVE:
        is_zoom = max(vertical_zoom, horizontal_zoom) >= MIN_EDGE_MOVE
        kind = "zoom" if is_zoom else "shift"
        shift = (measured.down * cell_pixels, measured.right * cell_pixels)
        return Misalignment(kind, shift, measured.scale, measured.move_fit.explained)
    return None


def _is_colour_change(measured: Measurements) -> bool:
    return (
        measured.unchanged_share <= MAX_UNCHANGED_SHARE
        and _is_within(measured.colour_fit, COLOUR_LIMITS)
        and measured.colour_fit.explained > measured.move_fit.explained
    )


def _is_within(fit: Fit, limits: Limits) -> bool:
    return (
        fit.explained >= limits.min_explained
        and fit.worsened <= limits.max_worsened
        and fit.correlation >= limits.min_correlation
    )


def _measure(edit: Tensor, source: Tensor) -> Measurements:
    """Fit the moved and the recoloured source to the edit, and read the numbers in one transfer."""
    transform, move_fit = _register(_blur(edit), _blur(source))
    colour_fit = _fit(edit, source, _recolour(source, edit), torch.ones_like(edit[0]))
    unchanged_share = _unchanged_share(edit, source)
    numbers = torch.cat([transform, move_fit, colour_fit, unchanged_share[None]]).tolist()
    down, right, scale = numbers[:3]
    return Measurements(down, right, scale, Fit(*numbers[3:6]), Fit(*numbers[6:9]), numbers[9])


def _recolour(source: Tensor, edit: Tensor) -> Tensor:
    """Return the source with the mean and slope of each channel fitted to the edit, [C, h, w]."""
    centred_edit = edit - edit.mean((1, 2), keepdim=True)
    centred_source = source - source.mean((1, 2), keepdim=True)
    covariance = (centred_edit * centred_source).sum((1, 2), keepdim=True)
    variance = centred_source.square().sum((1, 2), keepdim=True)
    slope = covariance / variance.clamp_min(EPSILON)  # [C, 1, 1]
    return slope * centred_source + edit.mean((1, 2), keepdim=True)


def _unchanged_share(edit: Tensor, source: Tensor) -> Tensor:
    """Return the share of the parts that hardly differ between edit and source, fp32 scalar."""
    difference = _difference_by_part(edit, source, torch.ones_like(edit[0]))
    return (difference < MAX_UNCHANGED_DIFFERENCE_SHARE * difference.mean()).float().mean()


def _fit(edit: Tensor, source: Tensor, candidate: Tensor, known: Tensor) -> Tensor:
    """Measure how well `candidate`, which is a changed source, explains the edit.

    Args:
        edit, source, candidate: latents, [C, h, w].
        known: fp32 [h, w], 1 where `candidate` shows the source and 0 where it had to be filled in.

    Returns:
        The fields of `Fit`, fp32 [3].
    """
    source_error = _difference_by_part(edit, source, known)
    candidate_error = _difference_by_part(edit, candidate, known)
    change = _difference_by_part(candidate, source, known)
    # Added to both errors: equal pictures have nothing to explain, and 0 / 0 would be NaN. Like the
    # errors, it is summed over the channels.
    negligible = NEGLIGIBLE_DIFFERENCE * edit.square().mean() * len(edit)
    remaining = (candidate_error.mean() + negligible) / (source_error.mean() + negligible)
    worsened = (change * (candidate_error > source_error)).sum() / change.sum().clamp_min(EPSILON)
    return torch.stack([1 - remaining, worsened, _correlation(edit, candidate, known)])


def _difference_by_part(a: Tensor, b: Tensor, known: Tensor) -> Tensor:
    """Return the squared difference of [C, h, w] in each part: [1, parts, parts].

    It is summed over the channels and averaged over all cells of the part, where unknown cells
    count as 0.
    """
    squared = (a - b).square().sum(0) * known  # [h, w]
    return F.adaptive_avg_pool2d(squared[None], PARTS_PER_SIDE)


def _correlation(a: Tensor, b: Tensor, known: Tensor) -> Tensor:
    """Return the correlation of [C, h, w] where `known` is 1, over all channels, fp32 scalar."""
    a, b = _centre(a, known), _centre(b, known)
    product_of_squares = a.square().sum() * b.square().sum()
    return (a * b).sum() / product_of_squares.sqrt().clamp_min(EPSILON)


def _centre(z: Tensor, known: Tensor) -> Tensor:
    """Subtract each channel's mean over the known cells, and set the other cells to 0."""
    return (z - (z * known).sum((1, 2), keepdim=True) / known.sum()) * known


def _blur(z: Tensor) -> Tensor:
    """Blur latents [C, h, w] with a Gaussian, and subtract the mean of each channel."""
    radius = int(3 * BLUR_SIGMA)
    offsets = torch.arange(-radius, radius + 1, device=z.device)
    kernel = torch.exp(-(offsets**2) / (2 * BLUR_SIGMA**2))
    kernel = (kernel / kernel.sum()).expand(len(z), 1, 1, -1)  # [C, 1, 1, taps]
    padded = F.pad(z[None], (radius,) * 4, mode="replicate")
    blurred = F.conv2d(padded, kernel, groups=len(z))
    blurred = F.conv2d(blurred, kernel.mT, groups=len(z))[0]
    return blurred - blurred.mean((1, 2), keepdim=True)


def _register(edit: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """Find the zoom and shift of the source [C, h, w] that explain most of the edit.

    Returns:
        (down, right, scale), fp32 [3], the shift in cells; and the fields of `Fit`, fp32 [3].
    """
    scale = torch.tensor(ZOOMS, device=edit.device)  # [K], a candidate for each zoom
    no_shift = torch.zeros_like(scale)
    zoomed, _ = _zoom_and_shift(source, scale, no_shift, no_shift)
    down, right = _find_shift(edit, zoomed)
    moved, known = _zoom_and_shift(source, scale, down, right)
    fits = torch.stack(
        [
            _fit(edit, source, candidate, candidate_known)
            for candidate, candidate_known in zip(moved, known, strict=True)
        ]
    )  # [K, 3]
    best = fits[:, Fit._fields.index("explained")].argmax(keepdim=True)
    transforms = torch.stack([down, right, scale])  # [3, K]
    return transforms[:, best].flatten(), fits[best].flatten()


def _zoom_and_shift(z: Tensor, scale: Tensor, down: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Enlarge latents about the centre, then shift them.

    Args:
        z: latents, [C, h, w].
        scale, down, right: a zoom and a shift in cells for each of K results, fp32 [K].

    Returns:
        The moved latents, [K, C, h, w], and fp32 [K, h, w], which is 1 where they show `z` and 0
        where its border was repeated.
    """
    height, width = z.shape[1:]
    rows = _source_positions(height, scale, down)  # [K, h]
    cols = _source_positions(width, scale, right)  # [K, w]
    grid = torch.stack(
        [cols[:, None].expand(-1, height, -1), rows[:, :, None].expand(-1, -1, width)], dim=-1
    )  # [K, h, w, 2], x before y
    known = (rows.abs() <= 1)[:, :, None] & (cols.abs() <= 1)[:, None]
    moved = F.grid_sample(
        z.expand(len(scale), -1, -1, -1),
        grid,
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    return moved, known.float()


def _source_positions(side: int, scale: Tensor, shift: Tensor) -> Tensor:
    """Return where each cell of an axis comes from: [K, side], -1 and 1 are the frame's edges."""
    centred = torch.arange(side, device=scale.device) + 0.5 - side / 2
    return (centred - shift[:, None]) / scale[:, None] / (side / 2)


def _find_shift(edit: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Find by phase correlation how far each candidate has to move to match the edit.

    Args:
        edit: latents, [C, h, w].
        candidates: [K, C, h, w].

    Returns:
        down, right: in cells, to a fraction of a cell, fp32 [K] each.
    """
    height, width = edit.shape[1:]
    max_down, max_right = height // MAX_SHIFT_DIVISOR, width // MAX_SHIFT_DIVISOR
    surface = _correlation_surface(edit, candidates)  # [K, h, w]
    # keep the allowed shifts; the zero shift moves from [0, 0] to [max_down, max_right]
    surface = surface.roll((max_down, max_right), dims=(1, 2))
    surface = surface[:, : 2 * max_down + 1, : 2 * max_right + 1]
    num_rows, num_cols = surface.shape[1:]
    peak = surface.flatten(1).argmax(dim=1)
    row, col = peak // num_cols, peak % num_cols  # [K]
    candidate_index = torch.arange(len(surface), device=edit.device)

    def value_at(row: Tensor, col: Tensor) -> Tensor:
        row, col = row.clamp(0, num_rows - 1), col.clamp(0, num_cols - 1)
        return surface[candidate_index, row, col]

    top = value_at(row, col)
    row_fraction = _parabola_peak(value_at(row - 1, col), top, value_at(row + 1, col))
    col_fraction = _parabola_peak(value_at(row, col - 1), top, value_at(row, col + 1))
    return row - max_down + row_fraction, col - max_right + col_fraction


def _correlation_surface(edit: Tensor, candidates: Tensor) -> Tensor:
    """Return the phase correlation of [C, h, w] with each of [K, C, h, w]: [K, h, w]."""
    height, width = edit.shape[1:]
    device = edit.device
    window_rows = torch.hann_window(height, periodic=False, device=device)
    window_cols = torch.hann_window(width, periodic=False, device=device)
    window = window_rows[:, None] * window_cols
    edit_spectrum = torch.fft.rfft2(edit * window)
    candidate_spectra = torch.fft.rfft2(candidates * window)
    cross_power = (edit_spectrum * candidate_spectra.conj()).sum(1)  # over the channels
    phase = cross_power / cross_power.abs().clamp_min(EPSILON)
    squared_frequency = (
        torch.fft.fftfreq(height, device=device)[:, None].square()
        + torch.fft.rfftfreq(width, device=device).square()
    )
    low_pass = torch.exp(-squared_frequency / (2 * LOW_PASS_SIGMA**2))
    return torch.fft.irfft2(phase * low_pass, s=(height, width))


def _parabola_peak(before: Tensor, top: Tensor, after: Tensor) -> Tensor:
    """Return where a parabola through three neighbouring values peaks, -0.5..0.5 from `top`."""
    curvature = (2 * top - before - after).clamp_min(EPSILON)
    return ((after - before) / (2 * curvature)).clamp(-0.5, 0.5)
