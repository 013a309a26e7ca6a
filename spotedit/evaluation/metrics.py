"""How an edit compares with its source, in PIE-Bench's terms.

Pictures are compared at the source's size. `NAME_unedit_part` and `NAME_edit_part` are PIE-Bench's:
the other part of both pictures is made black, and the figure is taken over the whole frame.
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
    """A figure for each of `NAMES`, or why there is none: never a nan.

    `clip` is the cosine between the embeddings of both pictures, -1..1; `TARGETS` are 100 times the
    cosine between picture and target prompt, 0..100, as torchmetrics has it.
    """
    if picture.size != source.size:
        picture = picture.resize(source.size, Image.Resampling.LANCZOS)
    a, b = (_tensor(image, networks.device) for image in (source, picture))
    mask, problem = item.mask, item.mask_problem
    if mask is not None and mask.shape != a.shape[2:]:
        mask, problem = None, f"mask is not of the picture's size, {source.width} x {source.height}"
    values: Values = {}
    for name in DISTANCES:
        values[name] = _figure(networks.distances.get(name), a, b)
    for name in PARTS:
        edited = name.endswith("_edit_part")
        if mask is None or problem == (EMPTY if edited else FULL):
            values[name] = str(problem)
            continue
        keep = torch.from_numpy(mask if edited else ~mask).to(networks.device)
        values[name] = _figure(networks.distances.get(_network(name)), a * keep, b * keep)
    part = None if problem == EMPTY else mask
    return values | _clip_values(source, picture, item.target, part, str(problem), networks.clip)


def lacking(values: Values, networks: Networks) -> bool:
    """Whether a figure is missing that these networks can give."""
    missing = {_network(name) for name, value in values.items() if value == NOT_PRESENT}
    return not missing <= networks.absent.keys()


def _network(name: str) -> str:
    """What a figure is taken with."""
    return "clip" if name.startswith("clip") else re.sub("_(un)?edit_part$", "", name)


def _figure(distance: Distance | None, a: Tensor, b: Tensor) -> float | str:
    if distance is None:
        return NOT_PRESENT
    value = float(distance(a, b))
    if np.isfinite(value):
        return value
    return IDENTICAL if value > 0 else "not a number"  # a PSNR without error is infinite


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
    pixels = np.asarray(picture)
    part = picture if mask is None else Image.fromarray(pixels * mask[..., None])
    pictures, text = clip((source, picture, part), target or "")
    whole, edited = (100 * max(float(pictures[i] @ text), 0.0) for i in (1, 2))
    return {
        "clip": float(pictures[0] @ pictures[1]),
        TARGETS[0]: NO_TARGET if target is None else whole,
        TARGETS[1]: NO_TARGET if target is None else problem if mask is None else edited,
    }


def _tensor(image: Image.Image, device: torch.device) -> Tensor:
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return pixels.to(device, torch.float32) / 255
