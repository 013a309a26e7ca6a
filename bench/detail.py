"""Measure what `--detail crop` gains on large photographs: ``python -m bench.detail``.

Scenes of 512 to 1024 pixels, whose true edits are known, are edited by the tiny editor, which works
with 128 x 128 pixels: once at its size, and again in crops.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from spotedit.cli.figure import save_figure
from spotedit.editor.crop import CropEdit, Detailed, edit_in_crops
from spotedit.editor.crop_plan import changed_tokens
from spotedit.editor.editor import Editor
from spotedit.editor.settings import EditorSettings
from spotedit.models.spec import WHOLE
from spotedit.pictures.composite import PlacedEdit, composite
from spotedit.pictures.layers import Layers
from spotedit.tiny.scenes import Scene, heldout_photos, make_scene, photo_crop
from spotedit.tiny.shapes import COLOURS, SHAPES, TEXTURES, Item, draw

from . import edits, environment, rows
from .metrics import bootstrap
from .rows import Row

FIRST_SEED = 0  # choose settings on other scenes: --first-seed 1000
STEPS = 14
SOURCE, FIRST, CROP, ALL = "source", "model size", "crop", "all crops"
KINDS = ("recolour", "remove", "replace")
MADE = 3.0  # dB
NOTES = (
    "Held-out photographs, edited by the tiny editor, which works with 128 x 128 pixels (default "
    "settings). *Scene*: an instruction recolours, removes or replaces an object, which is alone "
    "or one of several, or adds one. *Object*: its width in pixels; an instruction that adds names "
    "the size. *Edit*: at the model's size, enlarged and put into the photograph; with crops, "
    "where they are accepted; with all crops, without comparing them with the first edit. PSNR and "
    "sharpness are those of the pixels that the true edit changes. Sharpness is the energy of the "
    "gradients there, as a share of the truth's. Figures of single pictures are medians with "
    "[20th, 80th percentile]; differences are means with a 95% bootstrap interval. A crop is "
    "*better* if its edit is nearer to the truth than the first edit, over all pixels of the crop. "
    f"An edit is *made* if it is {MADE:g} dB nearer to the truth than the source is."
)


@dataclass(frozen=True)
class Case:
    """Scenes of one sort.

    Attributes:
        scene: "one object", "several", or "add".
        size: side of the photograph in pixels.
        width: width of the edited object in pixels; None if the instruction names its size.
    """

    kind: str
    size: int
    width: int | None = None

    @property
    def parameters(self) -> dict[str, str | int]:
        return {"scene": self.kind, "photograph": self.size, "object": self.width or "named"}

    def scene(self, seed: int) -> Scene:
        if self.width is None:
            return make_scene(seed, kind="add", size=self.size)
        kind = KINDS[seed % len(KINDS)]
        if self.kind == "one object":
            return one_object(seed, kind, self.size, self.width / 2)
        area = float(np.pi) * (self.width / 2 / self.size) ** 2
        return make_scene(seed, kind=kind, size=self.size, area=area)


CASES = (
    Case("one object", 512, 100),
    Case("one object", 1024, 160),
    Case("one object", 1024, 60),
    Case("several", 1024, 160),
    Case("add", 1024),
)
SHOWN = CASES[1]  # in the figure
_FIGURE_WIDTH = 1000  # pixels
_ZOOM = 1.5  # side of the part that the figure shows, in widths of the edit


def one_object(seed: int, kind: str, size: int, radius: float) -> Scene:
    """Make a scene with one object, of one of `KINDS`, on a held-out photograph."""
    rng = np.random.default_rng([11, seed])
    photos = heldout_photos()
    source = photo_crop(rng, photos[int(rng.integers(len(photos)))], (size, size))
    target = source.copy()
    shape, new_shape = rng.permutation(SHAPES)[:2].tolist()
    colour, new_colour = rng.permutation(list(COLOURS))[:2].tolist()
    texture = str(rng.choice(TEXTURES))
    y, x = rng.uniform(1.5 * radius, size - 1.5 * radius, 2).tolist()
    old = Item(shape, colour, texture, (y, x), radius)
    draw(source, old)
    if kind == "recolour":
        draw(target, replace(old, colour=new_colour))
        instruction = f"recolour the {old.name} to {new_colour}"
    elif kind == "replace":
        new = replace(old, shape=new_shape, colour=new_colour)
        draw(target, new)
        instruction = f"replace the {old.name} with a {new.full_name}"
    else:
        instruction = f"remove the {old.name}"
    before, after = (np.rint(picture).astype(np.uint8) for picture in (source, target))
    return Scene(before, after, instruction, (before != after).any(axis=-1), kind)


@dataclass(frozen=True)
class Judged:
    """A crop that was compared with the first edit, and both mean squared errors in it."""

    crop: CropEdit
    first_error: float
    crop_error: float

    @property
    def better(self) -> bool:
        return self.crop_error < self.first_error

    @property
    def accepted(self) -> bool:
        return self.crop.problem is None


@dataclass(frozen=True)
class Outcome:
    """The pictures of one scene, uint8 [H, W, 3] by name, and what became of its crops.

    `forwards` counts the calls of the transformer, in the first edit and in all edits.
    """

    scene: Scene
    pictures: Mapping[str, np.ndarray]
    detailed: Detailed
    judged: Sequence[Judged]
    forwards: tuple[int, int]

    def figures(self, name: str) -> dict[str, float]:
        """Return the figures of one of the pictures."""
        arguments = self.pictures[name], self.scene.target, self.scene.mask
        return {
            "PSNR": psnr(*arguments),
            "sharpness": sharpness(*arguments),
        }


def psnr(picture: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Return the PSNR of the pixels in a mask, bool [H, W], in dB."""
    error = (picture[mask].astype(np.float64) - truth[mask]) ** 2
    return float(10 * np.log10(255**2 / max(error.mean(), 1e-3)))


