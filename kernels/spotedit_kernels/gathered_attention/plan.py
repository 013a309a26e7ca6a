"""Choose the attention kernel's tile and the number of partitions of the keys.

The tiles were chosen by what they compile to, not by timing. In half precision they fit the shared
memory and spill no registers, with one exception: above head dim 128, an index, a split, an int8
cache or a mask makes them spill up to 216 bytes. In fp32 they spill up to 16 bytes, and 360 bytes
on gfx942 at head dim 512.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

MAX_HEAD_DIM = 512


class Tile(NamedTuple):
    """The launch options of one program, which handles `m` queries and `n` keys at a time."""

    m: int
    n: int
    warps: int
    stages: int


# The inner keys are the head dim, padded to a power of two and to at least 64.
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
# Tensor descriptors for q, k and v leave registers free, so these tiles are larger.
DESCRIPTOR_TILES = {
    target: {64: Tile(128, 128, 8, 2), 128: Tile(128, 128, 8, 2), 256: Tile(128, 64, 8, 2),
             512: Tile(64, 32, 8, 2)}
    for target in ("sm_90", "sm_100")
}  # fmt: skip
# Converting int8 keys and values takes registers: larger tiles spill.
INT8_TILES = {
    "sm_80": {128: Tile(128, 32, 8, 2)},
    "sm_89": {128: Tile(64, 64, 8, 2)},
    "sm_90": {128: Tile(128, 32, 8, 3)},
    "sm_100": {128: Tile(128, 32, 8, 3)},
}
FP32_TILES = {64: Tile(64, 32, 8, 1), 128: Tile(32, 32, 8, 1), 256: Tile(32, 16, 8, 1),
              512: Tile(16, 16, 8, 1)}  # fmt: skip

SPLITS = (2, 3, 4, 6, 8)  # numbers of partitions of the keys to consider
SPLIT_COST = 0.05  # estimated cost of a partition's partial sums, in passes over all keys
MIN_IDLE = 0.15  # split only if the unsplit grid leaves this share of the multiprocessors idle
MIN_KEYS = 1024  # least number of keys in a partition


@cache
def device_target(device: torch.device) -> tuple[str, int]:
    """Return a device's key in `TILES`, and its number of multiprocessors."""
    if not torch.cuda.is_available():  # interpreted, or traced without a device
        return "sm_90", 132
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return "gfx942", properties.multi_processor_count
    targets = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100", (10, 3): "sm_100"}
    # An unknown GPU gets the tiles for sm_89, which need the least shared memory.
    target = targets.get((properties.major, properties.minor), "sm_89")
    return target, properties.multi_processor_count


def choose_tile(
    target: str, dtype: torch.dtype, head_dim: int, *, descriptors: bool = False, int8: bool = False
) -> Tile:
    """Return the tile for `target`, a key of `TILES`.

    `descriptors`: q, k and v are read by tensor descriptor. `int8`: k and v are int8.
    """
    table = DESCRIPTOR_TILES[target] if descriptors else TILES[target]
    if dtype == torch.float32:
        table = FP32_TILES
    elif int8:
        table = table | INT8_TILES.get(target, {})
    padded_head_dim = max(64, 1 << (head_dim - 1).bit_length())
    return table[padded_head_dim]


def choose_splits(num_tiles: int, num_keys: int, num_multiprocessors: int) -> int:
    """Return the number of partitions of the keys, where the unsplit grid has `num_tiles` tiles."""
    num_waves = -(-num_tiles // num_multiprocessors)
    if num_tiles >= (1 - MIN_IDLE) * num_waves * num_multiprocessors:
        return 1
    # Estimate the time of the busiest multiprocessor, in passes over all keys.
    passes = {1: float(num_waves)}
    for splits in SPLITS:
        if num_keys >= splits * MIN_KEYS:
            num_split_waves = -(-num_tiles * splits // num_multiprocessors)
            passes[splits] = num_split_waves / splits + SPLIT_COST * splits
    return min(passes, key=passes.__getitem__)
