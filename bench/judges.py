"""What judges find, and at what size of the region: ``python -m bench.judges``.

Scenes of both splits are edited dense with three editors. Every judge scores the clean image that
each step predicts, and the default schedule selects tokens from the scores. No spot step runs, so
thousands of settings can be compared; `python -m bench.quality` runs the few that matter.
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

from . import edits, environment, metrics, rows
from .quality.record import EDITORS, SCENES, Setting
from .quality.simulate import judged, selected
from .quality.variants import Variant
from .rows import Row

FIRST_SEED = 5000  # of scenes that no setting was chosen on
MULTIPLES = tuple(2.0 ** (i / 2) for i in range(-8, 9))  # of a judge's own threshold
RECALL = 0.99  # for which thresholds are found on one editor and tried on the others
NOTES = (
    "Dense edits; the judges see the clean image that every step predicts, and the tokens are "
    "selected as the default schedule does. Truth: the tokens whose pixels the finished dense edit "
    f"visibly changes (mean difference above {metrics.VISIBLE:g}/255 after a blur). Needed: these "
    "tokens and a ring of one around them.",
    "AUC: the chance that a changed token scores above an unchanged one, mean over scenes with a "
    "bootstrap 95% interval. At equal size: with the threshold at which the judge selects as many "
    "tokens as the calibrated one at its own. Transfer: the threshold is the highest that finds "
    f"{RECALL:.0%} of the changed tokens with one editor; recall and size with another.",
)
Place = tuple[str, str]  # editor and split


@dataclass(frozen=True)
class Course:
    """A dense edit as the judges see it.

    Attributes:
        scores: judge -> fp32 [T, N].
        changed: bool [rows, cols].
    """

    scores: Mapping[str, Tensor]
    changed: np.ndarray

    @property
    def needed(self) -> int:
        """Number of the changed tokens and of a ring of one around them."""
        return int(quality.grown(self.changed, 1).sum())


@dataclass(frozen=True)
class Selection:
    """What a threshold selects in several edits.

    Attributes:
        recalls: share of the changed tokens in the last region, of each edit.
        size: tokens of the last regions / tokens needed, all edits together.
        ratio: mean share of the tokens that spot steps compute.
    """

    recalls: np.ndarray
    size: float
    ratio: float


def follow(editor: str, split: str, seeds: Sequence[int], steps: int) -> list[Course]:
    """Edit the scenes dense, judge every step, and keep the edits that change something."""
    setting = Setting(editor, steps)
    pipe, found = setting.load(), []
    side = spec_for(pipe).token_pixels(pipe)
    kinds = _kinds(steps)
    for seed in tqdm(seeds, desc=f"{editor}, {split}", unit="scene"):
        scene = SCENES[editor][split](seed)
        grid = scene.mask.shape[0] // side, scene.mask.shape[1] // side
        with edits.traced(pipe) as (trace, extra):
            picture = pipe(**setting.arguments(scene, seed, Variant()), **extra).images[0]
        floor = edits.round_trip(pipe, scene.source)
        changed = metrics.difference(np.asarray(picture), floor, grid) > metrics.VISIBLE
        if changed.any():
            scores = {judge: judged(pipe, trace, grid, judge, kinds) for judge in JUDGES}
            found.append(Course(scores, changed))
    return found


def keep(courses: Sequence[Course], path: Path) -> None:
    """Write the edits to a file, for `kept`."""
    tensors = {}
    for number, course in enumerate(courses):
        tensors[f"{number:04} changed"] = torch.from_numpy(course.changed)
        tensors |= {f"{number:04} {judge}": scores for judge, scores in course.scores.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        save_file(tensors, temporary)


def kept(path: Path) -> list[Course]:
    """Read what `keep` wrote."""
    edited: dict[str, dict[str, Tensor]] = {}
    for name, tensor in sorted(load_file(path).items()):
        number, what = name.split()
        edited.setdefault(number, {})[what] = tensor
    courses = []
    for tensors in edited.values():
        changed = tensors.pop("changed").numpy()
        courses.append(Course(tensors, changed))
    return courses


def _kinds(steps: int) -> list[str]:
    return plan(steps, fractions=SpotEditConfig().settings.reset_fractions)


def select(courses: Sequence[Course], judge: str, threshold: float) -> Selection:
    """Select tokens with a judge and a threshold in every edit."""
    settings, recalls, sizes, ratios = SpotEditConfig().settings, [], [], []
    for course in courses:
        scores, grid = course.scores[judge], course.changed.shape
        found = selected(scores, _kinds(len(scores)), grid, settings, threshold)
        region = found.region.numpy()
        recalls.append(region[course.changed].mean())
        sizes.append((region.sum(), course.needed))
        ratios.append(found.ratio)
    active, needed = np.sum(sizes, axis=0)
    return Selection(np.array(recalls), float(active / needed), float(np.mean(ratios)))


def separation(courses: Sequence[Course], judge: str, steps: int) -> Iterator[Row]:
    """Make rows of the AUC after the initial steps and after the last reset."""
    kinds = _kinds(steps)
    last = len(kinds) - 1 - kinds[::-1].index("full")
    for name, step in (("first judgement", kinds.index("spot") - 1), ("last reset", last)):
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
    """Return the threshold at which spot steps compute `ratio` of the tokens."""
    low, high = (math.log(THRESHOLDS[judge] * factor) for factor in (1e-3, 1e3))
    for _ in range(16):
        middle = (low + high) / 2
        if select(courses, judge, math.exp(middle)).ratio > ratio:
            low = middle
        else:
            high = middle
    return math.exp(high)


def report(found: Mapping[Place, Sequence[Course]], steps: int) -> Iterator[Row]:
    """Make rows of every judge, editor and split, then of thresholds carried to other editors."""
    for (editor, split), courses in found.items():
        ratio = select(courses, "calibrated", THRESHOLDS["calibrated"]).ratio
        for judge in JUDGES:
            at = {"editor": editor, "split": split, "judge": judge}
            for row in separation(courses, judge, steps):
                yield replace(row, parameters=at)
            threshold = at_size(courses, judge, ratio)
            for name, cut in (("own threshold", THRESHOLDS[judge]), ("equal size", threshold)):
                yield from _found(select(courses, judge, cut), name, at, cut)
    editors = list(dict.fromkeys(editor for editor, _ in found))
    for judge in JUDGES:
        for editor in editors:
            threshold = at_recall(_both(found, editor), judge)
            for other in editors:
                at = {"judge": judge, "editor": other, "threshold of": editor}
                name = "own scenes" if other == editor else "transfer"
                yield from _found(
                    select(_both(found, other), judge, threshold), name, at, threshold
                )


def _both(found: Mapping[Place, Sequence[Course]], editor: str) -> list[Course]:
    return [course for (name, _), courses in found.items() if name == editor for course in courses]


def _found(
    selection: Selection, name: str, at: Mapping[str, str], threshold: float
) -> Iterator[Row]:
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


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.judges", description=__doc__)
    parser.add_argument("--scenes", type=int, default=32, help="of each split; default: 32")
    parser.add_argument("--editors", nargs="+", choices=EDITORS, default=list(EDITORS))
    parser.add_argument("--steps", type=int, default=28)
    parser.add_argument("--work", type=Path, default=Path("build/judges"), help="finished edits")
    parser.add_argument("--figure", type=Path, help="PNG of recall against size")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    found: dict[Place, list[Course]] = {}
    seeds = range(FIRST_SEED, FIRST_SEED + args.scenes)
    for editor in args.editors:
        for split in ("easy", "hard"):
            path = args.work / f"{editor}-{split}-{args.scenes}-{args.steps}.safetensors"
            if not path.exists():
                keep(follow(editor, split, seeds, args.steps), path)
            found[editor, split] = kept(path)
    if args.figure is not None:
        from .judges_figure import draw  # the rows need no matplotlib

        draw(found, args.figure)
    machine = environment.describe() | {
        "steps": str(args.steps),
        "scenes": f"{args.scenes} a split",
    }
    print(rows.save("judges", list(report(found, args.steps)), machine, NOTES, args.out))


if __name__ == "__main__":
    main()
