"""The scenes in which the default finds the smallest share of the changed tokens, as a picture."""

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

MOST = 10
_ACROSS = 2  # scenes in a line
_PICTURES, _INCHES = 4, 1.15


def worst(records: Records) -> list[tuple[int, float]]:
    """(seed, recall) of the `MOST` scenes with the lowest recall, the lowest first."""
    known = [
        (int(seed), record["recall"])
        for (seed, name), record in records.items()
        if name == DEFAULT and record.get("recall") is not None
    ]
    return sorted(known, key=lambda found: found[1])[:MOST]


def draw(job: Job, records: Records, path: Path) -> None:
    """Edit these scenes again and write a PNG: source, dense, spot, region; replaces a file."""
    scenes = worst(records)
    down = -(-len(scenes) // _ACROSS)
    size = _ACROSS * _PICTURES * _INCHES, down * (_INCHES + 0.25)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, _ACROSS * _PICTURES, squeeze=False)
    for cell in axes.ravel():
        cell.set_axis_off()
    pipe = job.setting.load()
    for place, (seed, recall) in enumerate(scenes):
        line, first = axes[place // _ACROSS], place % _ACROSS * _PICTURES
        for cell, picture in zip(line[first:], _pictures(job, pipe, records, seed), strict=False):
            cell.imshow(picture)
        line[first].set_title(" ", fontsize=7)  # keeps room for the instruction
        words = f"{job.scenes(seed).instruction}: {recall:.0%}"
        text = line[first].text(0, 1.06, words, fontsize=7, transform=line[first].transAxes)
        text.set_in_layout(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _pictures(job: Job, pipe: Any, records: Records, seed: int) -> tuple[Image.Image, ...]:
    scene, variant = job.scenes(seed), job.variants[DEFAULT]
    dense = Image.open(job.folder / "dense" / f"{variant.loop.dense}-{seed}.png")
    given = job.setting.arguments(scene, seed, variant)
    with spotedit.enable(pipe) as handle:
        spot = pipe(**given).images[0]
    region = np.array(records[str(seed), DEFAULT]["region"], dtype=bool)
    assert handle.report is not None
    return scene.source_image, dense, spot, tint(spot, region)
