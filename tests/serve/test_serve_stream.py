"""`stream=true`: drafts and finished pictures as server-sent events."""

import asyncio
import base64
import json
from dataclasses import replace
from io import BytesIO

import pytest
from PIL import Image
from serving import (
    PATH,
    SETTINGS,
    Call,
    application,
    client_of,
    encoded,
    error,
    form,
    picture,
    random_editor,
    same,
)

from spotedit.editor.errors import BadInput
from spotedit.serve.drafts import draft_steps

NUM_STEPS = 6


@pytest.fixture(scope="module")
def editor():
    with pytest.MonkeyPatch.context() as monkeypatch:
        return random_editor(monkeypatch, num_inference_steps=NUM_STEPS)


@pytest.fixture
def stream(editor):
    """Return a function that posts a form and returns the events of the answer."""

    def post(**fields) -> list[dict]:
        with client_of(editor) as client:
            answer = client.post(PATH, **form(stream="true", **fields))
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"].startswith("text/event-stream")
        return events(answer.text)

    return post


def events(text: str) -> list[dict]:
    found = []
    for block in text.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        found.append(event)
    return found


def picture_of(event: dict) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(event["b64_json"])))


def test_drafts_come_before_the_picture(stream, editor):
    *drafts, completed = stream(partial_images=2)
    steps = {}
    expected = editor.edit(
        picture(), "add a hat", on_step=lambda step: steps.update({step.index: step.image})
    )
    assert [draft["type"] for draft in drafts] == ["image_edit.partial_image"] * 2
    assert [draft["partial_image_index"] for draft in drafts] == [0, 1]
    assert all(map(same, map(picture_of, drafts), (steps[1], steps[3])))
    assert completed["type"] == "image_edit.completed"
    assert same(picture_of(completed), expected.picture)
    assert completed["size"] == "64x48"
    assert completed["spotedit"]["r"] == expected.report.mean_ratio


def test_every_picture_has_an_event_of_its_own(stream, editor):
    sent = stream(n=2, seed=3, output_format="webp")
    assert [event["spotedit"]["seed"] for event in sent] == [3, 4]
    for event in sent:
        expected = editor.edit(picture(), "add a hat", seed=event["spotedit"]["seed"])
        assert picture_of(event).format == "WEBP"
        assert same(picture_of(event), expected.picture)


@pytest.mark.parametrize(
    ("problem", "message", "code"),
    [
        (BadInput("the call is refused"), "the call is refused", "invalid_edit"),
        (RuntimeError("secret"), "the server failed; its log has the reason", "internal_error"),
    ],
)
def test_an_error_within_the_stream_is_an_event(
    stream, editor, monkeypatch, problem, message, code
):
    def edit(*args, **options):
        raise problem

    monkeypatch.setattr(editor, "edit", edit)
    (event,) = stream()
    assert event["type"] == "error"
    assert event["error"]["message"] == message
    assert event["error"]["code"] == code


def test_an_error_before_the_stream_has_a_status(editor):
    with client_of(editor) as client:
        error(client.post(PATH, **form(stream="true", image=b"no picture")), 400)
        error(client.post(PATH, **form(stream="true", partial_images=4)), 400)


@pytest.mark.parametrize("num_read", [0, 1])  # the one event has two parts
def test_a_client_that_does_not_read_loses_its_place_in_time(editor, num_read):
    image = encoded(picture(width=256, height=128))

    async def scenario():
        settings = replace(SETTINGS, queue=0, transfer_seconds=0.5, request_seconds=1)
        app = application([editor], settings)
        async with app.router.lifespan_context(app):
            call = Call(app, num_read=num_read, image=image, stream="true", keep="original")
            registry = app.state.metrics.registry
            await asyncio.wait_for(call.task, 30)
            assert registry.get_sample_value("spotedit_cancelled_requests_total") == 1
            later = Call(app, stream="true")  # the place is free
            await asyncio.wait_for(later.task, 30)
            assert later.status == 200

    asyncio.run(scenario())


def test_a_client_that_leaves_a_stream_ends_its_edit(editor, monkeypatch):
    steps = []
    edit = editor.edit

    def counting_edit(*args, on_step, **options):
        return edit(
            *args, on_step=lambda step: (steps.append(step.index), on_step(step)), **options
        )

    monkeypatch.setattr(editor, "edit", counting_edit)

    async def scenario():
        app = application([editor])
        async with app.router.lifespan_context(app):
            call = Call(app, stream="true", partial_images=3, n=9)
            while not call.body:
                await asyncio.sleep(0.005)
            await call.leave()
            registry = app.state.metrics.registry
            while registry.get_sample_value("spotedit_running"):
                await asyncio.sleep(0.005)
            assert registry.get_sample_value("spotedit_cancelled_requests_total") == 1

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert len(steps) < 9 * NUM_STEPS


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (0, 28, set()),
        (1, 28, {13}),
        (3, 28, {6, 13, 20}),
        (2, 6, {1, 3}),
        (3, 4, {0, 1, 2}),
        (3, 2, {0}),
        (3, 1, set()),
    ],
)
def test_drafts_are_evenly_apart_and_never_of_the_last_step(count, total, expected):
    assert draft_steps(count, total) == expected
