"""Compare dense and spot editing of one picture: time, background and seam."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

import spotedit

from .edits import SPOT, call_options, edit, round_trip, warm_up
from .fair import same_loop
from .quality import background, psnr, seam

Figures = dict[str, Any]


def verify(
    pipe: Any,
    image: Image.Image,
    instruction: str,
    arguments: Mapping[str, Any],
    seed: int,
    config: spotedit.SpotEditConfig,
) -> Figures:
    """Edit `image` dense and spot in the same loop, and measure both pictures.

    The floor is the source after encoding and decoding by the VAE: the best that a reused token can
    look. `quality` defines background and seam. PSNR is in dB, at the output's size.

    Args:
        arguments: the arguments of the pipeline's call besides picture and prompt.

    Returns:
        A dictionary. A figure is None if there is nothing to measure; the PSNR figures are missing
        if nothing was skipped.

        - size: [width, height] in pixels.
        - seconds_dense, seconds_spot: durations of the calls.
        - forwards, skipped_forwards: number of calls of the transformer in the spot edit, and
          number of calls that a temporal method left out. Their sum is that of the dense edit.
        - r, flops_saved, cache_bytes: see `EditReport`.
        - reason: why nothing was skipped.
        - moved: the kind of misalignment.
        - background_dense, background_spot, background_floor: PSNR against the source.
        - seam_dense, seam_spot, seam_floor: PSNR against the source.
        - background_to_floor: PSNR of the spot picture against the floor.

    Raises:
        Unfair: the two edits did not run the same loop.
    """
    options = call_options(pipe, image, instruction, arguments)
    for each in (None, config):
        warm_up(pipe, options, seed, each)
    dense, spot = (edit(pipe, options, seed, each) for each in (None, config))
    report = spot.report
    assert report is not None  # a spot edit has one
    spot_loop = spot.forwards + spot.skipped_forwards
    same_loop("this picture", SPOT, spot_loop, dense.forwards)
    figures: Figures = {
        "size": list(spot.picture.size),
        "seconds_dense": dense.seconds,
        "seconds_spot": spot.seconds,
        "forwards": spot.forwards,
        "skipped_forwards": spot.skipped_forwards,
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
    pictures = {
        "dense": np.asarray(dense.picture),
        "spot": np.asarray(spot.picture),
        "floor": floor,
    }
    size = (spot.picture.height, spot.picture.width)
    places = {"background": background(report.region, size), "seam": seam(report.region, size)}
    for place, where in places.items():
        for name, picture in pictures.items():
            figures[f"{place}_{name}"] = _finite(psnr(picture, source, where))
    to_floor = psnr(pictures["spot"], floor, places["background"])
    figures["background_to_floor"] = _finite(to_floor)
    return figures


def _finite(value: float) -> float | None:
    """Return `value`, or None if it is infinite or not a number, which JSON cannot hold."""
    return value if math.isfinite(value) else None
