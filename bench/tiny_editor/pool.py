"""Training scenes as latents, cached on disk in shards that are made when first needed."""

from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from functools import lru_cache, partial
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedTokenizerFast

from spotedit.tiny.pipeline import PROMPT_TOKENS
from spotedit.tiny.scenes import make_scene

from .ahead import pack_scenes
from .loop import Batch, write_atomically
from .photos import load_photos
from .vae import encode_linear

SHARD = 1024
_KIND_SHARES = {"recolour": 0.1, "remove": 0.26, "replace": 0.32, "add": 0.32}
_AREAS, _AREA_SHARE = (0.015, 0.6), 0.6  # of the edited objects; log-uniform in so many scenes
_IDENTITY_EVERY = 32  # one scene in so many has an empty prompt and its source as target


def recoloured(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A variant of uint8 `photo`: gain and gamma per channel, sometimes swapped channels."""
    gain, gamma = rng.uniform(0.75, 1.15, 3), np.exp(rng.uniform(-0.3, 0.3, 3))
    ramp = np.linspace(0, 1, 256)[:, None]
    tables = np.clip(255 * gain * ramp**gamma, 0, 255).astype(np.uint8)
    order = rng.permutation(3) if rng.random() < 0.3 else np.arange(3)
    varied = np.stack([tables[photo[..., source], c] for c, source in enumerate(order)], axis=-1)
    return varied[::-1] if rng.random() < 0.2 else varied


def pack(latents: torch.Tensor) -> torch.Tensor:
    """[N, C, 2h, 2w] -> tokens [N, h*w, 4C], channel c*4 + dy*2 + dx as in FLUX."""
    n, c, height, width = latents.shape
    blocks = latents.reshape(n, c, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(n, height * width // 4, 4 * c)


def make_shard(
    index: int,
    photos: Sequence[np.ndarray],
    tokenizer: PreTrainedTokenizerFast,
    filters: torch.Tensor,
    bias: torch.Tensor,
    *,
    size: int,
    count: int,
) -> dict[str, torch.Tensor]:
    """Scenes index*count ..: source, target fp16 [count, tokens, C]; ids; changed share a token."""
    rng = np.random.default_rng([2, index])
    photos = [recoloured(photo, rng) for photo in photos]
    sources, targets, masks, prompts = [], [], [], []
    for i in range(count):
        kind = str(rng.choice(list(_KIND_SHARES), p=list(_KIND_SHARES.values())))
        wide = float(np.exp(rng.uniform(*np.log(_AREAS)))) if rng.random() < _AREA_SHARE else None
        seed = index * count + i
        scene = make_scene(seed, kind, size=size, split="train", photos=photos, area=wide)
        identity = i % _IDENTITY_EVERY == _IDENTITY_EVERY - 1
        sources.append(scene.source)
        targets.append(scene.source if identity else scene.target)
        masks.append(scene.mask & (not identity))
        prompts.append("" if identity else scene.instruction)

    def encode(pictures: list[np.ndarray]) -> torch.Tensor:
        images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        parts = [encode_linear(p.float() / 127.5 - 1, filters, bias) for p in images.split(64)]
        return pack(torch.cat(parts)).half()

    changed = F.avg_pool2d(torch.from_numpy(np.stack(masks))[:, None].float(), 8)
    ids = tokenizer(
        prompts, padding="max_length", max_length=PROMPT_TOKENS, truncation=True,
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
        photos: Sequence[Path],
        tokenizer: PreTrainedTokenizerFast,
        components: tuple[torch.Tensor, torch.Tensor],
        *,
        scenes: int,
        batch: int,
        size: int = 128,
        shard: int = SHARD,
        device: str = "cpu",
        prefetch: bool = True,
    ) -> None:
        if scenes % shard or shard % batch:
            raise ValueError(f"need batch | shard | scenes, got {batch}, {shard}, {scenes}")
        self.folder, self.scenes, self.batch_size, self.shard = folder, scenes, batch, shard
        self.device = device
        self.make = partial(
            _write_shard, photos, folder, tokenizer, components, size=size, count=shard
        )
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
    photos: Sequence[Path],
    folder: Path,
    tokenizer: PreTrainedTokenizerFast,
    components: tuple[torch.Tensor, torch.Tensor],
    index: int,
    file: Path,
    *,
    size: int,
    count: int,
) -> None:
    """Make one shard and write it to `file`; runs in the worker process where there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = _loaded_photos(tuple(photos), folder.parent)
    made = make_shard(index, pictures, tokenizer, *components, size=size, count=count)
    write_atomically(file, lambda path: torch.save(made, path))


def packed_shard(
    photos: Sequence[Path],
    cache: Path,
    tokenizer: PreTrainedTokenizerFast,
    components: tuple[torch.Tensor, torch.Tensor],
    index: int,
    *,
    size: int,
    count: int,
) -> dict[str, np.ndarray]:
    """Make one shard and return it packed, as it travels from a worker process."""
    pictures = _loaded_photos(tuple(photos), cache)
    made = make_shard(index, pictures, tokenizer, *components, size=size, count=count)
    return pack_scenes(made)


@lru_cache(maxsize=1)  # a worker process makes many shards
def _loaded_photos(folders: tuple[Path, ...], cache: Path) -> list[np.ndarray]:
    return load_photos(folders, cache)
