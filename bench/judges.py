"""Measure what judges find, and with how many tokens: ``python -m bench.judges``.

Three editors edit scenes of both splits dense. Every judge scores the clean image that each step
predicts, and the default schedule selects tokens from the scores. No spot step runs, so thousands
of settings can be compared; `python -m bench.quality` runs the few that matter.
"""

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from spotedit.engine.schedule import plan
from spotedit.evaluation import quality
from spotedit.judge.judges import JUDGES
from spotedit.models.spec import spec_for
from spotedit.options.config import THRESHOLDS, SpotEditConfig
from spotedit.pictures.images import atomic_write

from . import edits, environment, judges_figure, metrics, rows
from .quality.record import EDITORS, SCENES, Setting
from .quality.simulate import judged, selected
from .quality.variants import Variant
from .rows import Row

FIRST_SEED = 5000  # no setting was chosen on the scenes from here on
MULTIPLES = tuple(2.0 ** (i / 2) for i in range(-8, 9))  # of a judge's default threshold
RECALL = 0.99  # wanted recall of a threshold that is chosen on one editor and tried on another
NOTES = (
    "Dense edits. The judges see the clean image that every step predicts, and tokens are selected "
    "with the default schedule. A token is changed if the finished dense edit visibly changes its "
    f"pixels (mean difference above {metrics.VISIBLE:g}/255 after a blur). Needed tokens are the "
    "changed ones and a ring of one token around them.",
    "AUC is the chance that a changed token scores above an unchanged one: the mean over scenes "
    "with a bootstrap 95% interval. `equal size`: with this threshold the judge selects as many "
    "tokens as the calibrated judge does with its default threshold (`own threshold`). `transfer`: "
    f"the threshold is the highest that finds {RECALL:.0%} of the changed tokens with one editor; "
    "recall and size are those of another editor.",
)
Place = tuple[str, str]  # (editor, split)


@dataclass(frozen=True)
class Course:
    """A dense edit as the judges see it.

    Attributes:
        scores: judge -> scores of the N tokens at the T steps, fp32 [T, N].
        changed: tokens that the edit changes, bool [rows, cols].
    """

    scores: Mapping[str, Tensor]
    changed: np.ndarray

    @property
    def needed(self) -> int:
        """Number of tokens that are changed or in a ring of one token around those."""
        return int(quality.grown(self.changed, 1).sum())


@dataclass(frozen=True)
class Selection:
    """What a threshold selects in several edits.

    Attributes:
        recalls: for each edit, the share of its changed tokens that the last region contains.
        size: number of tokens in the last regions / needed tokens, over all edits together.
        ratio: mean share of the tokens that spot steps compute.
    """

    recalls: np.ndarray
    size: float
    ratio: float


def follow(editor: str, split: str, seeds: Sequence[int], steps: int) -> list[Course]:
    """Edit the scenes dense, judge every step, and return the edits that change something."""
    setting = Setting(editor, steps)
    pipe = setting.load()
    courses = []
    side = spec_for(pipe).token_pixels(pipe)
    kinds = _kinds(steps)
    for seed in tqdm(seeds, desc=f"{editor}, {split}", unit="scene"):
        scene = SCENES[editor][split](seed)
        grid = scene.mask.shape[0] // side, scene.mask.shape[1] // side
        arguments = setting.arguments(scene, seed, Variant())
        with edits.traced(pipe) as (trace, callback):
            picture = pipe(**arguments, **callback).images[0]
        floor = edits.round_trip(pipe, scene.source)
        changed = metrics.difference(np.asarray(picture), floor, grid) > metrics.VISIBLE
        if changed.any():
            scores = {judge: judged(pipe, trace, grid, judge, kinds) for judge in JUDGES}
            courses.append(Course(scores, changed))
    return courses


def save_courses(courses: Sequence[Course], path: Path) -> None:
    """Write the edits to a file that `load_courses` reads."""
    tensors = {}
    for i, course in enumerate(courses):
        tensors[f"{i:04} changed"] = torch.from_numpy(course.changed)
        tensors |= {f"{i:04} {judge}": scores for judge, scores in course.scores.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)


def load_courses(path: Path) -> list[Course]:
    """Read what `save_courses` wrote."""
    by_index: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(load_file(path).items()):
        index, key = name.split()
        by_index.setdefault(index, {})[key] = tensor
    courses = []
    for scores in by_index.values():
        changed = scores.pop("changed").numpy()
        courses.append(Course(scores, changed))
    return courses


def _kinds(steps: int) -> list[str]:
    """Return the kind of each step in the default schedule."""
    return plan(steps, fractions=SpotEditConfig().settings.reset_fractions)


def select(courses: Sequence[Course], judge: str, threshold: float) -> Selection:
    """Select tokens with a judge and a threshold in every edit."""
    settings, recalls, sizes, ratios = SpotEditConfig().settings, [], [], []
    for course in courses:
        scores, grid = course.scores[judge], course.changed.shape
        selection = selected(scores, _kinds(len(scores)), grid, settings, threshold)
        region = selection.region.numpy()
        recalls.append(region[course.changed].mean())
        sizes.append((region.sum(), course.needed))
        ratios.append(selection.ratio)
    active, needed = np.sum(sizes, axis=0)
    return Selection(np.array(recalls), float(active / needed), float(np.mean(ratios)))


