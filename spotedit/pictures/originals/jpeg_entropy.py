"""Write the quantised coefficients of a JPEG file as compressed data, without changing any.

The coefficients are coded as ITU-T T.81 says: a symbol for each run of zeros and the size of the
coefficient after it, in Huffman codes, and then the coefficient's bits.
"""

import heapq
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_DHT, _SOS = 0xC4, 0xDA
_END_OF_BLOCK, _SIXTEEN_ZEROS = 0x00, 0xF0
_LONGEST_CODE = 16
_CHUNK_BLOCKS = 2**15  # blocks that are coded at a time
# _ZIGZAG[k] is the place in a block, row by row, of the coefficient that comes at place k.
_ZIGZAG = np.array(
    sorted(range(64), key=lambda i: (i // 8 + i % 8, (i % 8, i // 8)[(i // 8 + i % 8) % 2]))
)
_PROGRESSIVE_BANDS = ((1, 5), (6, 63))


@dataclass(frozen=True)
class Component:
    """The coefficients of a colour component.

    Attributes:
        blocks: int16 [rows, cols, 8, 8], quantised; without the blocks that only fill MCUs.
        identifier: the component's number in the frame header.
        across, down: the sampling factors.
    """

    blocks: np.ndarray
    identifier: int
    across: int
    down: int


@dataclass(frozen=True)
class _Symbols:
    """What is written for some blocks, in order.

    Attributes:
        table: index of the Huffman table of every symbol, int [n]: 0 and 1 are for the means of
            blocks, 2 and 3 for the other coefficients.
        symbol: the symbol, int [n].
        bits, length: what follows the symbol's code, and its number of bits, int [n] each.
        interval: index of the restart interval of every symbol, int [n].
    """

    table: np.ndarray
    symbol: np.ndarray
    bits: np.ndarray
    length: np.ndarray
    interval: np.ndarray


@dataclass(frozen=True)
class _Scan:
    """One pass over the coefficients `first` to `last` of some components.

    Attributes:
        members: indices of the components.
        restart_interval: number of MCUs between restart markers, or 0.
        tables: 0 or 1 for every member: which Huffman tables it uses.
    """

    components: Sequence[Component]
    members: Sequence[int]
    first: int
    last: int
    restart_interval: int

    @property
    def tables(self) -> list[int]:
        return [min(index, 1) for index in self.members]


def compressed_data(
    components: Sequence[Component], is_progressive: bool, restart_interval: int
) -> bytes:
    """Return the scans with their Huffman tables, up to the end of the file.

    Args:
        components: in the order of the frame header.
        is_progressive: write a progressive file; otherwise a sequential one.
        restart_interval: number of MCUs between restart markers, or 0.
    """
    everything = range(len(components))
    bands = [(0, 0), *_PROGRESSIVE_BANDS] if is_progressive else [(0, 63)]
    scans = []
    for first, last in bands:
        together = [everything] if first == 0 else [[index] for index in everything]
        scans += [_Scan(components, some, first, last, restart_interval) for some in together]
    return b"".join(_coded(scan) for scan in scans) + b"\xff\xd9"


def _coded(scan: _Scan) -> bytes:
    """Return the tables, the header and the data of a scan.

    The symbols are made twice, so that they need not be kept: to count them, and to write them.
    """
    counts: dict[int, Counter[int]] = {}
    for symbols in _symbols_of(scan):
        for table in np.unique(symbols.table).tolist():
            found = np.bincount(symbols.symbol[symbols.table == table], minlength=256)
            counts.setdefault(table, Counter()).update(dict(enumerate(found.tolist())))
    codes, tables = _huffman_tables(counts)
    selectors = b""
    for index, table in zip(scan.members, scan.tables, strict=True):
        for_means = table if scan.first == 0 else 0
        for_others = table if scan.last > 0 else 0
        selectors += bytes([scan.components[index].identifier, for_means << 4 | for_others])
    body = bytes([len(scan.members)]) + selectors + bytes([scan.first, scan.last, 0])
    bits = _Bits()
    for symbols in _symbols_of(scan):
        bits.add(symbols, codes)
    return tables + struct.pack(">BBH", 0xFF, _SOS, len(body) + 2) + body + bits.finish()


def _symbols_of(scan: _Scan) -> Iterator[_Symbols]:
    """Yield the symbols of some rows of MCUs at a time."""
    last_means = [0] * len(scan.members)
    last_interval = 0
    for blocks, owner, mcu in _ordered([scan.components[index] for index in scan.members]):
        interval = mcu // scan.restart_interval if scan.restart_interval else np.zeros_like(mcu)
        tables = np.array(scan.tables)[owner]
        parts = []
        if scan.first == 0:
            difference = blocks[:, 0].astype(np.int64)
            for index in range(len(scan.members)):
                (mine,) = np.nonzero(owner == index)
                means = difference[mine]
                # the first block of this component after a restart has nothing before it
                restarts = np.diff(interval[mine], prepend=last_interval) > 0
                previous = np.concatenate([[last_means[index]], means[:-1]])
                difference[mine] -= np.where(restarts, 0, previous)
                last_means[index] = int(means[-1])
            parts.append(_mean_symbols(difference, interval, tables))
        if scan.last > 0:
            band = blocks[:, max(scan.first, 1) : scan.last + 1]
            parts.append(_other_symbols(band, interval, tables + 2))
        last_interval = int(interval[-1])
        yield _merged(parts)


def _ordered(
    members: Sequence[Component],
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield the blocks in the order of the scan, some rows of MCUs at a time.

    Yields:
        The coefficients in zigzag order, int16 [n, 64]; the index of the member of every block; and
        the index of its MCU.
    """
    # with one member, an MCU is a block, and there are none that only fill MCUs
    factors = [(m.down, m.across) for m in members] if len(members) > 1 else [(1, 1)]
    rows = -(-members[0].blocks.shape[0] // factors[0][0])
    cols = -(-members[0].blocks.shape[1] // factors[0][1])
    owners = np.repeat(np.arange(len(members)), [down * across for down, across in factors])
    rows_at_a_time = max(1, _CHUNK_BLOCKS // (cols * len(owners)))
    for start in range(0, rows, rows_at_a_time):
        count = min(rows_at_a_time, rows - start)
        parts = []
        for member, (down, across) in zip(members, factors, strict=True):
            some = member.blocks[start * down : (start + count) * down]
            split = _filled(some, count * down, cols * across)
            split = split.reshape(count, down, cols, across, 64).swapaxes(1, 2)
            parts.append(split.reshape(count * cols, down * across, 64))
        blocks = np.concatenate(parts, axis=1).reshape(-1, 64)[:, _ZIGZAG]
        mcu = np.arange(start * cols, (start + count) * cols)
        yield blocks, np.tile(owners, count * cols), np.repeat(mcu, len(owners))


def _filled(blocks: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Add the blocks that only fill the last MCUs: they repeat the mean of their neighbours."""
    num_rows, num_cols = blocks.shape[:2]
    padding = ((0, rows - num_rows), (0, cols - num_cols), (0, 0), (0, 0))
    flat = np.pad(blocks, padding, mode="edge").reshape(rows, cols, 64)
    flat[num_rows:, :, 1:] = 0
    flat[:, num_cols:, 1:] = 0
    return flat


def _mean_symbols(
    difference: np.ndarray, interval: np.ndarray, tables: np.ndarray
) -> tuple[np.ndarray, _Symbols]:
    """Return the place of every symbol, and the symbols of the means of blocks.

    Args:
        difference: the mean less that of the block before.
    """
    size, bits = _magnitude(difference)
    return np.arange(len(difference)) * 128, _Symbols(tables, size, bits, size, interval)


def _other_symbols(
    band: np.ndarray, interval: np.ndarray, tables: np.ndarray
) -> tuple[np.ndarray, _Symbols]:
    """Return the place of every symbol, and the symbols of the coefficients after the mean."""
    block, at = np.nonzero(band)
    is_first = np.diff(block, prepend=-1) > 0
    previous = np.where(is_first, -1, np.concatenate([at[:1], at[:-1]]))
    run = at - previous - 1
    size, bits = _magnitude(band[block, at].astype(np.int64))
    place = block * 128 + 2 * at + 2
    parts = [(place, run % 16 * 16 + size, bits, size, block)]
    for repeat in (1, 2, 3):  # a symbol stands for sixteen zeros, before that of the coefficient
        (long,) = np.nonzero(run >= 16 * repeat)
        none = np.zeros(len(long), dtype=np.int64)
        parts.append((place[long] - 1, none + _SIXTEEN_ZEROS, none, none, block[long]))
    has_rest = np.ones(len(band), dtype=bool)
    has_rest[block[at == band.shape[1] - 1]] = False
    (ended,) = np.nonzero(has_rest)
    none = np.zeros(len(ended), dtype=np.int64)
    parts.append((ended * 128 + 127, none + _END_OF_BLOCK, none, none, ended))
    places, symbol, bits, length, of = (np.concatenate(part) for part in zip(*parts, strict=True))
    return places, _Symbols(tables[of], symbol, bits, length, interval[of])


def _magnitude(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of bits of |value|, and these bits; a negative value's are inverted."""
    size = np.zeros(len(values), dtype=np.int64)
    for bit in range(12):
        size += np.abs(values) >= 1 << bit
    return size, np.where(values < 0, values + (1 << size) - 1, values)


def _merged(parts: Sequence[tuple[np.ndarray, _Symbols]]) -> _Symbols:
    """Put the symbols in order of their place."""
    order = np.argsort(np.concatenate([place for place, _ in parts]), kind="stable")
    columns = (
        np.concatenate([getattr(symbols, name) for _, symbols in parts])[order]
        for name in ("table", "symbol", "bits", "length", "interval")
    )
    return _Symbols(*columns)


def _huffman_tables(counts: Mapping[int, Counter[int]]) -> tuple[np.ndarray, bytes]:
    """Make the best Huffman table for each set of symbols.

    Args:
        counts: for each table how often a symbol is used.

    Returns:
        The code and its length of every symbol, int64 [4 tables, 256, 2]; and the segments that
        define the tables.
    """
    codes, header = np.zeros((4, 256, 2), dtype=np.int64), b""
    for table, of_table in counts.items():
        lengths, ordered = _code_lengths(+of_table)  # without symbols that are not used
        code, position = 0, 0
        for length, num_codes in enumerate(lengths[1:], 1):
            for symbol in ordered[position : position + num_codes]:
                codes[table, symbol] = code, length
                code += 1
            position += num_codes
            code <<= 1
        body = bytes([(table >> 1) << 4 | table & 1, *lengths[1:], *ordered])
        header += struct.pack(">BBH", 0xFF, _DHT, len(body) + 2) + body
    return codes, header


def _code_lengths(counts: Counter[int]) -> tuple[list[int], list[int]]:
    """Return the number of codes of each length 0..16, and the symbols from short to long codes.

    No code consists of ones only, because a reserved symbol gets that one (T.81, K.2).
    """
    reserved = 256
    heap: list[tuple[int, int, tuple[int, ...]]]
    heap = [(count, symbol, (symbol,)) for symbol, count in counts.items()]
    heap.append((0, reserved, (reserved,)))
    heapq.heapify(heap)
    depth = Counter(dict.fromkeys([*counts, reserved], 0))
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        members = first[2] + second[2]
        depth.update(members)
        heapq.heappush(heap, (first[0] + second[0], first[1], members))
    longest = max(*depth.values(), _LONGEST_CODE)
    num_codes = [0] * (longest + 1)
    for symbol_depth in depth.values():
        num_codes[symbol_depth] += 1
    for length in range(longest, _LONGEST_CODE, -1):  # shorten codes that are too long
        while num_codes[length]:
            donor = length - 2
            while not num_codes[donor]:
                donor -= 1
            num_codes[length] -= 2
            num_codes[length - 1] += 1
            num_codes[donor + 1] += 2
            num_codes[donor] -= 1
    last = max(length for length, count in enumerate(num_codes) if count)
    num_codes[last] -= 1  # the reserved symbol's
    ordered = sorted(counts, key=lambda symbol: (depth[symbol], symbol))
    return num_codes[: _LONGEST_CODE + 1], ordered


class _Bits:
    """Packs symbols into bytes, with restart markers between the intervals."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._interval = 0
        # the last bits, which do not fill a byte yet
        self._rest = 0
        self._num_rest = 0

    def add(self, symbols: _Symbols, codes: np.ndarray) -> None:
        """Add symbols, whose codes are those of `_huffman_tables`."""
        code, code_length = codes[symbols.table, symbols.symbol].T
        values = code << symbols.length | symbols.bits
        lengths = code_length + symbols.length
        edges = np.nonzero(np.diff(symbols.interval, prepend=self._interval))[0].tolist()
        for start, end in zip([0, *edges], [*edges, len(values)], strict=True):
            if end > start:
                self._go_to(int(symbols.interval[start]))
                self._pack(values[start:end], lengths[start:end])

    def finish(self) -> bytes:
        """Return all bytes."""
        self._fill()
        return b"".join(self._parts)

    def _go_to(self, interval: int) -> None:
        if interval != self._interval:
            self._fill()
            self._parts.append(bytes([0xFF, 0xD0 + self._interval % 8]))
            self._interval = interval

    def _fill(self) -> None:
        """Fill the last byte up with ones."""
        if self._num_rest:
            missing = 8 - self._num_rest
            self._append(bytes([self._rest << missing | (1 << missing) - 1]))
        self._rest = self._num_rest = 0

    def _pack(self, values: np.ndarray, lengths: np.ndarray) -> None:
        """Add values of up to 27 bits."""
        values = np.concatenate([[self._rest], values])
        lengths = np.concatenate([[self._num_rest], lengths])
        ends = np.cumsum(lengths)
        starts = ends - lengths
        num_bytes, self._num_rest = divmod(int(ends[-1]), 8)
        moved = values << (40 - lengths - starts % 8)  # to where they begin in five bytes
        total = np.zeros(num_bytes + 5)
        for byte in range(5):  # no two values share a bit, so that adding them joins them
            part = moved >> (32 - 8 * byte) & 0xFF
            total += np.bincount(starts // 8 + byte, weights=part, minlength=num_bytes + 5)
        packed = total.astype(np.uint8).tobytes()
        self._rest = packed[num_bytes] >> (8 - self._num_rest)
        self._append(packed[:num_bytes])

    def _append(self, data: bytes) -> None:
        self._parts.append(data.replace(b"\xff", b"\xff\0"))
