"""Make scenes ahead of training, in one compact file that fits on the device.

A scene of 256 px takes about 6 kB, instead of 66 kB in a shard: the latents have 8 bits, the file
holds only the target's tokens that differ from the source's, and it is compressed. The latents'
rounding error of about 0.02 (root mean square) is below the noise that the decoder is trained with.
"""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
import torch

from .loop import Batch, write_atomically

_WHOLE = 255  # stands for a token in which all pixels change
_NUM_LEVELS = 127  # number of levels for a latent's absolute value
_FIRST_FRESH_SHARD = 2**20
_MIN_STEP = 0.06  # between two levels; the latents' mean variance is 1


def write_scenes(file: Path, shards: Iterable[dict[str, torch.Tensor]]) -> None:
    """Write the scenes of shards from `pool.make_shard` to one compressed .npz file."""
    fields: dict[str, list[np.ndarray]] = {}
    for shard in shards:
        for name, values in pack_scenes(shard).items():
            fields.setdefault(name, []).append(values)
    whole = {name: np.concatenate(parts) for name, parts in fields.items()}

    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.savez_compressed(stream, **whole)

    write_atomically(file, write)


def pack_scenes(shard: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """Return a shard's fields in 8 bits, and the quantisation step of each scene and channel."""
    source, target = (shard[name].float() for name in ("source", "target"))  # [S, N, C]
    step = torch.maximum(source.abs().amax(dim=1), target.abs().amax(dim=1)) / _NUM_LEVELS
    step = step.clamp_min(_MIN_STEP).half().float()[:, None]  # [S, 1, C]
    touched = shard["changed"] > 0
    source, target = (
        (latents / step).round().clamp(-_NUM_LEVELS, _NUM_LEVELS).to(torch.int8)
        for latents in (source, target)
    )
    return {
        "source": source.numpy(),
        "target": target[touched].numpy(),  # [touched tokens, C]
        "step": step[:, 0].half().numpy(),
        "changed": (shard["changed"].float() * _WHOLE).ceil().to(torch.uint8).numpy(),
        "ids": shard["ids"].to(torch.uint8).numpy(),
    }


def unpack_scenes(packed: dict[str, np.ndarray], device: str = "cpu") -> dict[str, torch.Tensor]:
    """Turn the arrays of `pack_scenes` back into the fields of a shard, on the device."""
    fields = {name: torch.from_numpy(values).to(device) for name, values in packed.items()}
    step = fields["step"].float()[:, None]
    target = fields["source"].clone()
    target[fields["changed"] > 0] = fields["target"]
    return {
        "source": (fields["source"] * step).half(),
        "target": (target * step).half(),
        "changed": (fields["changed"].float() / _WHOLE).half(),
        "ids": fields["ids"].long(),
    }


def read_scenes(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read a file of `write_scenes` as the fields of one shard with all scenes, on the device."""
    with np.load(file) as stored:
        return unpack_scenes(dict(stored), device)


def make_packed(
    make: Callable[[int], dict[str, torch.Tensor]], index: int
) -> dict[str, np.ndarray]:
    """Make one shard and return it in the packed form in which a worker process sends it."""
    return pack_scenes(make(index))


def start_processes(count: int) -> ProcessPoolExecutor:
    """Start background processes of one thread each."""
    return ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )


def end_processes(processes: ProcessPoolExecutor) -> None:
    """End the processes at once, and every other child process."""
    processes.shutdown(wait=False, cancel_futures=True)
    for child in active_children():
        child.terminate()


class FreshScenes:
    """Background processes that make one packed shard after another.

    Args:
        make: makes the packed shard with an index. The indices are larger than those of shards
            that are made ahead.
        workers: number of processes.
    """

    def __init__(self, make: Callable[[int], dict[str, np.ndarray]], workers: int) -> None:
        self.make, self.indices = make, itertools.count(_FIRST_FRESH_SHARD)
        self.processes = start_processes(workers)
        self.pending = deque(self._next() for _ in range(workers))
        self.taken = 0

    def _next(self) -> Future:
        return self.processes.submit(self.make, next(self.indices))

    def take(self) -> dict[str, np.ndarray] | None:
        """Return the oldest shard, or None if it is not ready or a process has failed."""
        if not self.pending or not self.pending[0].done():
            return None
        try:
            shard = self.pending.popleft().result()
            self.pending.append(self._next())
        except Exception as error:  # training continues with the scenes that it has
            print(f"no more fresh scenes: {error!r}", file=sys.stderr)
            self.pending.clear()
            return None
        self.taken += 1
        return shard

    def close(self) -> None:
        """End the processes at once and print how many shards they made."""
        print(f"shards of fresh scenes: {self.taken}")
        end_processes(self.processes)


class ScenesOnDevice:
    """All scenes of one file, on the device.

    `batch(step)` goes through all scenes in rounds, with a new order in each round. What is left at
    the end of a round and smaller than a batch is not used. A batch depends on the seed and the
    step only, unless `fresh` scenes arrive, which replace the oldest ones.
    """

    def __init__(
        self, file: Path, *, batch: int, device: str, seed: int, fresh: FreshScenes | None = None
    ) -> None:
        self.fields = read_scenes(file, device)
        self.count = len(self.fields["ids"])
        if batch > self.count:
            raise ValueError(
                f"a batch of {batch} needs as many scenes, but {file} holds {self.count}; "
                "make more with the stage `data`, or lower --batch"
            )
        self.batch_size, self.device, self.seed = batch, device, seed
        self.round, self.order = -1, torch.empty(0)
        self.fresh, self.oldest = fresh, 0

    def batch(self, step: int) -> Batch:
        """Return (target, source, changed, ids) of a step, in float32 and int64."""
        if self.fresh and (shard := self.fresh.take()):
            self._replace_oldest(unpack_scenes(shard, self.device))
        round_index, batch_index = divmod(step, self.count // self.batch_size)
        if round_index != self.round:
            order = np.random.default_rng([self.seed, round_index]).permutation(self.count)
            self.round, self.order = round_index, torch.from_numpy(order).to(self.device)
        start = batch_index * self.batch_size
        rows = self.order[start : start + self.batch_size]
        target, source, changed = (
            self.fields[name][rows].float() for name in ("target", "source", "changed")
        )
        return target, source, changed, self.fields["ids"][rows]

    def _replace_oldest(self, shard: dict[str, torch.Tensor]) -> None:
        end = min(self.oldest + len(shard["ids"]), self.count)
        for name, values in self.fields.items():
            values[self.oldest : end] = shard[name][: end - self.oldest]
        self.oldest = end % self.count

    def close(self) -> None:
        if self.fresh:
            self.fresh.close()
