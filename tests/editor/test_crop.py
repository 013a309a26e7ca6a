"""`--detail crop`: where the crops lie, what is put into the photograph, and when it falls back."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bench import detail
from spotedit.cli import main
from spotedit.editor.boxes import (
    Rectangle,
    around,
    box_in_crop,
    box_in_photo,
    components,
    crop_around,
    density,
)
from spotedit.editor.crop import MAX_DISAGREEMENT, disagreement, edit_in_crops
from spotedit.editor.crop_plan import MAX_CROPS, changed_tokens, mask_in_crop, plan_crops
from spotedit.editor.editor import Edited, Editor
from spotedit.editor.errors import Failure
from spotedit.editor.photo import edit_photo, write_photo
from spotedit.editor.settings import EditorSettings
from spotedit.engine.record import CallRecord
from spotedit.judge.misalignment import Misalignment
from spotedit.models.spec import WHOLE
from spotedit.pictures.composite import composite
from spotedit.report import EditReport

TOKEN, MODEL_SIDE = 8, 64  # pixels; the stub model works with about 64 x 64 of them
NUM_PIXELS = MODEL_SIDE**2
SIDE = 512  # of the photographs
BACKGROUND, OBJECT, EDITED, OTHER = (60, 90, 60), (220, 200, 220), (30, 30, 200), (250, 120, 0)
NOWHERE = "no token"  # a region of the right shape


def region_of(rows: int, cols: int, *parts: tuple[slice, slice]) -> np.ndarray:
    region = np.zeros((rows, cols), dtype=bool)
    for part in parts:
        region[part] = True
    return region


# -- boxes


def test_components_touch_at_corners_and_the_largest_comes_first():
    region = region_of(6, 7, (slice(0, 1), slice(0, 1)), (slice(1, 2), slice(1, 2)))
    region[4:, 4:] = True
    large, small = components(region)
    assert large.sum() == 6
    assert large[4:, 4:].all()
    assert small.sum() == 2
    assert small[0, 0]
    assert small[1, 1]
    assert components(np.zeros((3, 3), dtype=bool)) == []


def test_components_follow_a_long_path():
    spiral = np.array(
        [
            [1, 1, 1, 1, 1, 1, 1],
            [0, 0, 0, 0, 0, 0, 1],
            [1, 1, 1, 1, 1, 0, 1],
            [1, 0, 0, 0, 1, 0, 1],
            [1, 0, 1, 1, 1, 0, 1],
            [1, 0, 0, 0, 0, 0, 1],
            [1, 1, 1, 1, 1, 1, 1],
        ],
        dtype=bool,
    )
    (whole,) = components(spiral)
    assert np.array_equal(whole, spiral)


def test_the_rectangle_around_a_region_covers_its_tokens():
    region = region_of(4, 6, (slice(1, 3), slice(2, 5)))
    assert around(region, WHOLE, (600, 400)) == (200, 100, 500, 300)
    assert around(region, WHOLE, (601, 401)) == (200, 100, 501, 301)
    # the token grid covers the right half of the photograph only
    assert around(region, (0.5, 0.0, 1.0, 1.0), (600, 400)) == (400, 100, 550, 300)


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 5000), st.integers(1, 5000)),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
    num_pixels=st.integers(1, 2000**2),
    context=st.floats(0, 1),
    multiple=st.sampled_from([1, 8, 16]),
)
def test_a_crop_contains_the_part_and_lies_in_the_photograph(
    size, corners, num_pixels, context, multiple
):
    (left, right), (top, bottom) = (
        sorted(round(share * side) for share in pair)
        for side, pair in zip(size, (corners[:2], corners[2:]), strict=True)
    )
    changed = Rectangle(
        min(left, size[0] - 1), min(top, size[1] - 1), max(right, left + 1), max(bottom, top + 1)
    )
    changed = Rectangle(*changed[:2], min(changed.right, size[0]), min(changed.bottom, size[1]))
    crop = crop_around(changed, size, num_pixels, context, multiple)
    assert 0 <= crop.left <= changed.left < changed.right <= crop.right <= size[0]
    assert 0 <= crop.top <= changed.top < changed.bottom <= crop.bottom <= size[1]
    assert crop.num_pixels >= min(num_pixels, math.prod(size))
    for length, side in zip(crop.size, size, strict=True):
        assert length % multiple == 0 or length == side


def test_a_crop_around_a_small_part_is_square_and_has_the_models_size():
    crop = crop_around(Rectangle(2000, 1000, 2100, 1050), (6000, 4000), 1024**2, 0.25, 16)
    assert crop.size == (1024, 1024)


def test_a_crop_around_a_large_part_leaves_a_margin():
    changed = Rectangle(1500, 1200, 3500, 2200)
    crop = crop_around(changed, (6000, 4000), 1024**2, 0.25, 16)
    assert crop.left <= 1000
    assert crop.right >= 4000
    assert crop.top <= 700
    assert crop.bottom >= 2700
    assert crop.width < 3100
    assert crop.height < 2100


def test_a_crop_keeps_the_place_of_the_part_in_the_photograph():
    crop = crop_around(Rectangle(1400, 2900, 1600, 3100), (6000, 4000), 1024**2, 0.25, 16)
    assert (1500 - crop.left) / crop.width == pytest.approx(1500 / 6000, abs=0.01)
    assert (3000 - crop.top) / crop.height == pytest.approx(3000 / 4000, abs=0.01)


def test_a_crop_at_the_corner_stays_inside():
    crop = crop_around(Rectangle(0, 3950, 50, 4000), (6000, 4000), 1024**2, 0.25, 16)
    assert crop == (0, 4000 - 1024, 1024, 4000)


@pytest.mark.parametrize("size", [(33, 4000), (4000, 33)])
def test_a_crop_of_a_thin_picture_takes_its_whole_width(size):
    changed = Rectangle(5, 5, 30, 30)
    crop = crop_around(changed, size, 128**2, 0.25, 16)
    assert min(crop.size) == 33
    assert crop.num_pixels >= 128**2
    assert max(crop.size) < 520


def test_the_aspect_of_a_crop_is_at_most_two_if_the_photograph_allows():
    crop = crop_around(Rectangle(100, 2000, 5900, 2100), (6000, 4000), 1024**2, 0.0, 1)
    assert crop.width / crop.height == pytest.approx(2, abs=0.01)


def test_boxes_in_the_crop_and_in_the_photograph_are_inverse():
    crop, size, box = Rectangle(100, 50, 300, 250), (400, 500), (0.1, 0.2, 0.6, 0.9)
    assert box_in_photo(box_in_crop(box, size, crop), size, crop) == pytest.approx(box)
    assert box_in_photo(WHOLE, size, crop) == (0.25, 0.1, 0.75, 0.5)


def test_the_mask_in_a_crop_is_the_part_in_its_pixels():
    part = region_of(4, 4, (slice(1, 3), slice(2, 3)))
    mask = mask_in_crop(part, WHOLE, Rectangle(150, 50, 350, 250), (400, 400))
    expected = np.zeros((200, 200), dtype=bool)
    expected[50:, 50:150] = True
    assert np.array_equal(mask, expected)
    # the photograph's left half is not on the token grid
    beyond = mask_in_crop(
        np.ones((4, 4), dtype=bool), (0.5, 0, 1, 1), Rectangle(0, 0, 400, 400), (400, 400)
    )
    assert not beyond[:, :200].any()
    assert beyond[:, 200:].all()


# -- the plan


def plans_of(region, size=(4096, 4096), moved=None):
    return plan_crops(region, moved, WHOLE, size, 1024**2)


def test_near_parts_share_a_crop_and_distant_ones_do_not():
    near = region_of(64, 64, (slice(10, 12), slice(10, 12)), (slice(10, 12), slice(15, 17)))
    plans, notes = plans_of(near)
    assert len(plans) == 1
    assert not notes
    assert np.array_equal(plans[0].part, near)
    distant = region_of(64, 64, (slice(2, 5), slice(2, 5)), (slice(60, 62), slice(60, 62)))
    plans, notes = plans_of(distant)
    assert [plan.part.sum() for plan in plans] == [9, 4]
    assert not notes
    assert all(density(plan.crop, 1024**2) == 1 for plan in plans)


def test_parts_that_ended_as_the_source_get_no_crop():
    region = region_of(64, 64, (slice(2, 5), slice(2, 5)), (slice(60, 62), slice(60, 62)))
    moved = region.copy()
    moved[:10] = False
    (plan,), _ = plans_of(region, moved=moved)
    assert plan.part.sum() == 4


def test_changed_parts_are_apart_even_if_their_surroundings_touch():
    moved = region_of(64, 64, (slice(10, 12), slice(10, 12)), (slice(10, 12), slice(50, 52)))
    region = moved.copy()
    region[9:13, 8:54] = True
    assert changed_tokens(region, moved).sum() == 32  # 4 x 4 tokens each
    (one, other), _ = plans_of(region, moved=moved)
    assert one.part.sum() == other.part.sum() == 16
    assert plans_of(region)[0][0].part.sum() == region.sum()


def test_many_scattered_parts_take_little_time_to_plan():
    region = np.zeros((64, 64), dtype=bool)
    region[::2, ::2] = True
    plans, notes = plans_of(region, size=(60_000, 60_000))
    assert len(plans) <= MAX_CROPS
    assert len(notes) == 1


def test_a_part_as_large_as_the_photograph_gets_no_crop():
    plans, (note,) = plans_of(region_of(64, 64, (slice(2, 60), slice(2, 60))))
    assert plans == []
    assert note.startswith("1 of 1 changed parts need a crop nearly as large as the photograph")


def test_only_the_largest_parts_get_a_crop():
    region = np.zeros((64, 64), dtype=bool)
    region[4::20, 4::20] = True  # nine tokens, far apart
    region[44:46, 44:46] = True
    plans, (note,) = plan_crops(region, None, WHOLE, (20_000, 20_000), 1024**2)
    assert len(plans) == MAX_CROPS
    assert plans[0].part.sum() == 4
    assert note.startswith(f"at most {MAX_CROPS} crops are edited")
    assert note.endswith("in the 5 smallest changed parts")


# -- edits of a stub: it paints bright objects blue


@dataclass
class StubEditor:
    """Edits as a model of 64 x 64 pixels does, and notes the sizes of its pictures.

    Attributes:
        of_crops: what happens in edits after the first one: another `colour`, or further arguments
            of the record. An exception is raised.
    """

    colour: tuple[int, int, int] = EDITED
    of_crops: Any = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)

    @property
    def settings(self):
        return SimpleNamespace(arguments=self.arguments)

    def edit(self, image, instruction, **more) -> Edited:
        changes = dict(self.record)
        colour = self.colour
        if self.calls:
            if isinstance(self.of_crops, Exception):
                raise self.of_crops
            changes |= self.of_crops
            colour = changes.pop("colour", colour)
        self.calls.append({"size": image.size, "instruction": instruction, **more})
        scale = MODEL_SIDE / math.sqrt(math.prod(image.size))
        cols, rows = (max(1, round(side * scale / TOKEN)) for side in image.size)
        small = image.resize((cols * TOKEN, rows * TOKEN), Image.Resampling.BOX)
        pixels = np.array(small)
        bright = pixels[..., 0] > 140
        region = bright.reshape(rows, TOKEN, cols, TOKEN).any(axis=(1, 3))
        mask = more.get("mask")
        if mask is not None:
            allowed = Image.fromarray(mask).resize((cols, rows), Image.Resampling.NEAREST)
            region &= np.asarray(allowed)
        pixels[bright & region.repeat(TOKEN, 0).repeat(TOKEN, 1)] = colour
        arguments = {
            "region": torch.from_numpy(region).flatten()[None],
            "reason": None,
            "unedited": int(not region.any()),
            "source_box": WHOLE,
            "batch": 1,
            **changes,
        }
        for name, value in arguments.items():
            if value is NOWHERE:
                arguments[name] = torch.zeros(1, rows * cols, dtype=torch.bool)
        record = CallRecord(
            pipeline="Stub",
            grid=(rows, cols),
            records=(),
            scores=torch.zeros(1, rows * cols),
            cache_bytes=0,
            threshold=0.1,
            judge="l2",
            **arguments,
        )
        return Edited(image, Image.fromarray(pixels), EditReport(record), seconds=1.0)


def photograph(*objects: tuple[int, int], size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """Make a photograph with fine grain and bright objects of 40 x 40 pixels at (left, top)."""
    grain = np.random.default_rng(0).integers(-30, 30, (size[1], size[0], 1))
    pixels = (np.array(BACKGROUND) + grain).astype(np.uint8)
    for left, top in objects:
        pixels[top : top + 40, left : left + 40] = OBJECT
    return Image.fromarray(pixels)


def detailed(editor: StubEditor, image: Image.Image, **more):
    first = editor.edit(image, "paint it blue", seed=3, **more)
    return edit_in_crops(editor, image, "paint it blue", first, seed=3, **more)


def put_into(image: Image.Image, edit) -> np.ndarray:
    return np.asarray(composite(image, edit.placed))


def test_a_crop_is_edited_at_the_photographs_own_pixels():
    editor, image = StubEditor(), photograph((200, 310))
    edit = detailed(editor, image)
    assert [call["size"] for call in editor.calls] == [(SIDE, SIDE), edit.crops[0].plan.crop.size]
    assert editor.calls[1]["instruction"] == "paint it blue"
    assert editor.calls[1]["seed"] == 3
    assert edit.notes == ()
    assert edit.seconds == 2
    result = put_into(image, edit)
    blue = np.abs(result.astype(int) - EDITED).max(axis=-1) < 40
    top, left = (int(axis.min()) for axis in np.nonzero(blue))
    bottom, right = (int(axis.max()) for axis in np.nonzero(blue))
    assert (left, top, right, bottom) == pytest.approx((200, 310, 239, 349), abs=2)


def test_pixels_far_from_the_crops_region_stay_as_they_are():
    image = photograph((200, 310))
    result, before = put_into(image, detailed(StubEditor(), image)), np.asarray(image)
    changed = (result != before).any(axis=-1)
    rows, cols = np.nonzero(changed)
    # the region and one token around it; a token has 14 pixels in the crop
    assert cols.min() >= 200 - 32
    assert cols.max() < 240 + 32
    assert rows.min() >= 310 - 32
    assert rows.max() < 350 + 32
    first_only = put_into(image, detailed(StubEditor(of_crops=Failure("no")), image))
    assert (first_only != before).any(axis=-1).sum() > 2 * changed.sum()


def test_distant_objects_get_a_crop_each():
    image = photograph((20, 30), (440, 420))
    edit = detailed(StubEditor(), image)
    assert len(edit.crops) == 2
    result = put_into(image, edit)
    for left, top in ((20, 30), (440, 420)):
        assert np.allclose(result[top + 5 : top + 35, left + 5 : left + 35], EDITED, atol=8)


def test_equal_arguments_give_equal_edits():
    image = photograph((20, 30), (440, 420))
    one, other = (put_into(image, detailed(StubEditor(), image)) for _ in range(2))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("of_crops", "words"),
    [
        (Failure("out of memory"), "the first edit is kept: out of memory"),
        ({"colour": OTHER}, "the crop's edit is another one"),
        ({"colour": OBJECT}, f"at most {MAX_DISAGREEMENT} is accepted"),
        ({"region": NOWHERE}, "nothing was edited in it"),
        (
            {"region": None, "reason": "too few steps"},
            "the first edit is kept: no region was found: too few",
        ),
        (
            {"misalignment": Misalignment("shift", (8.0, 8.0), 1.0, 1.0)},
            "the whole frame does not match the source",
        ),
    ],
    ids=["failed", "another", "unchanged", "unedited", "dense", "misaligned"],
)
def test_the_first_edit_is_kept_where_a_crop_fails(of_crops, words):
    image = photograph((200, 310))
    editor = StubEditor(of_crops=of_crops)
    first = editor.edit(image, "paint it blue")
    edit = edit_in_crops(editor, image, "paint it blue", first)
    (note,) = edit.notes
    assert words in note
    assert np.array_equal(
        put_into(image, edit),
        np.asarray(composite(image, first.report.placed(first.picture))),
    )


@pytest.mark.parametrize(
    ("side", "record", "words"),
    [
        (70, {}, "the photograph, 70 x 70 pixels, is not much larger than the model's 64 x 64"),
        (SIDE, {"region": None, "reason": "too few steps"}, "no region was found: too few steps"),
        (SIDE, {"reason": "it went dense"}, "no region was found: it went dense"),
        (SIDE, {"batch": 2}, "the call made 2 pictures"),
        (
            SIDE,
            {"misalignment": Misalignment("scale", (0.0, 0.0), 1.1, 1.0)},
            "no crop was edited: the whole frame changed",
        ),
        (SIDE, {"source_box": None}, "the edit cannot be placed on the photograph"),
        (SIDE, {"region": NOWHERE}, "nothing was edited"),
        (SIDE, {"moved": NOWHERE}, "nothing was edited"),
    ],
    ids=["small", "dense", "dense later", "batch", "misaligned", "unplaced", "unedited", "unmoved"],
)
def test_no_crop_is_edited_where_none_helps(side, record, words):
    editor, image = StubEditor(record=record), photograph((20, 20), size=(side, side))
    edit = detailed(editor, image)
    assert len(editor.calls) == 1
    assert edit.crops == ()
    (note,) = edit.notes
    assert words in note
    assert edit.layers is None
    if edit.report.source_box is not None and edit.report.batch == 1:
        assert edit.placed.picture == edit.picture


def test_arguments_for_the_whole_photograph_allow_no_crop():
    editor, image = StubEditor(arguments={"mask_image": image_of_ones()}), photograph((200, 310))
    edit = detailed(editor, image)
    assert edit.notes == ("no crop was edited: mask_image was given for the whole photograph",)


def image_of_ones() -> Image.Image:
    return Image.new("L", (SIDE, SIDE), 255)


def test_a_thin_picture_is_edited_in_crops():
    image = photograph((0, 1000), size=(33, 4000))
    edit = detailed(StubEditor(), image)
    (crop,) = edit.crops
    assert crop.problem is None
    result = put_into(image, edit)
    assert np.allclose(result[1005:1035, 5:28], EDITED, atol=8)
    assert np.array_equal(result[:700], np.asarray(image)[:700])


def test_a_users_mask_holds_in_the_crops():
    image = photograph((200, 310))
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    mask[:, :216] = True
    editor = StubEditor()
    first = editor.edit(image, "paint it blue")
    edit = edit_in_crops(editor, image, "paint it blue", first, mask=mask, mask_mode="replace")
    crop, call = edit.crops[0].plan.crop, editor.calls[1]
    assert call["mask_mode"] == "replace"
    assert call["mask"][:, : 216 - crop.left].any()
    assert not call["mask"][:, 216 - crop.left :].any()
    edit_in_crops(editor, image, "paint it blue", first, mask=mask, mask_mode="union")
    assert editor.calls[2]["mask_mode"] == "intersect"
    assert editor.calls[2]["mask"][:, 216 - crop.left :].any()


def test_an_exception_of_the_callback_ends_the_edit():
    class Cancelled(Exception):
        pass

    editor, image = StubEditor(of_crops=Cancelled()), photograph((200, 310))
    with pytest.raises(Cancelled):
        detailed(editor, image)


def test_disagreement_is_relative_to_the_larger_change():
    source, half, whole = (Image.new("L", (32, 32), grey) for grey in (0, 60, 120))
    assert disagreement(source, whole, whole, 0.5) == 0
    assert disagreement(source, source, whole, 0.5) == 1
    assert disagreement(source, whole, source, 0.5) == 1
    assert disagreement(source, half, whole, 0.5) == pytest.approx(0.5)
    assert disagreement(source, source, source, 0.5) == 0


# -- files


def test_a_file_gets_the_edits_of_crops_and_keeps_its_other_pixels(tmp_path):
    image = photograph((20, 30), (440, 420))
    image.save(tmp_path / "in.png")
    edit, notes = edit_photo(StubEditor(), tmp_path / "in.png", "paint it blue", detail="crop")
    notes += write_photo(tmp_path / "in.png", edit, tmp_path / "out.png")
    assert notes == []
    written, before = np.asarray(Image.open(tmp_path / "out.png")), np.asarray(image)
    assert np.array_equal(written, put_into(image, edit))
    for left, top in ((20, 30), (440, 420)):
        assert np.allclose(written[top + 5 : top + 35, left + 5 : left + 35], EDITED, atol=8)
    assert np.array_equal(written[100:350], before[100:350])


def test_a_picture_of_the_models_size_has_no_crops(tmp_path):
    photograph((20, 30)).save(tmp_path / "in.png")
    edit, _ = edit_photo(StubEditor(), tmp_path / "in.png", "paint it blue", detail="crop")
    (note,) = write_photo(tmp_path / "in.png", edit, tmp_path / "out.png", keep="model")
    assert "--detail crop needs --keep original" in note
    assert Image.open(tmp_path / "out.png").size == edit.picture.size


def test_without_crops_the_edit_is_the_first_one(tmp_path):
    photograph((20, 30)).save(tmp_path / "in.png")
    editor = StubEditor()
    edit, notes = edit_photo(editor, tmp_path / "in.png", "paint it blue")
    assert len(editor.calls) == 1
    assert notes == []
    assert type(edit) is Edited


# -- the benchmark's figures


def test_sharpness_and_psnr_compare_with_the_truth():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    mask = np.zeros((40, 40), dtype=bool)
    mask[10:30, 10:30] = True
    half = (truth // 2 + 64).astype(np.uint8)
    assert detail.sharpness(truth, truth, mask) == 1
    assert detail.sharpness(half, truth, mask) == pytest.approx(0.25, abs=0.02)
    assert detail.psnr(truth + np.uint8(0), truth, mask) > 70
    assert detail.psnr(half, truth, mask) < 20
    outside = truth.copy()
    outside[~mask] = 0
    assert detail.psnr(outside, truth, mask) > 70


def test_a_scene_with_one_object_changes_that_object_only():
    for seed, kind in enumerate(detail.KINDS):
        scene = detail.one_object(seed, kind, 256, 30)
        rows, cols = np.nonzero(scene.mask)
        assert np.ptp(rows) < 90
        assert np.ptp(cols) < 90
        assert scene.instruction.startswith(kind)


# -- the tiny editor


@pytest.mark.full
def test_the_command_edits_in_crops(tmp_path, capsys):
    scene = detail.Case("one object", 512, 100).scene(1002)
    scene.source_image.save(tmp_path / "in.png")
    options = ["--model", "tiny", "--steps", "8", "--detail", "crop"]
    paths = [str(tmp_path / name) for name in ("in.png", "out.png")]
    assert main(["edit", paths[0], scene.instruction, "-o", paths[1], *options]) == 0
    written = np.asarray(Image.open(paths[1]), dtype=float)
    assert written.shape == scene.source.shape
    source, target = (picture[scene.mask].astype(float) for picture in (scene.source, scene.target))
    error = np.abs(written[scene.mask] - target).mean()
    assert error < np.abs(source - target).mean() / 2
    assert (written == scene.source).all(axis=-1).mean() > 0.5


@pytest.mark.full
def test_crops_of_the_tiny_editor_are_nearer_to_the_truth_and_sharper():
    case = detail.Case("one object", 512, 100)
    settings_ = EditorSettings(model="tiny", device="cpu", arguments={"num_inference_steps": 14})
    with Editor(settings_) as editor:
        outcomes = [detail.outcome(editor, case.scene(seed), seed) for seed in range(1000, 1003)]
    pairs = [(outcome.figures(detail.FIRST), outcome.figures(detail.CROP)) for outcome in outcomes]
    gains = [crop["PSNR"] - first["PSNR"] for first, crop in pairs]
    assert min(gains) > -0.5
    assert np.mean(gains) > 1
    for first, crop in pairs:
        assert crop["sharpness"] > 1.3 * first["sharpness"]
    assert all(outcome.forwards[1] > outcome.forwards[0] for outcome in outcomes)
