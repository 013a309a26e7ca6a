"""Try the judges on pictures that real editors made: ``python -m bench.real_edits``.

Three Python packages (the extra `real-edits`) ship results of published editors with their source
pictures. They are read in the place where they are installed.
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

from . import edits, environment, metrics, real_edits_figure, rows
from .rows import Row

_PACKAGES = "comfyui_workflow_templates_media_"
# editor -> (package, template); pictures 1 and 2 of the template are an edit and its source
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
OTHERS = {  # pairs that show different motifs
    "FLUX.1-Kontext": ("image", "flux_kontext_dev_basic"),
    "FLUX.2-klein-9B-KV": ("image", "image_flux2_klein_9b_kv_image_edit"),
}
CHANGED = (metrics.VISIBLE, 24)  # a token is changed above this mean difference, of 255
DEFAULT = "calibrated"  # judge
SHIFT = (8, -12)  # pixels (down, right) by which the shifted edits have moved
NOTES = (
    "Finished edits of published editors are compared with their sources, at the size in which "
    "they are shipped (263 to 1024 px, cropped to whole tokens). The published VAEs are not "
    "available here, so the judge uses the decoder of the tiny editor's VAE. The truth is the mean "
    "absolute difference of a token's pixels after a blur, which favours the l2 judge.",
    "Active tokens are those that the judge selects at its default threshold, with the default "
    "dilation and hysteresis. Recall is the share of the changed tokens that are active. Pairs "
    "whose package is not installed are left out. The pairs of FLUX.1-Kontext and FLUX.2-klein "
    "show other motifs than their sources, on a plain backdrop or between black bars; there it "
    "matters that only the backdrop or the bars are reused. `shifted` is an aligned edit moved by "
    f"{SHIFT[0]:+d} px down and {SHIFT[1]:+d} px right of its source. In 2511's source the gallery "
    "has laid the wanted texture over a corner, and in Bria's edits it shows the mask; both count "
    "as changed.",
)


@dataclass(frozen=True)
class Judged:
    """An edit and its source as the judge sees them, on a token grid.

    Attributes:
        scores: judge -> scores, fp32 [rows, cols].
        actives: judge -> active tokens at its default threshold, bool [rows, cols].
        difference: mean absolute difference of each token's pixels, 0..255, [rows, cols].
        misalignment: how the whole frame differs from the source's, or None.
    """

    scores: Mapping[str, np.ndarray]
    actives: Mapping[str, np.ndarray]
    difference: np.ndarray
    misalignment: Misalignment | None

    @property
    def active(self) -> np.ndarray:
        """The active tokens with the default judge, bool [rows, cols]."""
        return self.actives[DEFAULT]


def installed(package: str) -> bool:
    """Return whether one of the packages with pictures is installed."""
    return find_spec(_PACKAGES + package) is not None


def load_pair(package: str, template: str) -> tuple[Image.Image, Image.Image]:
    """Return an edit and its source."""
    folder = files(_PACKAGES + package) / "templates"
    edit, source = (load_image(Path(str(folder / f"{template}-{i}.webp"))) for i in (1, 2))
    return edit, source


def shifted(edit: Image.Image, source: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Crop both to a window of one size, so that the content of the edit moves by `SHIFT`."""
    down, right = SHIFT
    margin = max(abs(down), abs(right))
    width, height = edit.width - 2 * margin, edit.height - 2 * margin

    def crop(image: Image.Image, x: int, y: int) -> Image.Image:
        return image.crop((x, y, x + width, y + height))

    return crop(edit, margin - right, margin - down), crop(source, margin, margin)


def judge(pipe: Any, edit: Image.Image, source: Image.Image) -> Judged:
    """Compare two pictures of equal size, cropped to whole tokens."""
    spec = spec_for(pipe)
    assert spec.latents is not None  # the tiny editor's spec has it
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
        settings = SpotEditConfig().settings
        actives = {
            name: select_tokens(
                score, grid, threshold=THRESHOLDS[name],
                dilation=settings.dilation, hysteresis=settings.hysteresis,
            )[0].reshape(grid).numpy()
            for name, score in scores.items()
        }  # fmt: skip
        latents = (spec.latents(tokens, grid)[0] for tokens in (x0, y))
        misalignment = detect(*latents, cell_pixels=side / 2)
    return Judged(
        {name: score.reshape(grid).numpy() for name, score in scores.items()},
        actives,
        metrics.difference(np.asarray(edit), np.asarray(source), grid),
        misalignment,
    )


