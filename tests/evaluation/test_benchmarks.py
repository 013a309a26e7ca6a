"""Readers of the benchmarks: their exact formats, their quirks, and rows that are wrong."""

import io
import json

import numpy as np
import pytest
from pie import FOLDER, make_pie, runs, write_pie
from PIL import Image

from spotedit.evaluation import masks
from spotedit.evaluation.data import DataError
from spotedit.evaluation.readers import read
from spotedit.pictures.images import ImageError

SIDE = masks.SIDE


@pytest.fixture
def pie(tmp_path):
    return tmp_path, make_pie(tmp_path, 2)


def box(top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


# -- masks


def test_a_mask_is_decoded_with_an_edited_border():
    drawn = box(100, 50, 20, 300)
    mask, problem = masks.decode(runs(drawn))
    assert problem is None
    assert np.array_equal(mask[1:-1, 1:-1], drawn[1:-1, 1:-1])
    for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
        assert side.all()


def test_a_run_past_the_end_is_cut_there():
    mask, _ = masks.decode([SIDE * (SIDE - 2), 10 * SIDE])
    assert mask[-2].all()
    assert not mask[-3, 1:-1].any()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ([3, 4, 5], "mask of wrong length"),
        ([SIDE * SIDE, 1], "mask of wrong length"),
        ([-1, 4], "mask of wrong length"),
        ([1, -4], "mask of wrong length"),
        ("3 4", "mask is no list of whole numbers"),
        ([1.0, 2.0], "mask is no list of whole numbers"),
        (None, "mask is no list of whole numbers"),
    ],
)
def test_masks_that_cannot_part_a_picture(given, problem):
    assert masks.decode(given) == (None, problem)


@pytest.mark.parametrize(
    ("given", "problem", "inside"),
    [
        ([], masks.EMPTY, False),
        ([7, 0], masks.EMPTY, False),
        ([0, SIDE * SIDE], masks.FULL, True),
        (runs(box(1, 1, SIDE - 2, SIDE - 2)), masks.FULL, True),  # but for the border
    ],
)
def test_masks_of_one_part_are_kept_and_named(given, problem, inside):
    mask, found = masks.decode(given)
    assert found == problem
    assert (mask[1:-1, 1:-1] == inside).all()
    assert mask[0].all()


# -- PIE-Bench


def test_pie_bench(pie):
    folder, rows = pie
    data = read(folder)
    assert (data.name, data.problems) == ("PIE-Bench", [])
    assert [item.key for item in data.items] == list(rows)
    first = data.items[0]
    assert first.target == "a square shape"
    assert first.category == "1"
    assert first.instruction == rows[first.key]["editing_instruction"]
    assert first.mask.shape == (SIDE, SIDE)
    assert first.load().size == (SIDE, SIDE)


@pytest.mark.parametrize(
    "change",
    [{"editing_instruction": "do something else"}, {"editing_prompt": "other"}, {"mask": [7, 9]}],
)
def test_another_listing_has_another_identity(pie, change):
    folder, rows = pie
    before = read(folder).identity
    assert read(folder).identity == before
    rows["000000000001"] |= change
    write_pie(folder, rows)
    assert read(folder).identity != before


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(pie, monkeypatch):
    folder, _ = pie
    monkeypatch.setattr("spotedit.pictures.images.MAX_PIXELS", SIDE * SIDE - 1)
    with pytest.raises(ImageError, match="512 x 512"):
        read(folder).items[0].load()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"image_path": "../mapping_file.json"}, "leads out"),
        ({"image_path": "/etc/hostname"}, "leads out"),
        ({"image_path": f"{FOLDER}\\0.jpg"}, "leads out"),
        ({"image_path": f"{FOLDER}/missing.jpg"}, "no such picture"),
        ({"image_path": None}, "image_path is None"),
        ({"editing_instruction": "  "}, "editing_instruction"),
        ({"editing_prompt": 3}, "editing_prompt"),
        ({"editing_type_id": "10"}, "editing_type_id"),
    ],
)
def test_a_malformed_row_is_reported_and_skipped(pie, change, problem):
    folder, rows = pie
    rows["000000000000"] |= change
    write_pie(folder, rows)
    data = read(folder)
    assert [item.key for item in data.items] == ["000000000001"]
    ((key, found),) = data.problems
    assert key == "000000000000"
    assert problem in found


@pytest.mark.parametrize("key", ["../out", ".hidden", "a/b", ""])
def test_a_key_that_is_no_file_name_is_skipped(pie, key):
    folder, rows = pie
    write_pie(folder, {key: rows.pop("000000000000"), **rows, "x": "not an object"})
    data = read(folder)
    assert len(data.items) == 1
    assert len(data.problems) == 2


