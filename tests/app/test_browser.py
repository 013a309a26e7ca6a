"""The page in a real browser: Chromium without a window drives a running `spotedit app`."""

import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from app_server import ROOT, running_app
from PIL import Image, ImageOps

from spotedit.app.samples import tiny_samples
from spotedit.tiny.scenes import make_scene

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None]
if CHROMIUM is None:
    MISSING.append("chromium")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]

NUM_STEPS = 8
LONG = 1000  # steps: the edit is cancelled before it ends
TIMEOUT = 240_000  # ms; CI runs other tests beside the browser
GREEN, RED = 1, 0  # channels


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    log = tmp_path_factory.mktemp("app") / "log.txt"
    with running_app(log, "--steps", str(LONG)) as url:
        yield url
    # Gradio may report a browser that left in the middle of a request, which went through launch.py
    ours = re.escape(f'File "{ROOT / "spotedit"}') + r"/(?!app/launch\.py)"
    assert re.findall(ours, log.read_text()) == []


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--enable-unsafe-swiftshader"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, address) -> Iterator[Callable]:
    """Yield a function that opens the page, and its settings, in a browser window of its own."""
    contexts = []

    def open_page(width: int = 1280, height: int = 1000, steps: int = NUM_STEPS):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(TIMEOUT)
        page.requested = []
        page.on("request", lambda request: page.requested.append(request.url))
        page.goto(address)
        page.locator("#samples tbody tr").first.wait_for()
        page.get_by_text("Settings").click()
        set_steps(page, steps)
        return page

    yield open_page
    for context in contexts:
        context.close()


def wait_for_status(page, text: str) -> None:
    page.locator("#status", has_text=text).wait_for()


def open_sample(page, index: int = 0) -> None:
    page.locator("#samples tbody tr").nth(index).click()
    page.locator("#painting canvas").first.wait_for()
    page.locator("#edit:enabled").wait_for()
    page.wait_for_timeout(1500)  # the canvas is drawn


