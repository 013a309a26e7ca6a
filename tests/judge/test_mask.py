"""The user's mask: all formats give the same mask, and anything that is no mask is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from spotedit.judge.mask import (
    UserMask,
    allowed_tokens,
    as_mask,
    mask_note,
    resized,
    same_aspect,
    token_mask,
)
from spotedit.pictures.images import load_mask

HEIGHT, WIDTH = 6, 10
GRID = (3, 5)
EXPECTED = np.zeros((HEIGHT, WIDTH), dtype=bool)
EXPECTED[1:4, 2:7] = True
WHITE, BLACK, RED, BLUE = (255, 255, 255), (0, 0, 0), (255, 0, 0), (80, 120, 255)


def grey(white, black=0, dtype=np.uint8) -> Image.Image:
    return Image.fromarray(np.where(EXPECTED, white, black).astype(dtype))


def painted(paint, ground, alpha=255) -> Image.Image:
    """Return a picture with `paint` where the picture may change, on transparent `ground`."""
    return Image.fromarray(
        np.where(EXPECTED[..., None], (*paint, alpha), (*ground, 0)).astype(np.uint8)
    )


def palette(inside, outside) -> Image.Image:
    image = Image.fromarray(EXPECTED.astype(np.uint8), mode="P")
    image.putpalette([*outside, *inside])
    return image


def drawing() -> Image.Image:
    """Return a drawing in black and white. Its transparent pixels are white too."""
    pixels = np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    pixels[0, :, 3] = 0
    pixels[1:, :, :3] = 255 * EXPECTED[1:, :, None]
    return Image.fromarray(pixels)


PICTURES = {
    "1": (grey(255).convert("1"), "png", {}),
    "1 tiff": (grey(255).convert("1"), "tif", {}),
    "L": (grey(255), "png", {}),
    "L, greys": (grey(128, 127), "png", {}),
    "L with a transparent value": (grey(200, 255), "png", {"transparency": 255}),
    "LA": (painted(WHITE, WHITE).convert("LA"), "png", {}),
    "LA tiff": (painted(BLACK, BLACK).convert("LA"), "tif", {}),
    "P": (palette(WHITE, BLACK), "png", {}),
    "P gif, white transparent": (palette(RED, WHITE), "gif", {"transparency": 0}),
    "P png, all transparent": (palette(BLUE, WHITE), "png", {"transparency": bytes([0, 200])}),
    "RGB": (grey(255).convert("RGB"), "png", {}),
    "RGB, yellow on blue": (palette((255, 255, 0), (0, 0, 255)).convert("RGB"), "png", {}),
    "RGB with a transparent colour": (
        palette(BLUE, WHITE).convert("RGB"), "png", {"transparency": WHITE}
    ),
    "RGBA, selection in alpha": (painted(WHITE, WHITE), "png", {}),
    "RGBA, red paint": (painted(RED, BLACK), "png", {}),
    "RGBA, black paint": (painted(BLACK, WHITE), "webp", {"lossless": True, "exact": True}),
    "RGBA, half transparent": (painted(BLUE, BLACK, alpha=128), "tif", {}),
    "RGBA, opaque": (grey(255).convert("RGBA"), "png", {}),
    "RGBA, drawing": (drawing(), "png", {}),
    "I;16": (grey(65535, 300, np.uint16), "png", {}),
    "I;16 tiff": (grey(40000, 30000, np.uint16), "tif", {}),
    "I;16, one value transparent": (grey(50000, 65535, np.uint16), "png", {"transparency": 65535}),
    "I": (grey(65535, 300, np.int32), "tif", {}),
    "F, 0 to 1": (grey(0.9, 0.1, np.float32), "tif", {}),
    "F, 0 to 255": (grey(255.0, 3.0, np.float32), "tif", {}),
    "CMYK": (grey(255).convert("RGB").convert("CMYK"), "tif", {}),
}  # fmt: skip


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_and_its_file_give_the_same_mask(tmp_path, name):
    image, suffix, options = PICTURES[name]
    path = tmp_path / f"mask.{suffix}"
    image.save(path, **options)
    loaded = load_mask(path)
    assert np.array_equal(as_mask(loaded)[0], EXPECTED)
    image.info |= options
    assert np.array_equal(as_mask(image)[0], EXPECTED)
    if loaded.mode in ("L", "RGB", "RGBA", "LA", "1") and "transparency" not in loaded.info:
        assert np.array_equal(as_mask(np.asarray(loaded))[0], EXPECTED)


def test_a_premultiplied_picture():
    assert np.array_equal(as_mask(painted(RED, BLACK).convert("RGBa"))[0], EXPECTED)
    assert np.array_equal(as_mask(painted(WHITE, BLACK).convert("LA").convert("La"))[0], EXPECTED)


def test_a_loaded_mask_keeps_its_mode_and_is_rotated(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown, rotate by 90 degrees clockwise
    grey(65535, 0, np.uint16).save(tmp_path / "mask.png", exif=exif)
    loaded = load_mask(tmp_path / "mask.png")
    assert loaded.mode == "I;16"
    assert np.array_equal(as_mask(loaded)[0], np.rot90(EXPECTED, -1))


def test_with_one_coloured_pixel_a_drawing_counts_by_alpha():
    image = drawing()
    image.putpixel((0, 5), (*RED, 255))
    opaque = np.ones((HEIGHT, WIDTH), dtype=bool)
    opaque[0] = False
    assert np.array_equal(as_mask(image)[0], opaque)


def test_a_soft_brush_in_one_grey_counts_by_alpha():
    alpha = np.where(EXPECTED, 255, 100).astype(np.uint8)
    for level in (0, 120, 127, 128, 255):
        pixels = np.dstack([np.full((HEIGHT, WIDTH, 3), level, np.uint8), alpha])
        pixels[2, 3, :3] = min(level + 3, 255)  # a lossy format leaves such differences
        assert np.array_equal(as_mask(Image.fromarray(pixels))[0], EXPECTED)


def test_every_picture_of_a_batch_is_read_separately():
    opaque = np.dstack(
        [np.repeat(255 * ~EXPECTED[..., None], 3, axis=2), np.full_like(EXPECTED, 255, int)]
    )
    batch = np.stack([np.asarray(painted(BLACK, WHITE)), opaque])
    assert np.array_equal(as_mask(batch), np.stack([EXPECTED, ~EXPECTED]))


# -- arrays and tensors

LAYOUTS = {
    "HW": lambda a: a,
    "BHW": lambda a: a[None],
    "HW1": lambda a: a[..., None],
    "HW3": lambda a: np.repeat(a[..., None], 3, axis=2),
    "HW4": lambda a: np.dstack([a, a, a, np.full_like(a, a.max())]),
    "B1HW": lambda a: a[None, None],
    "BHW1": lambda a: np.stack([a, a])[..., None],
    "BHW3": lambda a: np.repeat(np.stack([a, a])[..., None], 3, axis=3),
    "BHW4": lambda a: np.dstack([a, 0 * a, 0 * a, a])[None],
}
NUMBERS = [
    *((np.dtype(name), 1) for name in ("bool", "uint8", "int64", "float16", "float64")),
    *((np.dtype(name), 255) for name in ("uint8", "int16", "uint16", ">u2", "int32", "float32")),
    *((np.dtype(name), 65535) for name in ("uint16", "uint32", "uint64", "float32")),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "white"), NUMBERS, ids=str)
def test_arrays_of_every_layout_and_type(layout, dtype, white):
    array = LAYOUTS[layout]((EXPECTED * white).astype(dtype))
    array.setflags(write=False)
    found = as_mask(array)
    assert found.dtype == torch.bool
    assert found.shape == (2 if layout in ("BHW1", "BHW3") else 1, HEIGHT, WIDTH)
    assert all(np.array_equal(mask, EXPECTED) for mask in found)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.uint8, torch.uint16, torch.int64, torch.float16, torch.bfloat16,
     torch.float32, torch.float64],
    ids=str,
)  # fmt: skip
def test_tensors_of_every_layout_and_type(layout, dtype):
    white = 1 if dtype in (torch.bool, torch.float16) else 255
    tensor = torch.from_numpy(LAYOUTS[layout](EXPECTED * np.float64(white))).to(dtype)
    assert all(np.array_equal(mask, EXPECTED) for mask in as_mask(tensor))


def test_arrays_that_are_not_contiguous():
    large = np.kron(EXPECTED, np.ones((2, 2))).astype(np.uint8)
    assert np.array_equal(as_mask(large[::2, ::2])[0], EXPECTED)
    assert np.array_equal(as_mask(EXPECTED[::-1, ::-1])[0], EXPECTED[::-1, ::-1])
    transposed = torch.from_numpy(EXPECTED * 0.8).requires_grad_().T
    assert np.array_equal(as_mask(transposed)[0], EXPECTED.T)


@pytest.mark.parametrize(("white", "black"), [(1.2, -0.2), (280.0, -30.0), (65535.0, -9000.0)])
def test_floats_may_overshoot_as_they_do_after_resampling(white, black):
    assert np.array_equal(as_mask(np.where(EXPECTED, white, black))[0], EXPECTED)


def test_more_than_half_of_white_may_change():
    assert as_mask(np.array([[0, 127, 128, 255]], np.uint8)).tolist() == [[[0, 0, 1, 1]]]
    assert as_mask(np.array([[0, 32767, 32768, 65535]], np.int32)).tolist() == [[[0, 0, 1, 1]]]
    assert as_mask(np.array([[0, 0.5, 0.51, 1]])).tolist() == [[[0, 0, 1, 1]]]
    assert as_mask(np.array([[0, 1]], np.uint8)).tolist() == [[[0, 1]]]


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        ("white", TypeError, "expected a PIL image"),
        (np.array([["white"]]), TypeError, "expected numbers"),
        (np.zeros((2, 2), complex), TypeError, "expected numbers"),
        (np.zeros(4), ValueError, r"shape \[4\]; expected \[H, W\]"),
        (np.zeros((2, 3, 6, 10)), ValueError, r"shape \[2, 3, 6, 10\]; expected"),
        (np.zeros((0, 4)), ValueError, r"no pixel: its shape is \[1, 0, 4\]"),
        (Image.new("L", (0, 0)), ValueError, "no pixel"),
        (np.full((6, 10), np.nan), ValueError, "not finite"),
        (np.where(EXPECTED, 1.0, np.inf), ValueError, "not finite"),
        (np.where(EXPECTED, 1.0, -1.0), ValueError, "from -1 to 1; expected 0"),
        (np.where(EXPECTED, 8.0, -8.0), ValueError, "from -8 to 8; expected 0"),
        (np.where(EXPECTED, 1, -1), ValueError, "from -1 to 1; expected 0"),
        (np.where(EXPECTED, 70000, 0), ValueError, "from 0 to 70000; expected 0"),
        (grey(70000, 0, np.int32), ValueError, "from 0 to 70000; expected 0"),
        (grey(1.0, np.nan, np.float32), ValueError, "not finite"),
        (grey(1), ValueError, "brightest value is 1 where white is 255"),
        (grey(1, 0, np.uint16), ValueError, "brightest value is 1 where white is 65535"),
    ],
)  # fmt: skip
def test_anything_that_is_no_mask_is_refused(mask, error, words):
    with pytest.raises(error, match=words):
        as_mask(mask)


def test_a_black_picture_keeps_everything():
    for mask in (grey(0), grey(0, 0, np.uint16), painted(WHITE, WHITE, alpha=0)):
        assert not as_mask(mask).any()


# -- on tokens


def on_tokens(mask, source_size=(HEIGHT, WIDTH), batch=1):
    return token_mask(as_mask(mask), GRID, batch, (HEIGHT, WIDTH), source_size)


def test_one_white_pixel_frees_its_token():
    mask = np.zeros((HEIGHT, WIDTH))
    mask[3, 5] = 1
    assert on_tokens(mask, batch=2).nonzero().tolist() == [[0, 7], [1, 7]]


@pytest.mark.parametrize(
    ("source", "mask", "accepted"),
    [
        ((2000, 3000), (1000, 1500), True),
        ((667, 1000), (2000, 3000), True),  # here the source was scaled and rounded
        ((2000, 3000), (666, 1000), True),  # 666.67 was rounded down
        ((3000, 2000), (1000, 667), True),
        ((100, 10000), (33, 3333), True),
        ((2000, 3000), (665, 1000), False),
        ((2000, 3000), (3000, 2000), False),
        ((1024, 1024), (1024, 1026), False),
        ((100, 10000), (33, 3600), False),
    ],
)
def test_a_mask_of_the_same_aspect(source, mask, accepted):
    assert same_aspect(source, mask) == same_aspect(mask, source) == accepted


@pytest.mark.parametrize("scale", [2, 3, 7])
def test_a_mask_of_the_same_aspect_is_scaled(scale):
    small = np.zeros((HEIGHT, WIDTH))
    small[3, 5] = 1
    large = np.kron(small, np.ones((scale, scale)))
    assert torch.equal(on_tokens(large), on_tokens(small))
    assert torch.equal(on_tokens(small, (HEIGHT * scale, WIDTH * scale)), on_tokens(small))


@pytest.mark.parametrize(
    ("size", "columns", "expected"),
    [
        ((10, 16), slice(3, 5), [0]),  # the source
        ((10, 16), slice(11, 13), [4]),
        ((20, 32), slice(6, 10), [0]),  # the source, scaled
        ((10, 16), slice(0, 3), []),  # what the pipeline cuts off
        ((10, 16), slice(13, 16), []),
        ((HEIGHT, WIDTH), slice(0, 2), [0]),  # the output
        (GRID, slice(4, 5), [4]),
    ],
)
def test_a_mask_of_a_source_that_is_cropped_is_cropped_too(size, columns, expected):
    """The output shows 6 x 10 pixels from the middle of 10 x 16."""
    mask = np.zeros(size)
    mask[:, columns] = 1
    box = (3 / 16, 2 / 10, 13 / 16, 8 / 10)
    allowed = token_mask(as_mask(mask), GRID, 1, (HEIGHT, WIDTH), (10, 16), box)
    assert allowed.view(GRID).any(dim=0).nonzero().flatten().tolist() == expected


def test_masks_of_the_wrong_size_or_batch():
    with pytest.raises(ValueError, match=r"7 x 10.*expected.*6 x 10, 3 x 5.*same aspect"):
        on_tokens(np.zeros((7, 10)))
    with pytest.raises(ValueError, match=r"12 x 20.*expected.*6 x 10, 3 x 5$"):
        on_tokens(np.zeros((12, 20)), source_size=None)
    with pytest.raises(ValueError, match="batch of 3; expected 1 mask, or one for each of the 2"):
        on_tokens(np.zeros((3, 6, 10)), batch=2)


def test_resizing_loses_no_line():
    line = torch.zeros(1, 60, 100, dtype=torch.bool)
    line[0, :, 41] = True
    assert resized(line, (6, 10))[0].any(dim=0).nonzero().tolist() == [[4]]


@pytest.mark.parametrize(
    ("share", "mode", "words"),
    [
        (0, "intersect", "keeps every token, so the picture is the source"),
        (0, "replace", "keeps every token, so the picture is the source"),
        (0, "union", "adds no token"),
        (1, "intersect", "lets every token change, so it has no effect"),
        (1, "union", "all of them are regenerated"),
        (1, "replace", "all of them are regenerated"),
        (0.5, "intersect", None),
        (0.5, "replace", None),
    ],
)
def test_the_note_about_a_mask_that_keeps_or_frees_all_tokens(share, mode, words):
    pixels = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    pixels[:, :, : int(share * WIDTH)] = True
    spec = SimpleNamespace(
        token_pixels=lambda pipe: 2,
        source_size=lambda arguments, index: None,
        source_box=lambda pipe, arguments, index: None,
    )
    _, allowed, note = allowed_tokens(None, spec, {}, UserMask(pixels, mode), GRID, 2, 0)
    assert note == mask_note(allowed, mode)
    assert note is None if words is None else words in note


def test_without_a_mask_there_is_no_note():
    spec = SimpleNamespace(token_pixels=lambda pipe: 2, own_mask=lambda pipe, arguments, size: None)
    assert allowed_tokens(None, spec, {}, None, GRID, 1, 0) == (None, None, None)
