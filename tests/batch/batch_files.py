"""The files of a batch: photographs to edit, and what a run writes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

INSTRUCTION = "add a hat"
NAMES = ("IMG_2.png", "IMG_10.png", "beach/ünï 1.jpg", "beach/b & <c>.png")
WIDTH, HEIGHT = 64, 48


def save_picture(path: Path, seed: int) -> None:
    """Write random pixels, so that every picture has an edit of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def names(folder: Path) -> set[str]:
    """Return the relative paths of the pictures below a folder, without hidden folders."""
    suffixes = (".png", ".jpg", ".webp", ".tif")
    paths = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix in suffixes]
    return {path.as_posix() for path in paths if not path.parts[0].startswith(".")}


def pictures(folder: Path) -> dict[str, bytes]:
    """Return the pictures below a folder, by relative path."""
    return {name: (folder / name).read_bytes() for name in names(folder)}


def rows(out: Path) -> list[dict]:
    lines = (out / "manifest.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines if line]
