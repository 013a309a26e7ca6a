"""JPEG without re-encoding: only the blocks that the edit touches get new coefficients.

A JPEG file holds blocks of 8 x 8 samples as quantised coefficients. Those of all other blocks are
read by jpeglib, and written again as they are. So these blocks decode to the same pixels, but for
the nearest row of pixels where colour is stored at a lower resolution, as decoders smooth it.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..composite import Placed, paste
from ..pixels import pixels_of
from .jpeg_entropy import Component, compressed_data
from .jpeg_segments import APP0, APP14, DAC, DHT, DRI, Segment, join
from .rewritten import NEEDS_PHOTOS, Rewritten

_PROGRESSIVE = 0xC2
_READABLE = (0xC0, 0xC1, _PROGRESSIVE)  # frames in Huffman codes: baseline, extended, progressive
_SIDE = 8  # of a block
_LARGEST = 1023  # absolute value of a coefficient
_PIXELS_AT_A_TIME = 2**20
_FREQUENCIES = np.arange(_SIDE)[:, None] * (2 * np.arange(_SIDE) + 1) * np.pi / (2 * _SIDE)
_DCT = (np.cos(_FREQUENCIES) * np.where(np.arange(_SIDE) > 0, 0.5, 8**-0.5)[:, None]).astype("f4")
# From red, green and blue to luma and two differences of colour (ITU-T T.871).
_YCC = np.array(
    [
        [0.299, 0.587, 0.114],
        [-0.299 / 1.772, -0.587 / 1.772, 0.5],
        [0.5, -0.587 / 1.402, -0.114 / 1.402],
    ],
    dtype=np.float32,
)
_YCC_ZERO = np.array([0, 128, 128], dtype=np.float32)

Edges = tuple[int, int, int, int]  # left, top, right and bottom, in pixels


class Unsupported(Exception):
    """Raised when the blocks of a file cannot be changed one by one. The message says why."""


@dataclass(frozen=True)
class _Plane:
    """A colour component of the file.

    Attributes:
        blocks: int16 [rows, cols, 8, 8], quantised coefficients.
        table: [8, 8], what they are multiplied by.
        identifier, across, down: see `Component`.
        wide, high: pixels of the picture for one sample.
    """

    blocks: np.ndarray
    table: np.ndarray
    identifier: int
    across: int
    down: int
    wide: int
    high: int


def rewritten(
    data: bytes,
    segments: Sequence[Segment],
    scans: bytes,
    kept: Sequence[Segment],
    edit: Placed,
) -> Rewritten:
    """Return the file with the edit in it.

    Args:
        data: the file.
        segments, scans: its segments before the compressed data, and the rest.
        kept: the segments of metadata to write.

    Raises:
        Unsupported: jpeglib is absent or cannot read the file, or the result is not exact.
    """
    frame = next(segment for segment in segments if segment.is_frame)
    if frame.marker not in _READABLE or frame.body[0] != 8:
        raise Unsupported("its kind of JPEG is a rare one")
    colours = _colours(segments, frame)
    with Image.open(BytesIO(data)) as image:
        pixels = pixels_of(image)  # raises if the data is damaged
    planes = _read(segments, scans, frame)
    notes = paste(pixels, edit)
    size = pixels.values.shape[1], pixels.values.shape[0]
    for box in _boxes(edit, size, planes):
        _replace_blocks(planes, colours, pixels.values, edit, box)
    del pixels
    components = [
        Component(plane.blocks, plane.identifier, plane.across, plane.down) for plane in planes
    ]
    restart = next((segment.body for segment in segments if segment.marker == DRI), b"")
    is_progressive = frame.marker == _PROGRESSIVE
    compressed = compressed_data(components, is_progressive, int.from_bytes(restart, "big"))
    coding = [
        segment
        for segment in segments
        if not segment.is_metadata and segment.marker not in (DHT, DAC)
    ]
    result = join([*kept, *coding], compressed)
    _verify(data, result, edit, size, planes)
    return Rewritten(result, notes)


def _colours(segments: Sequence[Segment], frame: Segment) -> str:
    """Return what the components are: "grey", "ycc", "rgb", "cmyk" or "ycck".

    libjpeg has the same rules.
    """
    num_components = frame.body[5]
    adobe = next((s.body for s in segments if s.marker == APP14 and s.body[:5] == b"Adobe"), None)
    transform = None if adobe is None else adobe[11]
    if num_components == 1:
        return "grey"
    if num_components == 4:
        return "ycck" if transform == 2 else "cmyk"
    if num_components != 3:
        raise Unsupported("it has two colour components")
    has_jfif = any(segment.marker == APP0 for segment in segments)
    identifiers = frame.body[6::3][:3]
    if has_jfif or transform == 1:
        return "ycc"
    return "rgb" if transform == 0 or identifiers == b"RGB" else "ycc"


def _read(segments: Sequence[Segment], scans: bytes, frame: Segment) -> list[_Plane]:
    """Return the coefficients of the file."""
    try:
        import jpeglib
    except ImportError:
        raise Unsupported(NEEDS_PHOTOS) from None
    # without metadata, of which jpeglib stores a limited number of segments only
    bare = [s for s in segments if not s.is_metadata or s.says_how_to_decode]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        path.write_bytes(join(bare, scans))
        try:
            file: Any = jpeglib.read_dct(path)
            file.load()
        except OSError:
            raise Unsupported("jpeglib cannot read it") from None
    num_components = frame.body[5]
    found = [array for array in (file.Y, file.Cb, file.Cr, file.K) if array is not None]
    entries = [frame.body[6 + 3 * index : 9 + 3 * index] for index in range(num_components)]
    factors = [(entry[1] >> 4, entry[1] & 15) for entry in entries]
    most_across, most_down = (max(column) for column in zip(*factors, strict=True))
    is_whole = all(most_across % across == most_down % down == 0 for across, down in factors)
    if len(found) != num_components or not is_whole:
        raise Unsupported("its sampling is a rare one")
    planes = []
    for index, (entry, (across, down)) in enumerate(zip(entries, factors, strict=True)):
        table = np.asarray(file.qt[file.quant_tbl_no[index]], dtype=np.float32)
        blocks, identifier = np.ascontiguousarray(found[index]), entry[0]
        wide, high = most_across // across, most_down // down
        planes.append(_Plane(blocks, table, identifier, across, down, wide, high))
    return planes


def _mcu(planes: Sequence[_Plane]) -> tuple[int, int]:
    """Return the width and the height, in pixels, of the smallest unit of whole blocks."""
    return _SIDE * max(plane.wide for plane in planes), _SIDE * max(plane.high for plane in planes)


def _boxes(edit: Placed, size: tuple[int, int], planes: Sequence[_Plane]) -> Iterator[Edges]:
    """Yield boxes of whole MCUs that together cover the edit. The last may exceed the picture."""
    left, top, right, bottom = edit.extent(size)
    wide, high = _mcu(planes)
    left, right = left // wide * wide, -(-right // wide) * wide
    top, bottom = top // high * high, -(-bottom // high) * high
    rows = max(1, _PIXELS_AT_A_TIME // (max(1, right - left) * high)) * high
    for start in range(top, bottom, rows):
        yield left, start, right, min(start + rows, bottom)


def _replace_blocks(
    planes: Sequence[_Plane], colours: str, values: np.ndarray, edit: Placed, box: Edges
) -> None:
    """Give the blocks in the box that the edit touches the coefficients of new pixels.

    Args:
        colours: see `_colours`.
        values: the pixels of the whole picture, [H, W, C].
        box: whole MCUs.
    """
    left, top, right, bottom = box
    part = values[top:bottom, left:right]
    height, width, _ = part.shape
    missing = ((0, bottom - top - height), (0, right - left - width))
    samples = _samples(np.pad(part, (*missing, (0, 0)), mode="edge"), colours)
    shows = edit.opacity(
        (values.shape[1], values.shape[0]), (left, top, left + width, top + height)
    )
    is_touched = np.pad(shows > 0, missing)
    for index, plane in enumerate(planes):
        side_x, side_y = _SIDE * plane.wide, _SIDE * plane.high
        rows, cols = (bottom - top) // side_y, (right - left) // side_x
        pooled = samples[..., index].reshape(rows * _SIDE, plane.high, cols * _SIDE, plane.wide)
        blocks = pooled.mean(axis=(1, 3)).reshape(rows, _SIDE, cols, _SIDE).swapaxes(1, 2)
        coefficients = _DCT @ (blocks - 128) @ _DCT.T / plane.table
        old = plane.blocks[top // side_y :, left // side_x :][:rows, :cols]
        touched: np.ndarray = is_touched.reshape(rows, side_y, cols, side_x).max(axis=(1, 3))
        touched = touched[: old.shape[0], : old.shape[1]]
        new = np.clip(np.rint(coefficients), -_LARGEST, _LARGEST)[: old.shape[0], : old.shape[1]]
        old[touched] = new[touched]


def _samples(pixels: np.ndarray, colours: str) -> np.ndarray:
    """Return the samples of a file, 0..255 [h, w, components], for pixels as Pillow shows them."""
    values = pixels.astype(np.float32)
    if colours == "ycc":
        return values @ _YCC.T + _YCC_ZERO
    if colours == "cmyk":  # such files hold the paper that shows, not the ink
        return 255 - values
    if colours == "ycck":
        ink = values[..., :3] @ _YCC.T + _YCC_ZERO
        return np.concatenate([ink, 255 - values[..., 3:]], axis=-1)
    return values


def _verify(
    data: bytes, result: bytes, edit: Placed, size: tuple[int, int], planes: Sequence[_Plane]
) -> None:
    """Compare both files, decoded, outside the blocks that the edit touches.

    Raises:
        Unsupported: they differ there.
    """
    wide, high = _mcu(planes)
    # where colour has a lower resolution, decoders smooth it over the edges of blocks
    reach_x, reach_y = (side // _SIDE if side > _SIDE else 0 for side in (wide, high))
    rows = max(1, _PIXELS_AT_A_TIME // (size[0] * high)) * high
    with Image.open(BytesIO(data)) as before, Image.open(BytesIO(result)) as after:
        before.load()
        after.load()
        if before.size != after.size or before.mode != after.mode:
            raise Unsupported("the result would be another picture")
        for top in range(0, size[1], rows):
            box = (0, top, size[0], min(top + rows, size[1]))
            around = (0, max(0, top - high), size[0], min(box[3] + high, size[1]))
            shows = edit.opacity(size, around) > 0
            touched = _spread(_whole_mcus(shows, wide, high), reach_x, reach_y)
            touched = touched[top - around[1] :][: box[3] - top]
            difference = np.asarray(before.crop(box)) != np.asarray(after.crop(box))
            differs = difference.any(axis=-1) if difference.ndim == 3 else difference
            if (differs & ~touched).any():
                raise Unsupported("the result would not be exact")


def _whole_mcus(shows: np.ndarray, wide: int, high: int) -> np.ndarray:
    """Return bool [H, W], True in every MCU in which a pixel is True."""
    height, width = shows.shape
    padded = np.pad(shows, ((0, -height % high), (0, -width % wide)))
    rows, cols = padded.shape[0] // high, padded.shape[1] // wide
    mcus = padded.reshape(rows, high, cols, wide).any(axis=(1, 3))
    return mcus.repeat(high, axis=0).repeat(wide, axis=1)[:height, :width]


def _spread(mask: np.ndarray, reach_x: int, reach_y: int) -> np.ndarray:
    """Return the mask with the pixels that are near to a True one, along both axes."""
    spread = mask.copy()
    for axis, reach in ((0, reach_y), (1, reach_x)):
        source = spread.copy()
        for distance in range(1, reach + 1):
            ahead, behind = np.s_[distance:], np.s_[:-distance]
            along = (slice(None),) * axis
            spread[(*along, ahead)] |= source[(*along, behind)]
            spread[(*along, behind)] |= source[(*along, ahead)]
    return spread
