"""JPEG files keep the coefficients of the blocks that an edit does not touch, bit for bit."""

import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import photographs
import pytest
from PIL import Image, ImageFile

from spotedit.models.spec import WHOLE
from spotedit.pictures.composite import PlacedEdit
from spotedit.pictures.images import ImageError, load_image
from spotedit.pictures.originals import jpeg, jpeg_blocks
from spotedit.pictures.originals.jpeg_segments import has_more, split
from spotedit.pictures.originals.write import write_edit

jpeglib = pytest.importorskip("jpeglib")

KINDS = ["444", "420", "422-progressive", "restart", "odd", "grey", "rgb", "411", "440"]
KINDS += ["uneven", "narrow", "everything", "orientation-7"]


def edit_of(path: Path, region: np.ndarray | None = None) -> PlacedEdit:
    upright = load_image(path)
    if region is None:
        region = np.zeros((6, 8) if upright.width >= upright.height else (8, 6), dtype=bool)
        region[2:4, 2:4] = True
    rows, cols = region.shape
    noise = np.random.default_rng(0).integers(0, 256, (16 * rows, 16 * cols, 3), dtype=np.uint8)
    return PlacedEdit(Image.fromarray(noise), region, WHOLE)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    written = photographs.write_photographs(tmp_path_factory.mktemp("photographs"))
    return {file.path.stem: file.path for file in written if file.path.suffix == ".jpg"}


@pytest.fixture(params=KINDS)
def path(request, files) -> Path:
    if request.param not in files:
        pytest.skip("the program cjpeg is absent")
    return files[request.param]


def coefficients(path: Path) -> list[np.ndarray]:
    file = jpeglib.read_dct(str(path))
    file.load()
    return [array for array in (file.Y, file.Cb, file.Cr, file.K) if array is not None]


