"""The networks and functions behind the figures, loaded where their weights are here already."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .data import INSTALL

CLIP = "openai/clip-vit-large-patch14"
DINO = "facebook/dino-vitb8"
_DINO_SIDE = 224  # pixels, of the shorter side
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet
Distance = Callable[[Tensor, Tensor], Tensor]  # [1, 3, H, W] in 0..1 twice -> scalar
Clip = Callable[[Sequence[Image.Image], str], tuple[Tensor, Tensor]]  # unit [n, D] and [D]


@dataclass(frozen=True)
class Networks:
    """What can be measured here.

    Attributes:
        distances: by name, of `metrics.DISTANCES`.
        clip: pictures and a text -> their embeddings of length 1, or None.
        clip_model: which CLIP model was asked for.
        absent: name -> why it cannot be measured.
        device: where the tensors are to be.
    """

    distances: Mapping[str, Distance]
    clip: Clip | None
    clip_model: str
    absent: Mapping[str, str]
    device: torch.device


def networks(
    device: torch.device,
    clip: str = CLIP,
    dino: str = DINO,
    names: Sequence[str] | None = None,
) -> Networks:
    """Load what is here. Where the hub is switched off (HF_HUB_OFFLINE), nothing is fetched.

    Args:
        clip: folder or id of a CLIP model.
        dino: folder or id of a DINO ViT.
        names: those wanted; None: all.
    """
    loaders: dict[str, Callable[[], Any]] = {
        "psnr": lambda: _psnr, "ssim": _ssim, "mse": lambda: F.mse_loss,
        "lpips": partial(_lpips, device),
        "dists": partial(_dists, device), "structure_distance": partial(_structure, dino, device),
        "clip": partial(_clip, clip, device),
    }  # fmt: skip
    found, absent = {}, {}
    for name in loaders if names is None else names:
        try:
            found[name] = loaders[name]()
        except ImportError as error:
            absent[name] = f"{_first_line(error)}; {INSTALL}"
        except Exception as error:  # what libraries raise for missing or broken weights varies
            absent[name] = _first_line(error)
    return Networks(found, found.pop("clip", None), clip, absent, device)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB; it is infinite if the pictures are identical."""
    return -10 * torch.log10(F.mse_loss(a, b))


def _ssim() -> Distance:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return partial(structural_similarity_index_measure, data_range=1.0)


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


def _structure(model: str, device: torch.device) -> Distance:
    """PIE-Bench's: how differently the keys of DINO's last layer resemble each other.

    Its own script hands the network pixels of 0..255, not 0..1, and resizes without a filter; so
    does this, or figures would not compare.
    """
    from transformers import ViTModel

    network: Any = ViTModel.from_pretrained(model, use_safetensors=True, add_pooling_layer=False)
    network.to(device).eval()
    mean, spread = (torch.tensor(v, device=device)[:, None, None] for v in (_MEAN, _SPREAD))
    named = network.named_modules()
    keys = [module for name, module in named if name.endswith((".key", ".k_proj"))][-1]

    @torch.no_grad()
    def resemblance(picture: Tensor) -> Tensor:
        scale = _DINO_SIDE / min(picture.shape[2:])
        size = [round(side * scale) for side in picture.shape[2:]]
        resized = F.interpolate(255 * picture, size, mode="bilinear", align_corners=False)
        kept: list[Tensor] = []
        hook = keys.register_forward_hook(lambda module, args, output: kept.append(output))
        try:
            network((resized - mean) / spread, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        unit = F.normalize(kept[0][0].float(), dim=-1)
        return unit @ unit.T

    return lambda a, b: F.mse_loss(resemblance(a), resemblance(b))


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
        image = F.normalize(found.image_embeds.float(), dim=-1)
        return image, F.normalize(found.text_embeds.float(), dim=-1)[0]

    return embed
