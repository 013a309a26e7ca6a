"""Finish a run: export the weights, evaluate them on held-out scenes, pack all into one file."""

import argparse
import json
import shutil
import tarfile
from pathlib import Path

from ..environment import describe
from .evaluate import evaluate
from .export import export
from .loop import write_atomically

_PACKING_SECONDS = 3.0
_SETTINGS = (
    "init", "data", "batch", "lr", "matrix_lr", "early", "seconds", "decay_share",
    "compile", "workers", "seed",
)  # fmt: skip


def finish(args: argparse.Namespace) -> None:
    """Write weights/, rows-SPLIT.json, summary.md, run.json and the loss to `--out`; pack them.

    With `--seconds`, the rest of the time decides how many held-out scenes are evaluated. The
    archive is already written once before that, so that it has the weights whatever happens.
    """
    if not (args.folder / "editor.pt").exists():
        raise SystemExit("--seconds was too short for a single training step; raise it")
    out = args.out or args.folder / "result"
    out.mkdir(parents=True, exist_ok=True)
    export(args.folder, out / "weights", args.dual, args.single, init=args.init)
    for name in ("editor.json", "editor.png"):
        shutil.copy(args.folder / name, out / name)
    settings = {name: getattr(args, name) for name in _SETTINGS}
    run = {"settings": settings, "environment": describe(args.device)}
    (out / "run.json").write_text(json.dumps(run, indent=1, default=str))
    if args.pack:
        write_atomically(args.pack, lambda path: _pack(out, path))
    evaluate(
        out / "weights", out, scenes=args.heldout, device=args.device,
        deadline=args.seconds and args.started + args.seconds - _PACKING_SECONDS,
    )  # fmt: skip
    if args.pack:
        write_atomically(args.pack, lambda path: _pack(out, path))
        print(f"{args.pack}: {args.pack.stat().st_size / 2**20:.1f} MiB")


def _pack(folder: Path, file: Path) -> None:
    """Write the folder's files to one archive; half-precision weights hardly compress."""
    with tarfile.open(file, "w:gz", compresslevel=1) as archive:
        archive.add(folder, arcname="tiny_editor")
