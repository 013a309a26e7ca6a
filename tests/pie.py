"""Make small data sets in PIE-Bench's format, from scenes that the tiny editor knows."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from spotedit.evaluation.masks import SIDE
from spotedit.tiny.scenes import KINDS, Scene, make_scene

FOLDER = "1_change_object_80"


def runs(mask: np.ndarray) -> list[int]:
    """Return the True runs of a mask, row by row, as start, length, start, length, ..."""
    edges = np.flatnonzero(np.diff(np.pad(mask.ravel().astype(np.int8), 1)))
    return np.stack([edges[::2], edges[1::2] - edges[::2]], axis=1).ravel().tolist()


def scene(number: int) -> Scene:
    return make_scene(number, kind=KINDS[number % len(KINDS)], split="heldout")


def enlarged(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.NEAREST)


def pie_row(number: int) -> dict:
    drawn = scene(number)
    return {
        "image_path": f"{FOLDER}/{number:012d}.jpg",
        "original_prompt": "a [round] shape",
        "editing_prompt": "a [square] shape",
        "editing_instruction": drawn.instruction,
        "editing_type_id": "1",
        "blended_word": "round square",
        "mask": runs(np.asarray(enlarged(drawn.mask))),
    }


def make_pie(folder: Path, count: int) -> dict[str, dict]:
    """Write a PIE-Bench of `count` pictures; return its rows, which `write_pie` can write again."""
    pictures = folder / "annotation_images" / FOLDER
    pictures.mkdir(parents=True)
    for number in range(count):
        enlarged(scene(number).source).save(pictures / f"{number:012d}.jpg", quality=95)
    rows = {f"{number:012d}": pie_row(number) for number in range(count)}
    write_pie(folder, rows)
    return rows


def write_pie(folder: Path, rows: object) -> None:
    (folder / "mapping_file.json").write_text(json.dumps(rows))