def _tokens(pipe: Any, picture: Image.Image) -> Tensor:
    """Encode a picture as packed tokens [1, N, C]."""
    latents = pipe.vae.encode(pipe.image_processor.preprocess(picture)).latent_dist.mode()
    latents = (latents - pipe.vae.config.shift_factor) * pipe.vae.config.scaling_factor
    return pipe._pack_latents(latents, *latents.shape)


def aligned_rows(editor: str, judged: Judged) -> Iterator[Row]:
    """Make the rows of an aligned pair."""
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
    yield from reuse_rows(editor, judged)


def reuse_rows(editor: str, judged: Judged) -> Iterator[Row]:
    """Make rows of the share of active tokens, and of how different the reused ones look."""
    at = {"edit": editor, "frame": str(judged.misalignment or "found unmoved")}
    count = judged.active.size
    for name, active in judged.actives.items():
        share = float(active.mean())
        yield Row("active tokens", share, "share", samples=count, parameters=at | {"judge": name})
    reused = judged.difference[~judged.active]
    if reused.size:
        name = "difference of reused tokens, 95th percentile"
        value, at = float(np.percentile(reused, 95)), {"edit": editor}
        yield Row(name, value, "of 255", samples=reused.size, parameters=at)


def summary_rows(all_judged: Mapping[str, Judged]) -> Iterator[Row]:
    """Make rows over all aligned pairs: recall, its worst case, and the size of the active set."""
    for name in JUDGES:
        pairs = [(j.actives[name], j.difference > CHANGED[0]) for j in all_judged.values()]
        recalls = [float(active[truth].mean()) for active, truth in pairs]
        sizes = [float(active.sum() / truth.sum()) for active, truth in pairs]
        at: dict[str, str | int | float] = {"edit": "all aligned", "judge": name}
        at |= {"changed above": CHANGED[0]}
        yield Row.median("recall", recalls, "share", parameters=at)
        worst = int(np.argmin(recalls))
        at_worst = at | {"edit": list(all_judged)[worst]}
        yield Row("lowest recall", recalls[worst], "share", parameters=at_worst)
        yield Row.median("active / changed tokens", sizes, "x", parameters=at)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.real_edits", description=__doc__)
    parser.add_argument("--figure", type=Path, help="PNG to draw; it shows maps, not pictures")
    parser.add_argument("--out", type=Path, default=rows.RESULTS, help="folder for the rows")
    args = parser.parse_args(argv)
    machine = environment.describe(weights=edits.WEIGHTS)
    packages = [p for p in ("image", "assets_01", "assets_02") if installed(p)]
    names = [(_PACKAGES + package).replace("_", "-") for package in packages]
    machine["pictures"] = ", ".join(f"{name} {version(name)}" for name in names)
    pipe = edits.load()
    result: list[Row] = []
    aligned: dict[str, Judged] = {}
    for editor, (package, template) in (ALIGNED | OTHERS).items():
        if package not in packages:
            continue
        pair = load_pair(package, template)
        judged = judge(pipe, *pair)
        if editor in OTHERS:
            result += reuse_rows(editor, judged)
            continue
        aligned[editor] = judged
        result += aligned_rows(editor, judged)
        result += reuse_rows(f"{editor}, shifted", judge(pipe, *shifted(*pair)))
    if args.figure is not None:
        maps = {
            editor: real_edits_figure.Maps(judged.scores[DEFAULT], judged.difference, judged.active)
            for editor, judged in aligned.items()
        }
        real_edits_figure.draw(maps, args.figure)
    result = [*summary_rows(aligned), *result]
    print(rows.save("real_edits", result, machine, NOTES, args.out))


if __name__ == "__main__":
    main()
