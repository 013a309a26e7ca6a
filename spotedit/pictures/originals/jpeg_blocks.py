"""JPEG without re-encoding: only the blocks that the edit touches get new coefficients.

A JPEG file holds blocks of 8 x 8 samples as quantised coefficients. jpeglib reads those of all
other blocks, and writes them as they are. So these blocks decode to the same pixels, but for the
nearest row of pixels where colour is stored at a lower resolution, as decoders smooth it.
"""

import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from ..composite import Edges, Placed, paste
from ..pixels import pixels_of
from .jpeg_segments import PROGRESSIVE, Segment, join, split
from .rewritten import NEEDS_PHOTOS, Rewritten

_READABLE = (0xC0, 0xC1, PROGRESSIVE)  # frames in Huffman codes: baseline, extended, progressive
_COLOURS = {"JCS_GRAYSCALE": "grey", "JCS_RGB": "rgb", "JCS_YCbCr": "ycc"}
_SIDE = 8  # of a block
_SMALLEST, _LARGEST = -1024, 1023  # coefficients
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
_jpeglib_lock = threading.Lock()  # jpeglib keeps what it reads of a file in global variables


class Unsupported(Exception):
    """Raised when the blocks of a file cannot be changed one by one. The message says why."""


@dataclass(frozen=True)
class _Plane:
    """A colour component of the file.

    Attributes:
        blocks: int16 [rows, cols, 8, 8], quantised coefficients.
        table: [8, 8], what they are multiplied by.
        wide, high: pixels of the picture for one sample.
    """

    blocks: np.ndarray
    table: np.ndarray
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
        Unsupported: jpeglib is absent or cannot handle the file, or the result is not exact.
    """
    coding = [segment for segment in segments if not segment.is_metadata]
    if not any(segment.marker in _READABLE for segment in coding):
        raise Unsupported("its kind of JPEG is a rare one")
    with Image.open(BytesIO(data)) as image:
        pixels = pixels_of(image)  # raises if the data is damaged
    # jpeglib stores a limited number of segments of metadata
    described = [segment for segment in kept if segment.says_how_to_decode]
    file = _read(join([*described, *coding], scans))
    planes = _planes(file)
    notes = paste(pixels, edit)
    touched = _replace_blocks(planes, _COLOURS[file.jpeg_color_space.name], pixels.values, edit)
    del pixels
    new_segments, new_scans = split(_written(file, planes))
    new_coding = [segment for segment in new_segments if not segment.is_metadata]
    result = join([*kept, *new_coding], new_scans)
    _verify(data, result, touched, _mcu(planes))
    return Rewritten(result, notes)


def _read(data: bytes) -> Any:
    """Return jpeglib's object of a file, with the coefficients."""
    try:
        import jpeglib
    except ImportError:
        raise Unsupported(NEEDS_PHOTOS) from None
    with tempfile.TemporaryDirectory() as folder, _jpeglib_lock:
        path = Path(folder) / "picture.jpg"
        path.write_bytes(data)
        try:
            file = jpeglib.read_dct(path)
            file.load()
        except OSError:
            raise Unsupported("jpeglib cannot read it") from None
    if file.jpeg_color_space.name not in _COLOURS:
        raise Unsupported("jpeglib cannot write CMYK")
    return file