def gradients(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the differences of neighbours in a mask, of the mean of the channels: [2, n]."""
    grey = picture.astype(np.float64).mean(axis=-1)
    down, right = np.diff(grey, axis=0)[:, :-1], np.diff(grey, axis=1)[:-1]
    return np.stack([down[mask[:-1, :-1]], right[mask[:-1, :-1]]])


def sharpness(picture: np.ndarray, truth: np.ndarray, mask: np.ndarray) -> float:
    """Return the energy of the gradients in a mask, as a share of the truth's."""
    energy = np.square(gradients(truth, mask)).sum()
    return float(np.square(gradients(picture, mask)).sum() / energy)


def outcome(editor: Editor, scene: Scene, seed: int) -> Outcome:
    """Edit a scene at the model's size and in crops."""
    num_calls = 0

    def count(*_: object) -> None:
        nonlocal num_calls
        num_calls += 1

    photo = scene.source_image
    hook = editor.pipe.transformer.register_forward_hook(count)
    try:
        first = editor.edit(photo, scene.instruction, seed=seed)
        num_first_calls = num_calls
        detailed = edit_in_crops(editor, photo, scene.instruction, first, seed=seed)
    finally:
        hook.remove()
    region = first.report.region
    assert region is not None  # every edit of these scenes is judged
    compared = [crop for crop in detailed.crops if crop.placed is not None]
    rest = changed_tokens(region, first.report.moved)
    for crop in compared:
        rest = rest & ~crop.plan.part
    again = [crop.placed for crop in compared if crop.placed is not None]
    pictures = {
        SOURCE: scene.source,
        FIRST: np.asarray(composite(photo, first.report.placed(first.picture))),
        CROP: np.asarray(composite(photo, detailed.placed)),
        ALL: np.asarray(composite(photo, Layers((PlacedEdit(first.picture, rest, WHOLE), *again)))),
    }
    judged = [
        Judged(crop, *(_error(pictures[name], scene.target, crop) for name in (FIRST, ALL)))
        for crop in compared
    ]
    return Outcome(scene, pictures, detailed, judged, (num_first_calls, num_calls))


def _error(picture: np.ndarray, truth: np.ndarray, crop: CropEdit) -> float:
    """Return the mean squared error of the pixels in a crop."""
    left, top, right, bottom = crop.plan.crop
    difference = picture[top:bottom, left:right].astype(float) - truth[top:bottom, left:right]
    return float(np.square(difference).mean())


def result_rows(case: Case, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Make the rows of one case."""
    for name in (FIRST, CROP, ALL):
        for measure, unit in (("PSNR", "dB"), ("sharpness", "share")):
            values = [outcome.figures(name)[measure] for outcome in outcomes]
            at = {**case.parameters, "edit": name}
            yield Row.median(measure, values, unit, parameters=at)
    for name in (CROP, ALL):
        at = {**case.parameters, "edit": name}
        gains = [
            outcome.figures(name)["PSNR"] - outcome.figures(FIRST)["PSNR"] for outcome in outcomes
        ]
        mean, low, high = bootstrap(gains)
        yield Row("PSNR gained", mean, "dB", low, high, len(gains), parameters=at)
        yield Row("PSNR gained, worst scene", min(gains), "dB", parameters=at)
    yield from _counts(case, outcomes)


def _counts(case: Case, outcomes: Sequence[Outcome]) -> Iterator[Row]:
    """Make the rows that count scenes, crops and forwards."""
    made = [
        outcome.figures(FIRST)["PSNR"] > outcome.figures(SOURCE)["PSNR"] + MADE
        for outcome in outcomes
    ]
    judged = [crop for outcome in outcomes for crop in outcome.judged]
    counts = {
        "scenes": len(outcomes),
        "scenes whose first edit was made": sum(made),
        "scenes without a crop": sum(not outcome.detailed.crops for outcome in outcomes),
        "crops": sum(len(outcome.detailed.crops) for outcome in outcomes),
        "crops that were better, and accepted": sum(c.better and c.accepted for c in judged),
        "crops that were better, but refused": sum(c.better and not c.accepted for c in judged),
        "crops that were worse, but accepted": sum(not c.better and c.accepted for c in judged),
        "crops that were worse, and refused": sum(not (c.better or c.accepted) for c in judged),
    }
    counts["crops in which nothing was edited, or that failed"] = counts["crops"] - len(judged)
    for name, count in counts.items():
        yield Row(name, count, "", parameters=case.parameters)
    first, both = (np.array([outcome.forwards[i] for outcome in outcomes]) for i in (0, 1))
    yield Row(
        "forwards of the transformer, first edit", first.mean(), "", parameters=case.parameters
    )
    yield Row("forwards of the transformer, in all", both.mean(), "", parameters=case.parameters)


def draw_figure(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write a figure with a row for each scene: the part of the photograph around the edit."""
    lines = []
    for outcome in outcomes:
        scene = outcome.scene
        y, x = (np.flatnonzero(scene.mask.any(axis=axis)) for axis in (1, 0))
        side = round(_ZOOM * max(np.ptp(y), np.ptp(x)))
        top, left = (
            int(np.clip(axis.mean() - side / 2, 0, length - side))
            for axis, length in zip((y, x), scene.mask.shape, strict=True)
        )
        pictures = [*(outcome.pictures[name] for name in (SOURCE, FIRST, CROP)), scene.target]
        part = slice(top, top + side), slice(left, left + side)
        lines.append((scene.instruction, [Image.fromarray(picture[part]) for picture in pictures]))
    save_figure(path, lines, ("photograph", "model size", "crop", "truth"))
    figure = Image.open(path).convert("RGB")
    figure.thumbnail((_FIGURE_WIDTH, figure.height), Image.Resampling.LANCZOS)
    palette = figure.quantize(256)  # a small file for the page
    figure.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.detail", description=__doc__)
    parser.add_argument("--scenes", type=int, default=20, help="number of scenes of each sort")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    parser.add_argument(
        "--figure",
        type=Path,
        help="file for a picture of the first scenes; no rows are written then",
    )
    args = parser.parse_args(argv)
    settings = EditorSettings(
        model="tiny", device="cpu", arguments={"num_inference_steps": args.steps}
    )
    with Editor(settings) as editor:
        if args.figure:
            seeds = range(args.first_seed, args.first_seed + len(KINDS))
            scenes = [outcome(editor, SHOWN.scene(seed), seed) for seed in seeds]
            draw_figure(scenes, args.figure)
            return
        machine = environment.describe(weights=edits.WEIGHTS)
        results: list[Row] = []
        for case in CASES:
            seeds = range(args.first_seed, args.first_seed + args.scenes)
            scenes = [
                outcome(editor, case.scene(seed), seed)
                for seed in tqdm(seeds, str(case), unit="scene")
            ]
            results += result_rows(case, scenes)
            notes = (NOTES, f"{args.steps} steps, scenes from seed {args.first_seed}.")
            table = rows.save("detail", results, machine, notes, args.out)
    print(table)


if __name__ == "__main__":
    main()