def paint(page, width: int = 120) -> None:
    """Paint a horizontal stroke through the middle of the picture."""
    box = page.locator("#painting canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - width / 2, y)
    page.mouse.down()
    page.mouse.move(x + width / 2, y, steps=10)
    page.mouse.up()
    page.wait_for_timeout(1000)  # the stroke is drawn


def paint_on_page(page) -> float:
    """Return the share of the canvas that has the blue of the brush over the picture."""
    data = page.locator("#painting canvas").first.screenshot()
    pixels = np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    return float(((blue > red + 20) & (blue > green)).mean())


def edit(page) -> None:
    page.locator("#edit").click()
    wait_for_status(page, "The edit is ready")


def set_steps(page, steps: int) -> None:
    number = page.get_by_label("number input for Steps")
    slider = page.get_by_label("range slider for Steps")
    while slider.input_value() != str(steps):  # a page that still loads forgets it
        number.fill(str(steps))
        number.press("Enter")
        page.wait_for_timeout(500)


def download(page, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator("#download").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def greener(picture: Image.Image, source: Image.Image) -> np.ndarray:
    """Return where a picture is much greener than the source: bool [H, W]."""
    before, after = (np.asarray(image.convert("RGB")).astype(int) for image in (source, picture))
    return (after[..., GREEN] - after[..., RED]) - (before[..., GREEN] - before[..., RED]) > 80


def test_a_photograph_is_edited_step_by_step(open_page, tmp_path):
    sample = tiny_samples()[0]  # recolour the red triangle to green
    page = open_page()
    open_sample(page)
    assert page.get_by_label("What to change").input_value() == sample.instruction

    page.locator("#preview").click()
    wait_for_status(page, "The preview is ready")
    page.locator("#scores img").wait_for()
    assert "of the picture at first" in page.locator("#report").inner_text()

    page.locator("#edit").click()
    page.locator("#status progress").wait_for()
    assert f"of {NUM_STEPS}: computed" in page.locator("#status").inner_text()
    wait_for_status(page, "The edit is ready")
    page.locator("#comparison img").first.wait_for()
    assert "of the model's work was skipped" in page.locator("#report").inner_text()

    picture = Image.open(download(page, tmp_path))
    assert picture.format == "PNG"
    assert picture.size == sample.picture.size
    assert greener(picture, sample.picture).mean() > 0.05


def test_only_the_painted_part_changes(open_page, tmp_path):
    sample = tiny_samples()[0]
    page = open_page()
    open_sample(page)
    paint(page)
    edit(page)
    changed = greener(Image.open(download(page, tmp_path)), sample.picture)
    by_row = changed.mean(axis=1)
    middle = len(by_row) // 2
    assert by_row[middle - 4 : middle + 4].mean() > 0.2
    assert by_row[: middle // 2 + 8].mean() < 0.02  # the top of the triangle is not painted


def test_undo_brings_back_the_source_the_paint_and_the_instruction(open_page):
    page = open_page()
    open_sample(page)
    paint(page)
    painted = paint_on_page(page)
    edit(page)
    instruction = page.get_by_label("What to change").input_value()
    page.locator("#use_result").click()
    page.locator("#undo:enabled").wait_for()
    page.wait_for_timeout(1500)
    assert page.get_by_label("What to change").input_value() == ""
    assert paint_on_page(page) < painted / 2
    page.locator("#undo").click()
    wait_for_status(page, "The edit is ready")
    page.wait_for_timeout(1500)
    assert page.get_by_label("What to change").input_value() == instruction
    assert paint_on_page(page) > painted / 2
    assert page.locator("#history img").count() == 1


def test_a_cancelled_edit_leaves_the_page_usable(open_page, tmp_path):
    page = open_page(steps=LONG)
    open_sample(page)
    page.locator("#edit").click()
    page.locator("#status progress").wait_for()
    page.locator("#cancel").click()
    wait_for_status(page, "Cancelled")
    page.locator("#edit:enabled").wait_for(timeout=60_000)
    set_steps(page, NUM_STEPS)
    edit(page)
    sample = tiny_samples()[0]
    assert greener(Image.open(download(page, tmp_path)), sample.picture).mean() > 0.05


def test_a_refused_setting_lets_the_user_go_on(open_page):
    page = open_page()
    open_sample(page)
    seed = page.get_by_label("Seed")
    seed.fill("-3")
    page.locator("#edit").click()
    wait_for_status(page, "The seed is -3")
    seed.fill("3")
    edit(page)


def test_the_canvas_cannot_lose_its_picture(open_page):
    page = open_page()
    open_sample(page)
    paint(page)
    buttons = page.locator("#painting .icon-button-wrapper button:visible")
    names = [button.get_attribute("aria-label") for button in buttons.all()]
    assert names == ["Pan", "Zoom out", "Zoom in", "Clear canvas"]
    buttons.last.click()
    page.locator("#painting canvas").first.wait_for()
    page.wait_for_timeout(1500)
    assert paint_on_page(page) < 0.05
    edit(page)


def test_a_large_photograph_can_be_edited_in_crops(open_page, tmp_path):
    scene = make_scene(1, kind="recolour", size=512)
    path = tmp_path / "large.png"
    scene.source_image.save(path)
    page = open_page()
    page.locator("#upload input").set_input_files(path)
    page.locator("#edit:enabled").wait_for()
    page.get_by_label("Sharper detail in large photographs").check()
    page.get_by_label("What to change").fill(scene.instruction)
    page.locator("#edit").click()
    wait_for_status(page, "Detail 1 of")
    page.locator("#cancel").click()
    wait_for_status(page, "Cancelled")
    edit(page)
    assert Image.open(download(page, tmp_path / "down")).size == (512, 512)


def test_one_users_cancel_does_not_touch_another(open_page):
    first, second = open_page(steps=LONG), open_page()
    for page in (first, second):
        open_sample(page)
    first.locator("#edit").click()
    first.locator("#status progress").wait_for()
    second.locator("#edit").click()
    wait_for_status(second, "Waiting")
    second.locator("#cancel").click()
    wait_for_status(second, "Cancelled")
    wait_for_status(first, f"of {LONG}")
    first.locator("#cancel").click()
    wait_for_status(first, "Cancelled")
    edit(second)
    assert first.locator("#history img").count() == 0


def test_closed_tabs_give_the_editor_back(open_page):
    running, waiting, page = open_page(steps=LONG), open_page(steps=LONG), open_page()
    for closed, status in ((running, f"of {LONG}"), (waiting, "Waiting")):
        open_sample(closed)
        closed.locator("#edit").click()
        wait_for_status(closed, status)
    running.close()
    waiting.close()
    open_sample(page)
    edit(page)


def test_bad_files_are_refused_in_a_line(open_page, tmp_path):
    page = open_page()
    bad = tmp_path / "holiday.jpg"
    bad.write_bytes(b"this is no picture")
    page.locator("#upload input").set_input_files(bad)
    page.get_by_text("holiday.jpg: not a picture").first.wait_for()
    assert str(tmp_path) not in page.content()
    huge = tmp_path / "huge.png"
    Image.new("1", (20_000, 20_000)).save(huge)
    page.locator("#upload input").set_input_files(huge)
    page.get_by_text("scale it down first").first.wait_for()
    open_sample(page)  # the page still works


def test_a_turned_photograph_comes_back_in_its_format_at_its_size(open_page, tmp_path):
    sideways = Image.fromarray(np.full((300, 400, 3), 90, np.uint8))
    exif = Image.Exif()
    exif[274] = 6  # turn clockwise to see it upright
    path = tmp_path / "my dog.jpg"
    sideways.save(path, exif=exif)
    page = open_page()
    page.locator("#upload input").set_input_files(path)
    page.locator("#edit:enabled").wait_for()
    page.get_by_label("What to change").fill("add a large green square at the centre")
    edit(page)
    result = download(page, tmp_path / "down")
    picture = Image.open(result)
    assert (result.suffix, picture.format) == (".jpg", "JPEG")
    assert picture.getexif()[274] == 6
    upright = ImageOps.exif_transpose(picture)
    assert upright.size == (300, 400)
    assert greener(upright, Image.new("RGB", upright.size, (90, 90, 90)))[180:220, 130:170].all()


def test_the_page_asks_no_other_host(open_page, address):
    page = open_page()
    open_sample(page)
    edit(page)
    local = (address, "data:", "blob:")
    assert [url for url in page.requested if not url.startswith(local)] == []


def test_the_page_fits_a_telephone(open_page):
    page = open_page(width=360, height=740)
    open_sample(page)
    edit(page)
    page.get_by_text("More figures").click()
    page.wait_for_timeout(500)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
