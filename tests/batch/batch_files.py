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


def pictures(folder: Path) -> dict[str, bytes]:
    """Return the pictures below a folder, by relative path."""
    suffixes = (".png", ".jpg", ".webp", ".tif")
    paths = [path for path in folder.rglob("*") if path.suffix in suffixes]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def rows(out: Path) -> list[dict]:
    lines = (out / "manifest.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines if line]