def _planes(file: Any) -> list[_Plane]:
    """Return the components of a file, whose blocks are those of jpeglib's object."""
    highest, widest = file.samp_factor.max(axis=0)
    if (file.samp_factor.max(axis=0) % file.samp_factor).any():
        raise Unsupported("its sampling is a rare one")
    planes = []
    for index, (down, across) in enumerate(file.samp_factor):
        blocks = (file.Y, file.Cb, file.Cr)[index]
        if blocks.min() < _SMALLEST or blocks.max() > _LARGEST:
            raise Unsupported("it is damaged")  # jpeglib would fail, and leave a temporary file
        table = file.get_component_qt(index).astype(np.float32)
        planes.append(_Plane(blocks, table, int(widest // across), int(highest // down)))
    return planes


def _written(file: Any, planes: Sequence[_Plane]) -> bytes:
    """Return a sequential file with the coefficients of the planes.

    Raises:
        Unsupported: jpeglib has not written these coefficients.
    """
    file.markers = []
    file.qt = 0  # not an array: so the tables and the components' numbers stay those of the file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.jpg"
        try:
            with _jpeglib_lock:
                file.write_dct(path, flags=["+OPTIMIZE_CODING"])
        except OSError:
            raise Unsupported("jpeglib cannot write it") from None
        data = path.read_bytes()
    for plane, again in zip(planes, _planes(_read(data)), strict=True):
        if not np.array_equal(plane.blocks, again.blocks):
            raise Unsupported("the result would not be exact")
    return data


def _mcu(planes: Sequence[_Plane]) -> tuple[int, int]:
    """Return the width and the height, in pixels, of the smallest unit of whole blocks (MCU)."""
    return _SIDE * max(plane.wide for plane in planes), _SIDE * max(plane.high for plane in planes)


def _replace_blocks(
    planes: Sequence[_Plane], colours: str, values: np.ndarray, edit: Placed
) -> np.ndarray:
    """Give the blocks that the edit touches the coefficients of new pixels.

    Args:
        colours: "grey", "rgb" or "ycc", what the planes are.
        values: the pixels of the whole picture, [H, W, C].

    Returns:
        bool [rows, cols], which MCUs the edit touches.
    """
    height, width, _ = values.shape
    wide, high = _mcu(planes)
    touched_mcus = np.zeros((-(-height // high), -(-width // wide)), dtype=bool)
    for left, top, right, bottom in _boxes(edit, (width, height), (wide, high)):
        part = values[top:bottom, left:right]
        missing = ((0, bottom - top - part.shape[0]), (0, right - left - part.shape[1]))
        samples = _samples(np.pad(part, (*missing, (0, 0)), mode="edge"), colours)
        box = left, top, left + part.shape[1], top + part.shape[0]
        is_touched = np.pad(edit.opacity((width, height), box) > 0, missing)
        touched_mcus[top // high : bottom // high, left // wide : right // wide] = _any_in(
            is_touched, wide, high
        )
        for index, plane in enumerate(planes):
            side_x, side_y = _SIDE * plane.wide, _SIDE * plane.high
            old = plane.blocks[top // side_y : bottom // side_y, left // side_x : right // side_x]
            rows, cols = old.shape[:2]  # blocks that only fill the last MCU are not among them
            new = _coefficients(samples[..., index], plane)[:rows, :cols]
            touched = _any_in(is_touched, side_x, side_y)[:rows, :cols]
            old[touched] = new[touched]
    return touched_mcus


def _boxes(edit: Placed, size: tuple[int, int], mcu: tuple[int, int]) -> Iterator[Edges]:
    """Yield boxes of whole MCUs that together cover the edit. The last may exceed the picture."""
    left, top, right, bottom = edit.extent(size)
    wide, high = mcu
    left, right = left // wide * wide, -(-right // wide) * wide
    top, bottom = top // high * high, -(-bottom // high) * high
    rows = max(1, _PIXELS_AT_A_TIME // (max(1, right - left) * high)) * high
    for start in range(top, bottom, rows):
        yield left, start, right, min(start + rows, bottom)


def _any_in(mask: np.ndarray, wide: int, high: int) -> np.ndarray:
    """Return in which parts of `wide` x `high` pixels the mask [H, W] is True somewhere."""
    rows, cols = mask.shape[0] // high, mask.shape[1] // wide
    return np.asarray(mask.reshape(rows, high, cols, wide).any(axis=(1, 3)))


def _samples(pixels: np.ndarray, colours: str) -> np.ndarray:
    """Return the samples of a file, 0..255 [h, w, components], for pixels as Pillow shows them."""
    values = pixels.astype(np.float32)
    return values @ _YCC.T + _YCC_ZERO if colours == "ycc" else values


def _coefficients(samples: np.ndarray, plane: _Plane) -> np.ndarray:
    """Return the quantised coefficients [rows, cols, 8, 8] of samples, one a pixel: [h, w]."""
    rows, cols = samples.shape[0] // (_SIDE * plane.high), samples.shape[1] // (_SIDE * plane.wide)
    pooled = samples.reshape(rows * _SIDE, plane.high, cols * _SIDE, plane.wide).mean(axis=(1, 3))
    blocks = pooled.reshape(rows, _SIDE, cols, _SIDE).swapaxes(1, 2)
    coefficients = _DCT @ (blocks - 128) @ _DCT.T / plane.table
    return np.clip(np.rint(coefficients), -_LARGEST, _LARGEST)


def _verify(data: bytes, result: bytes, touched: np.ndarray, mcu: tuple[int, int]) -> None:
    """Compare both files, as Pillow shows them, away from the MCUs that the edit touches.

    Raises:
        Unsupported: they differ there.
    """
    wide, high = mcu
    # where colour has a lower resolution, decoders smooth it over the edges of MCUs
    near = Image.fromarray(touched.astype(np.uint8)).filter(ImageFilter.MaxFilter(3))
    is_far = np.asarray(near) == 0
    with Image.open(BytesIO(data)) as before, Image.open(BytesIO(result)) as after:
        if before.size != after.size or before.mode != after.mode:
            raise Unsupported("the result would be another picture")
        width, height = before.size
        rows = max(1, _PIXELS_AT_A_TIME // (width * high))
        for row in range(0, len(touched), rows):
            box = (0, row * high, width, min((row + rows) * high, height))
            counts = is_far[row : row + rows].repeat(high, axis=0).repeat(wide, axis=1)
            differs = np.asarray(before.crop(box)) != np.asarray(after.crop(box))
            if (np.atleast_3d(differs).any(axis=-1) & counts[: box[3] - box[1], :width]).any():
                raise Unsupported("the result would not be exact")
