"""Measure how much of an edit is still made if it is found late: ``python -m bench.recovery``.

Every token is reused until a reset, which finds all tokens that the dense edit would change. How
much of the edit is missing then says until when a last check is worth its full step
(`SpotEditConfig.verify_last`).
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import spotedit
from spotedit.judge.judges import LATENT_CUTS

from . import edits, environment, rows
from .hard_scenes import hard_scene
from .rows import Row

FIRST_SEED = 5000
RESETS = (5, 9, 13, 17, 20, 22, 24, 26)  # of 28 steps
STEPS = 28
NOTES = (
    "Hard scenes of `bench.quality` with the tiny editor. A share is the change of the pixels that "
    "the true edit changes, against the source through the VAE and back: spot / dense. Values are "
    "medians with [20th, 80th percentile]. Scenes of which dense makes less than half are left "
    "out.",
)


def late_judge(y: Tensor, grid: Any, features: Any, impl: Any) -> Callable[[Tensor], Tensor]:
    """Make a judge that scores 0 at first and then the latent distance, with 1 for changed."""
    judgements = []

    def score(x0: Tensor) -> Tensor:
        judgements.append(x0)
        distance = (x0 - y.float()).square().mean(-1) / LATENT_CUTS[0]
        return distance if len(judgements) > 1 else torch.zeros_like(distance)

    return score


def made_shares(pipe: Any, seed: int) -> dict[int, float] | None:
    """Return the share of the edit that is made, by the step of the reset.

    It is None if dense makes less than half of the true edit.
    """
    scene = hard_scene(seed)
    floor = edits.round_trip(pipe, scene.source)

    def change(picture: np.ndarray) -> float:
        return float(np.abs(picture[scene.mask].astype(float) - floor[scene.mask]).mean())

    def edited_change() -> float:
        arguments = edits.arguments(scene, seed, STEPS)
        return change(np.asarray(pipe(**arguments).images[0]))

    dense = edited_change()
    if dense < change(scene.target) / 2:
        return None
    shares = {}
    config = {"judge": late_judge, "threshold": 1.0, "judge_every": STEPS}
    for reset in RESETS:
        with spotedit.enable(pipe, reset_steps=(reset,), **config):
            shares[reset] = edited_change() / dense
    return shares


def result_rows(scenes: Sequence[dict[int, float]], sigmas: Sequence[float]) -> Iterator[Row]:
    """Make the rows from the shares of every scene and the sigmas of the steps."""
    for reset in RESETS:
        shares = np.array([made[reset] for made in scenes])
        at = {"reset at step": reset, "sigma": f"{sigmas[reset]:.2f}"}
        yield Row.median("share of the edit that is made", shares, "share", parameters=at)
        undone = float(np.mean(shares < 0.5))
        name = "edits of which less than half is made"
        yield Row(name, undone, "share", samples=len(shares), parameters=at)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    pipe = edits.load()
    seeds = range(FIRST_SEED, FIRST_SEED + args.scenes)
    scenes = [made for seed in tqdm(seeds, unit="scene") if (made := made_shares(pipe, seed))]
    machine = environment.describe(weights=edits.WEIGHTS)
    sigmas = pipe.scheduler.sigmas.tolist()
    print(rows.save("recovery", list(result_rows(scenes, sigmas)), machine, NOTES, args.out))


if __name__ == "__main__":
    main()
