"""Draw training scenes on photographs from folders; the decoded photographs are cached."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from spotedit.tiny.scenes import make_scene

from ..tiny_editor.examples import Example

LONGEST_SIDE = 640  # pixels; larger photographs are scaled down
SMALLEST_SIDE = 240  # pixels; smaller photographs are not used
_LOOK_ALIKE = 8.0  # largest mean difference of 8x8 thumbnails, of 255
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_KIND_SHARES = {"recolour": 0.1, "remove": 0.26, "replace": 0.32, "add": 0.32}
_AREAS = (0.015, 0.6)  # range of the edited objects' areas, as shares of the picture
_AREA_SHARE = 0.6  # share of the scenes with an area from that range, log-uniform
_IDENTITY_EVERY = 32  # one scene of this many has an empty prompt and its source as target
HELD_OUT = {"astronaut", "chelsea", "coffee", "rocket", "china", "flower"}


def _find(folders: Sequence[Path]) -> list[Path]:
    """Return the paths of the colour pictures under the folders.

    A folder named `images...` holds one wallpaper in several sizes; only the largest is returned.
    """
    best: dict[str, tuple[int, Path]] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() not in _SUFFIXES or path.is_symlink() or path.stem in HELD_OUT:
                continue
            try:
                with Image.open(path) as image:
                    width, height, mode = *image.size, image.mode
            except (OSError, ValueError, Image.DecompressionBombError):
                continue
            if min(width, height) < SMALLEST_SIDE or mode in ("1", "L", "LA"):
                continue
            key = str(path.parent if path.parent.name.startswith("images") else path)
            if key not in best or width * height > best[key][0]:
                best[key] = (width * height, path)
    return [path for _, path in best.values()]


def _decode(path: Path) -> np.ndarray | None:
    """Return uint8 [H, W, 3], or None for a transparent or unreadable picture or a flat drawing."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (LONGEST_SIDE, LONGEST_SIDE))
            image.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.LANCZOS)
            rgba = np.asarray(image.convert("RGBA"))
    except (OSError, ValueError):
        return None
    if min(rgba.shape[:2]) < SMALLEST_SIDE // 2 or (rgba[..., 3] < 255).mean() > 0.02:
        return None
    rgb = np.ascontiguousarray(rgba[..., :3])
    steps = np.abs(np.diff(rgb.astype(np.int16), axis=1)).mean(axis=-1)
    is_drawing = (steps == 0).mean() > 0.75
    return None if is_drawing else rgb


def load_photos(folders: Sequence[Path], cache: Path) -> list[np.ndarray]:
    """Return all usable photographs under the folders, uint8 [H, W, 3].

    Their longest side is at most `LONGEST_SIDE`. They are cached in the folder `cache`, in an .npz
    file with a name made of the folders.

    Raises:
        ValueError: there is no usable photograph.
    """
    key = hashlib.sha256("\n".join(sorted(str(f.resolve()) for f in folders)).encode())
    file = cache / f"photos-{key.hexdigest()[:12]}.npz"
    if not file.exists():
        paths = _find(folders)
        decoded = [_decode(path) for path in tqdm(paths, desc="photographs", unit="file")]
        kept = [p for p in decoded if p is not None]
        if not kept:
            raise ValueError(f"no usable photographs under {[str(f) for f in folders]}")
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, **{f"{i:05d}": p for i, p in enumerate(kept)})
    with np.load(file) as stored:
        return _distinct([stored[name] for name in sorted(stored.files)])


def _distinct(photos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Drop the pictures that look like an earlier one, such as variants of one wallpaper."""
    kept: list[np.ndarray] = []
    thumbnails: list[np.ndarray] = []
    for photo in photos:
        small = Image.fromarray(photo).resize((8, 8), Image.Resampling.BOX)
        thumbnail = np.asarray(small, dtype=np.float64)
        if all(np.abs(thumbnail - other).mean() > _LOOK_ALIKE for other in thumbnails):
            kept.append(photo)
            thumbnails.append(thumbnail)
    return kept


def recoloured(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a variant of the uint8 photograph.

    Each channel has a random gain and gamma. Sometimes the channels are permuted, and sometimes the
    picture is turned upside down.
    """
    gain, gamma = rng.uniform(0.75, 1.15, 3), np.exp(rng.uniform(-0.3, 0.3, 3))
    ramp = np.linspace(0, 1, 256)[:, None]
    tables = np.clip(255 * gain * ramp**gamma, 0, 255).astype(np.uint8)
    order = rng.permutation(3) if rng.random() < 0.3 else np.arange(3)
    varied = np.stack([tables[photo[..., source], c] for c, source in enumerate(order)], axis=-1)
    return varied[::-1] if rng.random() < 0.2 else varied


@dataclass(frozen=True)
class PhotoScenes:
    """Draw training examples on the photographs under the folders.

    Attributes:
        folders: where the photographs are.
        cache: folder in which the decoded photographs are kept.
    """

    folders: tuple[Path, ...]
    cache: Path

    def __call__(self, seeds: range, size: int) -> Iterator[Example]:
        rng = np.random.default_rng([2, seeds.start // len(seeds)])
        photos = [recoloured(photo, rng) for photo in _loaded_photos(self.folders, self.cache)]
        for i, seed in enumerate(seeds):
            kind = str(rng.choice(list(_KIND_SHARES), p=list(_KIND_SHARES.values())))
            has_area = rng.random() < _AREA_SHARE
            area = float(np.exp(rng.uniform(*np.log(_AREAS)))) if has_area else None
            scene = make_scene(seed, kind, size=size, split="train", photos=photos, area=area)
            if i % _IDENTITY_EVERY == _IDENTITY_EVERY - 1:
                yield scene.source, scene.source, np.zeros_like(scene.mask), ""
            else:
                yield scene.source, scene.target, scene.mask, scene.instruction


@lru_cache(maxsize=1)  # since a worker process makes many shards
def _loaded_photos(folders: tuple[Path, ...], cache: Path) -> list[np.ndarray]:
    return load_photos(folders, cache)
