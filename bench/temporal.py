"""Steps left out, tokens left out, and both: ``python -m bench.temporal``.

Every scene is edited by every method from the same noise. Finished edits lie in a JSONL file, so a
run that was cut short goes on where it stopped. ``--time`` measures seconds instead, on a machine
that does nothing else.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import spotedit
from spotedit import TaylorSeer, TeaCache
from spotedit.evaluation import quality

from . import edits, environment, metrics, rows, temporal_figure, temporal_time
from .rows import Row

NOTES = (
    "Held-out photographs and seeds; every method starts from the same noise. Edited region: PSNR "
    "against the truth, mean paired difference with a bootstrap 95% interval. Work: query rows of "
    "the transformer, dense over this, of all scenes together. Background: pixels with more than "
    f"{quality.MARGIN} whole tokens between them and the final active set, above the VAE's round "
    "trip of the source, medians.",
    "`tea` and `seer` leave steps out of the stock pipeline; `spot+` leaves tokens out as well; "
    "`text`: the prompt's keys and values cached, which only spot steps know. Without a number: "
    "the defaults.",
)
THRESHOLDS, INTERVALS = (0.03, 0.1, 0.2), (2, 3, 6)  # beside the defaults
FEW, MANY = (4, 6, 8, 12), (28, 50)
# differences of the edited region in dB, the ratio of the work, and the background
WITHIN_DB, FASTER, FEW_WITHIN_DB, FEW_FASTER, BACKGROUND_DB = -0.3, 1.15, -0.5, 1.2, -0.1
Record = dict[str, Any]


def _methods() -> dict[str, dict[str, Any]]:
    alone: dict[str, dict[str, Any]] = {
        "tea": {"temporal": TeaCache()},
        "seer": {"temporal": TaylorSeer()},
        **{f"tea {t:g}": {"temporal": TeaCache(threshold=t)} for t in THRESHOLDS},
        **{f"seer {n}": {"temporal": TaylorSeer(interval=n)} for n in INTERVALS},
    }
    return {
        "dense": {"spatial": False},
        "spot": {},
        "spot text": {"cache_text": True},
        **{name: {**options, "spatial": False} for name, options in alone.items()},
        **{f"spot+{name}": options for name, options in alone.items()},
        **{f"spot+{name} text": {**alone[name], "cache_text": True} for name in ("tea", "seer")},
    }


METHODS: Mapping[str, Mapping[str, Any]] = _methods()


def edit(pipe: Any, seed: int, steps: int, method: str) -> Record:
    """One edit and its figures."""
    scene = edits.varied(seed)
    with spotedit.enable(pipe, **METHODS[method]) as handle:
        picture = np.asarray(pipe(**edits.arguments(scene, seed, steps)).images[0])
    report = handle.report
    assert report is not None  # the call has returned
    record = {
        "edit_db": quality.psnr(picture, scene.target, scene.mask),
        "work": 1 - report.flops_saved,
        "ran": sum(step["kind"] != "skip" for step in report.steps),
    }
    if report.region is not None:
        where = quality.background(report.region, scene.mask.shape)
        found, floor = (
            quality.psnr(shown, scene.source, where)
            for shown in (picture, edits.round_trip(pipe, scene.source))
        )
        record |= {"r": report.mean_ratio, "background": found - floor}
    return record


def collect(
    pipe: Any, path: Path, seeds: Sequence[int], plan: Mapping[int, Sequence[str]]
) -> dict[tuple[int, str, int], Record]:
    """Records by steps, method and seed, computed where the file does not have them."""
    known: dict[tuple[int, str, int], Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # cut off by a crash
            continue
        known[record["steps"], record["method"], record["seed"]] = record
    wanted = [(t, m, s) for s in seeds for t, methods in plan.items() for m in methods]
    for steps, method, seed in tqdm([k for k in wanted if k not in known], unit="edit"):
        record = {"steps": steps, "method": method, "seed": seed}
        record |= edit(pipe, seed, steps, method)
        known[steps, method, seed] = record
        with path.open("a") as file:
            file.write("\n" + json.dumps(record))
    return {key: known[key] for key in wanted}


def summarise(
    records: Mapping[tuple[int, str, int], Record], plan: Mapping[int, Sequence[str]]
) -> Iterator[Row]:
    """Every method beside dense, and `spot+` beside the same without spot."""

    def of(steps: int, method: str, figure: str) -> np.ndarray:
        found = [r for (t, m, _), r in records.items() if (t, m) == (steps, method)]
        return np.array([r.get(figure, np.nan) for r in found])

    for steps, methods in plan.items():
        for method in methods:
            where = {"steps": steps, "method": method}
            few = method == "spot" and steps == 8
            yield from _pair(of, steps, method, "dense", where, few, FEW_WITHIN_DB, FEW_FASTER)
            ran = of(steps, method, "ran")
            yield Row.median("steps that ran a forward", ran, "steps", parameters=where)
            background = of(steps, method, "background")
            background = background[np.isfinite(background)]
            if background.size:
                yield Row.median(
                    "background, above the floor", background, "dB",
                    at_least=BACKGROUND_DB, parameters=where,
                )  # fmt: skip
            alone = method.removeprefix("spot+").removesuffix(" text")
            if alone != method and alone in methods:
                default = method in ("spot+tea", "spot+seer")
                yield from _pair(of, steps, method, alone, where, default, WITHIN_DB, FASTER)


def _pair(
    of: Any, steps: int, method: str, other: str, where: Mapping[str, Any],
    targets: bool, within: float, faster: float,
) -> Iterator[Row]:  # fmt: skip
    if method == other:
        yield Row.median(
            "edited region against the truth", of(steps, method, "edit_db"), "dB", parameters=where
        )
        return
    better = of(steps, method, "edit_db") - of(steps, other, "edit_db")
    mean, low, high = metrics.bootstrap(better)
    yield Row(
        f"edited region, difference to {other}", mean, "dB", low, high, len(better),
        at_least=within if targets else None, parameters=where,
    )  # fmt: skip
    ratio = of(steps, other, "work").mean() / of(steps, method, "work").mean()
    yield Row(
        f"work, {other} / this", float(ratio), "x", samples=len(better),
        at_least=faster if targets else None, parameters=where,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.temporal", description=__doc__)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--first-seed", type=int, default=edits.FIRST_SEED)
    parser.add_argument("--steps", type=int, nargs="*", default=[*FEW, *MANY])
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, metavar="M", default=list(METHODS),
        help=f"of 13 and more steps, among {', '.join(METHODS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--time", action="store_true", help="seconds, at 256 px")
    parser.add_argument("--repeats", type=int, default=2, help="of A B B A, with --time")
    parser.add_argument("--work", type=Path, default=Path("build/bench"), help="finished edits")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    machine = environment.describe("cpu", edits.WEIGHTS)
    pipe = edits.load()
    many = ["dense", *(m for m in args.methods if m != "dense")]
    plan = {steps: many if steps > max(FEW) else ["dense", "spot"] for steps in args.steps}
    if args.time:
        found = temporal_time.measure(pipe, plan, METHODS, args.repeats)
        print(rows.save("temporal-time", found, machine, temporal_time.NOTES, args.out))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    code = f"{machine['weights'].split()[1][:12]}-{machine['commit'].rstrip('+')}"
    seeds = range(args.first_seed, args.first_seed + args.scenes)
    records = collect(pipe, args.work / f"temporal-{code}.jsonl", seeds, plan)
    found = list(summarise(records, plan))
    print(rows.save("temporal", found, machine, NOTES, args.out))
    temporal_figure.draw(found, args.out / "temporal.png")


if __name__ == "__main__":
    main()
