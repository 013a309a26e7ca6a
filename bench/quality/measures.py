"""Figures of one edited picture. Pictures are uint8 [H, W, 3]; regions bool [rows, cols]."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spotedit.evaluation import quality
from spotedit.evaluation.networks import Networks
from spotedit.judge.judges import Prediction, perceptual
from spotedit.models.spec import spec_for
from spotedit.tiny.scenes import Scene

from .. import edits, metrics

Figures = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """A figure of an edit: its name in the tables, its unit, and whether more is better."""

    name: str
    unit: str
    more: bool


MEASURES = {
    "edit_db": Measure("edited region against the truth", "dB", True),
    "edit_ssim": Measure("edited region against the truth, SSIM", "", True),
    "edit_features": Measure("edited region against the truth, VAE features", "distance", False),
    "edit_lpips": Measure("edited region against the truth, LPIPS", "distance", False),
    "edit_dists": Measure("edited region against the truth, DISTS", "distance", False),
    "same_db": Measure("edited region against dense", "dB", True),
    "still_db": Measure("outside the true edit, against the source", "dB", True),
    "above_floor": Measure("background, above the floor", "dB", True),
    "seam_excess": Measure("seam error, above dense's", "/255", False),
    "undone": Measure("edits left undone", "share", False),
    "recall": Measure("recall", "share", True),
    "recall_dense": Measure("recall of what dense changes", "share", True),
    "precision": Measure("precision", "share", True),
}
NETWORKS = {"edit_lpips": "lpips", "edit_dists": "dists"}


class Truth:
    """What the edits of a scene are compared with. Made once a scene.

    Attributes:
        scene: source, target, and the pixels that the true edit changes.
        seed: of the scene, and of the noise that its edits start from.
        touched, edited: tokens of which it changes a pixel, or `metrics.EDITED_SHARE` of them.
        floor: the source through the VAE and back.
        ringed: the touched tokens and a ring of one around them.
    """

    def __init__(self, pipe: Any, scene: Scene, seed: int, networks: Networks) -> None:
        side = spec_for(pipe).token_pixels(pipe)
        self.pipe, self.scene, self.seed, self.networks = pipe, scene, seed, networks
        self.size = scene.mask.shape
        self.grid = self.size[0] // side, self.size[1] // side
        share = metrics.changed_share(scene.mask, self.grid)
        self.touched, self.edited = share > 0, share >= metrics.EDITED_SHARE
        self.ringed = quality.grown(self.touched, 1)
        self.floor = edits.round_trip(pipe, scene.source)
        target = edits.encode(pipe, scene.target)
        features = spec_for(pipe).features(pipe, target, self.grid)
        with torch.no_grad():
            self._distance = perceptual(target, self.grid, features, "auto")

    def figures(
        self, picture: np.ndarray, dense: np.ndarray | None, region: np.ndarray | None
    ) -> Figures:
        """Figures by their names in `MEASURES` and a few more; None where there is none.

        Args:
            dense: the dense edit of the same seed and loop; None: this is it.
            region: tokens that were regenerated, or None.
        """
        scene, where = self.scene, self.scene.mask
        found: Figures = {
            "edit_db": quality.psnr(picture, scene.target, where),
            "to_truth": quality.squared_error(picture, scene.target, where),
            "source_to_truth": quality.squared_error(scene.source, scene.target, where),
            "still_db": quality.psnr(
                picture, scene.source, quality.background(self.touched, self.size)
            ),
            "edit_ssim": _ssim(picture, scene.target, where),
            "edit_features": self._features(picture),
        }
        for name, network in NETWORKS.items():
            found[name] = self._network(network, picture)
        if dense is not None:
            found["same_db"] = quality.psnr(picture, dense, where)
            found["undone"] = self._undone(picture, dense)
        if region is not None:
            found |= self._of_region(picture, dense, region)
        return {name: _finite(value) for name, value in found.items()}

    def _of_region(
        self, picture: np.ndarray, dense: np.ndarray | None, region: np.ndarray
    ) -> Figures:
        far = quality.background(region, self.size)
        active, touched = int(region.sum()), int(self.touched.sum())
        hit, ringed = int((region & self.touched).sum()), int(self.ringed.sum())
        found = int((region & self.edited).sum()) / max(1, int(self.edited.sum()))
        figures: Figures = {
            "background_db": quality.psnr(picture, self.scene.source, far),
            "floor_db": quality.psnr(self.floor, self.scene.source, far),
            "recall": found if self.edited.any() else math.nan,
            "precision": hit / active if active else math.nan,
            "active_touched": active / max(1, touched),
            "active_ringed": active / max(1, ringed),
        }
        figures["above_floor"] = figures["background_db"] - figures["floor_db"]
        if dense is not None:
            changed = self._changed(dense)
            if changed.any():
                figures["recall_dense"] = int((region & changed).sum()) / int(changed.sum())
            needed = quality.grown(self.touched | changed, 1)
            figures["active_needed"] = active / max(1, int(needed.sum()))
            ring = quality.seam(region, self.size)
            figures["seam"], figures["seam_dense"] = (
                _absolute(p, self.scene.target, ring) for p in (picture, dense)
            )
            figures["seam_excess"] = figures["seam"] - figures["seam_dense"]
        return figures

    def _undone(self, picture: np.ndarray, dense: np.ndarray) -> float | None:
        """1 if the picture makes less than half of the edit that dense makes, else 0.

        None where dense itself makes less than half of it.
        """
        where, scene = self.scene.mask, self.scene
        true = _absolute(scene.target, scene.source, where)
        made, of_dense = (_absolute(shown, self.floor, where) for shown in (picture, dense))
        return None if not of_dense >= true / 2 else float(made < of_dense / 2)

    def _changed(self, dense: np.ndarray) -> np.ndarray:
        """Tokens that the dense edit visibly changes: bool [rows, cols]."""
        return metrics.difference(dense, self.floor, self.grid) > metrics.VISIBLE

    def _features(self, picture: np.ndarray) -> float:
        """Mean distance of the decoder's first layers over the edited tokens."""
        if not self.edited.any():
            return math.nan
        with torch.no_grad():
            distances = self._distance(Prediction(edits.encode(self.pipe, picture)))[0]
        return float(distances.cpu().numpy().reshape(self.grid)[self.edited].mean())

    def _network(self, name: str, picture: np.ndarray) -> float | None:
        """Of the whole frame, with everything but the edited region black."""
        distance, device = self.networks.distances.get(name), self.networks.device
        if distance is None:
            return None
        keep = self.scene.mask[..., None]
        a, b = (_tensor(p * keep).to(device) for p in (picture, self.scene.target))
        return float(distance(a, b))


def _absolute(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    """Mean absolute difference over the pixels `where`, of 255; nan if there are none."""
    return float(np.abs(a[where].astype(np.float64) - b[where]).mean()) if where.any() else math.nan


def _tensor(picture: np.ndarray) -> Tensor:
    """float32 [1, 3, H, W], 0..1."""
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255


def _ssim(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float | None:
    """Mean over the pixels `where` of the map of local similarities; None without torchmetrics."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError:
        return None
    if not where.any():
        return math.nan
    _, local = ssim(_tensor(a), _tensor(b), data_range=1.0, return_full_image=True)
    return float(local[0].mean(dim=0)[torch.from_numpy(where)].mean())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
