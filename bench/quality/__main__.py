"""Measure edit quality on held-out scenes with a known truth: ``python -m bench.quality``.

Without options, this compares the default settings, deliberately broken variants and rival methods
with dense edits: those of the stock pipeline, which computes all tokens at every step. All methods
edit a scene from the same noise.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from spotedit import SpotEditConfig
from spotedit.evaluation import quality

from .. import environment, rows
from ..tiny_qwen import edits as qwen
from . import calibrate, texts
from .collect import Job, code, collect
from .record import EDITORS, SCENES, Setting
from .report import KIND_DB, remarks, summarise
from .variants import DEFAULT, HARD, MAIN, SWEEPS, methods

ROOT = Path(__file__).parents[2]
TARGETS = {"kontext": KIND_DB, "qwen": qwen.EDIT_DB}
SPLITS = ("easy", "hard")
NOTES = (
    "The scenes use held-out photographs and seeds; the edited objects cover 2 to 60% of the "
    "picture. Every method starts from the same noise. Where a kind is named, values of dense "
    "edits are medians with [20th, 80th percentile]. All other values are means with a bootstrap "
    "95% interval; differences are paired by scene.",
    "Edited region: the pixels that the true edit changes. Background: the pixels with more than "
    f"{quality.MARGIN} whole tokens between them and the regenerated region; its floor is the "
    "source after one pass through the VAE. Outside the true edit: the pixels with as many tokens "
    "between them and the tokens that the true edit touches, for every method. Seam error: mean "
    "absolute difference to the truth on the reused tokens next to the region. Recall: share of "
    "the tokens with at least a tenth of their pixels changed that are active. Precision: share of "
    "the active tokens that the true edit touches. Work: number of multiplications in the "
    "transformer's linear layers, as counted.",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument(
        "--editor", choices=EDITORS, default="kontext",
        help="kontext and qwen edit photographs, world edits drawn pictures; default: kontext",
    )  # fmt: skip
    parser.add_argument(
        "--split", choices=SPLITS, default="easy",
        help="hard scenes have near colours, tiny objects or slight changes; default: easy",
    )  # fmt: skip
    parser.add_argument(
        "--sweep", nargs="*", choices=SWEEPS, metavar="S", default=None,
        help=f"run these sweeps instead of the main run: {', '.join(SWEEPS)}; no name: all",
    )  # fmt: skip
    parser.add_argument(
        "--variants", nargs="+", choices=MAIN | HARD, metavar="V",
        help=f"variants in the main run: {', '.join(MAIN)}; "
        f"with --split hard: {', '.join(HARD)}; default: all",
    )  # fmt: skip
    parser.add_argument("--scenes", type=int, help="default: 256, or 48 in sweeps")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument(
        "--work", type=Path, default=Path("build/quality"), help="folder that keeps finished edits"
    )
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    parser.add_argument(
        "--worst", type=Path, metavar="PNG", help="draw the ten scenes with the lowest recall"
    )
    parser.add_argument(
        "--readme", action="store_true",
        help="edit nothing; write README.md's table and docs/quality.md and .png from the rows",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if args.readme:
        return write_texts(args.out, ROOT)
    is_hard = args.split == "hard"
    scenes = args.scenes or (256 if args.sweep is None else 48)
    seeds = range(args.first_seed, args.first_seed + scenes)
    machine = _machine(args, sys.argv[1:] if argv is None else argv)
    names = (
        code(machine["weights"]), args.editor, args.split, args.device, args.dtype, str(args.steps)
    )  # fmt: skip
    folder = args.work / "-".join(names)
    setting = Setting(args.editor, args.steps, args.device, args.dtype)
    for name, variants in _runs(args).items():
        variant_of = methods(variants)
        setting = calibrate.calibrated(setting, variant_of.values())
        job = Job(setting, variant_of, seeds, folder, SCENES[args.editor][args.split])
        records = collect(job, args.workers)
        notes = [*NOTES, *remarks(records, setting, variants)]
        targets = {} if is_hard else TARGETS.get(args.editor, {})
        table = summarise(records, variants, targets, args.split)
        print(rows.save(name, table, machine | {"scenes": str(scenes)}, notes, args.out))
        if args.worst is not None:
            from .worst import draw  # imported late: rows are made without matplotlib

            draw(job, records, args.worst)


def _machine(args: argparse.Namespace, argv: Sequence[str]) -> dict[str, str]:
    """Describe the machine, the command and the default settings of this run."""
    settings = SpotEditConfig().settings
    return environment.describe(args.device, EDITORS[args.editor].WEIGHTS) | {
        "dtype": args.dtype, "steps": str(args.steps), "workers": str(args.workers),
        "command": shlex.join(("python", "-m", "bench.quality", *argv)),
        "default": f"{settings.judge} judge, threshold {settings.threshold:g}, dilation "
        f"{settings.dilation}, hysteresis {settings.hysteresis:g}, judged every "
        f"{settings.judge_every} steps, resets at "
        f"{', '.join(f'{fraction:.0%}' for fraction in settings.reset_fractions)}",
    }  # fmt: skip


def _runs(args: argparse.Namespace) -> dict[str, tuple[str, ...]]:
    """Map the name of each run's results file to the names of its variants."""
    is_hard = args.split == "hard"
    suffix = "-hard" if is_hard else ""
    if args.editor != "kontext":
        suffix += f"-{args.editor}"
    if args.sweep is None:
        return {f"quality{suffix}": tuple(args.variants or (HARD if is_hard else MAIN))}
    sweeps = args.sweep or SWEEPS
    return {f"quality-{sweep}{suffix}": (DEFAULT, *SWEEPS[sweep]) for sweep in sweeps}


def write_texts(folder: Path, root: Path) -> None:
    """Write README.md's table, docs/quality.md and docs/quality.png under `root`.

    Args:
        folder: where the rows are.
        root: the repository.

    Raises:
        SystemExit: the rows of a main run are missing.
    """
    from .draw import draw  # imported late: rows are made without matplotlib

    runs = texts.runs(folder)
    for name in ("quality", "quality-hard"):
        if name not in runs:
            split = " --split hard" if name.endswith("hard") else ""
            raise SystemExit(f"{name}.json is not in {folder}; run python -m bench.quality{split}")
    sweeps = [runs[name] for sweep in SWEEPS if (name := f"quality-{sweep}") in runs]
    readme = root / "README.md"
    block = texts.readme(runs["quality"], runs["quality-hard"])
    readme.write_text(texts.inserted(readme.read_text(encoding="utf-8"), block), encoding="utf-8")
    (root / "docs/quality.md").write_text(texts.document(runs), encoding="utf-8")
    draw(runs["quality"], sweeps, root / "docs/quality.png")


if __name__ == "__main__":
    main()
