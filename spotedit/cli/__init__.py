"""The command `spotedit`: `demo`, `edit`, `preview`, `verify`, `eval`,
`calibrate` and `env`.

This module only reads the command line. A command's own module, and with it PyTorch, is imported
when the command runs.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from .. import __version__
from ..pictures.images import ImageError, OutputError
from .errors import BadInput, Failure, Unedited

MODELS = "tiny (comes with the package), black-forest-labs/FLUX.1-Kontext-dev, or a folder"
_PRESETS = ("default", "fast", "paper")  # of spotedit.options.config.PRESETS, whose import is slow
_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1: it failed; 2: bad input; 3: nothing was edited, with `--fail-if-unchanged`;
        130: interrupted.
    """
    args = _parser().parse_args(argv)
    # it warns that torchvision is missing, which no editing pipeline here uses
    logging.getLogger("transformers.utils.import_utils").setLevel(logging.ERROR)
    logging.getLogger("spotedit").setLevel(logging.ERROR)  # the commands print it
    try:
        import_module(f"{__name__}.{args.command}").run(args)
    except (BadInput, ImageError, OutputError) as error:
        print(f"spotedit {args.command}: {error}", file=sys.stderr)
        return 2
    except Failure as error:
        print(f"spotedit {args.command}: {error}", file=sys.stderr)
        return 1
    except Unedited as error:
        print(f"spotedit {args.command}: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print(f"spotedit {args.command}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _at_least(low: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        value = int(text)
        if value < low:
            raise argparse.ArgumentTypeError(f"{value} is too small; expected at least {low}")
        return value

    return integer


def _threshold(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}; expected a number, or auto") from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spotedit", description="Edit pictures by instruction; compute only what changes."
    )
    parser.add_argument("--version", action="version", version=f"spotedit {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands.add_parser("demo", help="compare dense and spot editing on a small model"))
    _add_edit(commands.add_parser("edit", help="edit a picture"))
    _add_preview(commands.add_parser("preview", help="see what an edit would regenerate"))
    _add_verify(commands.add_parser("verify", help="dense against spot on pictures of your own"))
    _add_eval(commands.add_parser("eval", help="dense against spot on a published benchmark"))
    _add_calibrate(commands.add_parser("calibrate", help="fit TeaCache to a model"))
    commands.add_parser("env", help="print versions and devices, for bug reports")
    return parser


def _add_demo(demo: argparse.ArgumentParser) -> None:
    demo.description = (
        "Edit held-out scenes with the tiny editor, dense and spot in turn, and compare time and "
        "quality. Needs no GPU and no network."
    )
    demo.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="folder, or .png file of the figure (default: spotedit-demo, replaced at every run)",
    )
    demo.add_argument("--scenes", type=_at_least(1), default=4, metavar="N", help="default: 4")
    demo.add_argument("--steps", type=_at_least(1), default=28, metavar="T", help="default: 28")
    demo.add_argument("--seed", type=_at_least(0), default=0, help="of the first scene; default: 0")
    demo.add_argument("--force", action="store_true", help="overwrite the files of --out")


def _add_edit(edit: argparse.ArgumentParser) -> None:
    _add_picture(edit)
    edit.add_argument(
        "--mask",
        type=Path,
        help="picture of IMAGE's aspect; white may change, or paint of any colour on transparency",
    )
    edit.add_argument(
        "--mask-mode",
        choices=("intersect", "union", "replace"),
        default="intersect",
        help="how the mask meets the model's own judgement (default: intersect)",
    )
    edit.add_argument(
        "--compare",
        action="store_true",
        help="also edit without skipping: OUT-dense, OUT-compare and both times",
    )
    edit.add_argument("--report", type=Path, metavar="R.json", help="write what was skipped")
    edit.add_argument(
        "--fail-if-unchanged",
        action="store_true",
        help="exit with status 3 if nothing was edited; OUT is written all the same",
    )


def _add_preview(preview: argparse.ArgumentParser) -> None:
    preview.description = (
        "Run an edit up to its first judgement and write OUT: source, draft, scores. OUT-mask.png, "
        "in IMAGE's size, is white where the same `spotedit edit` would begin to regenerate: "
        "change it as you like and give it to --mask."
    )
    _add_picture(preview)


def _add_picture(command: argparse.ArgumentParser) -> None:
    """What one edit takes."""
    command.add_argument("image", type=Path, metavar="IMAGE")
    command.add_argument("instruction", metavar="INSTRUCTION", help='"add a scarf to the dog"')
    command.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    command.add_argument("--model", metavar="MODEL", help=MODELS)
    command.add_argument("--force", action="store_true", help="overwrite the output files")
    _add_call(command)


def _add_call(parser: argparse.ArgumentParser) -> None:
    """How a pipeline is loaded and called."""
    parser.add_argument(
        "--preset",
        choices=_PRESETS,
        default="default",
        help="default: safe; fast: leaves most forwards out too; paper: the publication's settings",
    )
    parser.add_argument(
        "--threshold", type=_threshold, metavar="S",
        help="scores up to it are reused: below 1 finds smaller changes (default: 1); or auto",
    )  # fmt: skip
    parser.add_argument("--steps", type=_at_least(1), metavar="T", help="default: the pipeline's")
    parser.add_argument("--guidance", type=float, metavar="G", help="default: the pipeline's")
    parser.add_argument("--true-cfg", type=float, metavar="G", help="default: the pipeline's")
    parser.add_argument("--negative-prompt", metavar="TEXT", help="default: the pipeline's")
    parser.add_argument("--seed", type=_at_least(0), default=0, help="default: 0")
    parser.add_argument("--device", help="such as cuda, cuda:1, mps, cpu (default: the best here)")
    parser.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="default: float32 on a CPU, else bfloat16",
    )
    parser.add_argument(
        "--offload",
        choices=("none", "model", "group", "sequential"),
        default="none",
        help="keep weights in host memory: less GPU memory, more time",
    )


