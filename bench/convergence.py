"""What the method rests on: unedited tokens are known early. ``python -m bench.convergence``."""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spotedit_kernels import select_tokens
from torch import Tensor
from tqdm import tqdm

from spotedit.engine.schedule import plan
from spotedit.judge.judges import Prediction, perceptual
from spotedit.models.spec import spec_for
from spotedit.tiny.scenes import Scene

from . import edits, environment, metrics, rows
from .rows import Row

THRESHOLD = 0.2  # of the perceptual distance: the judge's own default
THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.3)
NOTES = (
    "Dense edits of held-out scenes with the tiny editor. The score of a token is the perceptual "
    "distance of its predicted clean image to the source; truth: the edit changes at least "
    f"{metrics.EDITED_SHARE:.0%} of its pixels. AUC: the chance that an edited token scores above "
    "an unedited one; mean over scenes with a bootstrap 95% interval.",
    f"A token has converged after the first step from which on its distance to where it ends stays "
    f"within {THRESHOLD}; medians over tokens with [20th, 80th percentile].",
)


@dataclass(frozen=True)
class Course:
    """One dense edit of T steps on a token grid [rows, cols].

    Attributes:
        estimates: the T predicted clean images, packed tokens [1, N, C].
        scores: [T, rows, cols], distance of each to the source.
        to_end: [T, rows, cols], distance of each to the last.
        changed: [rows, cols], share of each token's pixels that the true edit changes.
    """

    scene: Scene
    estimates: list[Tensor]
    scores: np.ndarray
    to_end: np.ndarray
    changed: np.ndarray

    @property
    def edited(self) -> np.ndarray:
        """bool [rows, cols]: tokens that the edit truly touches."""
        return self.changed >= metrics.EDITED_SHARE

    @property
    def converged(self) -> np.ndarray:
        """int [rows, cols]: number of steps after which a token stays where it ends, 1..T."""
        return 1 + metrics.convergence_step(self.to_end, THRESHOLD)


def follow(pipe: Any, scene: Scene, given: dict[str, Any]) -> Course:
    """Run one dense edit and judge every step's predicted clean image."""
    with edits.traced(pipe) as (trace, extra):
        pipe(**given, **extra)
    side = 2 * pipe.vae_scale_factor
    grid = (scene.mask.shape[0] // side, scene.mask.shape[1] // side)
    estimates = trace.estimates()
    distances: list[np.ndarray] = []
    with torch.no_grad():
        for reference in (trace.source, estimates[-1]):
            features = spec_for(pipe).features(pipe, reference, grid)
            judge = perceptual(reference, grid, features, "reference")
            judged = torch.cat([judge(Prediction(estimate)) for estimate in estimates])
            distances.append(judged.reshape(-1, *grid).float().cpu().numpy())
    scores, to_end = distances
    return Course(scene, estimates, scores, to_end, metrics.changed_share(scene.mask, grid))


def report(courses: Sequence[Course], steps: int) -> list[Row]:
    """AUC by step, and when tokens converge."""
    kinds = plan(steps)
    initial = kinds.index("spot") if "spot" in kinds else steps
    found = []
    for count in sorted({1, initial, *(round(f * steps) for f in (0.25, 0.5, 0.75, 1))}):
        areas = [metrics.auc(c.scores[count - 1], c.edited) for c in courses if c.edited.any()]
        mean, low, high = metrics.bootstrap(areas)
        name = "AUC of the score" + (", first judgement" if count == initial else "")
        at = {"after steps": count}
        found.append(Row(name, mean, "share", low, high, len(areas), parameters=at))
    for name, wanted in (("edited", True), ("unedited", False)):
        counts = np.concatenate([c.converged[c.edited == wanted] for c in courses])
        found.append(Row.median(f"steps until {name} tokens converge", counts, "steps"))
        within = float(np.mean(counts <= initial))
        name = f"{name} tokens converged at the first judgement"
        found.append(Row(name, within, "share", samples=len(counts)))
    return found + list(selection(courses, initial))


def selection(courses: Sequence[Course], step: int) -> Iterator[Row]:
    """What thresholds and dilations would select after `step` steps: recall against size."""
    for threshold, dilation in product(THRESHOLDS, (0, 1)):
        recalls, sizes = [], []
        for course in courses:
            grid = course.edited.shape
            scores = torch.from_numpy(course.scores[step - 1]).float().reshape(1, -1)
            rows, _, _ = select_tokens(scores, grid, threshold=threshold, dilation=dilation)
            active = rows.numpy().reshape(grid)
            if course.edited.any():
                recalls.append(active[course.edited].mean())
                sizes.append(active.sum() / (course.changed > 0).sum())
        at = {"after steps": step, "threshold": threshold, "dilation": dilation}
        mean, low, high = metrics.bootstrap(recalls)
        name = "edited tokens selected"
        yield Row(name, mean, "share", low, high, len(recalls), parameters=at)
        yield Row.median("selected / touched tokens", sizes, "x", parameters=at)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.convergence", description=__doc__)
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--first-seed", type=int, default=edits.FIRST_SEED)
    parser.add_argument("--shown", type=int, nargs="+", default=[5, 6, 7], help="scenes drawn")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--figure", type=Path, help="PNG of the scenes shown")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    machine = environment.describe(args.device, edits.WEIGHTS) | {"steps": str(args.steps)}
    pipe = edits.load(args.device)
    courses = []
    for seed in tqdm(range(args.first_seed, args.first_seed + args.scenes), unit="scene"):
        scene = edits.heldout(seed)
        courses.append(follow(pipe, scene, edits.arguments(scene, seed, args.steps)))
    if args.figure is not None:
        from .convergence_figure import draw  # the rows need no matplotlib

        draw(pipe, [courses[i] for i in args.shown], args.figure)
    print(rows.save("convergence", report(courses, args.steps), machine, NOTES, args.out))


if __name__ == "__main__":
    main()
