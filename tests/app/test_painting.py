"""Masks from paint, and the files of a session."""

import io

import numpy as np
import pytest
from PIL import Image

from spotedit.app import photos
from spotedit.app.painting import paint, painted_mask
from spotedit.pictures.images import ImageError

SIZE = (40, 30)


def layer(*box: int, alpha: int = 150) -> Image.Image:
    picture = Image.new("RGBA", SIZE)
    picture.paste((10, 20, 30, alpha), box)
    return picture


def test_nothing_painted_is_no_mask():
    assert painted_mask([]) is None
    assert painted_mask([Image.new("RGBA", SIZE)]) is None


def test_the_soft_edge_of_a_stroke_is_not_painted():
    assert painted_mask([layer(5, 5, 10, 10, alpha=20)]) is None


def test_layers_are_united_whatever_their_colour():
    mask = painted_mask([layer(0, 0, 10, 10), layer(20, 20, 30, 30, alpha=255)])
    expected = np.zeros(SIZE[::-1], dtype=np.uint8)
    expected[:10, :10] = expected[20:30, 20:30] = 255
    assert mask.mode == "L"
    assert (np.asarray(mask) == expected).all()


def test_a_mask_is_the_same_after_painting_it():
    mask = painted_mask([layer(3, 4, 20, 22)])
    again = painted_mask([paint(mask, SIZE)])
    assert (np.asarray(again) == np.asarray(mask)).all()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 50), (512, 256)), ((2000, 1500), (1024, 768)), ((600, 700), (600, 700))],
)
def test_a_picture_fits_the_page(size, expected):
    assert photos.fit_to_page(Image.new("RGB", size)).size == expected


def test_a_photograph_is_kept_byte_for_byte_and_shown_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise to see it upright
    given = tmp_path / "../my dog; rm.jpg"
    Image.new("RGB", (80, 40)).save(given, exif=exif)
    photo = photos.add_photo(given, tmp_path, 3)
    assert photo.path == tmp_path / "my_dog_rm-3.jpg"
    assert photo.path.read_bytes() == given.read_bytes()
    assert photo.size == (40, 80)
    assert photo.load().size == (40, 80)


def test_transparency_is_shown_on_white(tmp_path):
    Image.new("RGBA", (64, 64)).save(tmp_path / "clear.png")
    photo = photos.add_photo(tmp_path / "clear.png", tmp_path, 1)
    assert photo.shown.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["text", "cut short"])
def test_a_bad_file_is_refused_without_a_path(kind, tmp_path):
    encoded = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(encoded, "PNG")
    file = tmp_path / "bad.png"
    file.write_bytes(b"hello" if kind == "text" else encoded.getvalue()[:500])
    with pytest.raises(ImageError, match=r"^bad\.png: ") as caught:
        photos.add_photo(file, tmp_path, 1)
    assert str(tmp_path) not in str(caught.value)