def separation(courses: Sequence[Course], judge: str, steps: int) -> Iterator[Row]:
    """Make rows of the AUC after the initial steps and after the last reset."""
    kinds = _kinds(steps)
    last_initial = kinds.index("spot") - 1
    last_reset = max(step for step, kind in enumerate(kinds) if kind == "full")
    for name, step in (("first judgement", last_initial), ("last reset", last_reset)):
        areas = [
            metrics.auc(course.scores[judge][step].numpy(), course.changed.ravel())
            for course in courses
            if not course.changed.all()
        ]
        mean, low, high = metrics.bootstrap(areas)
        yield Row(f"AUC, {name}", mean, "share", low, high, len(areas))


def at_recall(courses: Sequence[Course], judge: str) -> float:
    """Return the highest threshold, of `MULTIPLES`, at which the mean recall reaches `RECALL`."""
    for multiple in reversed(MULTIPLES):
        threshold = multiple * THRESHOLDS[judge]
        if select(courses, judge, threshold).recalls.mean() >= RECALL:
            return threshold
    return MULTIPLES[0] * THRESHOLDS[judge]


def at_size(courses: Sequence[Course], judge: str, ratio: float) -> float:
    """Return the threshold at which spot steps compute `ratio` of the tokens, by bisection."""
    low, high = (math.log(THRESHOLDS[judge] * factor) for factor in (1e-3, 1e3))
    for _ in range(16):
        middle = (low + high) / 2
        if select(courses, judge, math.exp(middle)).ratio > ratio:
            low = middle
        else:
            high = middle
    return math.exp(high)


def result_rows(all_courses: Mapping[Place, Sequence[Course]], steps: int) -> Iterator[Row]:
    """Make rows of every judge, editor and split, then of thresholds carried to other editors."""
    for (editor, split), courses in all_courses.items():
        ratio = select(courses, "calibrated", THRESHOLDS["calibrated"]).ratio
        for judge in JUDGES:
            at = {"editor": editor, "split": split, "judge": judge}
            for row in separation(courses, judge, steps):
                yield replace(row, parameters=at)
            yield from _selection_rows(courses, judge, THRESHOLDS[judge], at, "own threshold")
            threshold = at_size(courses, judge, ratio)
            yield from _selection_rows(courses, judge, threshold, at, "equal size")
    both_splits: dict[str, list[Course]] = {}
    for (editor, _), courses in all_courses.items():
        both_splits.setdefault(editor, []).extend(courses)
    for judge in JUDGES:
        for editor, courses in both_splits.items():
            threshold = at_recall(courses, judge)
            for other, other_courses in both_splits.items():
                at = {"judge": judge, "editor": other, "threshold of": editor}
                name = "own scenes" if other == editor else "transfer"
                yield from _selection_rows(other_courses, judge, threshold, at, name)


def _selection_rows(
    courses: Sequence[Course], judge: str, threshold: float, at: Mapping[str, str], name: str
) -> Iterator[Row]:
    """Make rows of what a judge selects with a threshold; `name` says how that was chosen."""
    selection = select(courses, judge, threshold)
    at = {**at, "at": name, "threshold": f"{threshold:.3g}"}
    recalls, count = selection.recalls, len(selection.recalls)
    mean, low, high = metrics.bootstrap(recalls)
    yield Row("recall", mean, "share", low, high, count, parameters=at)
    fifth = float(np.percentile(recalls, 5))
    yield Row("recall, 5th percentile", fifth, "share", samples=count, parameters=at)
    yield Row("edits that are mostly missed", float((recalls < 0.5).mean()), "share",
              samples=count, parameters=at)  # fmt: skip
    yield Row("active / needed", selection.size, "x", samples=count, parameters=at)
    yield Row("r, spot steps", selection.ratio, "share", samples=count, parameters=at)


def curve(courses: Sequence[Course], judge: str) -> judges_figure.Curve:
    """Select with all `MULTIPLES` of a judge's default threshold, for the figure."""
    selections = [select(courses, judge, m * THRESHOLDS[judge]) for m in MULTIPLES]
    missed = [1 - float(selection.recalls.mean()) for selection in selections]
    sizes = [selection.size for selection in selections]
    return judges_figure.Curve(sizes, missed, MULTIPLES.index(1.0))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.judges", description=__doc__)
    parser.add_argument(
        "--scenes", type=int, default=32, help="number of scenes in each split; default: 32"
    )
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=list(EDITORS))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument(
        "--work", type=Path, default=Path("build/judges"), help="folder of finished edits"
    )
    parser.add_argument("--figure", type=Path, help="PNG to draw, recall against size")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    all_courses: dict[Place, list[Course]] = {}
    seeds = range(FIRST_SEED, FIRST_SEED + args.scenes)
    for editor in args.editors:
        for split in ("easy", "hard"):
            path = args.work / f"{editor}-{split}-{args.scenes}-{args.steps}.safetensors"
            if not path.exists():
                save_courses(follow(editor, split, seeds, args.steps), path)
            all_courses[editor, split] = load_courses(path)
    if args.figure is not None:
        curves = {
            place: {judge: curve(courses, judge) for judge in JUDGES}
            for place, courses in all_courses.items()
        }
        judges_figure.draw(curves, args.figure)
    machine = environment.describe()
    machine |= {"steps": str(args.steps), "scenes": f"{args.scenes} a split"}
    result = list(result_rows(all_courses, args.steps))
    print(rows.save("judges", result, machine, NOTES, args.out))


if __name__ == "__main__":
    main()
