"""Draw edits of held-out scenes: source, result and nearest valid picture.

``python -m bench.tiny_editor.pictures FILE.png``
"""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from tqdm import tqdm

from spotedit.tiny import TinyKontextPipeline
from spotedit.tiny.world import make_scene

from ..edits import arguments
from .evaluate import SIZE, SPLITS, WEIGHTS

_NUM_COLUMNS = 3  # scenes side by side


def draw(pipe: TinyKontextPipeline, seeds: range, split: str, steps: int, file: Path) -> None:
    """Edit the scenes and write one picture of all edits."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    num_rows = math.ceil(len(seeds) / _NUM_COLUMNS)
    figure, axes = pyplot.subplots(
        num_rows, _NUM_COLUMNS, figsize=(5.4 * _NUM_COLUMNS, 2.1 * num_rows), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for seed, cell in zip(tqdm(seeds, unit="scene"), axes.flat, strict=False):
        scene = make_scene(seed, size=SIZE, split=split)
        result = np.asarray(pipe(**arguments(scene, seed, steps)).images[0])
        fit = scene.fit(result)
        cell.imshow(np.concatenate([scene.source, result, fit.picture], axis=1))
        verdict = "right" if fit.right else "wrong"
        cell.set_title(f"{scene.instruction}\n{verdict}, {fit.psnr:.1f} dB", fontsize=9)
    for cell in axes.flat:
        cell.axis("off")
    figure.savefig(file, dpi=100)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--split", choices=SPLITS, default="easy")
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=28)
    args = parser.parse_args(argv)
    pipe = TinyKontextPipeline.from_pretrained(
        args.weights, dtype=torch.float32, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    seeds = range(args.first_seed, args.first_seed + args.scenes)
    draw(pipe, seeds, args.split, args.steps, args.file)


if __name__ == "__main__":
    main()
