"""Compare dense and spot editing of one picture: time, background and seam."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

import spotedit

from .edits import call_options, edit, round_trip, warm_up
from .fair import same_loop
from .quality import background, psnr, seam

Figures = dict[str, Any]


def verify(
    pipe: Any,
    image: Image.Image,
    instruction: str,
    given: Mapping[str, Any],
    seed: int,
    config: spotedit.SpotEditConfig,
) -> Figures:
    """Edit `image` both ways in the same loop; None stands where there is nothing to measure.

    The floor is the source through the VAE and back: what a reused token can look like at best.
    Background and seam are those of `spotedit.evaluation.quality`; PSNR in dB at the output's size.

    Args:
        given: the call's options besides picture and prompt.

    Returns:
        size [width, height]; seconds_dense, seconds_spot; forwards of the transformer, the same in
        both; r; flops_saved and cache_bytes, see `EditReport`; reason (why nothing was skipped);
        moved (the kind of misalignment); background_dense, background_spot, background_floor and
        seam_dense, seam_spot, seam_floor against the source; background_to_floor, the spot picture
        against the floor.

    Raises:
        Unfair: the two edits did not run the same loop.
    """
    options = call_options(pipe, image, instruction, given)
    warm_up(pipe, options, seed, config)
    dense, spot = (edit(pipe, mode, options, seed, config) for mode in ("dense", "spot"))
    report = spot.report
    assert report is not None  # of a spot edit
    same_loop("this picture", "spot", spot.forwards, dense.forwards)
    figures: Figures = {
        "size": list(spot.picture.size),
        "seconds_dense": dense.seconds,
        "seconds_spot": spot.seconds,
        "forwards": spot.forwards,
        "r": report.mean_ratio,
        "flops_saved": report.flops_saved,
        "cache_bytes": report.cache_bytes,
        "reason": report.reason,
        "moved": report.misalignment and report.misalignment.kind,
    }
    if report.region is None or report.grid is None:
        return figures
    floor = np.asarray(round_trip(pipe, options, report.grid))
    source = np.asarray(image.resize(spot.picture.size, Image.Resampling.LANCZOS))
    pictures = {"dense": np.asarray(dense.picture), "spot": np.asarray(spot.picture)}
    size = (spot.picture.height, spot.picture.width)
    for place, find in (("background", background), ("seam", seam)):
        where = find(report.region, size)
        for name, picture in (*pictures.items(), ("floor", floor)):
            figures[f"{place}_{name}"] = _finite(psnr(picture, source, where))
    far = background(report.region, size)
    figures["background_to_floor"] = _finite(psnr(pictures["spot"], floor, far))
    return figures


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
