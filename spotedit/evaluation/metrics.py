"""Compare an edit with its source by PIE-Bench's metrics.

Pictures are compared at the source's size. `NAME_unedit_part` and `NAME_edit_part` are defined as
in PIE-Bench: the other part of both pictures is made black, and the metric is taken over the whole
frame.
"""

import re

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import Item
from .masks import EMPTY, FULL
from .networks import Clip, Distance, Networks

NOT_PRESENT = "weights not present"
IDENTICAL = "identical"
NO_TARGET = "no target prompt"
DISTANCES = ("psnr", "ssim", "mse", "lpips", "dists", "structure_distance")
PARTS = tuple(f"{name}_{part}" for part in ("unedit_part", "edit_part") for name in DISTANCES[:4])
TARGETS = ("clip_similarity_target_image", "clip_similarity_target_image_edit_part")
NAMES = (*DISTANCES, "clip", *PARTS, *TARGETS)
Values = dict[str, float | str]


def measure(source: Image.Image, picture: Image.Image, item: Item, networks: Networks) -> Values:
    """Return a figure for each of `NAMES`, or the reason why there is none. No figure is nan.

    `clip` is the cosine between the embeddings of both pictures, -1..1. `TARGETS` are 100 times the
    cosine between the picture and the target prompt, 0..100, as in torchmetrics.
    """
    if picture.size != source.size:
        picture = picture.resize(source.size, Image.Resampling.LANCZOS)
    a, b = _tensor(source, networks.device), _tensor(picture, networks.device)
    mask, problem = item.mask, item.mask_problem
    if mask is not None and mask.shape != a.shape[2:]:
        mask, problem = None, f"mask is not of the picture's size, {source.width} x {source.height}"
    values: Values = {}
    for name in DISTANCES:
        values[name] = _figure(networks.distances.get(name), a, b)
    for name in PARTS:
        is_edit_part = name.endswith("_edit_part")
        if mask is None or problem == (EMPTY if is_edit_part else FULL):
            values[name] = str(problem)
            continue
        part = torch.from_numpy(mask if is_edit_part else ~mask).to(networks.device)
        values[name] = _figure(networks.distances.get(_network(name)), a * part, b * part)
    edit_mask = None if problem == EMPTY else mask
    clip_values = _clip_values(source, picture, item.target, edit_mask, str(problem), networks.clip)
    return values | clip_values


def lacking(values: Values, networks: Networks) -> bool:
    """Tell whether `values` lacks a figure that `networks` can measure."""
    missing = {_network(name) for name, value in values.items() if value == NOT_PRESENT}
    return not missing <= networks.absent.keys()


def _network(name: str) -> str:
    """Return the name of the network that measures the figure `name`."""
    return "clip" if name.startswith("clip") else re.sub("_(un)?edit_part$", "", name)


def _figure(distance: Distance | None, a: Tensor, b: Tensor) -> float | str:
    """Return the distance, or the reason why there is none."""
    if distance is None:
        return NOT_PRESENT
    value = float(distance(a, b))
    if np.isfinite(value):
        return value
    return IDENTICAL if value > 0 else "not a number"  # the PSNR of identical pictures is infinite


def _clip_values(
    source: Image.Image,
    picture: Image.Image,
    target: str | None,
    mask: np.ndarray | None,
    problem: str,
    clip: Clip | None,
) -> Values:
    if clip is None:
        return dict.fromkeys(("clip", *TARGETS), NOT_PRESENT)
    edited_part = picture
    if mask is not None:
        edited_part = Image.fromarray(np.asarray(picture) * mask[..., None])
    embeddings, text = clip((source, picture, edited_part), target or "")
    source_embedding, whole, part = embeddings
    values: Values = {"clip": float(source_embedding @ whole)}
    if target is None:
        return values | dict.fromkeys(TARGETS, NO_TARGET)
    values[TARGETS[0]] = _clip_score(whole, text)
    values[TARGETS[1]] = problem if mask is None else _clip_score(part, text)
    return values


def _clip_score(picture: Tensor, text: Tensor) -> float:
    return 100 * max(float(picture @ text), 0.0)


def _tensor(image: Image.Image, device: torch.device) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return pixels.to(device, torch.float32) / 255
