"""Measure skipped steps, skipped tokens, and both: ``python -m bench.temporal``.

Every scene is edited by every method from the same noise. Finished edits are kept in a JSONL file,
so that a run that was cut short continues where it stopped. ``--time`` measures seconds instead;
nothing else may run on the machine then.
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
    "Held-out photographs and seeds; every method starts from the same noise. The edited region is "
    "measured by its PSNR against the truth: the mean paired difference with a bootstrap 95% "
    "interval. Work is the number of query rows of the transformer, as the ratio dense / this over "
    "all scenes together. The background is the pixels with more than "
    f"{quality.MARGIN} whole tokens between them and the final active set; its PSNR is relative to "
    "that of the source after the VAE's round trip, and values are medians.",
    "`tea` and `seer` skip steps of the stock pipeline. `spot+` skips tokens too. `text` also "
    "caches the prompt's keys and values, which only spot steps use. Methods without a number have "
    "the default settings.",
)
THRESHOLDS, INTERVALS = (0.03, 0.1, 0.2), (2, 3, 6)  # settings that are tried besides the defaults
FEW, MANY = (4, 6, 8, 12), (28, 50)  # numbers of steps
# targets: least difference of the edited region in dB, and least ratio of the work
WITHIN_DB, FASTER = -0.3, 1.15  # of `spot+` to the same method without tokens skipped
FEW_WITHIN_DB, FEW_FASTER = -0.5, 1.2  # of `spot` to dense at 8 steps
BACKGROUND_DB = -0.1  # least PSNR of the background, relative to the round trip
Record = dict[str, Any]
Key = tuple[int, str, int]  # (number of steps, method, seed)


def _methods() -> dict[str, dict[str, Any]]:
    """Return the options of `spotedit.enable` for each method."""
    temporal: dict[str, dict[str, Any]] = {
        "tea": {"temporal": TeaCache()},
        "seer": {"temporal": TaylorSeer()},
        **{f"tea {t:g}": {"temporal": TeaCache(threshold=t)} for t in THRESHOLDS},
        **{f"seer {n}": {"temporal": TaylorSeer(interval=n)} for n in INTERVALS},
    }
    return {
        "dense": {"spatial": False},
        "spot": {},
        "spot text": {"cache_text": True},
        **{name: {**options, "spatial": False} for name, options in temporal.items()},
        **{f"spot+{name}": options for name, options in temporal.items()},
        **{f"spot+{name} text": {**temporal[name], "cache_text": True} for name in ("tea", "seer")},
    }


METHODS: Mapping[str, Mapping[str, Any]] = _methods()


def edit(pipe: Any, seed: int, steps: int, method: str) -> Record:
    """Make one edit, and return its figures."""
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
        background, floor = (
            quality.psnr(shown, scene.source, where)
            for shown in (picture, edits.round_trip(pipe, scene.source))
        )
        record |= {"r": report.mean_ratio, "background": background - floor}
    return record


def collect(
    pipe: Any, path: Path, seeds: Sequence[int], plan: Mapping[int, Sequence[str]]
) -> dict[Key, Record]:
    """Return the record of every edit of `plan`, and make the edits that the file does not have."""
    known: dict[Key, Record] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:  # a line that was cut short by a crash
            continue
        known[record["steps"], record["method"], record["seed"]] = record
    wanted = [
        (steps, method, seed)
        for seed in seeds
        for steps, methods in plan.items()
        for method in methods
    ]
    missing = [key for key in wanted if key not in known]
    for steps, method, seed in tqdm(missing, unit="edit"):
        record = {"steps": steps, "method": method, "seed": seed}
        record |= edit(pipe, seed, steps, method)
        known[steps, method, seed] = record
        with path.open("a") as file:
            file.write("\n" + json.dumps(record))
    return {key: known[key] for key in wanted}


def result_rows(records: Mapping[Key, Record], plan: Mapping[int, Sequence[str]]) -> Iterator[Row]:
    """Compare every method with dense, and `spot+` methods with the same method without spot."""
    for steps, methods in plan.items():
        figures = {name: _figures(records, steps, name) for name in methods}
        dense = figures["dense"]
        for method in methods:
            ours, parameters = figures[method], {"steps": steps, "method": method}
            if method == "dense":
                name = "edited region against the truth"
                yield Row.median(name, ours["edit_db"], "dB", parameters=parameters)
            else:
                goals = (FEW_WITHIN_DB, FEW_FASTER) if (method, steps) == ("spot", 8) else None
                yield from _compare(ours, dense, "dense", parameters, goals)
            yield Row.median(
                "steps that ran a forward", ours["ran"], "steps", parameters=parameters
            )
            background = ours["background"][np.isfinite(ours["background"])]
            if background.size:
                yield Row.median(
                    "background, above the floor", background, "dB",
                    at_least=BACKGROUND_DB, parameters=parameters,
                )  # fmt: skip
            without_spot = method.removeprefix("spot+").removesuffix(" text")
            if without_spot != method and without_spot in methods:
                goals = (WITHIN_DB, FASTER) if method in ("spot+tea", "spot+seer") else None
                yield from _compare(ours, figures[without_spot], without_spot, parameters, goals)


def _figures(records: Mapping[Key, Record], steps: int, method: str) -> dict[str, np.ndarray]:
    """Return each figure of a method's edits as an array over the seeds; nan if it is missing."""
    chosen = [record for key, record in records.items() if key[:2] == (steps, method)]
    names = ("edit_db", "work", "ran", "background")
    return {name: np.array([record.get(name, np.nan) for record in chosen]) for name in names}