def test_untouched_blocks_keep_their_coefficients(path, tmp_path):
    out = tmp_path / "out.jpg"
    edit = edit_of(path)
    notes = write_edit(path, edit, out)
    assert not any("encoded again" in note for note in notes)
    with Image.open(path) as image:
        turn = image.getexif().get(0x0112, 1)
        width, height = image.size
    stored = edit.transposed(Image.Transpose.TRANSVERSE) if turn == 7 else edit
    stored = edit.transposed(Image.Transpose.ROTATE_90) if turn == 6 else stored
    shows = stored.opacity((width, height), (0, 0, width, height)) > 0
    num_same = 0
    for before, after in zip(coefficients(path), coefficients(out), strict=True):
        rows, cols = before.shape[:2]
        changed = (before != after).any(axis=(2, 3))
        assert changed.any()
        # whether the edit shows in a block, from the size of a block in the picture
        high, wide = -(-height // rows), -(-width // cols)
        high, wide = (8 * max(1, round(side / 8)) for side in (high, wide))
        for row, col in zip(*changed.nonzero(), strict=True):
            assert shows[row * high : (row + 1) * high, col * wide : (col + 1) * wide].any()
        num_same += int((~changed).sum())
    assert num_same > 100


def test_how_it_is_coded(path, tmp_path):
    """Other programs read it; the tables and the sampling stay, and what changes is said."""
    out = tmp_path / "out.jpg"
    notes = write_edit(path, edit_of(path), out)
    with Image.open(path) as before, Image.open(out) as after:
        assert after.quantization == before.quantization
        assert after.layer == before.layer  # numbers, sampling factors and tables of components
        assert "progressive" not in after.info
    is_said = any("sequential" in note for note in notes)
    assert is_said == (path.stem in ("422-progressive", "restart"))
    if shutil.which("djpeg"):
        done = subprocess.run(["djpeg", "-strict", out], capture_output=True)
        assert done.stderr == b""


def test_blocks_can_be_replaced_a_few_at_a_time(files, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.jpg", tmp_path / "parts.jpg"
    path = files["422-progressive"]
    write_edit(path, edit_of(path), whole)
    monkeypatch.setattr(jpeg_blocks, "_PIXELS_AT_A_TIME", 500)
    write_edit(path, edit_of(path), parts)
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("space", ["cmyk", "ycck"])
def test_cmyk_is_encoded_again_and_said(files, tmp_path, space):
    path, out = files["cmyk"], tmp_path / "out.jpg"
    if space == "ycck":
        if shutil.which("convert") is None:
            pytest.skip("ImageMagick is absent")
        source, path = tmp_path / "in.tif", tmp_path / "in.jpg"
        Image.new("CMYK", (96, 64), (40, 90, 10, 60)).save(source)
        subprocess.run(["convert", source, "-quality", "95", path], check=True)
    region = np.zeros((4, 6), dtype=bool)
    region[1:3, 2:4] = True
    edit = PlacedEdit(Image.new("RGB", (96, 64), (20, 200, 60)), region, WHOLE)
    (note,) = write_edit(path, edit, out)
    assert "encoded again" in note
    assert "CMYK" in note
    before, after = load_image(path), load_image(out)
    middle = before.width // 2, before.height // 2
    assert after.getpixel(middle) == pytest.approx((20, 200, 60), abs=6)
    assert after.getpixel((4, 4)) == pytest.approx(before.getpixel((4, 4)), abs=6)


def test_without_jpeglib_everything_is_encoded_again_and_said(files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jpeglib", None)
    path, out = files["everything"], tmp_path / "out.jpg"
    notes = write_edit(path, edit_of(path), out)
    assert "lossy" in notes[0]
    assert "spotedit[photos]" in notes[0]
    with Image.open(path) as before, Image.open(out) as after:
        assert after.quantization == before.quantization
        assert after.info["exif"] == before.info["exif"]


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=["sequential", "progressive"])
def test_noise_of_the_highest_quality_can_be_encoded_again(tmp_path, monkeypatch, options):
    """Pillow fails to write it with `optimize` or `progressive`."""
    monkeypatch.setitem(sys.modules, "jpeglib", None)
    monkeypatch.setattr(ImageFile, "MAXBLOCK", 2**22)  # so that Pillow can write the original
    path, out = tmp_path / "in.jpg", tmp_path / "out.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, quality=100, subsampling=0, **options)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "jpeglib", None)
    assert "encoded again" in write_edit(path, edit_of(path), out)[-1]
    assert load_image(out).size == (400, 300)


def test_bytes_between_segments_are_passed_over(files, tmp_path):
    path = tmp_path / "in.jpg"
    before, table, after = files["420"].read_bytes().partition(b"\xff\xdb")
    path.write_bytes(before + b"\0\xff\0" + table + after)
    assert write_edit(path, edit_of(path), tmp_path / "out.jpg") == []


@pytest.mark.parametrize("at", ["touched", "untouched"])
def test_a_result_that_is_not_exact_is_not_used(files, tmp_path, monkeypatch, at):
    path, write = files["444"], jpeglib.DCTJPEG.write_dct

    def wrong(file, *args, **options):
        row, col = (4, 4) if at == "touched" else (0, 0)
        file.Y = file.Y.copy()
        file.Y[row, col, 0, 0] += 9
        write(file, *args, **options)

    monkeypatch.setattr(jpeglib.DCTJPEG, "write_dct", wrong)
    notes = write_edit(path, edit_of(path), tmp_path / "out.jpg")
    assert "would not be exact" in notes[0]


def test_a_file_that_jpeglib_reads_otherwise_is_encoded_again(files, tmp_path, monkeypatch):
    path, load = files["444"], jpeglib.DCTJPEG.load

    def wrong(file):
        load(file)
        file.Y[-1, -1, 0, 0] = -900  # also of the written file, which then seems to be right

    monkeypatch.setattr(jpeglib.DCTJPEG, "load", wrong)
    notes = write_edit(path, edit_of(path), tmp_path / "out.jpg")
    assert "would not be exact" in notes[0]


def test_coefficients_that_cannot_be_written_leave_no_file_behind(files, tmp_path, monkeypatch):
    load = jpeglib.DCTJPEG.load

    def damaged(file):
        load(file)
        file.Y[-1, -1, 0, 0] = -3000

    monkeypatch.setattr(jpeglib.DCTJPEG, "load", damaged)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = files["444"]
    notes = write_edit(path, edit_of(path), tmp_path / "out.jpg")
    assert "damaged" in notes[0]
    assert list((tmp_path / "temporary").iterdir()) == []


def test_one_thread_at_a_time_uses_jpeglib(files, tmp_path, monkeypatch):
    """jpeglib's global variables make the program crash otherwise."""
    busy, collisions = threading.Lock(), []

    def alone(function):
        def call(*args, **options):
            if not busy.acquire(blocking=False):
                collisions.append(function.__name__)
                return function(*args, **options)
            try:
                time.sleep(0.002)
                return function(*args, **options)
            finally:
                busy.release()

        return call

    monkeypatch.setattr(jpeglib, "read_dct", alone(jpeglib.read_dct))
    monkeypatch.setattr(jpeglib.DCTJPEG, "load", alone(jpeglib.DCTJPEG.load))
    monkeypatch.setattr(jpeglib.DCTJPEG, "write_dct", alone(jpeglib.DCTJPEG.write_dct))
    path, outs = files["420"], [tmp_path / f"{index}.jpg" for index in range(8)]
    edit = edit_of(path)
    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(lambda out: write_edit(path, edit, out), outs))
    assert collisions == []
    assert len({out.read_bytes() for out in outs}) == 1


def test_what_follows_the_picture_is_left_out_and_said(files, tmp_path):
    path, out = tmp_path / "in.jpg", tmp_path / "out.jpg"
    data = files["420"].read_bytes()
    assert not has_more(split(data)[1])
    path.write_bytes(data + b"ftypmp4 a short video")
    notes = write_edit(path, edit_of(path), out)
    assert "a video" in notes[0]
    assert b"video" not in out.read_bytes()


def test_damaged_files_end_in_an_image_error_or_a_picture(files, tmp_path):
    """No damage ends the program, which old versions of libjpeg do."""
    rng = np.random.default_rng(0)
    data = files["everything"].read_bytes()
    edit, path = edit_of(files["everything"]), tmp_path / "in.jpg"
    for _ in range(20):
        damaged = np.frombuffer(data, np.uint8).copy()
        places = rng.integers(0, len(data), 3)
        damaged[places] = rng.integers(0, 256, 3)
        path.write_bytes(damaged.tobytes())
        try:
            write_edit(path, edit, tmp_path / "out.jpg", force=True)
        except ImageError:
            continue
        with Image.open(tmp_path / "out.jpg") as image:
            image.load()


def test_a_new_file_of_another_format_has_a_high_quality(files, tmp_path):
    out = tmp_path / "out.jpg"
    source = tmp_path / "in.png"
    photographs.scene_8_bit().save(source)
    notes = write_edit(source, edit_of(source), out)
    assert "lossy" in notes[0]
    with Image.open(out) as image, Image.open(BytesIO(out.read_bytes())) as again:
        assert image.size == again.size
        assert max(image.quantization[0]) < 30
    assert jpeg.QUALITY >= 90
