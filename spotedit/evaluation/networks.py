"""Load the networks and functions that measure the figures, as far as this machine has them."""

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
_DINO_SIDE = 224  # length of the shorter side in pixels
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean and deviation of ImageNet
Distance = Callable[[Tensor, Tensor], Tensor]  # two pictures [1, 3, H, W] in 0..1 -> scalar
# n pictures and a text -> their embeddings [n, D] and [D], of length 1
Clip = Callable[[Sequence[Image.Image], str], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Networks:
    """The metrics that this machine can measure.

    Attributes:
        distances: the distance functions by their names in `metrics.DISTANCES`.
        clip: a function from pictures and a text to their embeddings, or None.
        clip_model: folder or id of the CLIP model that the caller chose.
        absent: for each name that cannot be measured, the reason.
        device: the device of the networks, and of the tensors that they take.
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
    """Load the metrics. What cannot be loaded is listed in `Networks.absent`.

    Missing weights are downloaded, but not if the hub is switched off (HF_HUB_OFFLINE).

    Args:
        clip: folder or id of a CLIP model.
        dino: folder or id of a DINO ViT.
        names: the metrics to load; None loads all of them.
    """
    loaders: dict[str, Callable[[], Any]] = {
        "psnr": lambda: _psnr, "ssim": _ssim, "mse": lambda: F.mse_loss,
        "lpips": partial(_lpips, device),
        "dists": partial(_dists, device), "structure_distance": partial(_structure, dino, device),
        "clip": partial(_clip, clip, device),
    }  # fmt: skip
    loaded, absent = {}, {}
    for name in loaders if names is None else names:
        try:
            loaded[name] = loaders[name]()
        except ImportError as error:
            absent[name] = f"{_first_line(error)}; {INSTALL}"
        except Exception as error:  # what libraries raise for missing or broken weights varies
            absent[name] = _first_line(error)
    clip_function = loaded.pop("clip", None)
    return Networks(loaded, clip_function, clip, absent, device)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB; it is infinite if the pictures are identical."""
    return -10 * torch.log10(F.mse_loss(a, b))


def _ssim() -> Distance:
    from torchmetrics.functional.image import structural_similarity_index_measure

    return partial(structural_similarity_index_measure, data_range=1.0)


def _lpips(device: torch.device) -> Distance:
    """Load LPIPS with SqueezeNet, as in PIE-Bench."""
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
    """Load PIE-Bench's structure distance.

    The keys of DINO's last layer resemble each other to some degree. The distance says how much
    these resemblances differ between two pictures. PIE-Bench's script gives the network pixels of
    0..255 instead of 0..1, and resizes without a filter. This does the same, so that the figures
    can be compared with published ones.
    """
    from transformers import ViTModel

    network: Any = ViTModel.from_pretrained(model, use_safetensors=True, add_pooling_layer=False)
    network.to(device).eval()
    mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (_MEAN, _STD))
    key_layers = [
        module for name, module in network.named_modules() if name.endswith((".key", ".k_proj"))
    ]

    @torch.no_grad()
    def resemblance(picture: Tensor) -> Tensor:
        scale = _DINO_SIDE / min(picture.shape[2:])
        size = [round(side * scale) for side in picture.shape[2:]]
        resized = F.interpolate(255 * picture, size, mode="bilinear", align_corners=False)
        outputs: list[Tensor] = []
        hook = key_layers[-1].register_forward_hook(lambda _, args, output: outputs.append(output))
        try:
            network((resized - mean) / std, interpolate_pos_encoding=True)
        finally:
            hook.remove()
        keys = F.normalize(outputs[0][0].float(), dim=-1)
        return keys @ keys.T

    return lambda a, b: F.mse_loss(resemblance(a), resemblance(b))


def _require(url: str) -> None:
    """Raise if torchvision's weights from `url` are not on this machine and the hub is offline."""
    name = url.rsplit("/", 1)[-1]
    path = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not path.is_file() and huggingface_hub.is_offline_mode():
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
        output = network(**inputs.to(device))
        image_embeddings = F.normalize(output.image_embeds.float(), dim=-1)
        text_embeddings = F.normalize(output.text_embeds.float(), dim=-1)
        return image_embeddings, text_embeddings[0]

    return embed
