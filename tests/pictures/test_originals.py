"""What is kept of a user's file when an edit is written into it, for every kind of file."""

import errno
import functools
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import photographs
import pytest
import torch
from PIL import ExifTags, Image, PngImagePlugin

from spotedit.editor.editor import Edited
from spotedit.editor.keep import keep_original
from spotedit.engine.record import CallRecord, StepRecord
from spotedit.models.spec import WHOLE
from spotedit.pictures.images import ImageError, OutputError, load_image
from spotedit.report import EditReport

TOKEN = 16
COLOUR = (20, 200, 60)


def edit_of(upright: Image.Image, region: np.ndarray | None = None, box=WHOLE) -> Edited:
    """Return an edit that paints a region, by default some tokens in the middle, in one colour."""
    if region is None:
        region = np.zeros((6, 8) if upright.width >= upright.height else (8, 6), dtype=bool)
        region[2:4, 3:5] = True
    rows, cols = region.shape
    step = StepRecord(0, "spot", 1.0, 1, 1, rows * cols, int(region.sum()), 0.0, 1.0)
    record = CallRecord(
        pipeline="Synthetic",
        grid=(rows, cols),
        records=[step],
        region=torch.from_numpy(region.reshape(1, -1)),
        scores=None,
        batch=1,
        cache_bytes=0,
        reason=None,
        threshold=0.1,
        judge="l2",
        unedited=0 if region.any() else 1,
        source_box=box,
    )
    picture = Image.new("RGB", (cols * TOKEN, rows * TOKEN), COLOUR)
    return Edited(picture, picture, EditReport(record), 1.0)


def opacity(edited: Edited, size: tuple[int, int]) -> np.ndarray:
    """Return how much of the edit each pixel of the upright picture shows."""
    return edited.report.placed(edited.picture).opacity(size, (0, 0, *size))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("photographs")


@pytest.fixture(scope="module")
def files(folder) -> dict[str, photographs.Photograph]:
    return {file.path.name: file for file in photographs.write_photographs(folder)}


def samples(path: Path) -> np.ndarray:
    """Return the samples of a file as they are stored, with all their bits."""
    if path.suffix == ".tif":
        import tifffile

        array = tifffile.imread(path)
        planar = array.ndim == 3 and array.shape[0] <= 4
        return array.transpose(1, 2, 0) if planar else array
    if path.stem.endswith("-16") and path.stem != "grey-16":
        from imagecodecs import png_decode

        return png_decode(path.read_bytes())
    with Image.open(path) as image:
        if path.stem.startswith(("palette", "one-colour")):
            return np.asarray(image.convert("RGBA"))
        return np.asarray(image.convert("L") if image.mode == "1" else image)


def stored(values: np.ndarray, path: Path) -> np.ndarray:
    """Turn an array for the upright picture to the order of the file's pixels."""
    turn = 1
    with Image.open(path) as image:
        turn = image.getexif().get(0x0112, 1)
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn)
    if back >= 5:
        values = values.T
    if back in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if back in (2, 3, 6, 7) else values


NAMES = [  # what `write_photographs` writes, so that each file is a test of its own
    *(f"orientation-{turn}.jpg" for turn in range(1, 9)),
    *(f"{name}.jpg" for name in ("444", "420", "422-progressive", "restart", "odd", "grey")),
    *(f"{name}.jpg" for name in ("cmyk", "rgb", "adobe-rgb", "display-p3", "everything")),
    *(f"{name}.jpg" for name in ("Größe 写真 ürün", "narrow", "411", "440", "uneven")),
    *(f"{name}.png" for name in ("rgb", "everything", "alpha", "grey", "grey-alpha", "palette")),
    *(f"{name}.png" for name in ("palette-transparent", "one-colour-transparent")),
    *(f"{name}.png" for name in ("black-and-white", "narrow")),
    *(f"{name}-16.png" for name in ("grey", "grey-alpha", "rgb", "rgba")),
    *(f"{name}.tif" for name in ("plain", "tiled", "planar", "grey-16", "rgb-16", "rgba-16")),
    *(f"{name}.tif" for name in ("rgb-16-big-endian", "cmyk", "lzw-orientation-3")),
    "packbits-orientation-3.tif",
    *(f"{name}.webp" for name in ("lossless", "everything", "lossy")),
    *("rgb.bmp", "photo.avif", "photo.heic"),
]


