"""Measure the pictures per second of a folder: ``python -m bench.batch``.

Three ways edit the same photographs by the same instructions: a loop over the enabled pipeline,
`spotedit batch`, and `spotedit batch --ray` with two processes.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import spotedit
from spotedit.editor.loading import resize_to_native
from spotedit.pictures.images import load_image, save_image
from spotedit.tiny.scenes import make_scene

from . import edits, environment, rows
from .rows import Row

LOOP, BATCH, RAY = "loop over the pipeline", "spotedit batch", "spotedit batch --ray"
NOTES = (
    "Photographs with coloured shapes are edited by the tiny editor, one thread a process. "
    "`whole command` counts from the start of the program to its end, with loading and, for Ray, "
    "starting its processes. `once running` counts from the first finished picture to the last.",
    "The loop saves the model's picture. The commands also keep the original where nothing was "
    "edited (`--keep original`), hash every file, and write reports and the manifest.",
)
_QUALITY = 92  # of the photographs' JPEG files


def make_photographs(folder: Path, count: int, size: int) -> Path:
    """Write photographs and the list of their edits; return the path of the list."""
    lines = []
    for seed in range(count):
        scene = make_scene(seed, size=size)
        name = f"photo-{seed}.jpg"
        scene.source_image.save(folder / name, quality=_QUALITY)
        lines.append(json.dumps({"image": name, "instruction": scene.instruction, "seed": seed}))
    (folder / "list.jsonl").write_text("\n".join(lines))
    return folder / "list.jsonl"


def loop(photographs: Path, out: Path, steps: int, _: int) -> None:
    """Edit the photographs of a list with the pipeline itself."""
    torch.set_num_threads(1)
    pipe = edits.load()
    spotedit.enable(pipe)
    out.mkdir()
    for line in photographs.read_text().splitlines():
        row = json.loads(line)
        picture = pipe(
            image=resize_to_native(pipe, load_image(photographs.parent / row["image"])),
            prompt=row["instruction"],
            num_inference_steps=steps,
            generator=torch.Generator().manual_seed(row["seed"]),
        ).images[0]
        save_image(picture, out / row["image"])


def batch(photographs: Path, out: Path, steps: int, num_actors: int) -> None:
    """Edit them with `spotedit batch`; with `num_actors` > 0 on Ray."""
    command = [sys.executable, "-m", "spotedit.cli", "batch", str(photographs), "--out", str(out)]
    command += ["--model", "tiny", "--device", "cpu", "--steps", str(steps)]
    if num_actors:
        command += ["--ray", "--ray-actors", str(num_actors)]
    subprocess.run(command, check=True)


def measure(
    edit: Callable[[Path, Path, int, int], None],
    photographs: Path,
    out: Path,
    steps: int,
    num_actors: int,
) -> dict[str, float]:
    """Return the pictures per second of one way."""
    start = time.perf_counter()
    # a new process, so that every way imports and loads what it needs
    process = multiprocessing.get_context("spawn").Process(
        target=edit, args=(photographs, out, steps, num_actors)
    )
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{out.name}: exit status {process.exitcode}; its output is above")
    seconds = time.perf_counter() - start
    finished = sorted(path.stat().st_mtime for path in out.glob("*.jpg"))
    running = finished[-1] - finished[0]
    return {
        "whole command": len(finished) / seconds,
        "once running": (len(finished) - 1) / running,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="number of photographs")
    parser.add_argument("--size", type=int, default=256, help="their side in pixels")
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--actors", type=int, default=2, help="processes of Ray; 0: leave Ray out")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    options = parser.parse_args()
    ways = [(LOOP, loop, 0), (BATCH, batch, 0)]
    if options.actors:
        ways.append((RAY, batch, options.actors))
    rates: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        photographs = make_photographs(work, options.count, options.size)
        for repeat in range(options.repeats):
            # the order alternates, so that a drift of the machine affects all ways alike
            for name, edit, num_actors in ways if repeat % 2 == 0 else ways[::-1]:
                out = work / f"{name}-{repeat}"
                measured = measure(edit, photographs, out, options.steps, num_actors)
                for what, rate in measured.items():
                    rates.setdefault((name, what), []).append(rate)
    common = {"photographs": options.count, "px": options.size, "steps": options.steps}
    results = [
        Row.median(
            what,
            np.array(values),
            "pictures/s",
            parameters={"way": name, **common, "processes": options.actors if name == RAY else 1},
        )
        for (name, what), values in rates.items()
    ]
    described = environment.describe(weights=edits.WEIGHTS)
    print(rows.save("batch", results, described, NOTES, options.out))


if __name__ == "__main__":
    main()
