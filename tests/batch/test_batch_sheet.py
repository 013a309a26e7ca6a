"""The contact sheet: its order, its text, its pictures and its links."""

import base64
import hashlib
import re
from html.parser import HTMLParser
from io import BytesIO
from urllib.parse import unquote

import pytest
from batch_files import INSTRUCTION, NAMES
from PIL import Image

from spotedit.batch import contact_sheet, one
from spotedit.pictures.files import OutputError

BAD_WORDS = '<script>alert("1")</script> & <b>co</b>'


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text by the tag around it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if data.strip():
            self.texts.append((self._open[-1], data))

    def attributes(self, tag: str, name: str) -> list[str]:
        return [found[name] for kind, found in self.tags if kind == tag and name in found]

    def all_text(self, tag: str) -> list[str]:
        return [text for kind, text in self.texts if kind == tag]


@pytest.fixture
def sheet(run, photos, out, monkeypatch):
    """Return a function that runs a batch with a contact sheet and reads the page."""

    def make(instruction=INSTRUCTION, status=0) -> Page:
        assert run(photos, instruction, options=("--contact-sheet",)) == status
        return Page((out / "contact-sheet.html").read_text(encoding="utf-8"))

    return make


def test_a_card_shows_before_after_region_and_facts(sheet, out):
    page = sheet()
    pictures = page.attributes("img", "src")
    assert len(pictures) == 2 * len(NAMES)
    for address in pictures:
        data = base64.b64decode(address.removeprefix("data:image/webp;base64,"))
        assert Image.open(BytesIO(data)).size == (64, 48)
    assert set(page.attributes("img", "loading")) == {"lazy"}
    assert len(page.attributes("svg", "viewbox")) == len(NAMES)
    assert page.all_text("h2") == [INSTRUCTION] * len(NAMES)
    facts = " ".join(text for _, text in page.texts)
    assert re.search(r"region \s*\d+%.* r \s*\d+%.* time \s*\d+\.\d s", facts)


def test_links_lead_to_the_files(sheet, out):
    addresses = sheet().attributes("a", "href")
    assert len(addresses) == 3 * len(NAMES)
    for address in addresses:
        assert (out / unquote(address)).is_file()


def test_nothing_is_loaded_from_elsewhere(sheet, out):
    page = sheet()
    assert not page.attributes("link", "href")
    assert not page.attributes("script", "src")
    (policy,) = [
        found["content"] for _, found in page.tags if found.get("http-equiv", "").startswith("Con")
    ]
    (script,) = page.all_text("script")
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{allowed}'" in policy
    assert "default-src 'none'" in policy


def test_text_is_escaped(sheet, out):
    page = sheet(BAD_WORDS)
    assert page.all_text("h2") == [BAD_WORDS] * len(NAMES)
    assert len(page.all_text("script")) == 1
    assert "b" not in page.all_text("b")
    assert "beach/b & <c>.png" in page.all_text("div")


def test_failures_and_doubts_come_first(sheet, photos, out, monkeypatch):
    (photos / "IMG_10.png").write_bytes(b"no picture")
    original = one._edit

    def edit(editor, job, *further):
        row = original(editor, job, *further)
        return row | {"doubts": ["nothing was edited"]} if "IMG_2" in job.output else row

    monkeypatch.setattr(one, "_edit", edit)
    page = sheet(status=1)
    assert page.attributes("article", "class") == ["failed", "doubtful", "good", "good"]
    text = [text for _, text in page.texts]
    assert "nothing was edited" in text
    assert any("not a picture that Pillow can read" in line for line in text)
    assert "3 edited, 1 with doubts, 1 failed" in text


def test_a_finished_batch_gets_a_sheet_without_a_model(run, model, photos, out):
    assert run(photos, INSTRUCTION) == 0
    assert run(photos, INSTRUCTION, options=("--contact-sheet",)) == 0
    assert run(photos, INSTRUCTION, options=("--contact-sheet",)) == 0  # over its own page
    assert len(model) == 1


def test_a_page_that_cannot_be_written_is_a_failure(run, photos, out, monkeypatch, capsys):
    def fail(path, page):
        raise OutputError(f"{path}: no room")

    monkeypatch.setattr(contact_sheet, "write_text", fail)
    assert run(photos, INSTRUCTION, options=("--contact-sheet",)) == 1
    assert "contact-sheet.html: no room" in capsys.readouterr().err


def test_another_page_is_not_overwritten(run, model, photos, out, capsys):
    out.mkdir()
    (out / "contact-sheet.html").write_text("mine")
    assert run(photos, INSTRUCTION, options=("--contact-sheet",)) == 2
    assert "was not made by spotedit batch" in capsys.readouterr().err
    assert (out / "contact-sheet.html").read_text() == "mine"
    assert model == []
