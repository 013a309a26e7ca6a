"""Check what the method rests on: in a dense edit, unedited tokens are settled after a few steps.

``python -m bench.convergence`` judges the clean image that every step of a dense edit predicts.
"""

import argparse
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from spotedit_kernels import select_tokens
from torch import Tensor
from tqdm import tqdm

from spotedit.engine.schedule import plan
from spotedit.judge.judges import Prediction, perceptual
from spotedit.models.spec import spec_for
from spotedit.tiny.scenes import Scene

from . import edits, environment, metrics, plots, rows
from .rows import Row

THRESHOLD = 0.2  # perceptual distance; the judge's default
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3)
NOTES = (
    "Dense edits of held-out scenes with the tiny editor. The score of a token is the perceptual "
    "distance of its predicted clean image to the source. In truth a token is edited if the edit "
    f"changes at least {metrics.EDITED_SHARE:.0%} of its pixels. AUC is the chance that an edited "
    "token scores above an unedited one: the mean over scenes with a bootstrap 95% interval.",
    "A token has converged after the first step from which on its distance to its final state "
    f"stays within {THRESHOLD}. Values are medians over tokens with [20th, 80th percentile].",
)
SHOWN_SHARES = (0.04, 0.08, 0.16, 0.32, 0.6)  # of the steps; the figure also shows the last one
_INCHES = 1.35  # side of a picture in the figure
_TEXT = 0.95  # width of the text column, in pictures


@dataclass(frozen=True)
class Course:
    """One dense edit of T steps on a token grid [rows, cols].

    Attributes:
        estimates: the T predicted clean images, packed tokens [1, N, C].
        scores: [T, rows, cols], distance of each estimate to the source.
        to_end: [T, rows, cols], distance of each estimate to the last one.
        changed: [rows, cols], share of each token's pixels that the true edit changes.
    """

    scene: Scene
    estimates: list[Tensor]
    scores: np.ndarray
    to_end: np.ndarray
    changed: np.ndarray

    @property
    def edited(self) -> np.ndarray:
        """The tokens that the true edit changes, bool [rows, cols]."""
        return self.changed >= metrics.EDITED_SHARE

    @property
    def converged(self) -> np.ndarray:
        """Number of steps after which each token has converged, int [rows, cols], 1..T."""
        return 1 + metrics.convergence_step(self.to_end, THRESHOLD)


