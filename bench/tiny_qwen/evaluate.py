"""Dense quality on held-out scenes, with and without guidance.

``python -m bench.tiny_qwen.evaluate``
"""

import argparse
from dataclasses import replace
from functools import partial
from pathlib import Path

from .. import editor, environment, rows
from ..edits import FIRST_SEED, heldout
from ..rows import Row
from ..summary import summarise
from ..tiny_editor.evaluate import vae_rows
from . import edits

NOTES = (
    "The scenes, noise and figures of `bench.editor`; intervals are the 20th and 80th percentile. "
    "With guidance 1 the transformer runs once a step, otherwise also with an empty prompt.",
)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="finished edits")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--crops", type=int, default=8, help="per photograph, for the autoencoder")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, edits.GUIDANCE])
    args = parser.parse_args(argv)
    machine = environment.describe(weights=edits.WEIGHTS) | {"steps": str(args.steps)}
    pipe = edits.load()
    args.work.mkdir(parents=True, exist_ok=True)
    seeds = range(args.first_seed, args.first_seed + args.scenes)
    trips = vae_rows(pipe, args.crops)
    found = [Row.median("VAE round trip of held-out photographs", trips, "dB")]
    for guidance in args.guidance:
        name = f"qwen-{machine['weights'].split()[1][:12]}-{guidance}-{args.steps}.jsonl"
        records = editor.collect(
            pipe, editor.Store(args.work / name), heldout,
            partial(edits.arguments, steps=args.steps, guidance=guidance), seeds, ["dense"],
        )  # fmt: skip
        for row in summarise(records, [], edits.EDIT_DB):
            where = {"guidance": guidance} | dict(row.parameters)
            found.append(replace(row, parameters=where))
    print(rows.save("dense", found, machine, NOTES, args.out))


if __name__ == "__main__":
    main()
