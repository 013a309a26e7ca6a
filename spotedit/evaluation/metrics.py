"""How an edit compares with its source, in PIE-Bench's terms, by networks that are here already.

Pictures are compared at the source's size. `NAME_unedit_part` and `NAME_edit_part` are PIE-Bench's:
the other part of both pictures is made black, and the figure is taken over the whole frame.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .data import Item

NOT_PRESENT = "weights not present"
IDENTICAL = "identical"
NO_TARGET = "no target prompt"
CLIP = "openai/clip-vit-large-patch14"
DISTANCES = ("psnr", "ssim", "mse", "lpips", "dists")
PARTS = tuple(f"{name}_{part}" for part in ("unedit_part", "edit_part") for name in DISTANCES[:-1])
TARGETS = ("clip_similarity_target_image", "clip_similarity_target_image_edit_part")
NAMES = (*DISTANCES, "clip", *PARTS, *TARGETS)
Values = dict[str, float | str]
Distance = Callable[[Tensor, Tensor], Tensor]  # [1, 3, H, W] in 0..1 twice -> scalar
Clip = Callable[[Sequence[Image.Image], str], tuple[Tensor, Tensor]]  # unit [n, D] and [D]


@dataclass(frozen=True)
class Networks:
    """What can be measured here.

    Attributes:
        distances: by name, of `DISTANCES`.
        clip: pictures and a text -> their embeddings of length 1, or None.
        absent: name -> why it cannot be measured.
        device: where the tensors are to be.
    """

    distances: Mapping[str, Distance]
    clip: Clip | None
    absent: Mapping[str, str]
    device: torch.device


def networks(
    device: torch.device, clip: str = CLIP, names: Sequence[str] = (*DISTANCES, "clip")
) -> Networks:
    """Load what is here. Where the hub is switched off (HF_HUB_OFFLINE), nothing is fetched.

    Args:
        clip: folder or id of a CLIP model.
        names: those wanted.
    """
    loaders: dict[str, Callable[[], Any]] = {
        "psnr": _psnr, "ssim": _ssim, "mse": _mse, "lpips": partial(_lpips, device),
        "dists": partial(_dists, device), "clip": partial(_clip, clip, device),
    }  # fmt: skip
    found, absent = {}, {}
    for name in names:
        try:
            found[name] = loaders[name]()
        except Exception as error:  # what libraries raise for missing or broken parts varies
            absent[name] = (str(error).splitlines() or [type(error).__name__])[0]
    return Networks(found, found.pop("clip", None), absent, device)


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
        if mask is None:
            values[name] = str(problem)
            continue
        part = torch.from_numpy(mask).to(networks.device)
        keep = part if name.endswith("_edit_part") else ~part
        values[name] = _figure(networks.distances.get(name.split("_")[0]), a * keep, b * keep)
    return values | _clip_values(source, picture, item.target, mask, str(problem), networks.clip)


def lacking(values: Values, networks: Networks) -> bool:
    """Whether a figure is missing that these networks can give."""
    missing = {name.split("_")[0] for name, value in values.items() if value == NOT_PRESENT}
    return not missing <= networks.absent.keys()


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


def _psnr() -> Distance:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    return partial(peak_signal_noise_ratio, data_range=1.0)


def _ssim() -> Distance:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return partial(structural_similarity_index_measure, data_range=1.0)


def _mse() -> Distance:
    from torchmetrics.functional import mean_squared_error

    return lambda a, b: mean_squared_error(a.contiguous(), b.contiguous())


def _lpips(device: torch.device) -> Distance:
    """With SqueezeNet, as PIE-Bench measures it."""
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    from torchvision.models import SqueezeNet1_1_Weights

    _require(SqueezeNet1_1_Weights.DEFAULT.url)
    network = LearnedPerceptualImagePatchSimilarity("squeeze").net.to(device)
    return torch.no_grad()(partial(network, normalize=True))


def _dists(device: torch.device) -> Distance:
    from torchmetrics.functional.image.dists import DISTSNetwork
    from torchvision.models import VGG16_Weights

    _require(VGG16_Weights.DEFAULT.url)
    network = DISTSNetwork().to(device).eval()
    return torch.no_grad()(network)


def _require(url: str) -> None:
    """Raise if a file of torchvision's is not here and nothing may be fetched."""
    name = url.rsplit("/", 1)[-1]
    here = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not here.is_file() and huggingface_hub.is_offline_mode():
        raise FileNotFoundError(f"{name} is not in torch.hub's folder, and the hub is offline")


def _clip(model: str, device: torch.device) -> Clip:
    from transformers import CLIPModel, CLIPProcessor

    network: Any = CLIPModel.from_pretrained(model, use_safetensors=True)
    network.to(device).eval()
    processor = CLIPProcessor.from_pretrained(model)

    @torch.no_grad()
    def embed(pictures: Sequence[Image.Image], text: str) -> tuple[Tensor, Tensor]:
        inputs = processor(
            text=[text], images=list(pictures), return_tensors="pt", padding=True, truncation=True
        )
        found = network(**inputs.to(device))
        image = torch.nn.functional.normalize(found.image_embeds.float(), dim=-1)
        return image, torch.nn.functional.normalize(found.text_embeds.float(), dim=-1)[0]

    return embed
