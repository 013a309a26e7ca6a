"""Measure one edited picture.

A figure is a measured number, such as a PSNR; `MEASURES` describes the figures that are compared.
Pictures are uint8 [H, W, 3] and regions are bool [rows, cols].
"""

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

Figures = dict[str, Any]  # numbers by name, or None where one does not apply


@dataclass(frozen=True)
class Measure:
    """Describe a figure: its name in the tables, its unit, and which direction is better."""

    name: str
    unit: str
    higher_is_better: bool


# In the names, "against" is a comparison of pictures, and "above" a difference of two figures.
# The keys and names cannot change, because committed rows contain them. Three keys need a word:
# - `same_db` compares with the dense picture.
# - `still_db` compares with the source, where the true edit changes nothing.
# - `above_floor` is the background's PSNR minus the PSNR of `Truth.source_round_trip` there.
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
NETWORK_OF_MEASURE = {"edit_lpips": "lpips", "edit_dists": "dists"}


class Truth:
    """The truth about one scene, with which its edits are compared.

    Attributes:
        scene: the source, the target, and the pixels that the true edit changes.
        seed: the seed of the scene and of the noise that its edits start from.
        touched: tokens in which the true edit changes at least one pixel.
        edited: tokens in which it changes at least `metrics.EDITED_SHARE` of the pixels.
        source_round_trip: the source after encoding and decoding by the VAE. Reused tokens can
            look no better than this.
        touched_and_ring: the touched tokens and a ring of one token around them.
    """

    def __init__(self, pipe: Any, scene: Scene, seed: int, networks: Networks) -> None:
        side = spec_for(pipe).token_pixels(pipe)
        self.pipe, self.scene, self.seed, self.networks = pipe, scene, seed, networks
        self.size = scene.mask.shape
        self.grid = self.size[0] // side, self.size[1] // side
        share = metrics.changed_share(scene.mask, self.grid)
        self.touched, self.edited = share > 0, share >= metrics.EDITED_SHARE
        self.touched_and_ring = quality.grown(self.touched, 1)
        self.source_round_trip = edits.round_trip(pipe, scene.source)
        target = edits.encode(pipe, scene.target)
        features = spec_for(pipe).features(pipe, target, self.grid)
        with torch.no_grad():
            self._feature_distance = perceptual(target, self.grid, features, impl="auto")

    def figures(
        self, picture: np.ndarray, dense: np.ndarray | None, region: np.ndarray | None
    ) -> Figures:
        """Return the figures in `MEASURES` and a few more; one that does not apply is None.

        Args:
            picture: the edit to measure.
            dense: the dense edit with the same seed and denoising loop; None if `picture` is it.
            region: the tokens that were recomputed; None if the method does not select tokens.
        """
        scene, mask = self.scene, self.scene.mask  # the mask has the pixels of the true edit
        figures: Figures = {
            "edit_db": quality.psnr(picture, scene.target, mask),
            # mean squared errors of the edit and of the source
            "to_truth": quality.squared_error(picture, scene.target, mask),
            "source_to_truth": quality.squared_error(scene.source, scene.target, mask),
            "still_db": quality.psnr(
                picture, scene.source, quality.background(self.touched, self.size)
            ),
            "edit_ssim": _ssim(picture, scene.target, mask),
            "edit_features": self._features(picture),
        }
        for name, network in NETWORK_OF_MEASURE.items():
            figures[name] = self._network(network, picture)
        if dense is not None:
            figures["same_db"] = quality.psnr(picture, dense, mask)
            figures["undone"] = self._undone(picture, dense)
        if region is not None:
            figures |= self._region_figures(picture, dense, region)
        return {name: _finite(value) for name, value in figures.items()}

    def _region_figures(
        self, picture: np.ndarray, dense: np.ndarray | None, region: np.ndarray
    ) -> Figures:
        # pixels farther than `quality.MARGIN` tokens from the recomputed ones
        background = quality.background(region, self.size)
        figures: Figures = {
            "background_db": quality.psnr(picture, self.scene.source, background),
            "floor_db": quality.psnr(self.source_round_trip, self.scene.source, background),
            "recall": _share(region, self.edited),
            "precision": _share(self.touched, region),
            "active_per_touched": _size_ratio(region, self.touched),
            "active_per_touched_and_ring": _size_ratio(region, self.touched_and_ring),
        }
        figures["above_floor"] = figures["background_db"] - figures["floor_db"]
        if dense is not None:
            difference = metrics.difference(dense, self.source_round_trip, self.grid)
            changed = difference > metrics.VISIBLE
            # the smallest region that would cover the edit, with a margin of one token
            needed = quality.grown(self.touched | changed, 1)
            seam = quality.seam(region, self.size)
            figures["recall_dense"] = _share(region, changed)
            figures["active_per_needed"] = _size_ratio(region, needed)
            figures["seam"] = _mean_difference(picture, self.scene.target, seam)
            figures["seam_dense"] = _mean_difference(dense, self.scene.target, seam)
            figures["seam_excess"] = figures["seam"] - figures["seam_dense"]
        return figures

    def _undone(self, picture: np.ndarray, dense: np.ndarray) -> float | None:
        """Return 1 if the picture changes the pixels of the edit less than half as much as dense.

        Otherwise return 0. Return None if dense itself changes these pixels less than half as much
        as the true edit does.
        """
        mask, scene = self.scene.mask, self.scene
        true_change = _mean_difference(scene.target, scene.source, mask)
        dense_change = _mean_difference(dense, self.source_round_trip, mask)
        if math.isnan(dense_change) or dense_change < true_change / 2:  # nan: the mask is empty
            return None
        change = _mean_difference(picture, self.source_round_trip, mask)
        return float(change < dense_change / 2)

    def _features(self, picture: np.ndarray) -> float:
        """Return the mean distance of the decoder's first layers over the edited tokens."""
        if not self.edited.any():
            return math.nan
        with torch.no_grad():
            distances = self._feature_distance(Prediction(edits.encode(self.pipe, picture)))
        return float(distances.cpu().numpy().reshape(self.grid)[self.edited].mean())

    def _network(self, name: str, picture: np.ndarray) -> float | None:
        """Return the network's distance to the truth, with all but the edited region black."""
        distance, device = self.networks.distances.get(name), self.networks.device
        if distance is None:
            return None
        mask = self.scene.mask[..., None]
        a, b = (_tensor(p * mask).to(device) for p in (picture, self.scene.target))
        return float(distance(a, b))


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """Return the share of the tokens in `whole` that are also in `part`; nan if there are none."""
    return int((part & whole).sum()) / int(whole.sum()) if whole.any() else math.nan


def _size_ratio(region: np.ndarray, reference: np.ndarray) -> float:
    """Return the number of tokens in `region` divided by that in `reference`."""
    return int(region.sum()) / max(1, int(reference.sum()))


def _mean_difference(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean absolute difference (0..255) over the mask; nan if the mask is empty."""
    return float(np.abs(a[mask].astype(np.float64) - b[mask]).mean()) if mask.any() else math.nan


def _tensor(picture: np.ndarray) -> Tensor:
    """Return the picture as float32 [1, 3, H, W] in 0..1."""
    return torch.tensor(picture).permute(2, 0, 1)[None].float() / 255


def _ssim(a: np.ndarray, b: np.ndarray, mask: np.ndarray) -> float | None:
    """Return the mean local similarity over the mask; None without torchmetrics."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError:
        return None
    if not mask.any():
        return math.nan
    _, local = ssim(_tensor(a), _tensor(b), data_range=1.0, return_full_image=True)
    return float(local[0].mean(dim=0)[torch.from_numpy(mask)].mean())


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
