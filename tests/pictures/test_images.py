"""Loading and saving pictures, with every pixel format and every kind of broken file."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from spotedit.pictures.colour import ColourSpace
from spotedit.pictures.images import (
    MAX_PIXELS,
    ImageError,
    OutputError,
    atomic_write,
    check_output,
    load_image,
    open_image,
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


def printer_profile() -> bytes:
    """Return an ICC profile of CMYK whose perceptual tables are not inverse to each other.

    Black ink alone makes greys, and all other inks are ignored. The tables of the perceptual intent
    make everything darker on the way to sRGB, and use half the ink on the way back. Those of the
    relative colorimetric intent are inverse to each other.
    """
    d50 = (63190, 65536, 54061)  # the white of all profiles, XYZ * 65536

    def table(num_in: int, num_out: int, points: np.ndarray) -> bytes:
        """Return a table with two points for each channel that goes in, as ICC's type lut8."""
        identity = (65536 * np.eye(3)).astype(">i4").tobytes()
        ramp = bytes(range(256))
        start = b"mft1" + struct.pack(">4x3Bx", num_in, num_out, 2) + identity
        return start + ramp * num_in + points.astype(np.uint8).tobytes() + ramp * num_out

    cmyk, lab = (np.stack(np.indices((2,) * n), axis=-1).reshape(-1, n) for n in (4, 3))
    lightness = 255 * (1 - cmyk[:, 3])
    neutral = np.full_like(lightness, 128)
    to_lab = np.stack([lightness, neutral, neutral], axis=-1)
    darker = np.stack([lightness // 2, neutral, neutral], axis=-1)
    to_cmyk = np.zeros((len(lab), 4))
    to_cmyk[:, 3] = 255 * (1 - lab[:, 0])
    tags = {
        b"desc": b"desc" + struct.pack(">4xI", 8) + b"printer\0" + bytes(78),
        b"wtpt": b"XYZ " + struct.pack(">4x3i", *d50),
        b"A2B0": table(4, 3, darker),
        b"A2B1": table(4, 3, to_lab),
        b"B2A0": table(3, 4, to_cmyk // 2),
        b"B2A1": table(3, 4, to_cmyk),
    }
    offset = 128 + 4 + 12 * len(tags)
    directory, data = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        directory += name + struct.pack(">2I", offset + len(data), len(tag))
        data += tag + bytes(-len(tag) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s", offset + len(data), 0x02400000, b"prtr", b"CMYK", b"Lab ", b"acsp"
    )
    header = header.ljust(68, b"\0") + struct.pack(">3i", *d50)
    return header.ljust(128, b"\0") + directory + data


def test_a_picture_for_printing_is_as_bright_as_it_was_after_the_way_there_and_back(tmp_path):
    image = Image.new("CMYK", (4, 4), (0, 0, 0, 102))
    path = saved(tmp_path, image, "print.tif", icc_profile=printer_profile())
    loaded = load_image(path)
    assert pixel(loaded) == pytest.approx((145, 145, 145), abs=2)  # L* of 60
    for dtype, levels in ((np.uint8, 255), (np.uint16, 65535)):
        back = ColourSpace("CMYK", np.dtype(dtype), printer_profile()).from_srgb(loaded)
        assert back[0, 0] * (255.0 / levels) == pytest.approx((0, 0, 0, 102), abs=2)


def test_too_little_memory_is_said(tmp_path):
    path = saved(tmp_path, Image.new("RGB", (3, 2)))
    problem = "too little memory for 3 x 2 pixels; scale it down first"
    with pytest.raises(ImageError, match=problem), open_image(path):
        raise MemoryError


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