def _add_verify(verify: argparse.ArgumentParser) -> None:
    verify.description = (
        "Edit pictures dense and spot in the same loop and compare time, background and seam. "
        "Writes the figures, without pictures, names or instructions, to a JSON file to share."
    )
    verify.usage = "%(prog)s MODEL PICTURE INSTRUCTION [PICTURE INSTRUCTION ...] [options]"
    verify.add_argument("model", metavar="MODEL", help=MODELS)
    verify.add_argument("pairs", nargs="+", metavar="PICTURE INSTRUCTION")
    verify.add_argument(
        "--row", type=Path, default=Path("spotedit-verify.json"), metavar="FILE.json",
        help="the figures (default: %(default)s)",
    )  # fmt: skip
    verify.add_argument("--force", action="store_true", help="overwrite FILE.json")
    _add_call(verify)


def _add_eval(evaluate: argparse.ArgumentParser) -> None:
    evaluate.description = (
        "Edit every picture of a benchmark dense and spot, measure, and print a table. A run that "
        "was stopped goes on where it was; `torchrun --nproc-per-node N -m spotedit.cli eval ...` "
        "shares it among N processes."
    )
    evaluate.add_argument(
        "data", type=Path, metavar="DATA", help="folder of PIE-Bench, PIE-Bench++ or ImgEdit Basic"
    )
    evaluate.add_argument(
        "--out", type=Path, required=True, help="folder for rows, pictures and table.md"
    )
    evaluate.add_argument("--model", metavar="MODEL", help=MODELS)
    evaluate.add_argument(
        "--pictures", type=Path, metavar="FOLDER", help="what the list's paths start from"
    )
    evaluate.add_argument("--limit", type=_at_least(1), metavar="N", help="the first N pictures")
    evaluate.add_argument("--clip", metavar="MODEL", help="default: openai/clip-vit-large-patch14")
    evaluate.add_argument(
        "--prompts", action="store_true", help="write prompts.jsonl and source/ for a judge"
    )
    evaluate.add_argument(
        "--score-only", action="store_true", help="edit nothing: measure what is there"
    )
    _add_call(evaluate)


def _add_calibrate(calibrate: argparse.ArgumentParser) -> None:
    calibrate.description = (
        "Edit pictures dense and fit the coefficients that TeaCache(coefficients=...) takes, for "
        "a model that has none published. Take pictures and steps like those to come."
    )
    calibrate.usage = "%(prog)s MODEL PICTURE INSTRUCTION [PICTURE INSTRUCTION ...] [options]"
    calibrate.add_argument("model", metavar="MODEL", help=MODELS)
    calibrate.add_argument("pairs", nargs="*", metavar="PICTURE INSTRUCTION")
    calibrate.add_argument(
        "--scenes", type=_at_least(1), default=16, metavar="N",
        help="of tiny, where no pictures are given (default: 16)",
    )  # fmt: skip
    calibrate.add_argument(
        "--also", type=_at_least(2), nargs="+", default=[], metavar="T",
        help="further numbers of steps, beside --steps: coefficients that hold for all of them",
    )  # fmt: skip
    calibrate.add_argument(
        "--out", type=Path, default=Path("spotedit-teacache.json"), metavar="FILE.json",
        help="the coefficients and where they come from (default: %(default)s)",
    )  # fmt: skip
    calibrate.add_argument("--force", action="store_true", help="overwrite FILE.json")
    _add_call(calibrate)
