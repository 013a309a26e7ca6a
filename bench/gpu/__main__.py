"""Run a visit with the settings that ``bench/gpu.sh`` describes."""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import __doc__ as description
from .plan import parts
from .visit import ROOT, SIGNALS, Visit, stop


def main(argv: Sequence[str] | None = None) -> int:
    started = time.monotonic()
    parser = argparse.ArgumentParser(prog="bench/gpu.sh", description=description)
    parser.add_argument("--rehearse", action="store_true", help="run on the CPU, at tiny shapes")
    parser.add_argument("--parts", nargs="+", metavar="NAME", help="run only these parts")
    args = parser.parse_args(argv)
    setting = os.environ.get
    with tempfile.TemporaryDirectory(prefix="spotedit-gpu-") as folder:
        work = Path(folder)
        python, wheels = setting("PYTHON") or sys.executable, setting("WHEELS", "")
        plan = parts(args.rehearse, python, wheels, work)
        unknown = set(args.parts or ()) - {part.name for part in plan}
        if unknown:
            names = ", ".join(part.name for part in plan)
            parser.error(f"no part is named {', '.join(sorted(unknown))}; expected some of {names}")
        if args.parts:
            plan = [part for part in plan if part.name in ("wheels", "versions", *args.parts)]
        paths = [ROOT, ROOT / "kernels", *filter(None, [setting("PYTHONPATH")]), work / "packages"]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "HF_HUB_OFFLINE": "1",
            "TRITON_INTERPRET": "0", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        if args.rehearse:
            environment["OMP_NUM_THREADS"] = (
                "1"  # enough for tiny shapes, and leaves cores to other work
            )
        end = started + float(setting("DEADLINE") or 540)
        for number in SIGNALS:
            signal.signal(number, stop)
        return Visit(Path(setting("OUT") or "build/gpu"), work, end, environment).run(plan)


if __name__ == "__main__":
    sys.exit(main())
