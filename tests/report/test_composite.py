"""`EditReport.composite` puts the regenerated region back into the original picture."""

import math
from types import SimpleNamespace

import numpy as np
import photographs
import pytest
import torch
from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor
from families import FAMILIES
from PIL import Image
from small_kontext import CORNER, call_arguments

import spotedit
from spotedit.engine.record import CallRecord, StepRecord
from spotedit.models import flux2
from spotedit.models.spec import WHOLE
from spotedit.pictures.composite import PlacedEdit
from spotedit.pictures.images import ImageError, load_image
from spotedit.report import EditReport

ROWS, COLS, TOKEN = 4, 6, 16
COLOUR = (20, 200, 60)
EDITED = Image.new("RGB", (COLS * TOKEN, ROWS * TOKEN), COLOUR)


def report(region: np.ndarray | None, kind: str = "spot", **changes) -> EditReport:
    step = StepRecord(0, kind, 1.0, 1, 1, ROWS * COLS, ROWS * COLS, 0.0, 1.0)
    fields = {
        "pipeline": "Synthetic",
        "grid": (ROWS, COLS),
        "records": [step],
        "region": None if region is None else torch.from_numpy(region.reshape(-1, ROWS * COLS)),
        "scores": None,
        "batch": 1,
        "cache_bytes": 0,
        "reason": None,
        "threshold": 0.1,
        "judge": "l2",
        "source_box": WHOLE,
    }
    return EditReport(CallRecord(**fields | changes))


def tokens(*places: tuple[int, int]) -> np.ndarray:
    region = np.zeros((ROWS, COLS), dtype=bool)
    for place in places:
        region[place] = True
    return region


def changed(original: Image.Image, result: Image.Image) -> np.ndarray:
    """Return where the pixels differ: bool [H, W]."""
    assert result.mode == original.mode
    before, after = (np.atleast_3d(np.asarray(image)) for image in (original, result))
    return (before != after).any(axis=-1)


@pytest.mark.parametrize("size", [(96, 64), (601, 397), (37, 53), (33, 4000), (1920, 1080)])
def test_the_region_is_stretched_over_the_original(size):
    """One token is 1/6 of the width and 1/4 of the height, and so is the feather around it."""
    original = Image.new("RGB", size, "white")
    is_changed = changed(original, report(tokens((1, 2))).composite(original, EDITED))
    width, height = size
    rows, columns = is_changed.any(axis=1).nonzero()[0], is_changed.any(axis=0).nonzero()[0]
    rounding = 2  # pixels: the feather begins with opacities that change no 8-bit value
    slack = rounding + 0.05 * max(width / COLS, height / ROWS)
    assert columns[0] == pytest.approx(width * 1 / COLS, abs=slack)
    assert columns[-1] + 1 == pytest.approx(width * 4 / COLS, abs=slack)
    assert rows[0] == pytest.approx(height * 0 / ROWS, abs=slack)
    assert rows[-1] + 1 == pytest.approx(height * 3 / ROWS, abs=slack)