@pytest.fixture
def file(request, files) -> photographs.Photograph:
    if request.param not in files:
        pytest.skip("a program or package that makes this file is absent")
    file = files[request.param]
    for package in file.needs:
        if find_spec(package) is None:
            pytest.skip(f"{package} is absent")
    return file


def each(names: list[str]):
    return pytest.mark.parametrize("file", names, indirect=True)


@dataclass(frozen=True)
class Kept:
    """A file before and after an edit was written into it."""

    out: Path
    edited: Edited
    notes: list[str]
    before: Image.Image
    after: Image.Image


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[[photographs.Photograph], Kept]:
    """Return a function that writes an edit into a file, once for all tests."""
    folder = tmp_path_factory.mktemp("written")

    @functools.cache
    def write(file: photographs.Photograph) -> Kept:
        before = load_image(file.path)
        edited = edit_of(before)
        out = folder / file.path.name
        notes = keep_original(file.path, edited, out)
        return Kept(out, edited, notes, before, load_image(out))

    return write


@pytest.fixture
def kept(file, written) -> Kept:
    return written(file)


def test_the_list_names_every_file(files):
    assert set(files) <= set(NAMES)
    assert len(NAMES) >= 30


@each(NAMES)
def test_the_region_changes_and_the_rest_does_not(file, kept):
    assert kept.after.size == kept.before.size
    show = opacity(kept.edited, kept.before.size)
    before, after = (np.asarray(image).astype(int) for image in (kept.before, kept.after))
    outside = np.abs(before - after)[show == 0]
    assert np.median(np.abs(before - after)[show == 1]) > 20
    if not file.is_lossless:
        assert outside.mean() < 3
        return
    assert outside.max() == 0
    old, new = samples(file.path), samples(kept.out)
    is_outside = stored(show, file.path) == 0
    assert old.dtype == new.dtype
    assert np.array_equal(old[is_outside], new[is_outside])
    if file.depth == 16:
        assert (new % 257 != 0).any()


GREY_OR_CLEAR = ("grey", "black", "alpha", "rgba", "lossless")
COLOURS = [name for name in NAMES if not name.startswith(GREY_OR_CLEAR)]


@each(COLOURS)
def test_the_edit_looks_the_same_in_every_colour_space(file, kept):
    """The edit is sRGB; shown by the file's profile it has the same colour, to rounding."""
    show = opacity(kept.edited, kept.before.size)
    shown = np.median(np.asarray(kept.after)[show == 1], axis=0)
    # Adobe RGB's and Display P3's curves are those of sRGB here, so 8 bits cost a few levels
    assert np.abs(shown - COLOUR).max() <= 6


@each(NAMES)
def test_metadata_is_kept(file, kept):
    with Image.open(file.path) as old, Image.open(kept.out) as new:
        assert new.format == old.format
        for key in ("icc_profile", "dpi", "xmp", "comment", "exif"):
            assert new.info.get(key) == old.info.get(key), key
        assert dict(new.getexif()) == dict(old.getexif()) or file.path.suffix == ".tif"


@each(["everything.jpg", "everything.png", "everything.webp", "rgb-16.tif"])
def test_another_format_takes_the_metadata(file, tmp_path):
    before = load_image(file.path)
    with Image.open(file.path) as old:
        profile, dpi = old.info.get("icc_profile"), old.info.get("dpi")
    for suffix in {".png", ".jpg", ".tif", ".webp"} - {file.path.suffix}:
        out = tmp_path / f"{file.path.stem}{suffix}"
        keep_original(file.path, edit_of(before), out)
        with Image.open(out) as new:
            exif = new.getexif()
            assert exif.get(0x0112, 1) == 1  # the pixels are upright
            assert new.info.get("icc_profile") == profile
            if dpi and suffix != ".webp":
                assert new.info["dpi"] == pytest.approx(dpi, abs=0.1)
            if file.path.name != "rgb-16.tif":
                assert exif.get_ifd(0x8825)[1] == "N"
        show = opacity(edit_of(before), before.size)
        after = np.asarray(load_image(out)).astype(int)
        outside = np.abs(after - np.asarray(before))[show == 0]
        if suffix == ".jpg" or file.depth == 16:  # from 16 bits, `load_image` rounds down
            assert outside.mean() < 3
        else:
            assert outside.max() == 0


