"""JPEG files keep the coefficients of the blocks that an edit does not touch, bit for bit."""

import builtins
import shutil
import struct
import subprocess
from collections import Counter
from io import BytesIO
from pathlib import Path

import numpy as np
import photographs
import pytest
from PIL import Image

from spotedit.models.spec import WHOLE
from spotedit.pictures.composite import PlacedEdit
from spotedit.pictures.images import ImageError, load_image
from spotedit.pictures.originals import jpeg, jpeg_blocks, jpeg_entropy
from spotedit.pictures.originals.jpeg_segments import has_more, split
from spotedit.pictures.originals.write import write_edit

jpeglib = pytest.importorskip("jpeglib")

KINDS = ["444", "420", "422-progressive", "restart", "odd", "grey", "cmyk", "rgb", "411", "440"]
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


def test_how_it_is_coded_is_kept(path, tmp_path):
    """Other programs read it; the tables, the sampling, the scans and the markers are the same."""
    out = tmp_path / "out.jpg"
    write_edit(path, edit_of(path), out)
    before, after = (split(file.read_bytes())[0] for file in (path, out))
    for marker in (0xDB, 0xC0, 0xC2, 0xDD):  # tables, frames, restart interval
        assert [s for s in after if s.marker == marker] == [s for s in before if s.marker == marker]
    if shutil.which("djpeg"):
        done = subprocess.run(["djpeg", "-strict", out], capture_output=True)
        assert done.stderr == b""


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("interval", [0, 1, 3])
def test_the_entropy_coder_loses_nothing(tmp_path, progressive, interval):
    """Extreme coefficients, long runs of zeros and all kinds of MCUs come back as they were."""
    rng = np.random.default_rng(interval)
    shapes, factors = [(5, 7), (3, 4), (3, 4)], [(2, 2), (1, 1), (1, 1)]
    components = []
    for index, (shape, (across, down)) in enumerate(zip(shapes, factors, strict=True)):
        sparse = rng.random((*shape, 8, 8)) < rng.choice([0, 0.02, 0.5], (*shape, 1, 1))
        values = rng.integers(-1023, 1024, (*shape, 8, 8)) * sparse
        blocks = values.astype(np.int16)
        components.append(jpeg_entropy.Component(blocks, index + 1, across, down))
    frame = struct.pack(">BHHB", 8, 5 * 8 - 3, 7 * 8 - 1, 3)
    frame += b"".join(bytes([c.identifier, c.across << 4 | c.down, 0]) for c in components)
    segments = [jpeg_blocks.Segment(0xDB, b"\0" + bytes([1] * 64))]
    segments.append(jpeg_blocks.Segment(0xC2 if progressive else 0xC0, frame))
    if interval:
        segments.append(jpeg_blocks.Segment(0xDD, struct.pack(">H", interval)))
    data = jpeg_entropy.compressed_data(components, progressive, interval)
    path = tmp_path / "coded.jpg"
    path.write_bytes(jpeg_blocks.join(segments, data))
    for component, read in zip(components, coefficients(path), strict=True):
        assert np.array_equal(component.blocks, read)


def test_rows_of_blocks_can_be_coded_a_few_at_a_time(files, tmp_path, monkeypatch):
    whole, parts = tmp_path / "whole.jpg", tmp_path / "parts.jpg"
    path = files["422-progressive"]
    write_edit(path, edit_of(path), whole)
    monkeypatch.setattr(jpeg_entropy, "_CHUNK_BLOCKS", 50)
    monkeypatch.setattr(jpeg_blocks, "_PIXELS_AT_A_TIME", 500)
    write_edit(path, edit_of(path), parts)
    assert whole.read_bytes() == parts.read_bytes()


def test_codes_are_no_longer_than_sixteen_bits():
    fibonacci = [1, 1]
    while len(fibonacci) < 30:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths, ordered = jpeg_entropy._code_lengths(Counter(dict(enumerate(fibonacci))))
    assert sum(lengths) == len(ordered) == 30
    assert sum(count / 2**length for length, count in enumerate(lengths)) < 1
    assert ordered[0] == 29  # the most frequent one


def test_ycck(tmp_path):
    if shutil.which("convert") is None:
        pytest.skip("ImageMagick is absent")
    source, path, out = (tmp_path / name for name in ("in.tif", "in.jpg", "out.jpg"))
    Image.new("CMYK", (96, 64), (40, 90, 10, 60)).save(source)
    subprocess.run(["convert", source, "-quality", "95", path], check=True)
    region = np.zeros((4, 6), dtype=bool)
    region[1:3, 2:4] = True
    edit = PlacedEdit(Image.new("RGB", (96, 64), (20, 200, 60)), region, WHOLE)
    assert write_edit(path, edit, out) == []
    assert load_image(out).getpixel((48, 32)) == pytest.approx((20, 200, 60), abs=4)
    assert load_image(out).getpixel((4, 4)) == load_image(path).getpixel((4, 4))


def test_without_jpeglib_everything_is_encoded_again_and_said(files, tmp_path, monkeypatch):
    importing = builtins.__import__

    def without_jpeglib(name, *args, **kwargs):
        if name == "jpeglib":
            raise ImportError(name)
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_jpeglib)
    path, out = files["everything"], tmp_path / "out.jpg"
    notes = write_edit(path, edit_of(path), out)
    assert "lossy" in notes[0]
    assert "spotedit[photos]" in notes[0]
    with Image.open(path) as before, Image.open(out) as after:
        assert after.quantization == before.quantization
        assert after.info["exif"] == before.info["exif"]


def test_a_result_that_is_not_exact_is_not_used(files, tmp_path, monkeypatch):
    def wrong(components, *args):
        components[0].blocks[0, 0, 0, 0] += 9
        return jpeg_entropy.compressed_data(components, *args)

    monkeypatch.setattr(jpeg_blocks, "compressed_data", wrong)
    path = files["444"]
    notes = write_edit(path, edit_of(path), tmp_path / "out.jpg")
    assert "would not be exact" in notes[0]


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
    for _ in range(40):
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
