"""Training scenes as latents, cached on disk in shards that are made when first needed."""

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from spotedit.tiny.pipeline import PROMPT_TOKENS

from .ahead import pack_scenes
from .examples import Draw
from .loop import Batch, write_atomically
from .vae import encode_linear

SHARD = 1024


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[N, C, 2h, 2w] -> tokens [N, h*w, 4C], channel c*4 + dy*2 + dx as in FLUX."""
    n, c, height, width = latents.shape
    blocks = latents.reshape(n, c, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(n, height * width // 4, 4 * c)


def make_shard(
    index: int,
    draw: Draw,
    tokenizer: PreTrainedTokenizerFast,
    filters: torch.Tensor,
    bias: torch.Tensor,
    *,
    size: int,
    count: int,
) -> dict[str, torch.Tensor]:
    """Scenes index*count ..: source, target fp16 [count, tokens, C]; ids; changed share a token."""
    examples = draw(range(index * count, (index + 1) * count), size)
    sources, targets, masks, prompts = zip(*examples, strict=True)

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
    """`scenes` scenes in shards; `batch(step)` walks through them in order, again and again.

    With `prefetch`, a background process makes the shard after the current one.
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
            raise ValueError(f"need batch | shard | scenes, got {batch}, {shard}, {scenes}")
        self.folder, self.scenes, self.batch_size, self.shard = folder, scenes, batch, shard
        self.device = device
        self.make = partial(_write_shard, draw, tokenizer, components, size=size, count=shard)
        self.loaded: tuple[int, dict[str, torch.Tensor]] | None = None
        self.workers = (
            ProcessPoolExecutor(
                1, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
            )
            if prefetch
            else None
        )
        self.pending: dict[int, Future] = {}

    def _file(self, index: int) -> Path:
        return self.folder / f"shard-{index:04d}.pt"

    def _request(self, index: int) -> None:
        if self.workers and index not in self.pending and not self._file(index).exists():
            self.pending[index] = self.workers.submit(self.make, index, self._file(index))

    def load(self, index: int) -> dict[str, torch.Tensor]:
        """Return shard `index`, made first where its file does not exist."""
        if self.loaded is None or self.loaded[0] != index:
            self._request(index)
            if index in self.pending:
                self.pending.pop(index).result()
            elif not self._file(index).exists():
                self.make(index, self._file(index))
            self.loaded = index, torch.load(self._file(index), weights_only=True)
            self._request((index + 1) % (self.scenes // self.shard))
        return self.loaded[1]

    def batch(self, step: int) -> Batch:
        """(target, source, changed, ids) of batch `step`, on the device, in float32 and int64."""
        start = step * self.batch_size % self.scenes
        index, row = divmod(start, self.shard)
        rows = slice(row, row + self.batch_size)
        shard = self.load(index)
        fields = (shard[name][rows].to(self.device) for name in ("target", "source", "changed"))
        return (*(f.float() for f in fields), shard["ids"][rows].to(self.device))

    def close(self) -> None:
        """End the background process at once: a shard's file is written whole or not at all."""
        if self.workers:
            self.workers.shutdown(wait=False, cancel_futures=True)
            for child in active_children():
                child.terminate()


def _write_shard(
    draw: Draw,
    tokenizer: PreTrainedTokenizerFast,
    components: tuple[torch.Tensor, torch.Tensor],
    index: int,
    file: Path,
    *,
    size: int,
    count: int,
) -> None:
    """Make one shard and write it to `file`; runs in the worker process where there is one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    made = make_shard(index, draw, tokenizer, *components, size=size, count=count)
    write_atomically(file, lambda path: torch.save(made, path))


def packed_shard(
    draw: Draw,
    tokenizer: PreTrainedTokenizerFast,
    components: tuple[torch.Tensor, torch.Tensor],
    index: int,
    *,
    size: int,
    count: int,
) -> dict[str, np.ndarray]:
    """Make one shard and return it packed, as it travels from a worker process."""
    return pack_scenes(make_shard(index, draw, tokenizer, *components, size=size, count=count))
