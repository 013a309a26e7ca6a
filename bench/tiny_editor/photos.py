"""Training photographs: found in folders, decoded once, kept as one cached array file."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

LONGEST_SIDE = 640
SMALLEST_SIDE = 240
_LOOK_ALIKE = 8.0  # mean 8-bit difference of 8x8 thumbnails
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
HELD_OUT = {"astronaut", "chelsea", "coffee", "rocket", "china", "flower"}


def _find(folders: Sequence[Path]) -> list[Path]:
    """Colour pictures under `folders`; of several sizes in one `images` folder, the largest."""
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
    """uint8 [H, W, 3], or None where the picture is transparent, a flat drawing or unreadable."""
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
    drawn = (steps == 0).mean() > 0.75
    return None if drawn else rgb


def load_photos(folders: Sequence[Path], cache: Path) -> list[np.ndarray]:
    """All usable photographs under `folders`, uint8 [H, W, 3], longest side `LONGEST_SIDE`.

    The result is cached in `cache` (an .npz file named after the folders).
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


def save_small(photos: Sequence[np.ndarray], folder: Path) -> None:
    """Write the photographs as JPEG files with a shorter side of 288 px, small enough to travel."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, photo in enumerate(photos):
        image = Image.fromarray(photo)
        scale = min(1.0, 288 / min(image.size))
        image = image.resize(
            (round(scale * image.width), round(scale * image.height)), Image.Resampling.LANCZOS
        )
        image.save(folder / f"{i:05d}.jpg", quality=85)


def _distinct(photos: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Drop pictures that look like an earlier one (variants of one wallpaper)."""
    kept: list[np.ndarray] = []
    thumbnails: list[np.ndarray] = []
    for photo in photos:
        small = Image.fromarray(photo).resize((8, 8), Image.Resampling.BOX)
        thumbnail = np.asarray(small, dtype=np.float64)
        if all(np.abs(thumbnail - other).mean() > _LOOK_ALIKE for other in thumbnails):
            kept.append(photo)
            thumbnails.append(thumbnail)
    return kept
