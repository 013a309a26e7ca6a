"""Tiles by architecture and head dim, and the number of parts of the keys. Nothing is timed yet.

The tiles for half precision fit the shared memory and spill no registers, neither at head dims up
to 128 nor on compact queries; above 128, with an index, a split, an int8 cache or a mask spills up
to 216 bytes. In fp32 up to 16 bytes spill, and 360 on gfx942 at 512.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

MAX_HEAD_DIM = 512


class Tile(NamedTuple):
    """Queries and keys that a program handles at a time, and its launch options."""

    m: int
    n: int
    warps: int
    stages: int


# By the head dim padded to a power of two, at least 64.
TILES = {
    "sm_80": {64: Tile(128, 64, 8, 3), 128: Tile(128, 32, 8, 3), 256: Tile(64, 32, 8, 3),
              512: Tile(32, 32, 8, 2)},
    "sm_89": {64: Tile(128, 64, 8, 3), 128: Tile(128, 32, 8, 3), 256: Tile(64, 32, 8, 2),
              512: Tile(32, 32, 8, 1)},
    "sm_90": {64: Tile(128, 64, 8, 3), 128: Tile(128, 64, 8, 3), 256: Tile(128, 32, 8, 2),
              512: Tile(64, 16, 8, 2)},
    "sm_100": {64: Tile(128, 64, 8, 3), 128: Tile(128, 64, 8, 3), 256: Tile(64, 64, 8, 2),
               512: Tile(64, 16, 8, 2)},
    "gfx942": {64: Tile(128, 32, 8, 2), 128: Tile(128, 32, 8, 1), 256: Tile(64, 16, 8, 2),
               512: Tile(32, 16, 4, 2)},
}  # fmt: skip
DESCRIPTOR_TILES = {  # q, k and v come by tensor descriptor, which leaves registers free
    target: {64: Tile(128, 128, 8, 2), 128: Tile(128, 128, 8, 2), 256: Tile(128, 64, 8, 2),
             512: Tile(64, 32, 8, 2)}
    for target in ("sm_90", "sm_100")
}  # fmt: skip
INT8_TILES = {  # converting int8 keys and values takes registers: larger tiles spill
    "sm_80": {128: Tile(128, 32, 8, 2)},
    "sm_89": {128: Tile(64, 64, 8, 2)},
    "sm_90": {128: Tile(128, 32, 8, 3)},
    "sm_100": {128: Tile(128, 32, 8, 3)},
}
FP32_TILES = {64: Tile(64, 32, 8, 1), 128: Tile(32, 32, 8, 1), 256: Tile(32, 16, 8, 1),
              512: Tile(16, 16, 8, 1)}  # fmt: skip

SPLITS = (2, 3, 4, 6, 8)
SPLIT_COST = 0.05  # of each part, in passes over all keys: estimated traffic of its partial sums
MIN_IDLE = 0.15  # share of the multiprocessors that an unsplit grid must leave idle
MIN_KEYS = 1024  # a part


@cache
def device_target(device: torch.device) -> tuple[str, int]:
    """The row of `TILES` for a device, and its number of multiprocessors."""
    if not torch.cuda.is_available():  # interpreted, or traced without a device
        return "sm_90", 132
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return "gfx942", properties.multi_processor_count
    known = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}
    target = known.get((properties.major, properties.minor), "sm_89")  # the least shared memory
    return target, properties.multi_processor_count


def choose_tile(
    target: str, dtype: torch.dtype, head_dim: int, *, descriptors: bool = False, int8: bool = False
) -> Tile:
    """Return the tile on `target`, a key of `TILES`.

    `descriptors`: q, k and v come by tensor descriptor. `int8`: k and v are int8.
    """
    table = DESCRIPTOR_TILES[target] if descriptors else TILES[target]
    if dtype == torch.float32:
        table = FP32_TILES
    elif int8:
        table = table | INT8_TILES.get(target, {})
    return table[max(64, 1 << (head_dim - 1).bit_length())]


def choose_splits(tiles: int, keys: int, multiprocessors: int) -> int:
    """Into how many parts to split the keys of a grid that has so many tiles unsplit."""
    waves = -(-tiles // multiprocessors)
    if tiles >= (1 - MIN_IDLE) * waves * multiprocessors:
        return 1
    passes = {1: float(waves)}  # over all keys, of the busiest multiprocessor
    for n in SPLITS:
        if keys >= n * MIN_KEYS:
            passes[n] = -(-tiles * n // multiprocessors) / n + SPLIT_COST * n
    return min(passes, key=passes.__getitem__)
