"""The page as Gradio serves it: what it lets out and lets in. No browser, no model."""

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio", reason='needs pip install "spotedit[app]"')

from spotedit.app import page
from spotedit.app.launch import launch
from spotedit.editor.errors import Failure
from spotedit.editor.settings import EditorSettings


@pytest.fixture(scope="module")
def app(monkeypatch_module):
    """Return the page of an editor that has no model."""
    monkeypatch_module.setattr(page.Desk, "steps", 12)
    editor = SimpleNamespace(settings=EditorSettings(model="tiny"))
    return page.create_app(page.Desk(editor), seed=5)


@pytest.fixture(scope="module")
def monkeypatch_module() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def address(app) -> Iterator[str]:
    yield launch(app, wait=False)
    app.close(verbose=False)


def status_of(address: str, path: str) -> int:
    try:
        with urllib.request.urlopen(address + path, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_it_listens_on_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")


def test_the_browser_may_load_nothing_from_other_hosts(address):
    with urllib.request.urlopen(address, timeout=10) as answer:
        policy = answer.headers["content-security-policy"]
        html = answer.read().decode()
    assert policy.startswith("default-src 'self' data: blob:")
    assert re.search(r"https?:", policy) is None
    loaded = re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=[\"']([^\"']+)", html)
    assert [url for url in loaded if "://" in url and not url.startswith(address)] == []


@pytest.mark.parametrize("file", ["/etc/passwd", __file__, str(Path.cwd() / "pyproject.toml")])
def test_no_file_of_the_machine_can_be_read(file, address):
    assert status_of(address, f"gradio_api/file={file}") == 403


def test_gradio_reports_nothing_and_offers_no_api(app):
    assert app.analytics_enabled is False
    events = json.loads(json.dumps(app.get_config_file()["dependencies"], default=str))
    assert len(events) > 10
    assert {event["api_visibility"] for event in events} == {"private"}


def test_jobs_that_wait_leave_threads_for_cancelling_them(app):
    functions = [event for event in app.fns.values() if event.concurrency_id == "editor"]
    assert len(functions) == 2
    assert {event.concurrency_limit for event in functions} == {page._MAX_JOBS}
    assert app.max_threads > page._MAX_JOBS + page._NUM_READERS


def test_the_page_starts_with_the_settings_of_the_command(app):
    parts = {
        block.elem_id or block.label: block
        for block in app.blocks.values()
        if hasattr(block, "label")
    }
    assert parts["Steps"].value == 12
    assert parts["Seed"].value == 5


def test_a_port_in_use_is_one_line():
    with page.gr.Blocks(analytics_enabled=False) as empty:
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(Failure, match=r"^the page cannot be opened at 127\.0\.0\.1: "):
            launch(empty, port=taken.getsockname()[1], wait=False)


def test_an_expired_page_says_so(app, monkeypatch):
    shown = []
    monkeypatch.setattr(page.gr, "Warning", shown.append)
    assert page._on_session(lambda session: pytest.fail("called"), None)
    page._updates({"status": "status"}, page._on_session(lambda session: {}, None))
    assert shown == [page.words.EXPIRED]
