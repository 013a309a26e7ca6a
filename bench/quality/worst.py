"""The scenes in which the default finds the smallest share of the changed tokens, as a picture."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from spotedit.draw import tint
from spotedit.images import atomic_write

from .collect import Job, Records
from .variants import DEFAULT

MOST = 10
_ACROSS, _INCHES = 5, 1.15
_TITLES = ("source", "dense", "spot", "region")


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
    down = -(-len(scenes) // (_ACROSS // 2))
    across = _ACROSS // 2
    size = across * (len(_TITLES) * _INCHES + 0.2), down * (_INCHES + 0.28) + 0.2
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(down, across * len(_TITLES), squeeze=False)
    for cell in axes.ravel():
        cell.set_axis_off()
    pipe = job.setting.load()
    for place, (seed, recall) in enumerate(scenes):
        line, first = axes[place // across], place % across * len(_TITLES)
        pictures = _pictures(job, pipe, records, seed)
        for cell, title, picture in zip(line[first:], _TITLES, pictures, strict=False):
            cell.imshow(picture)
            cell.set_title(title if place < across else "", fontsize=7)
        instruction = job.scenes(seed).instruction
        line[first].set_title(f"{instruction}: {recall:.0%}", fontsize=7, loc="left")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _pictures(job: Job, pipe: Any, records: Records, seed: int) -> tuple[Image.Image, ...]:
    import spotedit

    scene, variant = job.scenes(seed), job.variants[DEFAULT]
    dense = Image.open(job.folder / "dense" / f"{variant.loop.dense}-{seed}.png")
    given = job.setting.arguments(scene, seed, variant)
    with spotedit.enable(pipe) as handle:
        spot = pipe(**given).images[0]
    region = np.array(records[str(seed), DEFAULT]["region"], dtype=bool)
    assert handle.report is not None
    return scene.source_image, dense, spot, tint(spot, region)
