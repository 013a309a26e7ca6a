"""Quality on held-out scenes whose truth is known, spot against dense: ``python -m bench.editor``.

Every scene is edited by every method from the same noise. Finished edits lie in a JSONL file, so a
run that was cut short goes on where it stopped.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

import spotedit
from spotedit import quality
from spotedit.tiny.scenes import Scene

from . import edits, environment, metrics, rows
from .summary import EDIT_DB, summarise
from .timing import call_seconds
from .tiny_qwen import edits as qwen

NOTES = (
    "Held-out photographs and seeds; every method starts from the same noise. PSNR on 8-bit "
    "pictures. Edited region: the pixels that the true edit changes. Background: pixels with more "
    f"than {quality.MARGIN} whole tokens between them and the final active set.",
    "Intervals: medians with [20th, 80th percentile]; differences and recall are means with a "
    "bootstrap 95% interval. `floor`: the source through the VAE and back.",
)
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "cosine": {},
    "static": {"fusion": lambda sigma: 1.0},
    "condition": {"fusion": lambda sigma: 0.0},
    "anchored": {"fusion": lambda sigma: float(np.cos(np.pi * sigma / 2) ** 2)},
    "reset4": {"reset_every": 4},
    "reset4-static": {"reset_every": 4, "fusion": lambda sigma: 1.0},
    "dilation0": {"dilation": 0},
    "dilation1": {"dilation": 1},
    "dilation2": {"dilation": 2},
    "threshold0.05": {"threshold": 0.05},
    "threshold0.1": {"threshold": 0.1},
    "threshold0.1-dilation1": {"threshold": 0.1, "dilation": 1},
    "threshold0.3": {"threshold": 0.3},
    "l2": {"judge": "l2"},
    "cached-condition": {"threshold": 0.0},  # every token active
}
EDITORS = {"kontext": edits, "qwen": qwen}  # each with load, arguments and WEIGHTS
TARGETS = {"kontext": EDIT_DB, "qwen": qwen.EDIT_DB}
Record = dict[str, Any]


def edit(pipe: Any, scene: Scene, given: Mapping[str, Any], method: str) -> Record:
    """One edit and its figures; `method` is "dense" or one of `VARIANTS`."""
    handle = None if method == "dense" else spotedit.enable(pipe, **VARIANTS[method])
    try:
        with edits.traced(pipe) as (trace, extra):
            output, seconds = call_seconds(lambda: pipe(**given, **extra), pipe.device)
    finally:
        spotedit.disable(pipe)
    picture, edited = np.asarray(output.images[0]), scene.mask
    record: Record = {
        "seconds": seconds,
        "edit_db": quality.psnr(picture, scene.target, edited),
        "to_truth": quality.squared_error(picture, scene.target, edited),
        "source_to_truth": quality.squared_error(scene.source, scene.target, edited),
    }
    if handle is not None and handle.report is not None and handle.report.region is not None:
        region = handle.report.region
        kept = torch.from_numpy(~region.ravel())
        record |= {
            "r": handle.report.mean_ratio,
            "exact": torch.equal(trace.states[-1][:, kept], trace.source[:, kept]),
            **_selection(region, scene),
            **_background(pipe, picture, region, scene),
        }
    return record


def _selection(region: np.ndarray, scene: Scene) -> Record:
    share = metrics.changed_share(scene.mask, region.shape)
    edited = share >= metrics.EDITED_SHARE
    return {
        "active": int(region.sum()),
        "edited": int(edited.sum()),
        "found": int((region & edited).sum()),
        "touched": int((share > 0).sum()),
    }


def _background(pipe: Any, picture: np.ndarray, region: np.ndarray, scene: Scene) -> Record:
    where = quality.background(region, scene.mask.shape)
    floor = edits.round_trip(pipe, scene.source)
    return {
        "background_db": quality.psnr(picture, scene.source, where),
        "floor_db": quality.psnr(floor, scene.source, where),
    }


class Store:
    """Finished records in a JSONL file, by (method, seed)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[tuple[str, int], Record] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except ValueError:  # cut off by a crash
                    continue
                self.records[record["method"], record["seed"]] = record

    def add(self, record: Record) -> None:
        self.records[record["method"], record["seed"]] = record
        with self.path.open("a") as file:
            file.write("\n" + json.dumps(record))


def collect(
    pipe: Any,
    store: Store,
    scenes: Callable[[int], Scene],
    given: Callable[[Scene, int], Mapping[str, Any]],
    seeds: Sequence[int],
    methods: Sequence[str],
) -> list[Record]:
    """Records of every method on every seed, computed where the store does not have them.

    `given` makes the pipeline's arguments from scene and seed.
    """
    todo = [(s, m) for s in seeds for m in ("floor", *methods) if (m, s) not in store.records]
    for seed, method in tqdm(todo, desc="editing", unit="edit"):
        scene = scenes(seed)
        if method == "floor":
            trip, everywhere = edits.round_trip(pipe, scene.source), np.ones_like(scene.mask)
            found: Record = {"floor_db": quality.psnr(trip, scene.source, everywhere)}
        else:
            found = edit(pipe, scene, given(scene, seed), method)
        store.add({"method": method, "seed": seed, "kind": scene.kind, **found})
    return [store.records[m, s] for m in ("floor", *methods) for s in seeds]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.editor", description=__doc__)
    parser.add_argument("--editor", choices=EDITORS, default="kontext", help="default: kontext")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--first-seed", type=int, default=edits.FIRST_SEED)
    parser.add_argument(
        "--variants", nargs="*", choices=VARIANTS, metavar="V",
        default=["cosine", "static", "reset4", "reset4-static"],
        help=f"among {', '.join(VARIANTS)} (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="finished edits")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    editor = EDITORS[args.editor]
    machine = environment.describe(args.device, editor.WEIGHTS) | {"dtype": args.dtype}
    pipe = editor.load(args.device, getattr(torch, args.dtype))
    args.work.mkdir(parents=True, exist_ok=True)
    code = f"{machine['weights'].split()[1][:12]}-{machine['commit'].rstrip('+')}"
    store = Store(args.work / f"editor-{code}-{args.device}-{args.dtype}-{args.steps}.jsonl")
    seeds = range(args.first_seed, args.first_seed + args.scenes)
    records = collect(
        pipe, store, edits.heldout, partial(editor.arguments, steps=args.steps), seeds,
        ["dense", *args.variants],
    )  # fmt: skip
    found = summarise(records, args.variants, TARGETS[args.editor])
    name = "editor" if args.editor == "kontext" else f"editor-{args.editor}"
    print(rows.save(name, found, machine | {"steps": str(args.steps)}, NOTES, args.out))


if __name__ == "__main__":
    main()