@pytest.mark.parametrize(
    ("runs", "problem"), [([0, SIDE * SIDE], masks.FULL), ([3], "mask of wrong length")]
)
def test_a_degenerate_mask_leaves_the_picture_in(pie, runs, problem):
    folder, rows = pie
    rows["000000000000"]["mask"] = runs
    write_pie(folder, rows)
    data = read(folder)
    assert len(data.items) == 2
    assert data.items[0].mask_problem == problem


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1', "{}"])
def test_a_list_that_is_none(tmp_path, content):
    (tmp_path / "mapping_file.json").write_text(content)
    with pytest.raises(DataError):
        read(tmp_path)


def test_a_folder_without_a_data_set(tmp_path):
    with pytest.raises(DataError, match=r"mapping_file\.json"):
        read(tmp_path)


# -- ImgEdit Basic


def test_imgedit(tmp_path):
    (tmp_path / "animal").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "animal" / "1.jpg")
    row = {"id": "animal/1.jpg", "prompt": "Add a hat.", "edit_type": "add"}
    rows = {"1": row, "2": row | {"id": "animal/2.jpg"}, "3": row | {"edit_type": 5}}
    (tmp_path / "basic_edit.json").write_text(json.dumps(rows))
    data = read(tmp_path)
    (item,) = data.items
    assert (item.key, item.category, item.instruction) == ("1", "add", "Add a hat.")
    assert (item.mask, item.mask_problem, item.target) == (None, "no mask", None)
    assert item.load().size == (40, 30)
    assert [key for key, _ in data.problems] == ["2", "3"]


# -- PIE-Bench++


def png(colour: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), colour).save(file, "PNG")
    return file.getvalue()


def parquet_row(key: str | None, mask: str, picture: bytes) -> dict:
    return {
        "image": {"bytes": picture, "path": f"{key}.jpg"},
        "id": key,
        "source_prompt": "a cat on a chair",
        "target_prompt": "a [red] [dog] on a chair",
        "edit_action": '{"dog": {"position": 1, "edit_type": 1, "action": "cat"}}',
        "aspect_mapping": '{"dog": ["red"]}',
        "blended_words": '["cat,dog"]',
        "mask": mask,
    }


def write_parquet(path, rows: list[dict]) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `benchmarks` is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.Table.from_pylist(rows)
    pytest.importorskip("pyarrow.parquet").write_table(table, path, row_group_size=2)


def test_pie_bench_plus_plus(tmp_path):
    colours = ("red", "green", "blue")
    first = [parquet_row(str(i), "600 40 1200 9", png(c)) for i, c in enumerate(colours)]
    second = [
        parquet_row("3", "0 262144", png("white")),
        parquet_row("3", "600 40", png("white")),
        parquet_row(None, "600 40", png("white")),
        parquet_row("5", "600 x", png("white")),
        parquet_row("6", "600 40", b"no picture"),
    ]
    write_parquet(tmp_path / "0_random_140" / "V1-00000-of-00001.parquet", first)
    write_parquet(tmp_path / "2_add_object_80" / "V1-00000-of-00001.parquet", second)
    data = read(tmp_path)
    assert data.name == "PIE-Bench++"
    assert [item.key for item in data.items] == ["0", "1", "2", "3", "5", "6"]
    assert len(data.problems) == 2
    assert data.items[0].instruction == data.items[0].target == "a red dog on a chair"
    assert data.items[0].category == "0_random_140"
    assert data.items[0].mask[1, 88:128].all()
    problems = [item.mask_problem for item in data.items]
    assert problems[3:5] == ["mask is full", "mask is no list of whole numbers"]
    shown = [item.load().getpixel((0, 0)) for item in data.items[:3]]
    assert shown == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    with pytest.raises(ImageError, match="6: not a picture"):
        data.items[5].load()


def test_parquet_of_another_format(tmp_path):
    write_parquet(tmp_path / "x.parquet", [{"image": {"bytes": b"", "path": ""}, "id": "1"}])
    with pytest.raises(DataError, match="no column mask, source_prompt, target_prompt"):
        read(tmp_path)


def test_a_damaged_parquet_file(tmp_path):
    write_parquet(tmp_path / "x.parquet", [parquet_row("1", "600 40", png("red"))])
    (tmp_path / "x.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match="not readable as parquet"):
        read(tmp_path)


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").touch()
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"pip install -e \"\.\[benchmarks\]\""):
        read(tmp_path)
