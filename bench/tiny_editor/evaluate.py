"""Evaluate the tiny editor on held-out scenes, in the stock pipeline.

``python -m bench.tiny_editor.evaluate``

This edits scenes of the easy and the hard split and compares each result with the valid picture
that is nearest to it. It writes summary.md, and rows-SPLIT.json with one row for each scene, from
which an interrupted run continues. `--weights FOLDER` evaluates another pipeline folder.
"""

import argparse
import hashlib
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from spotedit.evaluation.quality import background, psnr
from spotedit.tiny import TinyKontextPipeline
from spotedit.tiny.world import CASES, KINDS, make_scene

from ..edits import arguments, round_trip
from ..metrics import bootstrap, changed_share
from .architecture import TOKEN
from .loop import write_atomically

WEIGHTS = Path(__file__).parent / "weights"
SIZE = 256  # side of the scenes in pixels
SPLITS = ("easy", "hard")
# what we aim at: share of right edits, PSNR of the edited region, PSNR of the autoencoder
_RIGHT = {"easy": 0.95, "hard": 0.8}
_EDIT_DB, _TRIP_DB = 24.0, 30.0


def edit_row(
    pipe: TinyKontextPipeline, seed: int, split: str, steps: int
) -> dict[str, float | str | bool]:
    """Edit a scene and compare the result with the nearest valid picture.

    Returns:
        A row. "edit_psnr" is the PSNR of the edited region against the valid picture;
        "background_psnr" is that of the background against the source. After one pass of the source
        through the autoencoder, "floor" is the PSNR of the background and "trip" that of the whole
        picture. The other fields are those of the scene and its fit.
    """
    scene = make_scene(seed, size=SIZE, split=split)
    result = np.asarray(pipe(**arguments(scene, seed, steps)).images[0])
    fit, decoded = scene.fit(result), round_trip(pipe, scene.source)
    grid = (SIZE // TOKEN, SIZE // TOKEN)
    far = background(changed_share(fit.region | scene.mask, grid) > 0, scene.mask.shape)
    return {
        "seed": seed,
        "kind": scene.kind,
        "case": scene.case,
        "instruction": scene.instruction,
        "right": fit.right,
        "edit_psnr": fit.psnr,
        "distance": fit.distance,
        "source_distance": fit.source_distance,
        "elsewhere": fit.elsewhere,
        "background_psnr": psnr(result, scene.source, far),
        "floor": psnr(decoded, scene.source, far),
        "trip": psnr(decoded, scene.source, np.ones_like(far)),
    }


def _line(name: str, rows: Sequence[dict]) -> str:
    """Return one line of the table: the share of right edits, and medians."""
    right, low, high = bootstrap([float(row["right"]) for row in rows])
    edit_low, edit, edit_high = np.percentile([row["edit_psnr"] for row in rows], (20, 50, 80))
    below_floor = np.array([row["floor"] - row["background_psnr"] for row in rows])
    below_floor = below_floor[np.isfinite(below_floor)]
    median_below = f"{np.median(below_floor):.1f}" if below_floor.size else "-"
    return (
        f"| {name} | {len(rows)} | {right:.0%} [{low:.0%}, {high:.0%}] | {edit:.1f} "
        f"[{edit_low:.1f}, {edit_high:.1f}] | {median_below} |"
    )


def summary(rows: dict[str, list[dict]], steps: int, digest: str) -> str:
    """Return the markdown: a table for each split, a line for each kind of edit or hard case."""
    trips = [row["trip"] for split in rows.values() for row in split]
    lines = [
        f"Held-out scenes of {SIZE} px, {steps} steps, dense; weights sha256 `{digest}`.",
        f"Autoencoder round trip of the sources: median {statistics.median(trips):.1f} dB, lowest "
        f"{min(trips):.1f} (aim: {_TRIP_DB:.0f} dB).",
    ]
    for split, of_split in rows.items():
        groups = [("all", of_split)]
        names, key = (KINDS, "kind") if split == "easy" else (CASES, "case")
        groups += [(name, [row for row in of_split if row[key] == name]) for name in names]
        lines += [
            "",
            f"**The {split} split** (aims: {_RIGHT[split]:.0%} right, {_EDIT_DB:.0f} dB)",
            "",
            "| edit | scenes | right [95% interval] | edited region to the nearest valid picture, "
            "median dB [20th, 80th percentile] | background below the autoencoder's floor, "
            "median dB |",
            "|---|---|---|---|---|",
            *(_line(name, group) for name, group in groups if group),
        ]
    return "\n".join(lines) + "\n"


def weights_digest(folder: Path = WEIGHTS) -> str:
    """Return the sha256 of all safetensors files, in the order of their paths."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def evaluate(
    weights: Path,
    out: Path,
    *,
    splits: Sequence[str] = SPLITS,
    scenes: int = 256,
    first_seed: int = 0,
    steps: int = 28,
    device: str = "cpu",
    deadline: float | None = None,
) -> None:
    """Evaluate a pipeline on held-out scenes; write the rows and summary.md.

    Args:
        weights: the pipeline's folder.
        out: where the files are written; rows of the same weights are kept.
        splits: the splits to evaluate.
        scenes: number of scenes in each split.
        first_seed: seed of the first scene.
        steps: number of denoising steps.
        device: where the pipeline runs.
        deadline: time on `time.monotonic`'s clock by which to stop; None evaluates all scenes. At
            least one scene of each split is evaluated.
    """
    out.mkdir(parents=True, exist_ok=True)
    digest = weights_digest(weights)
    key = {"weights": digest, "steps": steps, "first_seed": first_seed}
    pipe = TinyKontextPipeline.from_pretrained(
        weights, dtype=torch.float32, local_files_only=True
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    longest, rows_of_splits = 0.0, {}
    for split in splits:
        file = out / f"rows-{split}.json"
        stored = json.loads(file.read_text()) if file.exists() else {}
        rows = stored["rows"] if stored.get("key") == key else []
        seeds = range(first_seed + len(rows), first_seed + scenes)
        for seed in tqdm(seeds, desc=split, unit="scene"):
            started = time.monotonic()
            if rows and deadline is not None and started + longest > deadline:
                break
            rows.append(edit_row(pipe, seed, split, steps))
            longest = max(longest, time.monotonic() - started)
            content = json.dumps({"key": key, "rows": rows}, indent=1)
            write_atomically(file, lambda path, content=content: path.write_text(content))
        rows_of_splits[split] = rows[:scenes]
    text = summary(rows_of_splits, steps, digest)
    (out / "summary.md").write_text(text)
    print(text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS)
    parser.add_argument("--scenes", type=int, default=256, help="scenes in each split")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--device", default="cpu")
    evaluate(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
