"""Tests of the metrics: PIE-Bench's parts, absent weights, degenerate masks, missing figures."""

import math
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spotedit.evaluation import masks, metrics
from spotedit.evaluation.data import Item
from spotedit.evaluation.networks import Networks, networks

SIZE = 48
CPU = torch.device("cpu")
NOWHERE = ("no/such-clip", "no/such-dino")
needs_torchvision = pytest.mark.skipif(
    find_spec("torchvision") is None, reason="torchvision is not installed"
)


@pytest.fixture
def offline(monkeypatch):
    """Switch the hub off, and fail if anything is downloaded."""

    def fetched(*args, **kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("torch.hub.download_url_to_file", fetched)
    monkeypatch.setattr("socket.socket.connect", fetched)


@pytest.fixture
def hub(tmp_path):
    before = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    yield tmp_path / "checkpoints"
    torch.hub.set_dir(before)


@pytest.fixture
def plain(offline, hub) -> Networks:
    """Return the metrics that need no weights."""
    return networks(CPU, *NOWHERE)


@pytest.fixture
def clip(tmp_path) -> str:
    """Return the folder of a random CLIP model with the tiny editor's tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    import spotedit.tiny

    torch.manual_seed(0)
    weights = Path(spotedit.tiny.__file__).parent / "weights"
    tokenizer = CLIPTokenizer.from_pretrained(weights / "tokenizer")
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    size["num_attention_heads"] = 2
    vision = size | {"image_size": 32, "patch_size": 8}
    text = size | {"vocab_size": len(tokenizer), "max_position_embeddings": 77}
    text |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    folder = tmp_path / "clip"
    CLIPModel(config).save_pretrained(folder)
    side = {"height": 32, "width": 32}
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return str(folder)


def picture(seed: int, size: int = SIZE) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def item(mask=None, problem=None, target: str | None = "recolour the circle") -> Item:
    return Item("a", "1", "do it", lambda: picture(0), target, mask, problem)


def half() -> np.ndarray:
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[:, : SIZE // 4] = True
    return mask


def test_parts_are_taken_over_the_whole_frame(plain):
    a, b, mask = picture(0), picture(1), half()
    values = metrics.measure(a, b, item(mask), plain)
    error = ((np.asarray(a) / 255.0 - np.asarray(b) / 255.0) ** 2).mean(axis=2)
    assert values["mse"] == pytest.approx(error.mean(), rel=1e-4)
    assert values["psnr"] == pytest.approx(-10 * math.log10(error.mean()), rel=1e-4)
    edited = (error * mask).mean()
    assert values["mse_edit_part"] == pytest.approx(edited, rel=1e-4)
    assert values["mse_unedit_part"] == pytest.approx(error.mean() - edited, rel=1e-4)
    assert values["psnr_edit_part"] == pytest.approx(-10 * math.log10(edited), rel=1e-4)
    assert values["ssim_edit_part"] > values["ssim"]  # three quarters are black in both


def test_identical_parts_have_no_psnr_and_are_not_averaged(plain):
    a, mask = picture(0), half()
    pixels = np.array(a)
    pixels[mask] = 255 - pixels[mask]
    values = metrics.measure(a, Image.fromarray(pixels), item(mask), plain)
    assert values["psnr_unedit_part"] == metrics.IDENTICAL
    assert values["ssim_unedit_part"] == pytest.approx(1)
    assert isinstance(values["psnr"], float)


def test_the_picture_is_compared_at_the_sources_size(plain):
    smooth = Image.linear_gradient("L").convert("RGB").resize((SIZE, SIZE))
    values = metrics.measure(smooth, smooth.resize((2 * SIZE, 2 * SIZE)), item(half()), plain)
    assert values["psnr"] > 35


@pytest.mark.parametrize("problem", ["no mask", "mask of wrong length"])
def test_without_a_mask_there_are_no_parts(plain, problem):
    values = metrics.measure(picture(0), picture(1), item(problem=problem), plain)
    assert {values[name] for name in metrics.PARTS} == {problem}
    assert isinstance(values["psnr"], float)


def test_a_mask_of_one_part_gives_the_figures_of_that_part(plain):
    a, b, everywhere = picture(0), picture(1), np.ones((SIZE, SIZE), dtype=bool)
    full = metrics.measure(a, b, item(everywhere, masks.FULL), plain)
    assert full["psnr_edit_part"] == full["psnr"]
    assert full["psnr_unedit_part"] == masks.FULL
    border = everywhere.copy()
    border[1:-1, 1:-1] = False
    empty = metrics.measure(a, b, item(border, masks.EMPTY), plain)
    assert empty["psnr_edit_part"] == masks.EMPTY
    assert empty["psnr_unedit_part"] == pytest.approx(empty["psnr"], abs=1)


def test_a_mask_of_another_size_is_left_out(plain):
    values = metrics.measure(picture(0, 40), picture(1, 40), item(half()), plain)
    assert "40 x 40" in values["psnr_edit_part"]


def test_absent_weights_are_named_and_nothing_is_fetched(plain):
    assert set(plain.absent) == {"lpips", "dists", "structure_distance", "clip"}
    values = metrics.measure(picture(0), picture(1), item(half()), plain)
    assert set(values) == set(metrics.NAMES)
    for name in ("structure_distance", "lpips_edit_part", "clip", *metrics.TARGETS):
        assert values[name] == "weights not present"
    assert not metrics.lacking(values, plain)


def test_without_the_extra_there_is_psnr_and_the_others_name_it(offline, hub, monkeypatch):
    for name in [*sys.modules]:
        if name.partition(".")[0] == "torchmetrics":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)  # as if it was not installed
    without = networks(CPU, *NOWHERE)
    assert set(without.distances) == {"psnr", "mse"}
    for name in ("ssim", "lpips", "dists"):
        assert 'pip install -e ".[benchmarks]"' in without.absent[name]
    values = metrics.measure(picture(0), picture(1), item(half()), without)
    assert isinstance(values["psnr"], float)
    assert values["ssim"] == "weights not present"


def test_figures_are_completed_when_weights_arrive(plain, clip, offline):
    values = metrics.measure(picture(0), picture(1), item(half()), plain)
    assert metrics.lacking(values, networks(CPU, clip, NOWHERE[1]))


def test_clip(clip, offline, hub):
    found = networks(CPU, clip, NOWHERE[1])
    a, b, mask = picture(0), picture(1), half()
    same, other = (metrics.measure(a, p, item(mask), found) for p in (a, b))
    assert same["clip"] == pytest.approx(1, abs=1e-5)
    assert other["clip"] < same["clip"] - 1e-4
    whole, part = (same[name] for name in metrics.TARGETS)
    assert 0 <= whole <= 100
    assert whole != part
    longer = metrics.measure(a, a, item(mask, target="remove the square " * 60), found)
    assert isinstance(longer["clip_similarity_target_image"], float)


def test_clip_without_target_or_mask(clip, offline, hub):
    found = networks(CPU, clip, NOWHERE[1])
    values = metrics.measure(picture(0), picture(1), item(half(), target=None), found)
    assert {values[name] for name in metrics.TARGETS} == {metrics.NO_TARGET}
    values = metrics.measure(picture(0), picture(1), item(problem="no mask"), found)
    assert values["clip_similarity_target_image_edit_part"] == "no mask"


def test_clip_of_a_full_and_of_an_empty_mask(clip, offline, hub):
    found = networks(CPU, clip, NOWHERE[1])
    everywhere = np.ones((SIZE, SIZE), dtype=bool)
    values = metrics.measure(picture(0), picture(1), item(everywhere, masks.FULL), found)
    whole, part = (values[name] for name in metrics.TARGETS)
    assert part == pytest.approx(whole)
    values = metrics.measure(picture(0), picture(1), item(half(), masks.EMPTY), found)
    assert values["clip_similarity_target_image_edit_part"] == masks.EMPTY


def test_structure_distance(tmp_path, offline, hub):
    """Check properties that hold for any weights, with a random network."""
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = ViTConfig(**size, num_attention_heads=2, image_size=224, patch_size=32)
    ViTModel(config, add_pooling_layer=False).save_pretrained(tmp_path / "dino")
    found = networks(CPU, NOWHERE[0], str(tmp_path / "dino"))
    assert "structure_distance" not in found.absent
    distance = found.distances["structure_distance"]
    a, b = (torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    assert float(distance(a, a)) == 0
    assert 0 < float(distance(a, b)) < 4  # of two cosines
    assert float(distance(a, b)) == pytest.approx(float(distance(b, a)))


@needs_torchvision
def test_lpips_with_weights_that_are_here(offline, hub):
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    torch.manual_seed(0)
    name = SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    torch.save(squeezenet1_1().state_dict(), hub / name)
    found = networks(CPU, *NOWHERE)
    assert "lpips" not in found.absent
    a, mask = picture(0, 96), np.ones((96, 96), dtype=bool)
    mask[:50] = False
    same, other = (metrics.measure(a, p, item(mask), found) for p in (a, picture(1, 96)))
    assert same["lpips"] == pytest.approx(0, abs=1e-6)
    assert other["lpips_edit_part"] > 0
    assert other["lpips"] > 0


@needs_torchvision
def test_dists_with_weights_that_are_here(offline, hub, monkeypatch):
    from torchvision.models import VGG16_Weights, vgg

    class Backbone:  # the whole network has half a gigabyte
        features = vgg.make_layers(vgg.cfgs["D"])

    monkeypatch.setattr(
        "torchmetrics.functional.image.dists.vgg16", lambda weights: Backbone, raising=False
    )
    (hub / VGG16_Weights.DEFAULT.url.rsplit("/", 1)[-1]).touch()
    found = networks(CPU, *NOWHERE)
    assert "dists" not in found.absent
    a = picture(0)
    same, other = (metrics.measure(a, p, item(half()), found) for p in (a, picture(1)))
    assert same["dists"] == pytest.approx(0, abs=1e-5)
    assert other["dists"] > 1e-4
