"""The judge on pictures that real editors made: ``python -m bench.real_edits``.

Three Python packages (the extra `real-edits`) ship results of published editors beside their
sources. They are read where they are installed.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from spotedit_kernels import select_tokens
from torch import Tensor

from spotedit.judge.judges import JUDGES, Prediction
from spotedit.judge.misalignment import Misalignment, detect
from spotedit.models.spec import spec_for
from spotedit.options.config import THRESHOLDS, SpotEditConfig
from spotedit.pictures.images import load_image

from . import edits, environment, metrics, rows
from .rows import Row

_PACKAGES = "comfyui_workflow_templates_media_"
# editor -> the package and the template whose pictures 1 and 2 are an edit and its source
ALIGNED = {
    "Qwen-Image-Edit": ("image", "image_qwen_image_edit"),
    "Qwen-Image-Edit-2509": ("image", "image_qwen_image_edit_2509"),
    "Qwen-Image-Edit-2511": ("image", "image_qwen_image_edit_2511"),
    "2511 with a LoRA": ("image", "image-qwen_image_edit_2511_lora_inflation"),
    "Boogu-Image 0.1": ("image", "image_boogu_image_0_1_edit"),
    "FLUX.1 Fill": ("image", "flux_fill_inpaint_example"),
    "FLUX.1 Fill OneReward": ("image", "image_flux.1_fill_dev_OneReward"),
    "Bria eraser": ("assets_01", "api_bria_eraser"),
    "Bria generative fill": ("assets_01", "api_bria_genfill"),
    "Mage-Flow turbo": ("assets_01", "image_mage_flow_edit_turbo_int8"),
    "FLUX.3 klein": ("assets_02", "image_flux3_klein_image_edit"),
    "FLUX.3 klein distilled": ("assets_02", "image_flux3_klein_distilled_image_edit"),
    "Fibo 2 turbo": ("assets_02", "image_fibo2_edit_turbo_pe"),
    "Qwen-Image-2.1": ("assets_02", "image_qwen_image_2_1_image_edit"),
}
OTHERS = {
    "FLUX.1-Kontext": ("image", "flux_kontext_dev_basic"),
    "FLUX.2-klein-9B-KV": ("image", "image_flux2_klein_9b_kv_image_edit"),
}
CHANGED = (metrics.VISIBLE, 24)  # of 255: mean difference of the pixels of a changed token
DEFAULT = "calibrated"
SHIFT = (8, -12)  # px down and right, of the shifted edits
NOTES = (
    "Finished edits of published editors against their sources, at the size they are shipped in "
    "(263 to 1024 px, cropped to whole tokens). The published VAEs are not at hand: the judge "
    "looks through the decoder of the tiny editor's own. Truth: the pixels' mean absolute "
    "difference after a blur, by token; it favours the l2 judge.",
    "Active: by the judge at its own threshold, with the default dilation and hysteresis. Recall: "
    "changed tokens that are active. Pairs whose package is not installed are left out. "
    "The pairs of FLUX.1-Kontext and FLUX.2-klein show other motifs than their sources, on a plain "
    "backdrop or between black bars: what counts there is that nothing else is reused. Shifted: an "
    f"aligned edit moved by {SHIFT[0]:+d} px down and {SHIFT[1]:+d} px right of its source. In "
    "2511's source the gallery has laid the wanted texture over a corner, and in Bria's edits it "
    "shows the mask; they count as changed.",
)


@dataclass(frozen=True)
class Judged:
    """An edit and its source as the judge sees them, on a token grid.

    Attributes:
        scores: judge -> fp32 [rows, cols].
        actives: judge -> bool [rows, cols], at its own threshold.
        difference: [rows, cols], the pixels' mean absolute difference, 0..255.
        misalignment: of the whole frame, or None.
    """

    scores: Mapping[str, np.ndarray]
    actives: Mapping[str, np.ndarray]
    difference: np.ndarray
    misalignment: Misalignment | None

    @property
    def active(self) -> np.ndarray:
        """bool [rows, cols], with the default settings."""
        return self.actives[DEFAULT]


def installed(package: str) -> bool:
    return find_spec(_PACKAGES + package) is not None


def load_pair(package: str, template: str) -> tuple[Image.Image, Image.Image]:
    """The edit and its source."""
    folder = files(_PACKAGES + package) / "templates"
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
        actives = {
            name: select_tokens(
                score, grid, threshold=THRESHOLDS[name],
                dilation=chosen.dilation, hysteresis=chosen.hysteresis,
            )[0].reshape(grid).numpy()
            for name, score in scores.items()
        }  # fmt: skip
        latents = (spec.latents(tokens, grid)[0] for tokens in (x0, y))
        found = detect(*latents, pixels=side / 2)
    return Judged(
        {name: score.reshape(grid).numpy() for name, score in scores.items()},
        actives,
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
        for name, active in judged.actives.items():
            parameters = at | {"judge": name, "changed above": limit}
            recall = float(active[changed].mean())
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
    for name, active in judged.actives.items():
        share = float(active.mean())
        yield Row("active tokens", share, "share", samples=count, parameters=at | {"judge": name})
    reused = judged.difference[~judged.active]
    if reused.size:
        name, value = "difference of reused tokens, 95th percentile", np.percentile(reused, 95)
        at = {"edit": editor}
        yield Row(name, float(value), "of 255", samples=reused.size, parameters=at)


def together(judged: Mapping[str, Judged]) -> Iterator[Row]:
    """Rows of all aligned pairs: recall, its worst case, and what is computed for it."""
    changed = {editor: found.difference > CHANGED[0] for editor, found in judged.items()}
    for name in JUDGES:
        pairs = [(found.actives[name], changed[editor]) for editor, found in judged.items()]
        recalls = [float(active[truth].mean()) for active, truth in pairs]
        sizes = [float(active.sum() / truth.sum()) for active, truth in pairs]
        at: dict[str, str | int | float] = {"edit": "all aligned", "judge": name}
        at |= {"changed above": CHANGED[0]}
        yield Row.median("recall", recalls, "share", parameters=at)
        worst = int(np.argmin(recalls))
        at_worst = at | {"edit": list(judged)[worst]}
        yield Row("lowest recall", recalls[worst], "share", parameters=at_worst)
        yield Row.median("active / changed tokens", sizes, "x", parameters=at)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.real_edits", description=__doc__)
    parser.add_argument("--figure", type=Path, help="PNG of the maps, without the pictures")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    machine = environment.describe(weights=edits.WEIGHTS)
    packages = [p for p in ("image", "assets_01", "assets_02") if installed(p)]
    names = [(_PACKAGES + package).replace("_", "-") for package in packages]
    machine["pictures"] = ", ".join(f"{name} {version(name)}" for name in names)
    pipe = edits.load()
    found, drawn = [], {}
    for editor, (package, template) in (ALIGNED | OTHERS).items():
        if package not in packages:
            continue
        pair = load_pair(package, template)
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
    found = [*together(drawn), *found]
    print(rows.save("real_edits", found, machine, NOTES, args.out))


if __name__ == "__main__":
    main()
