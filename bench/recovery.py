"""How much of an edit is made that is found late: ``python -m bench.recovery``.

Every token is reused until a reset, where each that dense would change is found. What is missing
after that says how late a last check is worth its full step (`SpotEditConfig.verify_last`).
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
    "Hard scenes of `bench.quality` with the tiny editor. The change of the pixels that the true "
    "edit changes, against the source through the VAE and back: spot / dense. Medians with [20th, "
    "80th percentile]; scenes of which dense makes less than half are left out.",
)


def late_judge(y: Tensor, grid: Any, features: Any, impl: Any) -> Callable[[Tensor], Tensor]:
    """Score 0 at the first judgement, then the latent distance, of which 1 is changed."""
    judgements = []

    def score(x0: Tensor) -> Tensor:
        judgements.append(x0)
        distance = (x0 - y.float()).square().mean(-1) / LATENT_CUTS[0]
        return distance if len(judgements) > 1 else torch.zeros_like(distance)

    return score


def made(pipe: Any, seed: int) -> dict[int, float] | None:
    """Share of the edit that is made, by the step of the reset; None if dense makes no edit."""
    scene = hard_scene(seed)
    given = edits.arguments(scene, seed, STEPS)
    floor = edits.round_trip(pipe, scene.source)

    def change(picture: np.ndarray) -> float:
        return float(np.abs(picture[scene.mask].astype(float) - floor[scene.mask]).mean())

    dense = change(np.asarray(pipe(**given).images[0]))
    if dense < change(scene.target) / 2:
        return None
    shares = {}
    for reset in RESETS:
        given = edits.arguments(scene, seed, STEPS)
        config = {"judge": late_judge, "threshold": 1.0, "judge_every": STEPS}
        with spotedit.enable(pipe, reset_steps=(reset,), **config):
            shares[reset] = change(np.asarray(pipe(**given).images[0])) / dense
    return shares


def report(found: Sequence[dict[int, float]], sigmas: Sequence[float]) -> Iterator[Row]:
    for reset in RESETS:
        shares = [each[reset] for each in found]
        at = {"reset at step": reset, "sigma": f"{sigmas[reset]:.2f}"}
        yield Row.median("share of the edit that is made", shares, "share", parameters=at)
        undone = float(np.mean(np.array(shares) < 0.5))
        name = "edits of which less than half is made"
        yield Row(name, undone, "share", samples=len(shares), parameters=at)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.recovery", description=__doc__)
    parser.add_argument("--scenes", type=int, default=24)
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    pipe = edits.load()
    seeds = range(FIRST_SEED, FIRST_SEED + args.scenes)
    found = [shares for seed in tqdm(seeds, unit="scene") if (shares := made(pipe, seed))]
    machine = environment.describe(weights=edits.WEIGHTS)
    sigmas = pipe.scheduler.sigmas.tolist()
    print(rows.save("recovery", list(report(found, sigmas)), machine, NOTES, args.out))


if __name__ == "__main__":
    main()