def follow(pipe: Any, scene: Scene, arguments: dict[str, Any]) -> Course:
    """Run one dense edit and judge every step's predicted clean image."""
    with edits.traced(pipe) as (trace, callback):
        pipe(**arguments, **callback)
    side = 2 * pipe.vae_scale_factor
    grid = (scene.mask.shape[0] // side, scene.mask.shape[1] // side)
    estimates = trace.estimates()
    distances: list[np.ndarray] = []
    with torch.no_grad():
        for reference in (trace.source, estimates[-1]):
            features = spec_for(pipe).features(pipe, reference, grid)
            judge = perceptual(reference, grid, features, "reference")
            scores = torch.cat([judge(Prediction(estimate)) for estimate in estimates])
            distances.append(scores.reshape(-1, *grid).float().cpu().numpy())
    to_source, to_end = distances
    return Course(scene, estimates, to_source, to_end, metrics.changed_share(scene.mask, grid))


def result_rows(courses: Sequence[Course], steps: int) -> list[Row]:
    """Make rows of the AUC by step, of when tokens converge, and of selections."""
    kinds = plan(steps)
    initial = kinds.index("spot") if "spot" in kinds else steps
    result = []
    for count in sorted({1, initial, *(round(f * steps) for f in (0.25, 0.5, 0.75, 1))}):
        areas = [metrics.auc(c.scores[count - 1], c.edited) for c in courses if c.edited.any()]
        mean, low, high = metrics.bootstrap(areas)
        name = "AUC of the score" + (", first judgement" if count == initial else "")
        at = {"after steps": count}
        result.append(Row(name, mean, "share", low, high, len(areas), parameters=at))
    for name, is_edited in (("edited", True), ("unedited", False)):
        counts = np.concatenate([c.converged[c.edited == is_edited] for c in courses])
        result.append(Row.median(f"steps until {name} tokens converge", counts, "steps"))
        share = float(np.mean(counts <= initial))
        name = f"{name} tokens converged at the first judgement"
        result.append(Row(name, share, "share", samples=len(counts)))
    return result + list(selection(courses, initial))


def selection(courses: Sequence[Course], step: int) -> Iterator[Row]:
    """Make rows of what thresholds and dilations would select after `step` steps."""
    for threshold, dilation in product(THRESHOLDS, (0, 1)):
        recalls, sizes = [], []
        for course in courses:
            grid = course.edited.shape
            scores = torch.from_numpy(course.scores[step - 1]).float().reshape(1, -1)
            active, _, _ = select_tokens(scores, grid, threshold=threshold, dilation=dilation)
            selected = active.numpy().reshape(grid)
            if course.edited.any():
                recalls.append(selected[course.edited].mean())
                sizes.append(selected.sum() / (course.changed > 0).sum())
        at = {"after steps": step, "threshold": threshold, "dilation": dilation}
        mean, low, high = metrics.bootstrap(recalls)
        name = "edited tokens selected"
        yield Row(name, mean, "share", low, high, len(recalls), parameters=at)
        yield Row.median("selected / touched tokens", sizes, "x", parameters=at)


def draw(pipe: Any, courses: Sequence[Course], path: Path) -> None:
    """Write a PNG with a line for each edit: predicted clean images, and when tokens converge."""
    steps = len(courses[0].estimates)
    latest = max(int(course.converged.max()) for course in courses)
    counts = sorted({max(1, round(share * steps)) for share in SHOWN_SHARES} | {steps})
    titles = ["source", *(f"step {n}" for n in counts), "settled at step\n(outline: the truth)"]
    figure = Figure(
        figsize=((len(titles) + _TEXT + 0.35) * _INCHES, len(courses) * _INCHES + 0.35),
        layout="constrained",
    )
    axes = figure.subplots(
        len(courses), len(titles) + 1, squeeze=False, width_ratios=(_TEXT, *[1] * len(titles))
    )
    for line, course in zip(axes, courses, strict=True):
        size = course.scene.mask.shape
        line[0].text(0, 0.5, textwrap.fill(course.scene.instruction, 15), va="center", fontsize=8)
        decoded = (edits.decode(pipe, course.estimates[n - 1], size) for n in counts)
        for cell, picture in zip(line[1:-1], (course.scene.source, *decoded), strict=True):
            cell.imshow(picture)
        heat = line[-1].imshow(course.converged, cmap="viridis", vmin=1, vmax=latest)
        plots.outline(line[-1], course.edited)
        for cell in line:
            cell.set_axis_off()
    for cell, title in zip(axes[0][1:], titles, strict=True):
        cell.set_title(title, fontsize=8)
    bar = figure.colorbar(heat, ax=axes[:, -1], fraction=0.1, pad=0.04, aspect=60)
    bar.ax.tick_params(labelsize=7)
    plots.save(figure, path, dpi=150)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.convergence", description=__doc__)
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--first-seed", type=int, default=edits.FIRST_SEED)
    parser.add_argument(
        "--shown", type=int, nargs="+", default=[5, 6, 7], help="numbers of the scenes to draw"
    )
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figure", type=Path, help="PNG to draw")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    machine = environment.describe(args.device, edits.WEIGHTS) | {"steps": str(args.steps)}
    pipe = edits.load(args.device)
    courses = []
    for seed in tqdm(range(args.first_seed, args.first_seed + args.scenes), unit="scene"):
        scene = edits.heldout(seed)
        courses.append(follow(pipe, scene, edits.arguments(scene, seed, args.steps)))
    if args.figure is not None:
        draw(pipe, [courses[i] for i in args.shown], args.figure)
    print(rows.save("convergence", result_rows(courses, args.steps), machine, NOTES, args.out))


if __name__ == "__main__":
    main()