def test_pixels_beyond_the_feather_are_identical_and_the_region_is_the_edit():
    original = photographs.scene_8_bit(300, 200)
    result = report(tokens((1, 2))).composite(original, EDITED)
    is_changed = changed(original, result)
    assert not is_changed[:, : 300 // COLS].any()
    assert not is_changed[:, math.ceil(300 * 4 / COLS) :].any()
    inside = np.asarray(result)[50:100, 100:150]
    assert (inside == COLOUR).all()


def test_the_feather_is_smooth_and_monotonic():
    edit = PlacedEdit(EDITED, tokens((1, 2)), WHOLE)
    line = edit.opacity((600, 400), (0, 150, 600, 151))[0]
    assert line[:100].max() == 0
    assert (line[200:300] == 1).all()
    assert line[400:].max() == 0
    assert (np.diff(line[100:200]) > 0).all()
    assert np.abs(np.diff(line)).max() < 0.02


def test_a_region_at_the_border_reaches_the_border():
    original = Image.new("RGB", (301, 203), "white")
    corners = tokens((0, 0), (ROWS - 1, COLS - 1))
    result = np.asarray(report(corners).composite(original, EDITED))
    for corner in (result[0, 0], result[-1, -1], result[0, 40], result[-1, -40]):
        assert tuple(corner) == COLOUR
    assert tuple(result[-1, 0]) == tuple(result[0, -1]) == (255, 255, 255)


def test_strips_join_without_a_seam(monkeypatch):
    from spotedit.pictures import composite

    original = photographs.scene_8_bit(200, 300)
    edited = photographs.scene_8_bit(COLS * TOKEN, ROWS * TOKEN)
    whole = report(tokens((1, 1), (2, 4))).composite(original, edited)
    monkeypatch.setattr(composite, "_STRIP_PIXELS", 1000)
    in_strips = report(tokens((1, 1), (2, 4))).composite(original, edited)
    difference = np.asarray(whole).astype(int) - np.asarray(in_strips)
    assert np.abs(difference).max() <= 1  # Pillow's places in a picture have 32 bits


def test_what_a_crop_cut_off_stays_the_originals():
    box = (0.1, 0.0, 0.9, 0.95)
    original = Image.new("RGB", (200, 100), "white")
    everything = np.ones((ROWS, COLS), dtype=bool)
    is_changed = changed(original, report(everything, source_box=box).composite(original, EDITED))
    columns, rows = is_changed.any(axis=0).nonzero()[0], is_changed.any(axis=1).nonzero()[0]
    assert 20 <= columns[0] <= 23
    assert 176 <= columns[-1] < 180
    assert rows[0] == 0  # nothing was cut off there
    assert 91 <= rows[-1] < 95


@pytest.mark.parametrize("size", [(100, 70), (517, 333), (1111, 1009), (2000, 1500)])
def test_flux2_crops_where_its_box_says(size):
    """A picture of its own coordinates goes through the pipeline's processor."""
    width, height = size
    x = np.linspace(0, 255, width, dtype=np.float32) * np.ones((height, 1), np.float32)
    y = np.linspace(0, 255, height, dtype=np.float32)[:, None] * np.ones(width, np.float32)
    image = Image.fromarray(np.stack([x, y, x], axis=-1).round().astype(np.uint8))
    processor, side = Flux2ImageProcessor(vae_scale_factor=16), 16
    resized = image
    if width * height > 1024 * 1024:
        resized = processor._resize_to_target_area(image, 1024 * 1024)
    cut = {"height": resized.height // side * side, "width": resized.width // side * side}
    seen = processor.preprocess(resized, **cut, resize_mode="crop")[0]  # [3, h, w], -1 to 1
    pipe = SimpleNamespace(vae_scale_factor=8)
    left, top, right, bottom = flux2.source_box(pipe, {"image": [None, image]}, 1)
    scale_x, scale_y = (255 / side for side in size)
    first, last = (127.5 * (seen[:2, i, i] + 1) for i in (0, -1))
    tolerance = 1.5  # levels of 8-bit coordinates
    assert first[0] == pytest.approx(left * width * scale_x, abs=tolerance)
    assert first[1] == pytest.approx(top * height * scale_y, abs=tolerance)
    assert last[0] == pytest.approx(right * width * scale_x, abs=tolerance)
    assert last[1] == pytest.approx(bottom * height * scale_y, abs=tolerance)


@pytest.mark.parametrize("kind", ["dense call", "became dense"])
def test_without_a_region_the_whole_edit_is_scaled(kind):
    original = photographs.scene_8_bit(200, 100)
    dense = report(None if kind == "dense call" else tokens((1, 1)), kind="dense")
    result = dense.composite(original, EDITED)
    assert result.size == (200, 100)
    assert (np.asarray(result) == COLOUR).all()


def test_nothing_edited_gives_the_original():
    original = Image.new("P", (20, 10), 3)
    result = report(tokens(), unedited=1).composite(original, EDITED)
    assert result.mode == "P"
    assert result.tobytes() == original.tobytes()
    assert result is not original


MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "YCbCr": "RGB", "HSV": "RGB", "I": "I;16"}


@pytest.mark.parametrize(
    "mode", ["RGB", "RGBA", "L", "LA", "CMYK", "I;16", "1", "P", "PA", "YCbCr", "HSV", "I"]
)
def test_every_mode(mode):
    if mode.startswith("I"):
        original = Image.fromarray(photographs.deep(1)[..., 0])
        original = original.convert("I") if mode == "I" else original
    else:
        rgb = photographs.scene_8_bit()
        original = rgb.convert("P").convert("PA") if mode == "PA" else rgb.convert(mode)
    original.info["icc_profile"], original.info["dpi"] = b"", (300, 300)
    result = report(tokens((1, 2))).composite(original, EDITED)
    assert result.size == original.size
    assert result.mode == MODES.get(mode, mode)
    assert result.info["dpi"] == (300, 300)
    before = original if mode == "I" else original.convert(result.mode)
    is_changed = np.asarray(before) != np.asarray(result)
    assert is_changed.any()
    assert not is_changed[:, :20].any()


def test_floats_are_refused():
    with pytest.raises(ImageError, match="float"):
        report(tokens((1, 1))).composite(Image.new("F", (9, 9)), EDITED)


def test_the_edit_is_converted_to_the_originals_colour_space():
    profile = photographs.icc("Display P3")
    original = photographs.scene_8_bit(96, 64)
    original.info["icc_profile"] = profile
    red = Image.new("RGB", EDITED.size, "red")
    inside = report(tokens((1, 2))).composite(original, red).getpixel((40, 24))
    assert inside != (255, 0, 0)
    assert inside == pytest.approx((234, 51, 35), abs=6)  # sRGB's red in Display P3


def test_transparent_pixels_keep_their_colour_and_alpha():
    original = Image.new("RGBA", (96, 64), (10, 20, 30, 0))
    original.paste((90, 80, 70, 128), (0, 0, 40, 64))
    result = report(tokens((1, 2))).composite(original, EDITED)
    assert result.getpixel((44, 24)) == (10, 20, 30, 0)
    assert result.getpixel((36, 24))[3] == 128
    on_white = Image.alpha_composite(Image.new("RGBA", (96, 64), "white"), result)
    # half transparent, so that no colour can be as dark as the edit on white
    assert on_white.getpixel((36, 24))[:3] == pytest.approx((127, 200, 127), abs=1)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_file_is_turned_as_it_is_shown(tmp_path, turn):
    path = tmp_path / "photo.png"
    photographs.scene_8_bit(60, 40).save(path, exif=photographs.exif(turn))
    upright = load_image(path)
    result = report(tokens((1, 2))).composite(path, EDITED)
    assert result.size == upright.size
    assert result.getexif().get(0x0112, 1) == 1
    assert np.array_equal(np.asarray(result)[:5, :5], np.asarray(upright)[:5, :5])
    assert result.getpixel((result.width * 5 // 12, result.height * 3 // 8)) == COLOUR


def test_a_picture_that_needs_turning_first_is_refused():
    original = photographs.scene_8_bit(40, 60)
    original.getexif()[0x0112] = 6
    with pytest.raises(ValueError, match="exif_transpose"):
        report(tokens((1, 2))).composite(original, EDITED)
    upright = photographs.scene_8_bit(60, 40)
    upright.getexif()[0x0112] = 6  # the picture was given to the pipeline as it is
    assert report(tokens((1, 2))).composite(upright, EDITED).size == (60, 40)


def test_a_batch_points_to_its_images():
    both = torch.zeros(2, ROWS * COLS, dtype=torch.bool)
    both[1, 8] = True
    batch = report(both.numpy(), batch=2)
    original = Image.new("RGB", (96, 64), "white")
    with pytest.raises(ValueError, match=r"images\[i\]"):
        batch.composite(original, EDITED)
    assert not changed(original, batch.images[0].composite(original, EDITED)).any()
    assert changed(original, batch.images[1].composite(original, EDITED)).any()


def test_an_output_that_cannot_be_placed_is_refused():
    other_shape = report(None, kind="dense", source_box=None, reason="the grids differ")
    with pytest.raises(ValueError, match="the grids differ"):
        other_shape.composite(EDITED, EDITED)


# -- pipelines


@pytest.mark.parametrize(
    "name", ["FluxKontextPipeline", "QwenImageEditPlusPipeline", "Flux2KleinPipeline"]
)
def test_a_call_can_be_composited(name):
    family = FAMILIES[name]
    pipe = family.make(0)
    handle = spotedit.enable(pipe)
    mask = torch.zeros(family.grid)
    mask[2:4, 2:4] = 1
    handle.set_mask(mask, mode="replace")
    arguments = family.arguments()
    rows, cols = family.grid
    side = 16 if name.startswith("Flux2") else pipe.vae_scale_factor * 2
    arguments["image"] = photographs.scene_8_bit(cols * side, rows * side)
    pipe(**arguments)
    edited = Image.new("RGB", (cols * side, rows * side), COLOUR)
    result = handle.report.composite(arguments["image"], edited)
    is_changed = changed(arguments["image"], result)
    assert is_changed[2 * side : 4 * side, 2 * side : 4 * side].all()
    assert not is_changed[: side - 1].any()
    assert not is_changed[:, 5 * side :].any()


def test_another_shape_than_the_sources_is_refused(pipe):
    handle = spotedit.enable(pipe)
    pipe(**call_arguments(height=64, width=64, max_area=64 * 64))
    with pytest.raises(ValueError, match="token grid"):
        handle.report.composite(EDITED, EDITED)


def test_composite_follows_a_mask(pipe):
    handle = spotedit.enable(pipe)
    handle.set_mask(CORNER, mode="replace")
    original = photographs.scene_8_bit(64, 48)
    arguments = call_arguments(output_type="pil") | {"image": original}
    edited = pipe(**arguments).images[0]
    is_changed = changed(original, handle.report.composite(original, edited))
    assert is_changed[8:24, 16:40].mean() > 0.9
    assert not is_changed[32:].any()
    assert not is_changed[:, 48:].any()