def test_a_thumbnail_that_shows_the_unedited_picture_is_removed(tmp_path):
    path, out = tmp_path / "in.jpg", tmp_path / "out.jpg"
    thumbnail = photographs.encoded(photographs.scene_8_bit(32, 24), "JPEG")
    # a directory with an orientation, and one with the place of the thumbnail
    first = struct.pack("<HHHIII", 1, 0x0112, 3, 1, 6, 26)
    second = struct.pack("<HHHIIHHIII", 2, 0x0201, 4, 1, 56, 0x0202, 4, 1, len(thumbnail), 0)
    exif = b"Exif\0\0II*\0\10\0\0\0" + first + second + thumbnail
    photographs.scene_8_bit().save(path, exif=exif)
    with Image.open(path) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)
    keep_original(path, edit_of(load_image(path)), out)
    with Image.open(out) as image:
        assert not image.getexif().get_ifd(ExifTags.IFD.IFD1)
        assert image.getexif()[0x0112] == 6
        assert thumbnail not in out.read_bytes()


@each(["rgb.jpg", "everything.png", "rgb-16.tif", "lossy.webp", "photo.avif"])
def test_nothing_edited_is_the_same_file(file, tmp_path):
    edited = edit_of(load_image(file.path), np.zeros((4, 4), dtype=bool))
    out = tmp_path / file.path.name
    assert keep_original(file.path, edited, out) == []
    assert out.read_bytes() == file.path.read_bytes()


def test_everything_regenerated_is_said(files, tmp_path):
    path = files["rgb.png"].path
    edited = edit_of(load_image(path), np.ones((4, 4), dtype=bool))
    notes = keep_original(path, edited, tmp_path / "o.png")
    assert "none of its pixels" in notes[0]
    assert load_image(tmp_path / "o.png").getcolors() == [(120 * 88, COLOUR)]


def test_an_output_that_cannot_be_placed(files, tmp_path):
    path = files["rgb.png"].path
    notes = keep_original(path, edit_of(load_image(path), box=None), tmp_path / "o.png")
    assert "nothing of the original is kept" in notes[0]
    assert load_image(tmp_path / "o.png").size == (8 * TOKEN, 6 * TOKEN)


def test_broken_originals_are_refused(tmp_path):
    edited = edit_of(photographs.scene_8_bit())
    for path in photographs.write_broken(tmp_path):
        out = tmp_path / f"out{path.suffix}"
        with pytest.raises(ImageError, match=path.name):
            keep_original(path, edited, out)
        assert not out.exists()


def test_an_existing_file_is_not_overwritten(files, tmp_path):
    path, out = files["rgb.png"].path, tmp_path / "out.png"
    out.write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        keep_original(path, edit_of(load_image(path)), out)
    assert out.read_text() == "mine"
    keep_original(path, edit_of(load_image(path)), out, force=True)
    assert load_image(out).size == (120, 88)
    assert [item.name for item in tmp_path.iterdir()] == ["out.png"]


def test_what_the_original_cannot_show_is_said(files, tmp_path):
    notes = {}
    for name in ("grey.png", "alpha.png", "rgb.png", "grey.jpg"):
        path = files[name].path
        region = np.ones((6, 8), dtype=bool)
        region[:3] = False
        edited = edit_of(load_image(path), region)
        notes[name] = " ".join(keep_original(path, edited, tmp_path / name))
    assert "grey" in notes["grey.png"]
    assert "grey" in notes["grey.jpg"]
    assert "transparent" in notes["alpha.png"]
    assert notes["rgb.png"] == ""


def test_a_profile_of_another_colour_space_is_not_used(tmp_path):
    """`load_image` cannot use it either."""
    for name, tag in {"8": b"GRAY", "16": b"Lab "}.items():
        profile = photographs.icc("Adobe RGB")
        profile = profile[:16] + tag + profile[20:]
        path, out = tmp_path / f"{name}.png", tmp_path / f"out-{name}.png"
        if name == "8":
            photographs.scene_8_bit().save(path, icc_profile=profile)
        else:
            pytest.importorskip("imagecodecs")
            chunk = b"iCCP", b"ICC\0\0" + zlib.compress(profile)
            photographs.write_png_16(path, photographs.deep(3), chunk)
        assert keep_original(path, edit_of(load_image(path)), out) == []
        assert load_image(out).getpixel((60, 40)) == COLOUR