def _compare(
    ours: Mapping[str, np.ndarray],
    other: Mapping[str, np.ndarray],
    name: str,
    parameters: Mapping[str, Any],
    goals: tuple[float, float] | None,
) -> Iterator[Row]:
    """Compare a method with the `other`, of that name; `goals` are of the dB and of the work."""
    least_db, least_ratio = goals or (None, None)
    difference = ours["edit_db"] - other["edit_db"]
    mean, low, high = metrics.bootstrap(difference)
    yield Row(
        f"edited region, difference to {name}", mean, "dB", low, high, len(difference),
        at_least=least_db, parameters=parameters,
    )  # fmt: skip
    ratio = float(other["work"].mean() / ours["work"].mean())
    yield Row(
        f"work, {name} / this", ratio, "x", samples=len(difference),
        at_least=least_ratio, parameters=parameters,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.temporal", description=__doc__)
    parser.add_argument("--scenes", type=int, default=64)
    parser.add_argument("--first-seed", type=int, default=edits.FIRST_SEED)
    parser.add_argument("--steps", type=int, nargs="*", default=[*FEW, *MANY])
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, metavar="M", default=list(METHODS),
        help=f"methods at 13 and more steps: {', '.join(METHODS)} (default: all)",
    )  # fmt: skip
    parser.add_argument("--time", action="store_true", help="measure seconds, at 256 px")
    parser.add_argument("--repeats", type=int, default=2, help="passes there and back of --time")
    parser.add_argument(
        "--work", type=Path, default=Path("build/bench"), help="folder of finished edits"
    )
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    machine = environment.describe("cpu", edits.WEIGHTS)
    pipe = edits.load()
    methods = ["dense", *(name for name in args.methods if name != "dense")]
    plan = {steps: methods if steps > max(FEW) else ["dense", "spot"] for steps in args.steps}
    if args.time:
        result = temporal_time.measure(pipe, plan, METHODS, args.repeats)
        print(rows.save("temporal-time", result, machine, temporal_time.NOTES, args.out))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    code = f"{machine['weights'].split()[1][:12]}-{machine['commit'].rstrip('+')}"
    seeds = range(args.first_seed, args.first_seed + args.scenes)
    records = collect(pipe, args.work / f"temporal-{code}.jsonl", seeds, plan)
    result = list(result_rows(records, plan))
    print(rows.save("temporal", result, machine, NOTES, args.out))
    temporal_figure.draw(result, args.out / "temporal.png")


if __name__ == "__main__":
    main()
