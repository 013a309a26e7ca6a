"""`spotedit demo` compares dense and spot editing on scenes whose right answer is known."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

import spotedit

from ..editor.loading import choose_device, explain_errors, load, one_thread_for_tiny
from ..evaluation.quality import background, psnr
from ..pictures.draw import plot_steps
from ..pictures.files import make_folder, write_or_fall_back
from ..pictures.images import check_output
from ..report import EditReport
from ..tiny.pipeline import NATIVE_SIZE
from ..tiny.scenes import KINDS, Scene, make_scene
from .commands import DemoOptions
from .errors import raise_if_any
from .figure import save_figure
from .options import spotedit_config
from .pipelines import timed

_ORDER = ("dense", "spot", "spot", "dense")  # a drift of the machine's speed hits both alike
_WARM_UP_ORDER = ("dense", "spot")
_WARM_UP_STEPS = 3  # in a spot edit: one full step (all tokens), two spot steps (active tokens)
_SHOWN_SIZE = 4 * NATIVE_SIZE  # side in pixels of a picture in the figure
_HEADER = (
    "scene", "pixels", "dense s", "spot s", "speed-up", "r",
    "background dB, dense", "spot", "edit dB, dense", "spot",
)  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """One scene, edited dense and spot from the same noise. The seconds are means over the runs."""

    scene: Scene
    dense: Image.Image
    spot: Image.Image
    dense_seconds: float
    spot_seconds: float
    report: EditReport

    def numbers(self) -> list[float]:
        """Return the numbers in the order of `_HEADER`, without the scene and the pixels.

        They are the seconds dense and spot, the speed-up, and r; then the PSNR of the background
        against the source, dense and spot; then the PSNR of the edited pixels against the truth,
        dense and spot. The PSNR is in dB.
        """
        pictures = [np.asarray(self.dense), np.asarray(self.spot)]
        height, width = self.scene.mask.shape
        region = np.ones((1, 1), bool) if self.report.region is None else self.report.region
        background_pixels = background(region, (height, width))
        return [
            self.dense_seconds,
            self.spot_seconds,
            self.dense_seconds / self.spot_seconds,
            self.report.mean_ratio,
            *(psnr(picture, self.scene.source, background_pixels) for picture in pictures),
            *(psnr(picture, self.scene.target, self.scene.mask) for picture in pictures),
        ]


def run(options: DemoOptions) -> None:
    """Edit the scenes, write the figure and the plot of the steps, print the table.

    Raises:
        BadInput: an option of SpotEdit is out of range.
        OutputError: the files cannot be written; this is found before the work.
        Failure: the files could not be written where the user wanted them.
    """
    figure, plot = _outputs(options.out, options.force)
    device = choose_device(None, "none")
    with explain_errors(device), one_thread_for_tiny("tiny", device):
        config = spotedit_config(options.config)
        trials = _trials(options, load("tiny", "float32", device, "none"), config)
    rows = [_row(trial) for trial in trials]
    figure_problem = write_or_fall_back(figure, partial(save_figure, rows=rows))
    plot_problem = write_or_fall_back(plot, partial(plot_steps, trials[0].report.steps))
    print(table(trials))
    print()
    if figure_problem is None:
        print(f"{figure}: the pictures")
    if plot_problem is None:
        print(f"{plot}: tokens and time by step, first scene")
    raise_if_any([figure_problem, plot_problem])


def _trials(options: DemoOptions, pipe: Any, config: spotedit.SpotEditConfig) -> list[Trial]:
    """Edit the scenes, after a short edit of the first one to warm up."""
    pipe.set_progress_bar_config(disable=True)
    seeds = range(options.seed, options.seed + options.scenes)
    scenes = [make_scene(seed, kind=KINDS[i % len(KINDS)]) for i, seed in enumerate(seeds)]
    edit = partial(_trial, pipe, config, options.seed)
    edit(scenes[0], _WARM_UP_STEPS, _WARM_UP_ORDER)
    progress = tqdm(scenes, desc=f"{NATIVE_SIZE} px, {len(_ORDER)} edits a scene", unit="scene")
    return [edit(scene, options.steps, _ORDER) for scene in progress]


def _outputs(out: Path | None, force: bool) -> tuple[Path, Path]:
    """Return the paths of the figure and of the plot of the steps."""
    if out is None:
        out, force = Path("spotedit-demo"), True
    if out.suffix:
        paths = out, out.with_stem(f"{out.stem}-steps")
    else:
        make_folder(out)
        paths = out / "demo.png", out / "steps.png"
    for path in paths:
        check_output(path, force, (".png",))
    return paths


def _trial(
    pipe: Any,
    config: spotedit.SpotEditConfig,
    seed: int,
    scene: Scene,
    steps: int,
    order: Sequence[str],
) -> Trial:
    """Edit `scene` in the given `order` of dense and spot edits."""
    height, width = scene.mask.shape
    arguments = {
        "image": scene.source_image,
        "prompt": scene.instruction,
        "height": height,
        "width": width,
        "num_inference_steps": steps,
    }
    pictures: dict[str, Image.Image] = {}
    seconds: dict[str, list[float]] = {"dense": [], "spot": []}
    report: EditReport | None = None
    for mode in order:
        if mode == "dense":
            pictures[mode], elapsed = timed(pipe, seed, arguments)
        else:
            with spotedit.enable(pipe, config) as handle:
                pictures[mode], elapsed = timed(pipe, seed, arguments)
            report = handle.report
        seconds[mode].append(elapsed)
    assert report is not None  # `order` names a spot edit
    return Trial(
        scene,
        dense=pictures["dense"],
        spot=pictures["spot"],
        dense_seconds=fmean(seconds["dense"]),
        spot_seconds=fmean(seconds["spot"]),
        report=report,
    )


def _row(trial: Trial) -> tuple[str, list[Image.Image]]:
    """Return a row of the figure. The pictures are enlarged, so that the outline looks thin."""
    source, dense, spot = (
        picture.resize((_SHOWN_SIZE, _SHOWN_SIZE), Image.Resampling.BICUBIC)
        for picture in (trial.scene.source_image, trial.dense, trial.spot)
    )
    region = spot if trial.report.region is None else trial.report.overlay(spot)
    return trial.scene.instruction, [source, dense, spot, region]


def table(trials: Sequence[Trial]) -> str:
    """Return a markdown table with the numbers of every trial, and their means."""
    numbers = [trial.numbers() for trial in trials]
    lines: list[Sequence[str]] = [_HEADER, ["---"] * len(_HEADER)]
    for trial, values in zip(trials, numbers, strict=True):
        lines.append([trial.scene.instruction, str(trial.dense.width), *_cells(values)])
    if len(trials) > 1:
        means = np.mean(numbers, axis=0).tolist()
        lines.append([f"mean of {len(trials)}", str(trials[0].dense.width), *_cells(means)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(values: Sequence[float]) -> list[str]:
    dense, spot, speedup, ratio, *decibels = values
    return [
        f"{dense:.2f}", f"{spot:.2f}", f"{speedup:.2f}x", f"{ratio:.0%}",
        *("-" if np.isnan(value) else f"{value:.1f}" for value in decibels),
    ]  # fmt: skip