@each(["rgb-16.tif", "rgb-16.png"])
def test_without_imagecodecs_16_bits_become_8(file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    out = tmp_path / file.path.name
    notes = keep_original(file.path, edit_of(load_image(file.path)), out)
    assert any("16 bits a channel and keeps 8" in note for note in notes)
    assert load_image(out).size == load_image(file.path).size


def test_metadata_that_is_too_large_for_jpeg_is_left_out_and_said(tmp_path):
    path, exif, text = tmp_path / "in.png", Image.Exif(), PngImagePlugin.PngInfo()
    exif[0x010F] = "A" * 70_000
    text.add_itxt("XML:com.adobe.xmp", "x" * 70_000)
    photographs.scene_8_bit().save(path, exif=exif, pnginfo=text)
    notes = keep_original(path, edit_of(load_image(path)), tmp_path / "out.jpg")
    assert [note.split()[1] for note in notes if "too large" in note] == ["EXIF", "XMP"]
    assert load_image(tmp_path / "out.jpg").size == (120, 88)


@pytest.mark.parametrize("region", [None, np.zeros((6, 8), dtype=bool)], ids=["some", "nothing"])
def test_a_disk_that_fills_up_is_not_called_a_damaged_picture(files, tmp_path, monkeypatch, region):
    path = files["rgb.png"].path
    edited, num_written = edit_of(load_image(path), region), []

    def write(self, data):
        num_written.append(len(data))
        if len(num_written) > 1:  # the first is the check before the work
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(OutputError, match="No space"):
        keep_original(path, edited, tmp_path / "out.png")


@pytest.mark.parametrize("options", [{"compression": "jpeg"}, {"compression": "group4"}])
def test_a_tiff_that_is_written_anew_is_said(options, tmp_path):
    path, out = tmp_path / "in.tif", tmp_path / "out.tif"
    mode = "1" if options["compression"] == "group4" else "RGB"
    photographs.scene_8_bit().convert(mode).save(path, **options)
    notes = keep_original(path, edit_of(load_image(path)), out)
    assert any("written anew" in note for note in notes)


@each(["photo.heic"])
def test_heic_keeps_the_sampling_of_its_colours(file, tmp_path):
    out = tmp_path / "out.heic"
    keep_original(file.path, edit_of(load_image(file.path)), out)
    with Image.open(file.path) as before, Image.open(out) as after:
        assert after.info["chroma"] == before.info["chroma"] == 420


def peak_of(program: str) -> int:
    """Run a program; return the bytes that it added to its memory at most."""
    code = (
        "import resource\n"
        "def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        f"{program}"
        "print(peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    return int(done.stdout.split()[-1])


@pytest.mark.full
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("region", ["some", "all"])
def test_24_megapixels_fit_in_half_a_gigabyte(tmp_path, suffix, region):
    path, out = photographs.write_large(tmp_path, suffix), tmp_path / f"out{suffix}"
    peak = peak_of(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from PIL import Image\n"
        "from spotedit.pictures.composite import PlacedEdit\n"
        "from spotedit.pictures.originals.write import write_edit\n"
        f"region = np.full((64, 96), {region == 'all'})\n"
        "region[20:30, 30:45] = True\n"
        "edit = PlacedEdit(Image.new('RGB', (1536, 1024), 'red'), region, (0, 0, 1, 1))\n"
        "before = peak()\n"
        f"write_edit(Path({str(path)!r}), edit, Path({str(out)!r}))\n"
    )
    assert peak < 512 * 2**20
    with Image.open(out) as image:
        assert image.size == (6000, 4000)


def test_large_and_giant_pictures(tmp_path):
    """A picture with too many pixels is refused before it is decoded."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = (
        struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    path = tmp_path / "giant.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4))
    with pytest.raises(ImageError, match="pixels"):
        keep_original(path, edit_of(photographs.scene_8_bit()), tmp_path / "out.png")
