"""Measure the quality of dense edits on held-out scenes, with and without guidance.

``python -m bench.tiny_qwen.evaluate``
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spotedit import tiny
from spotedit.evaluation.quality import psnr
from spotedit.tiny.scenes import photo_crop

from .. import environment, rows
from ..edits import FIRST_SEED, heldout, round_trip
from ..quality.collect import Job, code, collect
from ..quality.record import Setting
from ..quality.report import dense_rows
from ..quality.statistics import table
from ..quality.variants import Loop, Variant
from ..rows import Row
from . import edits

NOTES = (
    "The scenes use held-out photographs and seeds. Medians have their 20th and 80th percentiles, "
    "means a bootstrap 95% interval. With guidance 1 the transformer runs once in each step, "
    "otherwise a second time with an empty prompt.",
)


def vae_rows(pipe: Any, crops: int) -> list[float]:
    """Return the autoencoder's round-trip PSNR for some crops of each held-out photograph.

    Args:
        crops: number of crops of native size for each photograph.
    """
    rng = np.random.default_rng(0)
    size = (tiny.NATIVE_SIZE, tiny.NATIVE_SIZE)
    values = []
    for photo in tiny.heldout_photos():
        for _ in range(crops):
            crop = np.clip(np.rint(photo_crop(rng, photo, size)), 0, 255).astype(np.uint8)
            values.append(psnr(round_trip(pipe, crop), crop, np.ones(size, dtype=bool)))
    return values


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument(
        "--work", type=Path, default=Path("build/quality"), help="folder that keeps finished edits"
    )
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument(
        "--crops", type=int, default=8, help="crops of each photograph, for the autoencoder"
    )
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, edits.GUIDANCE])
    args = parser.parse_args(argv)
    machine = environment.describe(weights=edits.WEIGHTS) | {"steps": str(args.steps)}
    seeds = range(args.first_seed, args.first_seed + args.scenes)
    round_trips = vae_rows(edits.load(), args.crops)
    table_rows = [Row.median("VAE round trip of held-out photographs", round_trips, "dB")]
    loops = {guidance: Loop(guidance=guidance) for guidance in args.guidance}
    variants = {loop.dense: Variant(None, loop) for loop in loops.values()}
    folder = args.work / f"{code(machine['weights'])}-qwen-heldout-{args.steps}"
    setting = Setting("qwen", args.steps)
    records = table(collect(Job(setting, variants, seeds, folder, heldout)))
    for guidance, loop in loops.items():
        for row in dense_rows(loop.dense, records[loop.dense], edits.EDIT_DB):
            parameters = {"guidance": guidance} | dict(row.parameters)
            table_rows.append(replace(row, parameters=parameters))
    print(rows.save("dense", table_rows, machine, NOTES, args.out))


if __name__ == "__main__":
    main()
