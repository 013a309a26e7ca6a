"""Loading and saving pictures, with every pixel format and every kind of broken file."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from spotedit.pictures.images import (
    MAX_PIXELS,
    ImageError,
    OutputError,
    atomic_write,
    check_output,
    load_image,
    save_image,
)


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, ...]:
    assert image.mode == "RGB"
    return image.getpixel((x, y))


def saved(tmp_path: Path, image: Image.Image, name: str = "picture.png", **options) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGB", (2, 3), (10, 20, 30)), (10, 20, 30)),
        (Image.new("L", (2, 3), 77), (77, 77, 77)),
        (Image.new("1", (2, 3), 1), (255, 255, 255)),
        (Image.new("P", (2, 3), 0), (0, 0, 0)),
        (Image.new("LA", (2, 3), (0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 3), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (2, 3), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.fromarray(np.full((3, 2), 65535, np.uint16)), (255, 255, 255)),
        (Image.fromarray(np.full((3, 2), 257 * 100, np.uint16)), (100, 100, 100)),
    ],
    ids=lambda value: getattr(value, "mode", ""),
)
def test_modes_become_rgb(tmp_path, image, expected):
    loaded = load_image(saved(tmp_path, image))
    assert loaded.size == (2, 3)
    assert pixel(loaded) == expected


def test_a_half_transparent_pixel_is_mixed_with_white(tmp_path):
    red, green, blue = pixel(load_image(saved(tmp_path, Image.new("RGBA", (1, 1), (0, 0, 0, 128)))))
    assert red == green == blue == 127


def test_a_transparent_palette_entry_becomes_white(tmp_path):
    image = Image.new("P", (1, 1), 0)
    assert pixel(load_image(saved(tmp_path, image, "p.gif", transparency=0))) == (255, 255, 255)


def test_cmyk_becomes_rgb(tmp_path):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = pixel(load_image(saved(tmp_path, image, "cmyk.jpg")))
    assert red > 240
    assert max(green, blue) < 20


def test_32_bit_integers_in_16_bit_range_are_scaled(tmp_path):
    image = Image.fromarray(np.full((2, 2), 65535, np.int32))
    assert pixel(load_image(saved(tmp_path, image, "i.tif"))) == (255, 255, 255)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((2, 2), 70000, np.int32), "expected 0..65535"),
        (np.full((2, 2), 0.5, np.float32), "expected 8 or 16 bits"),
    ],
)
def test_pixels_without_a_defined_range_are_refused(tmp_path, array, message):
    path = saved(tmp_path, Image.fromarray(array), "odd.tif")
    with pytest.raises(ImageError, match=message) as error:
        load_image(path)
    assert str(path) in str(error.value)


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown, rotate by 90 degrees clockwise
    loaded = load_image(saved(tmp_path, image, exif=exif))
    assert loaded.size == (2, 4)
    assert pixel(loaded, 1, 0) == (255, 255, 255)


def test_icc_profile_is_converted_to_srgb(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # a profile in which the primaries of red and blue are swapped
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    image = Image.new("RGB", (1, 1), (255, 0, 0))
    assert pixel(load_image(saved(tmp_path, image, icc_profile=srgb))) == (255, 0, 0)
    red, _, blue = pixel(load_image(saved(tmp_path, image, "swapped.png", icc_profile=swapped)))
    assert blue > 250
    assert red < 5


def test_a_broken_icc_profile_is_ignored(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (1, 1), (9, 8, 7)), icc_profile=b"nonsense")
    assert pixel(load_image(path)) == (9, 8, 7)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert pixel(load_image(path)) == (255, 0, 0)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that declares a size and holds no pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)


@pytest.mark.parametrize("side", [12_000, 60_000])
@pytest.mark.filterwarnings("error")
def test_giant_pictures_are_refused_before_decoding(tmp_path, side):
    path = tmp_path / "giant.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(ImageError, match=str(MAX_PIXELS)):
        load_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "0 bytes"), (b"not a picture", "13 bytes"), (png_header(8, 8), "damaged or cut short")],
)
def test_files_that_are_no_pictures_are_refused(tmp_path, content, message):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message):
        load_image(path)


@pytest.mark.parametrize("name", ["t.png", "t.jpg", "t.webp"])
def test_truncated_files_are_refused(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = saved(tmp_path, Image.fromarray(noise), name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ImageError, match=name):
        load_image(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="a folder"):
        load_image(tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif", ".bmp", ".PNG"])
def test_a_saved_picture_can_be_loaded(tmp_path, suffix):
    path = tmp_path / f"out{suffix}"
    save_image(Image.new("RGB", (16, 16), (40, 80, 120)), path)
    assert np.allclose(pixel(load_image(path)), (40, 80, 120), atol=3)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_name_of_the_longest_length(tmp_path):
    path = tmp_path / f"{83 * '写'}.png"  # 253 bytes
    save_image(Image.new("RGB", (1, 1)), path)
    assert list(tmp_path.iterdir()) == [path]


def test_existing_files_are_kept_without_force(tmp_path):
    path = tmp_path / "out.png"
    path.write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        save_image(Image.new("RGB", (1, 1)), path)
    assert path.read_text() == "mine"
    save_image(Image.new("RGB", (1, 1)), path, force=True)
    assert load_image(path).size == (1, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.xyz", r"expected one of \.png"),
        ("out", "the suffix is ''"),
        ("nowhere/out.png", "create it first"),
        ("folder.png", "is a folder"),
    ],
)
def test_paths_that_cannot_be_written_are_refused(tmp_path, name, message):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(OutputError, match=message):
        check_output(tmp_path / name)


def test_an_unwritable_folder_is_refused(tmp_path, monkeypatch):
    def refuse(self, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)  # root may write anywhere
    with pytest.raises(OutputError, match="Permission denied"):
        check_output(tmp_path / "out.png")


def test_check_output_leaves_nothing_behind(tmp_path):
    assert check_output(str(tmp_path / "out.png")) == tmp_path / "out.png"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, interruption):
    path = tmp_path / "out.png"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise interruption

    with pytest.raises(interruption):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_follow_the_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        save_image(Image.new("RGB", (1, 1)), tmp_path / "out.png")
    finally:
        os.umask(previous)
    assert (tmp_path / "out.png").stat().st_mode & 0o777 == 0o640
