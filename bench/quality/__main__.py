"""Quality on held-out scenes whose truth is known: ``python -m bench.quality``.

Without options: the default settings, edits that are known to be bad, and rivals, beside dense.
Every scene is edited by every method from the same noise.
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
    "Held-out photographs and seeds, edited objects of 2 to 60% of the picture; every method "
    "starts from the same noise. Dense edits: medians with [20th, 80th percentile] where a kind is "
    "named. Otherwise means with a bootstrap 95% interval; differences are paired by scene.",
    "Edited region: the pixels that the true edit changes. Background: pixels with more than "
    f"{quality.MARGIN} whole tokens between them and the region; the floor is the source through "
    "the VAE and back. Outside the true edit: the same for the tokens that the truth touches, of "
    "any method. Seam error: mean absolute difference to the truth on the reused tokens that touch "
    "the region. Recall: of the tokens with a tenth of their pixels changed. Precision: active "
    "tokens that the true edit touches. Work: multiplications of the transformer's linear layers, "
    "counted.",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument(
        "--editor", choices=EDITORS, default="kontext",
        help="kontext and qwen edit photographs, world drawn pictures; default: kontext",
    )  # fmt: skip
    parser.add_argument(
        "--split",
        choices=SPLITS,
        default="easy",
        help="hard: near colours, tiny objects, slight changes; default: easy",
    )
    parser.add_argument(
        "--sweep",
        nargs="*",
        choices=SWEEPS,
        metavar="S",
        default=None,
        help=f"in place of the main run: {', '.join(SWEEPS)}; none named: all",
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=MAIN | HARD,
        metavar="V",
        help=f"of the main run: {', '.join(MAIN)} (default: all); hard: {', '.join(HARD)}",
    )
    parser.add_argument("--scenes", type=int, help="default: 256, of sweeps 48")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--workers", type=int, default=1, help="processes of one thread each")
    parser.add_argument("--work", type=Path, default=Path("build/quality"), help="finished edits")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    parser.add_argument(
        "--worst", type=Path, metavar="PNG", help="draw the ten scenes of the lowest recall"
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="edit nothing: README.md, docs/quality.md and .png from the rows",
    )
    return parser  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    args = _parser().parse_args(argv)
    if args.readme:
        return write_texts(args.out, ROOT)
    editor = EDITORS[args.editor]
    words = ("python", "-m", "bench.quality", *(sys.argv[1:] if argv is None else argv))
    machine = environment.describe(args.device, editor.WEIGHTS) | {
        "dtype": args.dtype, "steps": str(args.steps), "workers": str(args.workers),
        "command": shlex.join(words),
    }  # fmt: skip
    setting = Setting(args.editor, args.steps, args.device, args.dtype)
    own = SpotEditConfig().settings
    machine["default"] = (
        f"{own.judge} judge, threshold {own.threshold:g}, dilation {own.dilation}, hysteresis "
        f"{own.hysteresis:g}, judged every {own.judge_every} steps, resets at "
        f"{', '.join(f'{place:.0%}' for place in own.reset_fractions)}"
    )
    hard = args.split == "hard"
    suffix = "-hard" * hard + ("" if args.editor == "kontext" else f"-{args.editor}")
    if args.sweep is None:
        runs = {f"quality{suffix}": tuple(args.variants or (HARD if hard else MAIN))}
    else:
        runs = {f"quality-{s}{suffix}": (DEFAULT, *SWEEPS[s]) for s in args.sweep or SWEEPS}
    scenes = args.scenes or (256 if args.sweep is None else 48)
    names = (
        code(machine["weights"]), args.editor, args.split, args.device, args.dtype, str(args.steps)
    )  # fmt: skip
    folder = args.work / "-".join(names)
    seeds = range(args.first_seed, args.first_seed + scenes)
    for name, variants in runs.items():
        chosen = methods(variants)
        setting = calibrate.calibrated(setting, chosen.values())
        job = Job(setting, chosen, seeds, folder, SCENES[args.editor][args.split])
        records = collect(job, args.workers)
        notes = [*NOTES, *remarks(records, setting, variants)]
        found = summarise(
            records, variants, {} if hard else TARGETS.get(args.editor, {}), args.split
        )
        print(rows.save(name, found, machine | {"scenes": str(scenes)}, notes, args.out))
        if args.worst is not None:
            from .worst import draw  # the rows need no matplotlib

            draw(job, records, args.worst)


def write_texts(folder: Path, root: Path) -> None:
    """README.md's block, docs/quality.md and docs/quality.png under `root`, from the rows.

    Raises:
        SystemExit: there are no rows of the main run.
    """
    from .draw import draw  # the rows need no matplotlib

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
