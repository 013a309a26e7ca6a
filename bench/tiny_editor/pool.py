"""Keep training scenes as latents on disk, in shards that are made when they are first needed."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from spotedit.tiny.pipeline import PROMPT_TOKENS

from .ahead import end_processes, start_processes
from .examples import Draw
from .loop import Batch, write_atomically
from .vae import encode_linear

SHARD = 1024


def pack(latents: torch.Tensor) -> torch.Tensor:
    """Pack latents [N, C, 2h, 2w] into tokens [N, h*w, 4C], as FLUX does.

    Latent channel c at the position (dy, dx) in a token becomes the token's channel
    c*4 + dy*2 + dx.
    """
    n, c, height, width = latents.shape
    blocks = latents.reshape(n, c, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(n, height * width // 4, 4 * c)


def make_shard(
    draw: Draw,
    tokenizer: PreTrainedTokenizerFast,
    components: tuple[torch.Tensor, torch.Tensor],
    index: int,
    *,
    size: int,
    count: int,
) -> dict[str, torch.Tensor]:
    """Make the `count` scenes from number index * count on.

    Args:
        draw: draws the scenes.
        tokenizer: encodes the prompts.
        components: filters and bias of the linear encoder.
        index: index of the shard.
        size: side of the scenes in pixels.
        count: number of scenes.

    Returns:
        "source" and "target" fp16 [count, N, C]; "changed" fp16 [count, N], the share of changed
        pixels in every token; and "ids" int64 [count, prompt tokens].
    """
    examples = draw(range(index * count, (index + 1) * count), size)
    sources, targets, masks, prompts = zip(*examples, strict=True)
    filters, bias = components

    def encode(pictures: Sequence[np.ndarray]) -> torch.Tensor:
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        parts = [encode_linear(p.float() / 127.5 - 1, filters, bias) for p in images.split(64)]
        return pack(torch.cat(parts)).half()

    changed = F.avg_pool2d(
        torch.from_numpy(np.stack(masks))[:, None].float(), 2 * filters.shape[-1]
    )
    ids = tokenizer(
        list(prompts), padding="max_length", max_length=PROMPT_TOKENS, truncation=True,
        return_tensors="pt",
    ).input_ids  # fmt: skip
    return {
        "source": encode(sources),
        "target": encode(targets),
        "changed": changed.flatten(1).half(),
        "ids": ids,
    }


class Pool:
    """The training scenes. `batch(step)` goes through them in order, again and again.

    Args:
        folder: where the shards are kept.
        draw: draws the scenes.
        tokenizer: encodes the prompts.
        components: filters and bias of the linear encoder.
        scenes: number of scenes.
        batch: scenes in a batch.
        size: side of the scenes in pixels.
        shard: scenes in a shard.
        device: where the batches go.
        prefetch: whether a background process makes the next shard.
    """

    def __init__(
        self,
        folder: Path,
        draw: Draw,
        tokenizer: PreTrainedTokenizerFast,
        components: tuple[torch.Tensor, torch.Tensor],
        *,
        scenes: int,
        batch: int,
        size: int,
        shard: int = SHARD,
        device: str = "cpu",
        prefetch: bool = True,
    ) -> None:
        if scenes % shard or shard % batch:
            raise ValueError(
                f"the batch must divide the shard, and the shard the scenes; got a batch of "
                f"{batch}, a shard of {shard} and {scenes} scenes"
            )
        self.folder, self.scenes, self.batch_size, self.shard = folder, scenes, batch, shard
        self.device = device
        make = partial(make_shard, draw, tokenizer, components, size=size, count=shard)
        self.write = partial(_write_shard, make)
        self.loaded: tuple[int, dict[str, torch.Tensor]] | None = None
        self.workers = start_processes(1) if prefetch else None
        self.pending: dict[int, Future] = {}

    def _file(self, index: int) -> Path:
        return self.folder / f"shard-{index:04d}.pt"

    def _request(self, index: int) -> None:
        if self.workers and index not in self.pending and not self._file(index).exists():
            self.pending[index] = self.workers.submit(self.write, index, self._file(index))

    def load(self, index: int) -> dict[str, torch.Tensor]:
        """Return shard `index`; make it first if its file does not exist."""
        if self.loaded is None or self.loaded[0] != index:
            self._request(index)
            if index in self.pending:
                self.pending.pop(index).result()
            elif not self._file(index).exists():
                self.write(index, self._file(index))
            self.loaded = index, torch.load(self._file(index), weights_only=True)
            self._request((index + 1) % (self.scenes // self.shard))
        return self.loaded[1]

    def batch(self, step: int) -> Batch:
        """Return (target, source, changed, ids) of a step, in float32 and int64 on the device."""
        start = step * self.batch_size % self.scenes
        index, row = divmod(start, self.shard)
        rows = slice(row, row + self.batch_size)
        shard = self.load(index)
        fields = (shard[name][rows].to(self.device) for name in ("target", "source", "changed"))
        return (*(f.float() for f in fields), shard["ids"][rows].to(self.device))

    def close(self) -> None:
        """End the background process at once. Shards are written whole or not at all."""
        if self.workers:
            end_processes(self.workers)


def _write_shard(make: Callable[[int], dict[str, torch.Tensor]], index: int, file: Path) -> None:
    """Make one shard and write it to `file`. With `prefetch`, this runs in the worker process."""
    file.parent.mkdir(parents=True, exist_ok=True)
    shard = make(index)
    write_atomically(file, lambda path: torch.save(shard, path))
