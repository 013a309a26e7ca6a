"""Draw the scenes in which the default settings miss most of the changed tokens."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import spotedit
from spotedit.pictures.draw import tint
from spotedit.pictures.images import atomic_write

from .collect import Job, Records
from .variants import DEFAULT

NUM_SCENES = 10
_SCENES_PER_LINE = 2
_PICTURES_PER_SCENE = 4
_PICTURE_INCHES = 1.15


def worst(records: Records) -> list[tuple[int, float]]:
    """Return (seed, recall) of the `NUM_SCENES` scenes with the lowest recall, lowest first."""
    recalls = [
        (int(seed), record["recall"])
        for (seed, name), record in records.items()
        if name == DEFAULT and record.get("recall") is not None
    ]
    return sorted(recalls, key=lambda seed_and_recall: seed_and_recall[1])[:NUM_SCENES]


def draw(job: Job, records: Records, path: Path) -> None:
    """Edit these scenes again and write a PNG that shows source, dense, spot and region of each.

    An existing file is replaced.
    """
    scenes = worst(records)
    num_lines = math.ceil(len(scenes) / _SCENES_PER_LINE)
    num_columns = _SCENES_PER_LINE * _PICTURES_PER_SCENE
    size = num_columns * _PICTURE_INCHES, num_lines * (_PICTURE_INCHES + 0.25)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(num_lines, num_columns, squeeze=False)
    for cell in axes.ravel():
        cell.set_axis_off()
    pipe = job.setting.load()
    cells_of_scenes = axes.reshape(-1, _PICTURES_PER_SCENE)
    for cells, (seed, recall) in zip(cells_of_scenes, scenes, strict=False):
        for cell, picture in zip(cells, _pictures(job, pipe, records, seed), strict=True):
            cell.imshow(picture)
        cells[0].set_title(" ", fontsize=7)  # reserves the height of the instruction
        title = f"{job.scenes(seed).instruction}: {recall:.0%}"
        text = cells[0].text(0, 1.06, title, fontsize=7, transform=cells[0].transAxes)
        text.set_in_layout(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _pictures(job: Job, pipe: Any, records: Records, seed: int) -> tuple[Image.Image, ...]:
    scene, variant = job.scenes(seed), job.variants[DEFAULT]
    dense = Image.open(job.folder / "dense" / f"{variant.loop.dense}-{seed}.png")
    arguments = job.setting.arguments(scene, seed, variant)
    with spotedit.enable(pipe) as handle:
        spot = pipe(**arguments).images[0]
    region = np.array(records[str(seed), DEFAULT]["region"], dtype=bool)
    assert handle.report is not None
    return scene.source_image, dense, spot, tint(spot, region)
