"""Held-out figures of the tiny editor in the stock, dense pipeline.

``python -m bench.tiny_editor.evaluate``

Writes rows.json (one row a scene; an interrupted run continues there) and summary.md.
`--weights FOLDER` judges another pipeline folder than the committed one.
"""

import argparse
import hashlib
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from spotedit import tiny
from spotedit.quality import background, psnr, squared_error
from spotedit.tiny.scenes import photo_crop

from ..edits import round_trip
from ..metrics import changed_share
from .loop import write_atomically

WEIGHTS = Path(tiny.__file__).parent / "weights"
TOKEN = 8  # pixels
_TARGET_DB = {"recolour": 18, "remove": 16, "replace": 18, "add": 18}


def vae_rows(pipe: tiny.TinyKontextPipeline, crops: int) -> list[float]:
    """Round-trip PSNR of `crops` native crops of every held-out photograph."""
    rng = np.random.default_rng(0)
    size = (tiny.NATIVE_SIZE, tiny.NATIVE_SIZE)
    values = []
    for photo in tiny.heldout_photos():
        for _ in range(crops):
            crop = np.clip(np.rint(photo_crop(rng, photo, size)), 0, 255).astype(np.uint8)
            values.append(psnr(round_trip(pipe, crop), crop, np.ones(size, dtype=bool)))
    return values


def edit_row(pipe: tiny.TinyKontextPipeline, seed: int, steps: int) -> dict[str, float | str]:
    """Edit scene `seed` and compare with its truth, inside and outside the true mask.

    `floor` is the autoencoder's own error in the background of the tokens that the edit touches.
    """
    scene = tiny.make_scene(seed, kind=tiny.KINDS[seed % len(tiny.KINDS)])
    image = pipe(
        image=scene.source_image,
        prompt=scene.instruction,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
    ).images[0]
    result, edited = np.asarray(image), scene.mask
    rows = edited.shape[0] // TOKEN
    touched = changed_share(edited, (rows, rows)) > 0
    far = background(touched, edited.shape)
    return {
        "seed": seed,
        "kind": scene.kind,
        "instruction": scene.instruction,
        "edit_psnr": psnr(result, scene.target, edited),
        "error_ratio": squared_error(result, scene.target, edited)
        / squared_error(scene.source, scene.target, edited),
        "background_psnr": psnr(result, scene.source, far),
        "background_floor": psnr(round_trip(pipe, scene.source), scene.source, far),
    }


def summary(rows: list[dict], vae: list[float], steps: int, digest: str) -> str:
    """Markdown table, one line a kind."""
    lines = [
        f"{len(rows)} held-out scenes, {steps} steps, dense; weights sha256 `{digest}`.",
        f"Autoencoder round trip on held-out photographs: mean {statistics.mean(vae):.1f} dB "
        f"({len(vae)} crops, lowest {min(vae):.1f}).",
        "",
        "| kind | scenes | edited region, median dB | target | error <= half the source's | "
        "background, median dB | autoencoder floor, median dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in (*tiny.KINDS, "all"):
        chosen = [r for r in rows if kind in (r["kind"], "all")]
        if not chosen:
            continue
        if not chosen:
            continue
        median = {
            name: statistics.median(r[name] for r in chosen)
            for name in ("edit_psnr", "background_psnr", "background_floor")
        }
        right = sum(r["error_ratio"] <= 0.5 for r in chosen) / len(chosen)
        target = f">= {_TARGET_DB[kind]}" if kind in _TARGET_DB else ""
        lines.append(
            f"| {kind} | {len(chosen)} | {median['edit_psnr']:.1f} | {target} | {right:.0%} | "
            f"{median['background_psnr']:.1f} | {median['background_floor']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def weights_digest(folder: Path = WEIGHTS) -> str:
    """Return the sha256 over the safetensors files' bytes, in the order of their paths."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def evaluate(
    weights: Path,
    out: Path,
    *,
    scenes: int = 64,
    first_seed: int = 0,
    steps: int = 28,
    crops: int = 8,
    device: str = "cpu",
    deadline: float | None = None,
) -> None:
    """Judge the pipeline folder `weights` on held-out scenes; write rows.json and summary.md.

    `deadline`, on `time.monotonic`'s clock, ends the edits early; one scene is always judged.
    """
    out.mkdir(parents=True, exist_ok=True)
    file, digest = out / "rows.json", weights_digest(weights)
    key = {"weights": digest, "steps": steps, "first_seed": first_seed}
    stored = json.loads(file.read_text()) if file.exists() else {}
    rows = stored["rows"] if stored.get("key") == key else []
    pipe = tiny.TinyKontextPipeline.from_pretrained(
        weights, dtype=torch.float32, local_files_only=True
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    vae = vae_rows(pipe, crops)
    longest = 0.0
    seeds = range(first_seed + len(rows), first_seed + scenes)
    for seed in tqdm(seeds, desc="scenes", unit="scene"):
        started = time.monotonic()
        if rows and deadline is not None and started + longest > deadline:
            break
        rows.append(edit_row(pipe, seed, steps))
        longest = max(longest, time.monotonic() - started)
        content = json.dumps({"key": key, "rows": rows}, indent=1)
        write_atomically(file, lambda path, content=content: path.write_text(content))
    text = summary(rows[:scenes], vae, steps, digest)
    (out / "summary.md").write_text(text)
    print(text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--crops", type=int, default=8, help="per photograph, for the autoencoder")
    parser.add_argument("--device", default="cpu")
    evaluate(**vars(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
