"""What the page shows when the user does something, without a browser and without Gradio."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from fake_desk import GREEN, FakeDesk, FakeReport
from PIL import Image

from spotedit.app import handlers, words
from spotedit.app.desk import Desk, Order
from spotedit.app.painting import painted_mask
from spotedit.app.samples import Sample, tiny_samples
from spotedit.app.session import MAX_ROUNDS, close_session, open_session
from spotedit.editor.editor import Editor
from spotedit.editor.errors import BadInput, Failure
from spotedit.editor.settings import EditorSettings
from spotedit.tiny.scenes import make_scene

ORDER = Order("add a scarf", seed=7, preset="fast", steps=3)
LARGE = 600 * 401  # pixels: more than the sample has
SAMPLE = Sample("grey", Image.new("RGB", (600, 400), "grey"), "add a scarf")


@pytest.fixture
def session(tmp_path):
    session = open_session(tmp_path, LARGE)
    handlers.open_sample(session, SAMPLE)
    return session


@pytest.fixture
def desk() -> FakeDesk:
    return FakeDesk()


def after(changes_in_turn) -> dict:
    """Return what the page shows in the end, as {part: {property: value}}."""
    page: dict = {}
    for changes in changes_in_turn:
        for name, properties in changes.items():
            page[name] = page.get(name, {}) | properties
    return page


def edit(desk, session, order=ORDER) -> dict:
    return after(handlers.edit(desk, session, order, with_pictures=True))


def begun_edit(desk, session):
    """Return the turns of an edit that waits for the desk."""
    turns = handlers.edit(desk, session, ORDER, with_pictures=True)
    while not session.busy:
        next(turns)
    return turns


def mask() -> Image.Image:
    pixels = np.zeros((400, 600), np.uint8)
    pixels[50:200, 50:300] = 255
    return Image.fromarray(pixels)


def test_a_sample_becomes_the_source(session):
    page = handlers.open_sample(session, SAMPLE)
    assert page["instruction"]["value"] == "add a scarf"
    assert page["painting"]["visible"]
    assert page["painting"]["value"]["background"].size == (600, 400)
    assert not page["upload"]["visible"]
    assert page["edit"]["interactive"]
    assert not page["cancel"]["interactive"]


def test_a_bad_file_is_a_warning_and_the_source_stays(session, tmp_path):
    source = session.source
    bad = tmp_path / "bad.jpg"
    bad.write_text("no picture")
    page = handlers.open_file(session, str(bad))
    assert page[handlers.WARNING]["text"].startswith("bad.jpg: not a picture")
    assert session.source is source


def test_a_picture_that_cannot_be_kept_is_a_warning(session, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handlers, "add_photo", refuse)
    page = handlers.open_file(session, str(tmp_path / "dog.jpg"))
    assert page[handlers.WARNING]["text"].endswith("No space left on device")


def test_another_picture_replaces_the_preview_and_the_file_of_the_one_before(session):
    first = session.source.path
    page = handlers.open_sample(session, SAMPLE)
    assert page["scores"] == {"value": None}
    assert list(session.folder.iterdir()) == [session.source.path]
    assert session.source.path != first


def test_sharper_detail_is_offered_for_a_large_photograph(session):
    small = handlers.open_sample(session, SAMPLE)
    large = handlers.open_sample(session, replace(SAMPLE, picture=Image.new("RGB", (600, 401))))
    assert small["in_crops"] == {"visible": False, "value": False}
    assert large["in_crops"] == {"visible": True}


def test_an_edit_shows_its_steps_and_its_result(desk, session):
    turns = list(handlers.edit(desk, session, ORDER, with_pictures=True))
    shown = [turn["status"]["value"] for turn in turns if "status" in turn]
    assert any('value="3" max="3"' in status for status in shown)
    page = after(turns)
    before, result = page["comparison"]["value"]
    assert before.size == result.size
    assert result.getpixel((10, 10)) == GREEN
    assert page["report"]["value"].startswith("Done. Most steps computed 25%")
    assert page["download"] == {"value": str(session.shown.result.path), "interactive": True}
    assert page["edit"]["interactive"]
    assert not page["cancel"]["interactive"]
    assert not session.busy


def test_the_paint_stays_after_an_edit(desk, session):
    assert "painting" not in edit(desk, session)


def test_what_was_not_made_sharper_is_said(desk, session):
    desk.notes = ("no crop was edited: the whole frame changed",)
    page = edit(desk, session)
    assert "About the detail: No crop was edited: the whole frame" in page["report"]["value"]


def test_doubts_are_shown_with_no_markup_of_their_own(desk, session, monkeypatch):
    monkeypatch.setattr(FakeReport, "doubts", ("a [link](x) may help",))
    page = edit(desk, session)
    assert r"**Check the result:** A \[link\](x) may help." in page["report"]["value"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BadInput("the pipeline refused"), "the pipeline refused"),
        (Failure("out of memory on cuda; use --offload"), "out of memory on cuda"),
        (MemoryError(), "Out of memory"),
        (RuntimeError("tensor 3 at 0x7f"), "The app made a mistake (RuntimeError)"),
    ],
)
def test_an_error_is_one_line_and_the_next_edit_is_right(error, line, desk, session):
    desk.error = error
    page = edit(desk, session)
    assert line in page[handlers.WARNING]["text"]
    assert line in page["status"]["value"]
    assert "0x7f" not in page["status"]["value"]
    assert page["edit"]["interactive"]
    assert session.rounds == []
    desk.error = None
    assert edit(desk, session)["comparison"]["visible"]


@pytest.mark.parametrize(
    ("order", "line"),
    [
        (replace(ORDER, instruction=" "), "Write what to change"),
        (replace(ORDER, seed=-3), "The seed is -3"),
        (replace(ORDER, mask=Image.new("L", (64, 64), 255)), "The paint does not fit"),
    ],
)
def test_a_bad_order_is_refused_before_the_edit(order, line, desk, session):
    assert line in edit(desk, session, order)["status"]["value"]
    assert desk.orders == []


def test_a_preview_of_exactly_the_paint_is_refused_in_the_words_of_the_page(desk, session):
    order = replace(ORDER, mask=mask(), mask_mode="replace")
    page = after(handlers.preview(desk, session, order))
    assert "Exactly the paint is recomputed" in page["status"]["value"]


def test_without_a_picture_nothing_is_edited(desk, tmp_path):
    page = edit(desk, open_session(tmp_path, LARGE))
    assert "Choose a picture first" in page["status"]["value"]


def test_undo_returns_to_the_source_its_mask_and_its_instruction(desk, session):
    first_source = session.source
    first_order = replace(ORDER, mask=mask(), mask_mode="union")
    edit(desk, session, first_order)
    page = handlers.use_result(session)
    assert page["instruction"]["value"] == ""
    assert page["painting"]["value"]["layers"] == []
    assert session.source.load().getpixel((9, 9)) == GREEN
    edit(desk, session, replace(ORDER, instruction="make it night"))
    page = handlers.undo(session)
    assert session.source is first_source
    assert page["instruction"]["value"] == "add a scarf"
    assert page["mask_mode"]["value"] == "union"
    assert (page["seed"]["value"], page["preset"]["value"], page["steps"]["value"]) == (
        7,
        "fast",
        3,
    )
    painted = painted_mask(page["painting"]["value"]["layers"])
    assert (np.asarray(painted) == np.asarray(mask())).all()
    assert not page["undo"]["interactive"]
    assert handlers.undo(session) == {}
    assert len(session.rounds) == 2  # nothing is lost


def test_the_history_returns_to_any_edit(desk, session):
    edit(desk, session)
    handlers.use_result(session)
    edit(desk, session, replace(ORDER, instruction="make it night"))
    handlers.go_to(session, 0)
    page = handlers.go_to(session, 1)
    assert page["instruction"]["value"] == "make it night"
    assert page["undo"]["interactive"]
    captions = [caption for _, caption in page["history"]["value"]]
    assert captions == ["1: add a scarf", "1 → 2: make it night"]
    assert handlers.go_to(session, 2) == {}


def test_the_history_is_bounded(desk, session):
    edit(desk, session)
    handlers.use_result(session)
    edit(desk, session)
    first, second = session.rounds
    session.rounds = [first] + [second] * (MAX_ROUNDS - 1)
    edit(desk, session)
    assert len(session.rounds) == MAX_ROUNDS
    assert session.rounds[-1] is session.shown
    assert not first.source.path.exists()
    assert first.result.path.exists()  # the source of the second edit
    assert handlers.undo(session) == {}  # the first edit is forgotten


def test_a_result_keeps_the_format_of_the_photograph(desk, session, tmp_path):
    SAMPLE.picture.save(tmp_path / "photo.jpg")
    handlers.open_file(session, str(tmp_path / "photo.jpg"))
    edit(desk, session)
    result = session.shown.result
    assert result.path.suffix == ".jpg"
    assert Image.open(result.path).format == "JPEG"


def test_a_format_that_cannot_be_written_becomes_png(desk, session, tmp_path):
    SAMPLE.picture.save(tmp_path / "old.gif")
    handlers.open_file(session, str(tmp_path / "old.gif"))
    page = edit(desk, session)
    assert session.shown.result.path.suffix == ".png"
    assert "the suffix is '.gif'" in page["report"]["value"]
    assert str(session.folder) not in page["report"]["value"]


def test_cancel_ends_the_edit_and_the_page_is_usable(desk, session):
    turns = begun_edit(desk, session)
    desk.go_on.clear()
    waiting = threading.Thread(target=lambda: page.update(after(turns)))
    page: dict = {}
    waiting.start()
    while not desk.orders:
        waiting.join(0.01)
    assert handlers.go_to(session, 0) == {handlers.WARNING: {"text": words.BUSY}}
    assert handlers.cancel(session)["edit"]["interactive"]
    waiting.join(10)
    assert "Cancelled" in page["status"]["value"]
    desk.go_on.set()
    assert desk.ended.wait(10)
    assert session.rounds == []
    assert edit(desk, session)["comparison"]["visible"]


def test_a_second_edit_is_refused_while_one_waits_or_runs(desk, session):
    turns = begun_edit(desk, session)
    for _ in range(2):  # it waits, then it runs
        page = edit(desk, session)
        assert page[handlers.WARNING] == {"text": words.BUSY}
        assert "status" not in page
        next(turns)
    after(turns)
    assert len(desk.orders) == 1


def test_an_edit_that_is_cancelled_while_it_waits_does_nothing(desk, session):
    turns = begun_edit(desk, session)
    handlers.cancel(session)
    assert "Cancelled" in after(turns)["status"]["value"]
    assert desk.orders == []
    assert session.rounds == []


def test_a_cancelled_edit_does_not_hide_the_next_one(desk, session):
    cancelled = begun_edit(desk, session)
    handlers.cancel(session)
    following = begun_edit(desk, session)
    assert list(cancelled) == []
    assert after(following)["comparison"]["visible"]
    assert len(desk.orders) == 1


def test_a_session_does_not_see_another(desk, session, tmp_path):
    other = open_session(tmp_path, LARGE)
    edit(desk, session)
    assert other.rounds == []
    assert other.folder != session.folder
    turns = begun_edit(desk, session)
    handlers.cancel(other)
    assert session.busy
    assert after(turns)["comparison"]["visible"]


def test_a_closed_session_leaves_no_file(session):
    close_session(session)
    assert not session.folder.exists()


# -- with the tiny editor


@pytest.fixture(scope="module")
def tiny_desk() -> Desk:
    return Desk(Editor(EditorSettings(model="tiny", arguments={"num_inference_steps": 6})))


def test_edits_of_one_photograph_share_work_until_its_tab_is_closed(tiny_desk, tmp_path):
    sessions = [open_session(tmp_path, LARGE) for _ in range(2)]
    for session in sessions:
        handlers.open_sample(session, tiny_samples()[0])
    first, second = sessions
    order = Order("remove the red triangle", steps=2)

    def seconds_saved(session) -> float:
        edit(tiny_desk, session, order)
        return session.shown.report.seconds_saved

    assert seconds_saved(first) == 0
    assert seconds_saved(first) > 0
    assert seconds_saved(second) == 0  # the same pixels in another tab
    kept = tiny_desk._opened.session
    assert kept.nbytes > 0
    tiny_desk.forget(first.folder)
    assert kept.nbytes > 0
    tiny_desk.forget(second.folder)
    assert kept.nbytes == 0
    assert tiny_desk._opened is None
    first, second = (np.asarray(session.shown.result.load()) for session in sessions)
    assert (first == second).all()


@pytest.mark.full
def test_a_large_photograph_is_edited_again_in_crops(tiny_desk, tmp_path):
    scene = make_scene(1, kind="recolour", size=512)
    session = open_session(tmp_path, tiny_desk.large_from)
    handlers.open_sample(session, Sample("large", scene.source_image, scene.instruction))
    assert session.is_large
    order = Order(scene.instruction, steps=6, detail="crop")
    turns = list(handlers.edit(tiny_desk, session, order, with_pictures=False))
    assert any("Detail 1 of 1. Step 6 of 6" in str(turn.get("status")) for turn in turns)
    assert session.shown.result.size == (512, 512)
    assert handlers.go_to(session, 0)["in_crops"] == {"visible": True, "value": True}


def test_an_edit_of_a_crop_can_be_cancelled(tiny_desk, tmp_path):
    scene = make_scene(1, kind="recolour", size=512)
    session = open_session(tmp_path, tiny_desk.large_from)
    handlers.open_sample(session, Sample("large", scene.source_image, scene.instruction))
    order = Order(scene.instruction, steps=6, detail="crop")
    page: dict = {}
    for changes in handlers.edit(tiny_desk, session, order, with_pictures=False):
        page |= changes
        if "Detail 1 of 1. Step" in str(page.get("status")):
            handlers.cancel(session)
    assert "Cancelled" in page["status"]["value"]
    assert session.rounds == []


def test_a_closed_desk_ends_its_edit_and_takes_no_other(tmp_path):
    desk = Desk(Editor(EditorSettings(model="tiny")))
    session = open_session(tmp_path, LARGE)
    handlers.open_sample(session, tiny_samples()[0])
    turns = handlers.edit(desk, session, Order("remove the red triangle"), with_pictures=False)
    assert any("Step" in str(changes.get("status")) for changes in turns)
    desk.close()
    assert "Cancelled" in after(turns)["status"]["value"]
    desk._editor.close()  # nothing runs
    assert "Cancelled" in edit(desk, session)["status"]["value"]


def test_the_tiny_editor_follows_a_sample_inside_the_paint(tiny_desk, tmp_path):
    assert tiny_desk.steps == 6
    session = open_session(tmp_path, LARGE)
    handlers.open_sample(session, tiny_samples()[0])
    left = Image.new("L", session.source.shown.size)
    left.paste(255, (0, 0, left.width // 2, left.height))
    order = Order(tiny_samples()[0].instruction, mask=left, preset="fast", steps=6)
    page = after(handlers.preview(tiny_desk, session, order))
    assert page["tabs"]["selected"] == handlers.SCORES_TAB
    assert "of the picture at first" in page["report"]["value"]
    assert session.shown is None
    edit(tiny_desk, session, order)
    report = session.shown.report
    columns = report.region.shape[1]
    assert report.region.any()
    assert not report.region[:, columns // 2 :].any()
    assert tiny_desk._editor.handle.config.preset == "fast"


@pytest.mark.full
def test_orders_of_several_threads_are_carried_out_in_turn(tiny_desk, tmp_path):
    sessions = [open_session(tmp_path, LARGE) for _ in range(2)]
    order = Order("remove the red triangle", steps=2)
    threads = []
    for session in sessions:
        handlers.open_sample(session, tiny_samples()[0])
        run = threading.Thread(target=edit, args=(tiny_desk, session, order))
        run.start()
        threads.append(run)
    for thread in threads:
        thread.join(60)
    first, second = (np.asarray(session.shown.result.load()) for session in sessions)
    assert (first == second).all()
