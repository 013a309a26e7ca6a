"""The judge on pictures that real editors made: ``python -m bench.real_edits``.

The Python package `comfyui-workflow-templates-media-image` (the extra `real-edits`) ships results
of published editors beside their sources. They are read where they are installed.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from spotedit_kernels import select_tokens
from torch import Tensor

from spotedit.config import SpotEditConfig
from spotedit.images import load_image
from spotedit.misalignment import Misalignment, detect
from spotedit.models.spec import spec_for
from spotedit.select import JUDGES, Prediction

from . import edits, environment, metrics, rows
from .rows import Row

PACKAGE = "comfyui_workflow_templates_media_image"
# editor -> the template whose pictures 1 and 2 are an edit and its source
ALIGNED = {
    "Qwen-Image-Edit": "image_qwen_image_edit",
    "Qwen-Image-Edit-2509": "image_qwen_image_edit_2509",
    "Qwen-Image-Edit-2511": "image_qwen_image_edit_2511",
}
OTHERS = {
    "FLUX.1-Kontext": "flux_kontext_dev_basic",
    "FLUX.2-klein-9B-KV": "image_flux2_klein_9b_kv_image_edit",
}
CHANGED = (metrics.VISIBLE, 24)  # of 255: mean difference of the pixels of a changed token
SHIFT = (8, -12)  # px down and right, of the shifted edits
NOTES = (
    "Finished edits of published editors against their sources, at the size they are shipped in "
    "(350 and 400 px, cropped to whole tokens). The published VAEs are not at hand: the judge "
    "looks through the decoder of the tiny editor's own, with the settings calibrated for it. "
    "Truth: the pixels' mean absolute difference after a blur, by token; it favours the l2 judge.",
    "Active: by the default judge, threshold and dilation. Recall: changed tokens that are active. "
    "The pairs of the FLUX models show other motifs than their sources, on a plain backdrop or "
    "between black bars: what counts there is that nothing else is reused. Shifted: the aligned "
    f"edits moved by {SHIFT[0]:+d} px down and {SHIFT[1]:+d} px right against their sources. In "
    "2511's source the gallery has laid the wanted texture over a corner; it counts as changed.",
)


@dataclass(frozen=True)
class Judged:
    """An edit and its source as the judge sees them, on a token grid.

    Attributes:
        scores: judge -> fp32 [rows, cols].
        active: bool [rows, cols], with the default settings.
        difference: [rows, cols], the pixels' mean absolute difference, 0..255.
        misalignment: of the whole frame, or None.
    """

    scores: Mapping[str, np.ndarray]
    active: np.ndarray
    difference: np.ndarray
    misalignment: Misalignment | None


def load_pair(template: str) -> tuple[Image.Image, Image.Image]:
    """The edit and its source."""
    folder = files(PACKAGE) / "templates"
    edit, source = (load_image(Path(str(folder / f"{template}-{i}.webp"))) for i in (1, 2))
    return edit, source


def shifted(edit: Image.Image, source: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Both through a window of one size; what the edit shows has moved by `SHIFT`."""
    down, right = SHIFT
    margin = max(abs(down), abs(right))
    width, height = edit.width - 2 * margin, edit.height - 2 * margin
    places = ((margin - right, margin - down), (margin, margin))
    cut = (
        image.crop((x, y, x + width, y + height))
        for image, (x, y) in zip((edit, source), places, strict=True)
    )
    return next(cut), next(cut)


def judge(pipe: Any, edit: Image.Image, source: Image.Image) -> Judged:
    """Compare two pictures of equal size; what exceeds whole tokens is cropped."""
    spec = spec_for(pipe)
    assert spec.latents is not None  # of the tiny editor
    side = spec.token_pixels(pipe)
    grid = (source.height // side, source.width // side)
    box = (0, 0, grid[1] * side, grid[0] * side)
    edit, source = edit.crop(box), source.crop(box)
    with torch.no_grad():
        x0, y = _tokens(pipe, edit), _tokens(pipe, source)
        features = spec.features(pipe, y, grid)
        scores = {
            name: make(y, grid, features, "reference")(Prediction(x0))
            for name, make in JUDGES.items()
        }
        chosen = SpotEditConfig().settings
        active, _, _ = select_tokens(
            scores[chosen.judge], grid, threshold=chosen.threshold,
            dilation=chosen.dilation, hysteresis=chosen.hysteresis,
        )  # fmt: skip
        latents = (spec.latents(tokens, grid)[0] for tokens in (x0, y))
        found = detect(*latents, pixels=side / 2)
    return Judged(
        {name: score.reshape(grid).numpy() for name, score in scores.items()},
        active.reshape(grid).numpy(),
        metrics.difference(np.asarray(edit), np.asarray(source), grid),
        found,
    )


def _tokens(pipe: Any, picture: Image.Image) -> Tensor:
    latents = pipe.vae.encode(pipe.image_processor.preprocess(picture)).latent_dist.mode()
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    return pipe._pack_latents(latents, *latents.shape)


def report(editor: str, judged: Judged) -> Iterator[Row]:
    """Rows of a pair in which something stayed."""
    count = judged.difference.size
    at: dict[str, str | int | float] = {"edit": editor}
    for limit in CHANGED:
        changed = judged.difference > limit
        for name, scores in judged.scores.items():
            parameters = at | {"judge": name, "changed above": limit}
            area = metrics.auc(scores, changed)
            yield Row("AUC of the score", area, "share", samples=count, parameters=parameters)
        parameters = at | {"changed above": limit}
        yield Row(
            "changed tokens", float(changed.mean()), "share", samples=count, parameters=parameters
        )
        recall = float(judged.active[changed].mean())
        yield Row("recall", recall, "share", samples=int(changed.sum()), parameters=parameters)
    for name, scores in judged.scores.items():
        value = metrics.rank_correlation(scores, judged.difference)
        parameters = at | {"judge": name}
        yield Row("rank correlation", value, "rho", samples=count, parameters=parameters)
    yield from reuse(editor, judged)


def reuse(editor: str, judged: Judged) -> Iterator[Row]:
    """Rows of any pair: what would be computed, and how different what is reused looks."""
    at = {"edit": editor, "frame": str(judged.misalignment or "found unmoved")}
    count = judged.active.size
    share = float(judged.active.mean())
    yield Row("active tokens", share, "share", samples=count, parameters=at)
    reused = judged.difference[~judged.active]
    if reused.size:
        name, value = "difference of reused tokens, 95th percentile", np.percentile(reused, 95)
        at = {"edit": editor}
        yield Row(name, float(value), "of 255", samples=reused.size, parameters=at)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.real_edits", description=__doc__)
    parser.add_argument("--figure", type=Path, help="PNG of the maps, without the pictures")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    machine = environment.describe(weights=edits.WEIGHTS)
    machine["pictures"] = f"{PACKAGE.replace('_', '-')} {version(PACKAGE)}"
    pipe = edits.load()
    found, drawn = [], {}
    for editor, template in (ALIGNED | OTHERS).items():
        pair = load_pair(template)
        judged = judge(pipe, *pair)
        if editor in OTHERS:
            found += reuse(editor, judged)
            continue
        drawn[editor] = judged
        found += report(editor, judged)
        found += reuse(f"{editor}, shifted", judge(pipe, *shifted(*pair)))
    if args.figure is not None:
        from .real_edits_figure import draw  # the rows need no matplotlib

        draw(drawn, args.figure)
    print(rows.save("real_edits", found, machine, NOTES, args.out))


if __name__ == "__main__":
    main()
